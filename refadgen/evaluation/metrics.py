"""Pixel metrics of one generated ad inside its product mask. Images are uint8 H×W×3, masks uint8 H×W, 0 or 255."""

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt


def nearest(
    output: npt.NDArray[np.uint8], candidates: Iterable[npt.NDArray[np.uint8]], mask: npt.NDArray[np.uint8]
) -> int:
    """The index of the candidate with the least mean distance to `output`, in CIELAB inside the mask.

    The share of ads whose nearest candidate is their own product is the product accuracy; chance is one in the number
    of candidates. Candidates that share shape, pose and scene leave only the product's appearance to tell them apart.
    """
    inside = mask > 127
    seen = _smooth_lab(output)[inside]
    return int(np.argmin([np.abs(seen - _smooth_lab(candidate)[inside]).mean() for candidate in candidates]))


def _smooth_lab(image_u8: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """CIELAB, blurred by a pixel, so that noise and small shifts count less than colours."""
    lab = cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return cv2.GaussianBlur(lab, (0, 0), 1.0).astype(np.float32, copy=False)


def inmask_ssim(output: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> float:
    """Mean SSIM of the grey values inside the mask, −1 … 1; 1 for equal images.

    Wang et al. 2004: a Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03. The window is 11 pixels wide, so pixels
    at the mask's edge see a little of what surrounds the product.
    """
    a, b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (output, truth))

    def blur(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return cv2.GaussianBlur(image, (11, 11), 1.5).astype(np.float64, copy=False)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(ssim[mask > 127].mean())
