"""The colours of an ad's product, and how far two ads are apart in them.

A mean over the picture hides a thin ring's colour: it covers few pixels. So the colours are measured where the picture
is not backdrop, and compared after the shift that the two backdrops show is taken away. A re-upload in another exposure
or white balance stays the same product; a gold and a silver ring are two.
"""

import cv2
import numpy as np
import numpy.typing as npt

_SIDE = 4
_ENTRY = 4
"""Red, green, blue, and weight."""
NUM_BYTES = _ENTRY * (1 + _SIDE**2)

_BORDER = 0.03
"""Share of the shorter side: the backdrop's colour is the median of a border so wide."""
_BACKDROP, _PRODUCT = 5.0, 15.0
"""A pixel nearer to the backdrop than the first (CIE 1976, ΔE) has weight 0, farther than the second weight 1. Noise of
JPEG at quality 60 stays below the first."""
_SUM = np.array([[(100 / 255) ** 2, 1, 1]], np.float32)
"""Sums the squares of L, a and b. In 8 bits lightness goes to 255, a and b have their own unit."""
_WEIGHTS = np.rint(255 * np.clip((np.sqrt(np.arange(2**16)) - _BACKDROP) / (_PRODUCT - _BACKDROP), 0, 1)).astype(
    np.uint8
)
"""Weight of a pixel, 0 to 255, by the square of its distance to the backdrop."""
_LEAST_WEIGHT = 8 / 255
"""Fields with less product in both ads are not compared. A ring as thin as a hundredth of the picture has more."""
_SLACK, _SLACK_WEIGHT = 2.0, 0.02
"""A crop by 2 % moves product into a field or out of it. So much more weight (factor and sum) says nothing."""
_DARKEST = 8.0
_MOST_GAIN = 1.1
"""Largest shift of a re-upload, as a factor: more is another backdrop."""


def product_colors(image_u8: npt.NDArray[np.uint8]) -> bytes:
    """Returns the backdrop's colour and the product's in 4×4 fields: 68 bytes.

    The bytes are 17 entries of red, green, blue and weight. The first entry is the backdrop, of weight 255. The others
    are the fields in rows: the mean colour of what is not backdrop, and its share of the field (0 to 255).

    image_u8: uint8 H×W×3, RGB.
    """
    height, width = image_u8.shape[:2]
    edge = max(1, round(_BORDER * min(height, width)))
    sides = (image_u8[:edge], image_u8[-edge:], image_u8[:, :edge], image_u8[:, -edge:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    backdrop = np.median(border, axis=0).astype(np.uint8)
    apart = cv2.absdiff(cv2.cvtColor(image_u8, cv2.COLOR_RGB2LAB), np.append(_lab_u8(backdrop), 0).astype(np.float64))
    # In 16 bits: at a few hundred kilobytes a step, memory is what takes the time.
    squared = cv2.transform(cv2.multiply(apart, apart, dtype=cv2.CV_16U), _SUM)
    weight = _WEIGHTS[squared].reshape(height, width)
    weighted = cv2.multiply(image_u8, cv2.merge([weight] * 3), dtype=cv2.CV_16U)
    # Times 255, as the colours are: the means of thin parts are small, and rounding would shift their colours.
    planes = (weighted, weight.astype(np.uint16) * 255)
    sums, weights = (
        cv2.resize(each, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) for each in planes
    )
    entries = np.empty((1 + _SIDE**2, _ENTRY), np.uint8)
    entries[0] = (*backdrop, 255)
    entries[1:, :3] = np.rint(255 * sums.reshape(-1, 3) / np.maximum(weights.reshape(-1, 1), 1)).clip(0, 255)
    entries[1:, 3] = np.rint(weights.ravel() / 255)
    return entries.tobytes()


def _lab_u8(color: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(color[None, None], cv2.COLOR_RGB2LAB)[0, 0], np.uint8)


def product_color_differences(colors: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns float32 [N]: for each pair the largest difference of a field, in CIE94 for textiles (ΔE).

    In that formula lightness counts half: where white is clipped, the backdrop does not show by how much a re-upload is
    brighter. A pair of which one is all zeros (an ad whose colours were never measured) has difference 0.

    colors, others: uint8 N×68 from `product_colors`.
    """
    if not len(colors):
        return np.zeros(0, np.float32)
    ours, theirs = (each.reshape(len(each), -1, _ENTRY).astype(np.float32) for each in (colors, others))
    measured = (ours[:, 0, 3] > 0) & (theirs[:, 0, 3] > 0)
    gains = np.maximum(theirs[:, :1, :3], _DARKEST) / np.maximum(ours[:, :1, :3], _DARKEST)
    ours[..., :3] *= np.clip(gains, 1 / _MOST_GAIN, _MOST_GAIN)
    weights = np.stack([ours[:, 1:, 3], theirs[:, 1:, 3]]) / 255
    most = weights.max(axis=0)
    # A part of the backdrop's colour has no weight: a silver ring on grey. Where one ad has much less product in a
    # field than the other, backdrop is in the product's place there.
    shares = np.clip((_SLACK * weights + _SLACK_WEIGHT) / np.maximum(most, 1e-6), 0, 1)
    shares[weights == 0] = 0
    filled = [
        share[..., None] * each[:, 1:, :3] + (1 - share[..., None]) * each[:, :1, :3]
        for share, each in zip(shares, (ours, theirs), strict=True)
    ]
    differences = np.where(most >= _LEAST_WEIGHT, _cie94(*filled), 0).max(axis=1)
    return np.where(measured, differences, 0).astype(np.float32)


def _cie94(colors: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """ΔE*94 with the constants for textiles, its chroma the geometric mean of both. float32 N×M×3, RGB, 0 to 255."""
    (l1, a1, b1), (l2, a2, b2) = (
        np.moveaxis(cv2.cvtColor(np.clip(each / 255, 0, 1, dtype=np.float32), cv2.COLOR_RGB2LAB), 2, 0)
        for each in (colors, others)
    )
    chroma1, chroma2 = np.hypot(a1, b1), np.hypot(a2, b2)
    chroma = np.sqrt(chroma1 * chroma2)
    of_chroma = chroma1 - chroma2
    of_hue_squared = np.maximum((a1 - a2) ** 2 + (b1 - b2) ** 2 - of_chroma**2, 0)
    difference: npt.NDArray[np.float32] = np.sqrt(
        ((l1 - l2) / 2) ** 2 + (of_chroma / (1 + 0.048 * chroma)) ** 2 + of_hue_squared / (1 + 0.014 * chroma) ** 2
    )
    return difference
