"""The fidelity scores by their definitions, at full size: a plain reference for the quick ones."""

import cv2
import numpy as np


def full_size_scores(image_u8: np.ndarray, canvas_u8: np.ndarray, mask_u8: np.ndarray) -> tuple[float, float]:
    """Colour and structure similarity. image_u8, canvas_u8: H×W×3. mask_u8: H×W, the product where at least 128."""
    inside = mask_u8 >= 128
    sigma = max(0.8, len(image_u8) / 64)

    def mean(values: np.ndarray) -> np.ndarray:
        """The Gaussian mean of the product's pixels."""
        total, share = (
            cv2.GaussianBlur(each, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
            for each in (values * inside, inside.astype(np.float64))
        )
        return (total / np.maximum(share, 1e-9))[inside]

    labs = [
        cv2.cvtColor(each.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64)
        for each in (image_u8, canvas_u8)
    ]
    means = [np.stack([mean(lab[..., channel]) for channel in range(3)], -1) for lab in labs]
    color = 1 - np.linalg.norm(means[0] - means[1], axis=-1).mean() / 60
    (x, y), (x_mean, y_mean) = (lab[..., 0] for lab in labs), (each[:, 0] for each in means)
    luminance = (2 * x_mean * y_mean + 1) / (x_mean**2 + y_mean**2 + 1)
    spreads = mean(x * x) - x_mean**2 + mean(y * y) - y_mean**2
    structure = (2 * (mean(x * y) - x_mean * y_mean) + 9) / (spreads + 9)
    return max(0.0, color), float(np.clip((luminance * structure).mean(), 0, 1))
