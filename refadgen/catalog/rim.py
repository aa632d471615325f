"""The colour of the product's rim, without the backdrop that was mixed into it.

In a photograph the pixels at the contour are mixtures of product and backdrop, and JPEG carries colours two pixels
further. On the white canvas they would stand as a rim of the backdrop's colour.
"""

import cv2
import numpy as np

REACH_PX = 2.5
"""How far the backdrop's colour reaches into the product, in pixels of the photograph: the mixed pixel of the contour,
and the two beside it that share its colour in a JPEG with halved colour resolution."""
MAX_DEPTH_PX = 5
"""The same on the canvas, at most: a small photograph that is enlarged has a wide rim."""
MIN_CONTRAST = 24.0
"""Least distance of the product's colour from the backdrop's in grey levels; below it, no mixture can be told."""
MIXTURE, OTHER = 0.3, 0.55
"""A colour off the line between product and backdrop by less than the first share of its length is a mixture of both.
By more than the second, it is a colour of the product's own, such as a dark outline."""

MOST_INSIDE = 0.5
"""Largest share of the backdrop in a pixel that is more than one pixel of the photograph inside the contour. What is
nearer to the backdrop there is the product's own: a dark outline before black, a white sole before white."""


def without_backdrop(cutout: np.ndarray, photo: np.ndarray, step: float) -> np.ndarray:
    """Takes the backdrop's share out of the colours of the product's rim.

    cutout: uint8 HW4, the product, premultiplied by its opacity. photo: uint8 HW4, the photograph at the same places,
    not premultiplied. Where its own alpha is below 255, colours are the product's already and stay. step: pixels of
    the photograph in one of these. Returns a cut-out of the same form and opacity.
    """
    opacity = cutout[..., 3]
    disk = _disk(int(np.clip(round(REACH_PX / step), 1, MAX_DEPTH_PX)))
    inside = cv2.erode((opacity >= 250).astype(np.uint8), disk)
    opaque = photo[..., 3] == 255
    outside = cv2.erode(((opacity == 0) & opaque).astype(np.uint8), disk)
    reach = disk.shape[0] + 1
    if not inside.any() or not outside.any():
        return cutout
    straight = cutout[..., :3].astype(np.float32) * 255 / np.maximum(opacity, 1)[..., None]
    product, to_product = _nearest(straight, inside)
    backdrop, to_backdrop = _nearest(photo[..., :3].astype(np.float32), outside)
    rim = (opacity > 0) & (inside == 0) & opaque & (to_product <= reach) & (to_backdrop <= 2 * reach)

    color, product, way = straight[rim], product[rim], (backdrop - product)[rim]
    length = np.linalg.norm(way, axis=1)
    share = np.clip(((color - product) * way).sum(axis=1) / np.maximum(length, 1) ** 2, 0, 1)
    off = np.linalg.norm(color - product - share[:, None] * way, axis=1) / np.maximum(length, 1)
    mixed = np.clip((OTHER - off) / (OTHER - MIXTURE), 0, 1) * (length > MIN_CONTRAST)
    depth = cv2.distanceTransform((opacity >= 128).astype(np.uint8), cv2.DIST_L2, 5)[rim] - 0.5
    mixed *= np.where(depth * step <= 1, 1, np.clip((MOST_INSIDE + 0.2 - share) / 0.2, 0, 1))
    cleaned = cutout.copy()
    clean = np.clip(color - (mixed * share)[:, None] * way, 0, 255)
    cleaned[rim, :3] = np.round(clean * opacity[rim][:, None] / 255)
    return cleaned


def _nearest(colors: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 HW3 and HW: for every pixel, the colour of the nearest one of `where` (uint8 HW), smoothed there by one
    pixel against grain, and the distance to it in pixels."""
    weight = cv2.blur(where.astype(np.float32), (3, 3))[..., None]
    smooth = cv2.blur(colors * where[..., None], (3, 3)) / np.maximum(weight, 1e-6)
    distance, labels = cv2.distanceTransformWithLabels(1 - where, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.zeros((int(labels.max()) + 1, 3), np.float32)
    by_label[labels[where > 0]] = smooth[where > 0]
    return by_label[labels], distance


def _disk(radius: int) -> np.ndarray:
    """uint8: 1 on a disk of 2 · radius + 1 pixels across."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
