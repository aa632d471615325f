"""Masks of products: for the content filter and for novel views, which must not load each other's packages."""

import numpy as np


def product_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom (both exclusive) of the product in pixels.

    mask: uint8 H×W, above 127 on the product, not empty.
    """
    rows, columns = (np.flatnonzero((mask > 127).any(axis=axis)) for axis in (1, 0))
    assert len(rows), "a mask without a product"
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
