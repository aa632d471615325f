"""What a pixel of a product photograph is, as the mask network names it."""

BACKDROP, PRODUCT, SHADOW, MARK, FRAME = range(5)
"""BACKDROP: also other things in a scene. SHADOW: and reflection. MARK: text, badges, arrows, swatches laid over the
photograph. FRAME: borders, lines and paddings around it."""
NUM_CLASSES = 5
