"""The last rung of the gate's ladder: the product's own pixels in a scene that was generated for it."""

import cv2
import numpy as np
import numpy.typing as npt

ImageU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_EDGE_SHARE = 1 / 200
"""Width of the blended edge as a share of the canvas's shorter side."""
_TONE_SHARE = 1 / 12
"""Gaussian deviation of what counts as light, not as the product's own pattern; a share of the shorter side."""
_MOST_TONE = 25.0
"""Largest change of the lightness (CIELAB, 0 to 100)."""


def with_product_pixels(ad_u8: ImageU8, canvas_u8: ImageU8, mask_u8: ImageU8, tone: float = 0.0) -> ImageU8:
    """The ad with the placed product in place of the generated one. Shadow and light around it stay.

    ad_u8, canvas_u8: H×W×3. mask_u8: H×W, the product where at least 128. Returns: uint8 H×W×3.
    Deeper inside the mask than `edge_px` every pixel is the canvas's. Nearer to the contour the two are blended, with
    the colours of the product's inside: there the canvas is mixed with white. tone: 0 to 1, how much of the generated
    product's lightness the pixels take on, in broad strokes; above 0 they are no longer the canvas's.
    """
    inside = (mask_u8 >= 128).astype(np.uint8)
    edge = edge_px(inside.shape)
    # Outside the canvas there is no edge: a product that is cut by the border keeps its pixels there.
    bordered = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(bordered, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    share = np.clip(depth / (edge + 1), 0, 1).astype(np.float32)
    product = _without_rim(canvas_u8, share == 1)
    if tone > 0:
        product = _toned(product, ad_u8, inside, tone)
    blended = share[..., None] * product + (1 - share[..., None]) * ad_u8
    return np.asarray(np.clip(np.rint(blended), 0, 255), np.uint8)


def edge_px(shape: tuple[int, ...]) -> int:
    """Width of the blended edge on a canvas of the shape H×W."""
    return max(1, round(min(shape[:2]) * _EDGE_SHARE))


def _without_rim(canvas_u8: ImageU8, core: npt.NDArray[np.bool_]) -> Floats:
    """The canvas, H×W×3, with the nearest pixel of the core where the core is not; as it is where there is no core."""
    if not core.any():  # a wire: all of it is edge
        return canvas_u8.astype(np.float32)
    outside = (~core).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colors = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colors[labels[core]] = canvas_u8[core]  # each pixel of the core has a label of its own
    return np.asarray(np.where(core[..., None], canvas_u8, colors[labels]), np.float32)


def _toned(product: Floats, ad_u8: ImageU8, inside: npt.NDArray[np.uint8], tone: float) -> Floats:
    """The product with the broad lightness of what the ad shows inside the mask."""
    sigma = min(inside.shape) * _TONE_SHARE
    weight = inside.astype(np.float32)
    lab = cv2.cvtColor(product / 255, cv2.COLOR_RGB2LAB)
    drawn = cv2.cvtColor(ad_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    difference = cv2.GaussianBlur((drawn[..., 0] - lab[..., 0]) * weight, (0, 0), sigma)
    difference = difference / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3)
    lab[..., 0] = np.clip(lab[..., 0] + tone * np.clip(difference, -_MOST_TONE, _MOST_TONE), 0, 100)
    return np.asarray(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1) * 255, np.float32)
