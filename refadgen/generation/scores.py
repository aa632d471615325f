"""How faithful an image is to the placed product inside the mask: four scores of 0 to 1."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.batch.rows import Float32
from refadgen.config import QualityConfig
from refadgen.generation.relit import relit_similarities

ImageU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_WORST_DELTA_E = 60.0
"""CIE Lab distance at which two colours have nothing in common: red and green are about 100 apart."""
_SSIM_WINDOW_SHARE = 1 / 64
"""Gaussian deviation as a share of the canvas's height: the same detail at every size."""

_LEAST_FILL = 0.6
"""Least share of the product in the cells that it touches, on average; below it, every pixel is looked at."""


@dataclass(frozen=True, kw_only=True)
class FidelityScores:
    """1 is best. The first two see the ad's light too, the others after it is taken out (`relit.py`)."""

    color_similarity: Float32
    """1 − mean ΔE*ab / 60 of blurred pixels."""
    structure_similarity: Float32
    """Mean SSIM of the lightness."""
    local_similarity: Float32
    """1 − ΔE*ab / 100 where both differ most: another label, a missing part, a product that is moved."""
    hue_similarity: Float32
    """1 − the mean turn of the hue / 30°."""


def score_fidelity(image_u8: ImageU8, canvas_u8: ImageU8, mask_u8: ImageU8) -> FidelityScores:
    """Scores of an ad against the placed product.

    image_u8, canvas_u8: H×W×3. mask_u8: H×W, the product where at least 128. New light and shadow lower both scores a
    little, another product a lot. Only the mask's box is looked at, in cells a third as wide as the window of the SSIM:
    its means hardly change from one pixel to the next.
    """
    inside = mask_u8 >= 128
    if not inside.any():
        return FidelityScores(color_similarity=0.0, structure_similarity=0.0, local_similarity=0.0, hue_similarity=0.0)
    sigma = max(0.8, image_u8.shape[0] * _SSIM_WINDOW_SHARE)
    cell = max(1, int(sigma / 3))
    left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
    box = (slice(top, top + height), slice(left, left + width))
    weight = inside[box].astype(np.float32)
    lab, canvas_lab = (_lab(pixels[box]) * weight[..., None] for pixels in (image_u8, canvas_u8))
    first, second = lab[..., 0], canvas_lab[..., 0]
    share = _cells(weight, cell)
    if share.sum() < _LEAST_FILL * np.count_nonzero(share):  # wires, thin frames: a cell would mix too much
        cell, share = 1, weight
    # A cell has the variance of a box already; the blur adds what is missing to the window's.
    rest = float(np.sqrt(sigma**2 - (cell**2 - 1) / 12)) / cell
    window = np.maximum(_blur(share, rest), 1e-6)
    means, canvas_means, squares = (
        _blur(_cells(planes, cell), rest) / window[..., None]
        for planes in (lab, canvas_lab, np.dstack([first * first, second * second, first * second]))
    )
    distance = float(np.average(np.linalg.norm(means - canvas_means, axis=-1), weights=share))
    structure = float(np.average(_ssim(means[..., 0], canvas_means[..., 0], squares), weights=share))
    local, hue = relit_similarities(image_u8, canvas_u8, inside)
    return FidelityScores(
        color_similarity=max(0.0, 1.0 - distance / _WORST_DELTA_E),
        structure_similarity=float(np.clip(structure, 0.0, 1.0)),
        local_similarity=local,
        hue_similarity=hue,
    )


def below_gate(scores: FidelityScores, quality: QualityConfig) -> str:
    """The first score below its setting, as a sentence; empty: none is."""
    for name, value in dataclasses.asdict(scores).items():
        least = getattr(quality, f"min_{name}")
        if value < least:
            return f"{name} {value:.3f} is below quality.min_{name} {least}"
    return ""


def margin(scores: FidelityScores, quality: QualityConfig) -> float:
    """How far the worst of the scores is above its setting; below 0, it does not pass."""
    values: dict[str, float] = dataclasses.asdict(scores)
    return min(value - float(getattr(quality, f"min_{name}")) for name, value in values.items())


def _lab(image_u8: ImageU8) -> Floats:
    return np.asarray(cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), dtype=np.float32)


def _cells(planes: Floats, cell: int) -> Floats:
    """Means over squares of `cell` pixels, the last ones filled up with zeros. planes: float32 HW or HWC."""
    height, width = (-(-side // cell) for side in planes.shape[:2])
    missing = (height * cell - planes.shape[0], width * cell - planes.shape[1])
    filled = cv2.copyMakeBorder(planes, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _blur(planes: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(planes, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT), np.float32)


def _ssim(mean_1: Floats, mean_2: Floats, squares: Floats) -> Floats:
    """SSIM map of two lightness channels (0 to 100). squares: HW3, the means of x², y² and x·y."""
    c1, c2 = (0.01 * 100) ** 2, (0.03 * 100) ** 2
    var_1, var_2 = squares[..., 0] - mean_1**2, squares[..., 1] - mean_2**2
    covariance = squares[..., 2] - mean_1 * mean_2
    ssim: Floats = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)
    )
    return ssim
