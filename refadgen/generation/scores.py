"""How faithful an image is to the placed product: colour and structure inside the mask, 0 to 1 each."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.config import QualityConfig

ImageU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_WORST_DELTA_E = 60.0
"""CIE Lab distance at which two colours have nothing in common: red and green are about 100 apart."""
_SSIM_WINDOW_SHARE = 1 / 64
"""Gaussian deviation as a share of the canvas's height: the same detail at every size."""


@dataclass(frozen=True, kw_only=True)
class FidelityScores:
    """color_similarity: 1 − mean ΔE*ab / 60 of blurred pixels. structure_similarity: mean SSIM of the lightness."""

    color_similarity: float
    structure_similarity: float


def score_fidelity(image_u8: ImageU8, canvas_u8: ImageU8, mask_u8: ImageU8) -> FidelityScores:
    """Scores of an ad against the placed product.

    image_u8, canvas_u8: H×W×3. mask_u8: H×W, the product where at least 128. New light and shadow lower both scores a
    little, another product a lot.
    """
    inside = mask_u8 >= 128
    if not inside.any():
        return FidelityScores(color_similarity=0.0, structure_similarity=0.0)
    sigma = max(0.8, image_u8.shape[0] * _SSIM_WINDOW_SHARE)
    weight = inside.astype(np.float32)
    lab, canvas_lab = (_masked_blur(_lab(pixels), weight, sigma) for pixels in (image_u8, canvas_u8))
    distance = np.linalg.norm(lab - canvas_lab, axis=-1)[inside].mean()
    color = max(0.0, 1.0 - float(distance) / _WORST_DELTA_E)
    structure = _ssim(_lab(image_u8)[..., 0], _lab(canvas_u8)[..., 0], weight, sigma)[inside].mean()
    return FidelityScores(color_similarity=color, structure_similarity=float(np.clip(structure, 0.0, 1.0)))


def below_gate(scores: FidelityScores, quality: QualityConfig) -> str:
    """The first score below its setting, as a sentence; empty: none is."""
    for name, value in dataclasses.asdict(scores).items():
        least = getattr(quality, f"min_{name}")
        if value < least:
            return f"{name} {value:.3f} is below quality.min_{name} {least}"
    return ""


def _lab(image_u8: ImageU8) -> Floats:
    return np.asarray(cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), dtype=np.float32)


def _masked_blur(values: Floats, weight: Floats, sigma: float) -> Floats:
    """Gaussian mean of the values inside the mask only: the background never mixes in."""
    shaped = weight if values.ndim == 2 else weight[..., None]
    total = np.asarray(
        cv2.GaussianBlur(np.asarray(values * shaped), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT), dtype=np.float32
    )
    share = np.asarray(
        cv2.GaussianBlur(np.asarray(weight), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT), dtype=np.float32
    )
    blurred: Floats = total / np.maximum(share if values.ndim == 2 else share[..., None], 1e-6)
    return blurred


def _ssim(first: Floats, second: Floats, weight: Floats, sigma: float) -> Floats:
    """SSIM map of two lightness channels (0 to 100), its windows cut to the mask."""
    c1, c2 = (0.01 * 100) ** 2, (0.03 * 100) ** 2
    mean_1, mean_2 = _masked_blur(first, weight, sigma), _masked_blur(second, weight, sigma)
    var_1 = _masked_blur(first * first, weight, sigma) - mean_1**2
    var_2 = _masked_blur(second * second, weight, sigma) - mean_2**2
    covariance = _masked_blur(first * second, weight, sigma) - mean_1 * mean_2
    ssim: Floats = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)
    )
    return ssim
