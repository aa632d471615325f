"""Product photographs drawn in code, with the mask they were drawn from."""

import io

import cv2
import numpy as np
from PIL import Image

SIZE = (500, 400)


def disk(center: tuple[int, int] = (200, 260), radius: int = 120, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Bool HW: a filled circle; center is x, y."""
    canvas = np.zeros(size, np.uint8)
    cv2.circle(canvas, center, radius, 255, -1)
    return canvas > 0


def mug() -> tuple[np.ndarray, np.ndarray]:
    """Bool HW each: a mug with a handle, and the hole of the handle."""
    canvas, hole = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    cv2.rectangle(canvas, (80, 150), (250, 380), 255, -1)
    cv2.ellipse(canvas, (255, 260), (75, 80), 0, 0, 360, 255, -1)
    cv2.ellipse(hole, (262, 260), (45, 50), 0, -90, 90, 255, -1)
    hole[:, :251] = 0
    canvas[hole > 0] = 0
    return canvas > 0, hole > 0


def photograph(product: np.ndarray, color: tuple[int, int, int], backdrop: np.ndarray | int = 255) -> np.ndarray:
    """uint8 HW3: `product` (bool HW) in one colour, shaded a little, on a backdrop, with a soft edge."""
    height, width = product.shape
    alpha = cv2.GaussianBlur(product.astype(np.float32), (0, 0), 0.8)[..., None]
    shading = 1 - 0.15 * np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    scene = np.broadcast_to(np.asarray(backdrop, np.float32), (height, width, 3))
    return np.round(np.asarray(color, np.float32) * shading * alpha + scene * (1 - alpha)).clip(0, 255).astype(np.uint8)


def with_shadow(backdrop: float, product: np.ndarray, darkness: float) -> np.ndarray:
    """float32 HW3: the backdrop with a soft shadow on the ground below the product."""
    bottom = int(np.flatnonzero(product.any(axis=1))[-1])
    columns = np.flatnonzero(product.any(axis=0))
    shadow = np.zeros(product.shape, np.float32)
    cv2.ellipse(shadow, (int(columns.mean()), bottom - 5), (len(columns) // 3, 20), 0, 0, 360, 1.0, -1)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 14)
    return np.repeat((backdrop * (1 - darkness * shadow))[..., None], 3, axis=-1)


def as_jpeg(image_u8: np.ndarray, quality: int) -> np.ndarray:
    """The same image through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image_u8).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; uint8 masks count above 127."""
    one, other = (mask if mask.dtype == bool else mask > 127 for mask in (one, other))
    return float((one & other).sum() / (one | other).sum())
