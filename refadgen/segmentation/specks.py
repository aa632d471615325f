"""Specks: pieces of a mask that are far too small, and too far off, to be a part of the product.

One pixel in a corner would make the product's box the whole image, and the product small on its canvas.
"""

import cv2
import numpy as np

NUM_CELLS = 96
"""Pieces that are nearer to each other than one or two of so many cells along the image's longer side are one group:
the beads of a necklace, a lace beside its shoe."""
MAX_SPECK = 0.001
"""Largest speck, as a share of the largest group."""
MAX_DOT_PX, MAX_DOT = 9, 0.02
"""A group of so few pixels is a speck, too, up to this share of the largest group: for small images."""


def without_specks(alpha: np.ndarray) -> tuple[np.ndarray, int]:
    """The mask without its specks, and their number.

    alpha: uint8 HW, above 127 on the product; stays as it is. A product that is all small pieces keeps them: what
    counts is a group's size beside the largest.
    """
    height, width = alpha.shape
    cell = max(2, -(-max(height, width) // NUM_CELLS))
    rows, columns = -(-height // cell), -(-width // cell)
    product = np.zeros((rows * cell, columns * cell), bool)
    product[:height, :width] = alpha > 127
    areas = product.reshape(rows, cell, columns, cell).sum(axis=(1, 3))
    count, groups = cv2.connectedComponents((areas > 0).astype(np.uint8), connectivity=8)
    if count <= 2:
        return alpha, 0
    sizes = np.bincount(groups.ravel(), weights=areas.ravel(), minlength=count)
    largest = sizes[1:].max()
    speck = (sizes <= MAX_SPECK * largest) | ((sizes <= MAX_DOT_PX) & (sizes <= MAX_DOT * largest))
    speck[0] = False
    if not speck.any():
        return alpha, 0
    # With the faint rim of each speck, which may lie in the next cell.
    near = cv2.dilate(speck[groups].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    dropped = near & ((groups == 0) | speck[groups])
    where = np.repeat(np.repeat(dropped, cell, axis=0), cell, axis=1)[:height, :width]
    return np.where(where, 0, alpha), int(np.count_nonzero(speck))
