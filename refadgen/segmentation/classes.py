"""The five classes of a product photograph's pixels, as the mask network tells them apart."""

BACKDROP, PRODUCT, SHADOW, MARK, FRAME = range(5)
"""BACKDROP: also other things in a scene. SHADOW: also the product's reflection. MARK: text, badges, arrows, swatches
that lie over the photograph. FRAME: borders, lines and paddings around it."""
NUM_CLASSES = 5
