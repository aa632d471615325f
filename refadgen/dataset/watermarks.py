"""Watermarks that are repeated over a picture: weak marks that form a lattice, whatever they show.

A mark that is laid over a picture again and again makes what is left of it after smoothing resemble itself shifted by
a lattice's vectors, and by their sum or difference. Scenes seldom do so beside the product. No network is needed.
"""

import cv2
import numpy as np

from refadgen.config import FilterConfig
from refadgen.errors import RowError

_SIDE_PX = 384
"""The longer side of the picture that is searched."""
_SCALES = ((15, 7), (41, 13))
"""Width of the median in pixels, which what is smaller than half of it does not pass: marks; and radius of the ring.

A peak stands out from all places of a ring around it: a straight edge resembles itself all along itself."""
_CLIP = 5.0
"""A mark is weak: stronger residuals (edges of the scene) count as this many deviations of the noise."""
_NOISE_PX = 41
"""Width of the window whose median strength is noise: sparse marks on a smooth wall do not raise it."""
_NOISE_FLOOR = 2.0
"""Least deviation of the noise, in grey levels."""
_RIM_PX = 15
"""Width of the disk that widens the product: its edge and its shadow are no marks."""
_MIN_OUTSIDE = 0.25
"""Where the product leaves less than this share of the picture, the whole picture is searched."""
_LAGS = (0.07, 0.7)
"""Shortest and longest vector of a lattice, as shares of the picture's longer side."""
_MIN_OVERLAP = 0.2
"""Least share of the searched pixels that still meet each other after the shift."""
_NUM_PEAKS = 24
_CROSSING = 0.35
"""Least sine of the angle between the two vectors of a lattice."""


def watermark_score(image_u8: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Returns how much the picture resembles itself on a lattice, −1 to 1; above `filter.max_lattice` it is marked.

    image_u8: uint8 H×W×3, RGB. mask: uint8 H×W, above 127 on the product, whose own pattern does not count; None: all.
    """
    return max(_score(image_u8, mask, *scale) for scale in _SCALES)


def _score(image_u8: np.ndarray, mask: np.ndarray | None, median_px: int, ring_px: int) -> float:
    marks, searched = _marks(image_u8, mask, median_px)
    return _lattice(_prominence(*_resemblance(marks, searched), ring_px))


def repeated_watermark(score: float, config: FilterConfig) -> RowError | None:
    """Returns `watermark` where the score is above `filter.max_lattice`, else None."""
    if score <= config.max_lattice:
        return None
    return RowError(
        "watermark",
        f"a mark is repeated over the picture: score {score:.3f} is above {config.max_lattice:g} (filter.max_lattice)",
    )


def _marks(image_u8: np.ndarray, mask: np.ndarray | None, median_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the residual, weighted by the noise and 0 where nothing is searched, and where it is: float32 [h, w]."""
    height, width = image_u8.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.cvtColor(cv2.resize(image_u8, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    residual = grey.astype(np.float32) - cv2.medianBlur(grey, median_px)
    strength = np.clip(np.rint(np.abs(residual) * 4), 0, 255).astype(np.uint8)
    noise = np.maximum(cv2.medianBlur(strength, _NOISE_PX) / np.float32(4 * 0.67), _NOISE_FLOOR)
    # As of measurements of unequal noise: grass counts less than a wall.
    marks = np.clip(residual / noise, -_CLIP, _CLIP) * (_NOISE_FLOOR / noise)
    searched = np.ones(grey.shape, np.float32)
    if mask is not None:
        product = cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_RIM_PX, _RIM_PX))
        outside = 1 - cv2.dilate(product.astype(np.uint8), disk)
        if outside.mean() >= _MIN_OUTSIDE:
            searched = outside.astype(np.float32)
    mean = float((marks * searched).sum() / searched.sum())
    return (marks - mean) * searched, searched


def _resemblance(marks: np.ndarray, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the correlation of the marks with themselves by shift, float32 [h, w], and the shifts that count.

    Shift 0 lies in the middle; shifts reach half the picture in either direction.
    """
    height, width = marks.shape
    shape = (cv2.getOptimalDFTSize(2 * height), cv2.getOptimalDFTSize(2 * width))

    def correlated(values: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft2(values, shape)
        full = np.fft.fftshift(np.fft.irfft2((spectrum * spectrum.conj()).real, shape))
        middle, center = shape[0] // 2, shape[1] // 2
        return full[middle - height // 2 : middle + height // 2 + 1, center - width // 2 : center + width // 2 + 1]

    overlap = correlated(searched)
    by_shift = correlated(marks) / np.maximum(overlap, 1)
    by_shift /= max(float(by_shift[height // 2, width // 2]), 1e-6)
    y, x = np.ogrid[: by_shift.shape[0], : by_shift.shape[1]]
    distance = np.hypot(y - height // 2, x - width // 2) / max(height, width)
    counts = (overlap >= _MIN_OVERLAP * searched.sum()) & (distance >= _LAGS[0]) & (distance <= _LAGS[1])
    return by_shift.astype(np.float32), counts


def _prominence(by_shift: np.ndarray, counts: np.ndarray, ring_px: int) -> np.ndarray:
    """Returns by how much each shift stands out from the ring around it; −1 for shifts that don't count."""
    smooth = cv2.GaussianBlur(by_shift, (0, 0), 1.0)
    side = 2 * ring_px + 1
    outer = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    ring = outer - np.pad(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side - 4, side - 4)), 2)
    return np.where(counts, smooth - cv2.dilate(smooth, ring), -1.0)


def _lattice(prominence: np.ndarray) -> float:
    """Returns the best lattice's weakest vector: of two that cross, and their sum or difference."""
    middle = np.array(prominence.shape) // 2
    near = cv2.dilate(prominence, np.ones((5, 5), np.uint8))
    peaks = np.argwhere((prominence == near) & (prominence > 0)) - middle
    peaks = peaks[(peaks[:, 0] > 0) | ((peaks[:, 0] == 0) & (peaks[:, 1] > 0))]  # the other half mirrors it
    heights = prominence[tuple((peaks + middle).T)]
    order = np.argsort(-heights, kind="stable")[:_NUM_PEAKS]
    found = -1.0
    for place, one in enumerate(order):
        for other in order[:place]:
            first, second = peaks[one], peaks[other]
            area = abs(int(first[0] * second[1] - first[1] * second[0]))
            if area < _CROSSING * np.hypot(*first) * np.hypot(*second):
                continue
            corners = [middle + first + second, middle + first - second]
            closed = max(_at(near, corner) for corner in corners)
            found = max(found, min(float(heights[one]), float(heights[other]), closed))
    return found


def _at(values: np.ndarray, place: np.ndarray) -> float:
    inside = bool((place >= 0).all() and (place < values.shape).all())
    return float(values[tuple(place)]) if inside else -1.0
