"""What the networks answer: foreground probabilities, checked once at load and again for each photograph."""

import cv2
import numpy as np
from PIL import Image

from refadgen.errors import RowError

PROBE_SIZE = 256
MIN_SPREAD = 1e-6
"""An answer whose values lie within this range is constant."""


def probe_image() -> np.ndarray:
    """A drawn product that every network runs on once before the first photograph: uint8 HW3."""
    image_u8 = np.full((PROBE_SIZE, PROBE_SIZE, 3), 235, np.uint8)
    center = PROBE_SIZE // 2
    cv2.circle(image_u8, (center, center), PROBE_SIZE // 3, (150, 40, 30), -1, cv2.LINE_AA)
    cv2.rectangle(image_u8, (center - 40, center - 10), (center + 40, center + 30), (240, 220, 60), -1)
    return image_u8


def require_usable(place: str, answer: np.ndarray) -> None:
    """Raises: ValueError where the answer to the probe has NaN or infinite values, or is the same everywhere.

    place: the setting and its value, for the message. answer: raw values of any shape.
    """
    if not np.isfinite(answer).all():
        raise ValueError(f"{place}: answers with NaN or infinite values; the weights are broken")
    if float(answer.max()) - float(answer.min()) < MIN_SPREAD:
        raise ValueError(
            f"{place}: answers {float(answer.flat[0]):g} everywhere, whatever the image shows; "
            "is it a segmentation network, and are its weights complete?"
        )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logits to probabilities, float32."""
    # Clipped: the exponential of a logit below -88 overflows float32.
    probability: np.ndarray = 1 / (1 + np.exp(-np.clip(logits.astype(np.float32), -30, 30)))
    return probability


def to_alpha(probability: np.ndarray, size: tuple[int, int], field: str) -> np.ndarray:
    """Alpha of the photograph, uint8 HW, from a network's probability map of any resolution, 0 to 1.

    size: width and height of the photograph. field: the setting that names the network, for the message.
    Raises: RowError, failed `network_failed`, for NaN or infinite values.
    """
    if not np.isfinite(probability).all():
        raise RowError("network_failed", f"{field}: NaN or infinite values for this photograph")
    alpha = Image.fromarray(np.round(np.clip(probability, 0, 1) * 255).astype(np.uint8))
    return np.asarray(alpha if alpha.size == size else alpha.resize(size, Image.Resampling.BILINEAR))


def confidence(probability: np.ndarray) -> float:
    """How clearly a network separates: IoU of its soft map (0 to 1) with the mask above one half; 0 without a mask."""
    mask = probability > 0.5
    union = float(np.maximum(probability, mask).sum())
    return float(probability[mask].sum()) / union if mask.any() else 0.0


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of the masks of two alphas (uint8 HW, above 127); 1 where both are empty."""
    first, second = one > 127, other > 127
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
