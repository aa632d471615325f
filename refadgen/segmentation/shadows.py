"""Soft ground shadows: at the product's foot, darker than the backdrop, hardly coloured, smooth, fading out."""

from collections.abc import Iterator

import cv2
import numpy as np

TINT = (4.0, 0.7)
"""Largest difference of a shadow's a*b* from the backdrop's: a constant, and a share of the darkening, since a coloured
product reflects its colour into its shadow."""
MAX_SLOPE = 1.6
"""Largest change of colour from pixel to pixel in a shadow, in an image of 1,024 pixels; products have harder edges."""
FOOT = 0.35
"""A ground shadow lies in this lowest share of the product's height."""
MAX_SHADOW = 0.35
"""Largest share of the product that may be shadow; more means that the product itself is grey and smooth."""
MAX_DARKENING = (45.0, 28.0, 18.0)
"""Largest darkening of L*, tried in turn. Contact shadows need the large values, which can also eat grey products."""
PASSAGE = (2, 6)
"""Radius in pixels of the disk that must fit through the way into a shadow, tried in turn: the wide one does not leak
into a product whose edge fades, the narrow one finds thin shadows."""


def ground_shadows(product: np.ndarray, lab: np.ndarray, backdrop_lab: np.ndarray) -> Iterator[np.ndarray]:
    """Yields guesses, bool HW each, at the pixels of `product` (bool HW) that are a shadow; the caller judges them.

    lab, backdrop_lab: float32 HW3, CIE Lab.
    """
    rows = np.flatnonzero(product.any(axis=1))
    if not len(rows):
        return
    top = int(rows[-1] - FOOT * (rows[-1] - rows[0]))
    above = product[top - 1] if top > 0 else np.zeros_like(product[0])
    largest = MAX_SHADOW * np.count_nonzero(product)
    product, lab, backdrop_lab = product[top:], lab[top:], backdrop_lab[top:]
    difference = lab - backdrop_lab
    tint = np.linalg.norm(difference[..., 1:], axis=-1)
    darkening = -difference[..., 0]
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.0)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = np.sqrt((across**2 + down**2).sum(axis=-1))
    max_slope = MAX_SLOPE * min(2.0, 1024 / max(len(product) + top, product.shape[1]))
    soft = product & (slope < max_slope) & (darkening > 0) & (tint < TINT[0] + TINT[1] * darkening)
    for max_darkening in MAX_DARKENING:
        candidate = soft & (darkening < max_darkening)
        for radius in PASSAGE:
            shadow = _entered(candidate, ~product, radius)
            # A shadow on the ground ends below the product's foot. One that climbs on is a grey body, or a wall.
            climbs = np.count_nonzero(shadow[0] & above)
            if climbs <= 8 and 0 < np.count_nonzero(shadow) <= largest:
                guess = np.zeros((top + len(shadow), shadow.shape[1]), bool)
                guess[top:] = shadow
                yield guess


def _entered(candidate: np.ndarray, outside: np.ndarray, radius: int) -> np.ndarray:
    """Bool HW: the part of `candidate` that a disk of this radius reaches from `outside` without crossing an edge."""
    passable = (candidate | outside).astype(np.uint8)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    wide = cv2.erode(passable, disk)
    _, labels = cv2.connectedComponents(wide, connectivity=4)
    entries = np.setdiff1d(labels[outside], [0])
    grown = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 3, 2 * radius + 3))
    entered: np.ndarray = (cv2.dilate(np.isin(labels, entries).astype(np.uint8), grown) > 0) & candidate
    return entered
