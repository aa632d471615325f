"""A product on the canvas of some channels: whole, and out of what they cover."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from refadgen.catalog.layout import PlacedProduct, place
from refadgen.channels.canvases import ChannelCanvas
from refadgen.config import LayoutConfig
from refadgen.errors import RowError

MOST_ENLARGED = 8
"""Times that a product is enlarged from its photograph onto the canvas at most; beyond it there is nothing to see."""
_HALF = 128


def place_for_channels(
    photo: Image.Image, product_mask: npt.NDArray[np.uint8], layout: LayoutConfig, canvas: ChannelCanvas
) -> PlacedProduct:
    """`layout.place` on the canvas, in its safe zone.

    Raises: RowError `empty_mask`; `too_small_for_channel` for a product of too few pixels in its photograph.
    """
    placed = place(photo, product_mask, layout, canvas.width_px, canvas.height_px, canvas.safe_zone)
    before, after = _longer_side(product_mask), _longer_side(placed.mask)
    if after > MOST_ENLARGED * before:
        raise RowError(
            "too_small_for_channel",
            f"image: its product has {before} px on the longer side, and {after} on the canvas for "
            f"{', '.join(rule.name for rule in canvas.rules)}: at most {MOST_ENLARGED} times as many are drawn",
        )
    return placed


def _longer_side(mask: npt.NDArray[np.uint8]) -> int:
    """Pixels from the first to the last of a mask, uint8 HW, along its longer side."""
    rows, columns = (np.flatnonzero((mask >= _HALF).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0
    return max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
