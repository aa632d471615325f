"""What an alpha channel shows: product, product that one looks through, or a shadow.

Alpha says how much of a pixel shows, not how much of it is product. The body of a glass shows little and is product; a
shadow shows much and is none. The canvas keeps the alpha; M′ needs the share of product.
"""

import cv2
import numpy as np

WORK_SIDE_PX = 1024
CLEAR, FAINT, OPAQUE = 4, 16, 240
"""Alpha below which nothing shows; below which a body is not told from nothing; from which nothing shines through."""
MAX_LIGHTNESS, MAX_CHROMA = 50.0, 12.0
"""Most L* and most chroma of a shadow's colour."""
MAX_SLOPE = 20.0
"""Largest median change of a shadow's alpha from pixel to pixel; dark hair and lace change more."""
MAX_EDGE = 0.5
"""Largest alpha just inside a shadow's outline, as a share of its median: it fades out, smoked glass does not."""
MIN_OPEN = 0.1
"""Least share of a shadow's outline that nothing adjoins. What the product encloses is its own: a tinted lens."""
MAX_SPAN = 0.25
"""Largest range of alpha over five pixels of a body, relative to its alpha; more is a soft edge."""


def product_share(alpha: np.ndarray, image_u8: np.ndarray) -> np.ndarray:
    """The share of product in each pixel, uint8 HW, 255 is all of it: also where the product is translucent.

    alpha: uint8 HW, the image's own. image_u8: uint8 HW3, its colours. At soft edges the share is the alpha, in a body
    that white shines through it is 255, in a shadow 0.
    """
    height, width = alpha.shape
    if not ((alpha >= CLEAR) & (alpha < OPAQUE)).any():
        return alpha
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = alpha if scale == 1 else cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    colors = image_u8 if scale == 1 else cv2.resize(image_u8, size, interpolation=cv2.INTER_AREA)
    small = cv2.medianBlur(small, 3)
    shadow = _shadow(small, colors)
    body, level = _body(np.where(shadow, 0, small).astype(np.uint8))

    def enlarged(part: np.ndarray) -> np.ndarray:
        part = part.astype(np.uint8)
        return part if scale == 1 else cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST)

    # Beside a body of alpha 60, 30 is half of the product. Beside an opaque one, the share is the alpha.
    relative = cv2.divide(alpha, np.maximum(enlarged(level), 1), scale=255.0)
    share = np.where(enlarged(level) > 0, np.maximum(relative, alpha), alpha)
    share = np.where((enlarged(body) > 0) & (alpha >= FAINT), 255, share).astype(np.uint8)
    if shadow.any():
        near = enlarged(cv2.dilate(shadow.astype(np.uint8), _disk(3))) > 0
        # A shadow's last, hardly visible pixels lie far out.
        tail = enlarged(cv2.dilate(shadow.astype(np.uint8), _disk(15))) > 0
        share[(near & _dark(image_u8) & (alpha < OPAQUE)) | (tail & (alpha < FAINT))] = 0
    return share


def _dark(image_u8: np.ndarray) -> np.ndarray:
    """Bool HW: dark and colourless, as shadows are."""
    lab = cv2.cvtColor(image_u8, cv2.COLOR_RGB2LAB).astype(np.int16)
    chroma: np.ndarray = (lab[..., 1] - 128) ** 2 + (lab[..., 2] - 128) ** 2
    dark: np.ndarray = (lab[..., 0] < MAX_LIGHTNESS * 2.55) & (chroma < MAX_CHROMA**2)
    return dark


def _shadow(alpha: np.ndarray, image_u8: np.ndarray) -> np.ndarray:
    """Bool HW: regions of partial alpha that are dark, colourless, wide, smooth, open to a side, and fade out there."""
    clear = (alpha < CLEAR).astype(np.uint8)
    dark = _dark(image_u8) & (clear == 0) & (alpha < OPAQUE)
    radius = max(2, round(0.004 * max(alpha.shape)))  # a product's soft edge is narrower
    wide = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, _disk(radius))
    region = ((cv2.dilate(wide, _disk(radius)) > 0) & dark).astype(np.uint8)
    shadow = np.zeros(alpha.shape, bool)
    if not wide.any():
        return shadow
    values = alpha.astype(np.float32)
    slope = np.hypot(cv2.Sobel(values, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(values, cv2.CV_32F, 0, 1, scale=1 / 8))
    outline = (region > 0) & (cv2.erode(region, np.ones((3, 3), np.uint8)) == 0)
    beside = cv2.dilate(clear, np.ones((3, 3), np.uint8)) > 0
    just_inside = (cv2.dilate(clear, np.ones((7, 7), np.uint8)) > 0) & ~beside
    count, labels = cv2.connectedComponents(region, connectivity=8)
    for index in range(1, count):
        each = labels == index
        rim = each & outline
        edge = alpha[each & just_inside]
        is_open = np.count_nonzero(rim & beside) >= MIN_OPEN * np.count_nonzero(rim)
        if not is_open or not edge.size or np.median(slope[each]) > MAX_SLOPE:
            continue
        if np.median(edge) <= max(12, MAX_EDGE * np.median(alpha[each])):
            shadow |= each
    # A product that is nothing but dark and soft is no shadow of anything.
    rest = np.count_nonzero((alpha >= FAINT) & ~shadow)
    return shadow if rest >= 0.02 * np.count_nonzero(shadow) else np.zeros_like(shadow)


def _body(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the product is, however translucent, bool HW; the alpha of the body beside each edge, uint8 HW, or 0."""
    shown = alpha >= FAINT
    window = np.ones((5, 5), np.uint8)
    span = cv2.dilate(alpha, window).astype(np.int16) - cv2.erode(alpha, window)
    plateau = shown & ((span <= MAX_SPAN * alpha) | (alpha >= OPAQUE))
    plateau = cv2.morphologyEx(plateau.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    level = cv2.dilate(np.where(plateau, alpha, 0).astype(np.uint8), _disk(4))
    solid = (cv2.morphologyEx(plateau.astype(np.uint8), cv2.MORPH_CLOSE, _disk(4)) > 0) & shown
    # Reflections and engravings in a glass are no edge of it: nothing clear adjoins them.
    edges = (shown & ~solid).astype(np.uint8)
    _, labels = cv2.connectedComponents(edges, connectivity=8)
    beside = cv2.dilate((~shown).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    soft = np.isin(labels, np.setdiff1d(labels[beside], [0]))
    # Without a translucent stretch nearby, as in lace and hair, partial alpha is nothing but edges.
    stretch = cv2.morphologyEx((plateau & (alpha < OPAQUE)).astype(np.uint8), cv2.MORPH_OPEN, window)
    translucent = cv2.dilate(stretch, _disk(6)) > 0
    return shown & ~soft & ~beside & translucent, np.where(shown, level, 0).astype(np.uint8)


def _disk(radius: int) -> np.ndarray:
    """uint8: 1 on a disk of 2 · radius + 1 pixels across."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
