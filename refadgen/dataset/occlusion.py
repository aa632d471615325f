"""Things in front of the product: what cuts a piece out of its silhouette and is not its background.

A gap in the product's convex hull shows the background (a handle, the legs of a chair) or a thing in front. A gap is a
thing in front where its colours are seen neither in the surroundings elsewhere nor in their shadow. With a network's
depth it is one where it is nearer than the product beside it, and none where it is farther; colours decide in between.
"""

import cv2
import numpy as np

from refadgen.config import FilterConfig
from refadgen.dataset.masks import product_box
from refadgen.errors import RowError

_SIDE_PX = 192
"""The longer side of the product's surroundings that are searched."""
_MARGIN = 0.6
"""Width of the surroundings, as a share of the product's longer side."""
_SMALL = 0.012
"""Half the width of gaps and rims that say nothing, as a share of the picture searched."""
_NEAR = 0.4
"""Surroundings this near to a gap, as a share of the product's longer side, may show the same thing and don't count."""
_FOREIGN = 10.0
"""Distance from all colours of the background, in CIE Lab units, above which a colour is foreign."""
_SHADOWS = (1.0, 0.8, 0.6, 0.45, 0.3)
"""Light that shadows leave, as shares: what the product shades shows the background darker."""
_DEPTH_NOISE = 0.03
"""A difference of depth this small says nothing; a share of the surroundings' range of nearness. Not tuned: chosen."""


def hidden_share(image_u8: np.ndarray, mask: np.ndarray, nearness: np.ndarray | None = None) -> float:
    """Returns the area of things in front in the gaps of the product's hull, as a share of the hull, 0 to 1.

    image_u8: uint8 H×W×3, RGB. mask: uint8 H×W, above 127 on the product, not empty, without the thing in front.
    nearness: float32 H×W, greater is nearer, of any scale and shift; None: colours alone decide.
    """
    pixels, product, near = _surroundings(image_u8, mask, nearness)
    radius = max(1, round(_SMALL * max(product.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    hull = np.zeros_like(product)
    cv2.fillConvexPoly(hull, cv2.convexHull(cv2.findNonZero(product)), 1)
    rim = cv2.dilate(product, disk)
    gaps = cv2.morphologyEx(hull & (1 - rim), cv2.MORPH_OPEN, disk)
    background = 1 - cv2.dilate(hull, disk)
    near_px = _NEAR * np.ptp(np.nonzero(product), axis=1).max()
    hidden = 0
    number, labels = cv2.connectedComponents(gaps, connectivity=4)
    for label in range(1, number):
        gap = labels == label
        far = background & (cv2.distanceTransform((~gap).astype(np.uint8), cv2.DIST_L2, 3) > near_px + 2 * radius)
        foreign = _foreign(pixels[gap], pixels[far > 0]) if far.any() else np.zeros(int(gap.sum()), bool)
        if near is not None:
            beside = (cv2.dilate(gap.astype(np.uint8), disk, iterations=3) & product) > 0
            nearer = near[gap] - float(np.median(near[beside if beside.any() else product > 0]))
            foreign = (nearer > _DEPTH_NOISE) | (foreign & (nearer >= -_DEPTH_NOISE))
        hidden += int(foreign.sum())
    return hidden / int(hull.sum())


def occluded(share: float, config: FilterConfig) -> RowError | None:
    """Returns `occluded` where more than `filter.max_hidden` of the product's hull is hidden, else None."""
    if share <= config.max_hidden:
        return None
    return RowError(
        "occluded",
        f"a thing in front hides {share:.1%} of the product's outline, more than {config.max_hidden:.1%} "
        "(filter.max_hidden)",
    )


def _surroundings(
    image_u8: np.ndarray, mask: np.ndarray, nearness: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the product with a margin, uint8 [h, w, 3], its mask uint8 [h, w], 0 or 1, and their nearness, float32
    [h, w], divided by its range (the 5th to the 95th percentile)."""
    left, top, right, bottom = product_box(mask)
    margin = round(_MARGIN * max(right - left, bottom - top))
    part = np.s_[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    height, width = mask[part].shape
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image_u8[part], size, interpolation=cv2.INTER_AREA)
    product = cv2.resize(np.where(mask[part] > 127, 255, 0).astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 127
    if nearness is None:
        return small, product.astype(np.uint8), None
    near = cv2.resize(nearness[part].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    low, high = np.percentile(near, [5, 95])
    return small, product.astype(np.uint8), near / max(float(high - low), 1e-6)


def _foreign(colors: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns bool [N]: which colours, uint8 [N, 3], the background, uint8 [M, 3], has neither lit nor in shadow."""
    seen = np.unique(background >> 3, axis=0).astype(np.float32) * 8 + 4
    shaded = np.concatenate([_lab(seen * share) for share in _SHADOWS])
    own = _lab(colors.astype(np.float32))
    nearest = np.full(len(own), np.inf, np.float32)
    for start in range(0, len(shaded), 512):
        part = shaded[start : start + 512]
        squares = (own**2).sum(1)[:, None] + (part**2).sum(1) - 2 * own @ part.T
        nearest = np.minimum(nearest, squares.min(axis=1))
    return nearest > _FOREIGN**2


def _lab(colors: np.ndarray) -> np.ndarray:
    """Returns float32 [N, 3] of colors float32 [N, 3], 0 to 255."""
    return np.asarray(cv2.cvtColor(colors[None] / np.float32(255), cv2.COLOR_RGB2Lab)[0], np.float32)
