"""One geometry for training and sampling: resize to cover the canvas, then one crop for ad, product image and mask."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class CoverCrop:
    """Where a canvas lies in a picture that was resized to cover it."""

    width_px: int
    height_px: int
    left_share: float
    """0 left … 1 right, of what stands over."""
    top_share: float

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 H×W or H×W×C → height_px×width_px(×C). Masks (two dimensions) keep their values: nearest pixel."""
        height, width = pixels.shape[:2]
        scale = max(self.width_px / width, self.height_px / height)
        size = (max(self.width_px, round(width * scale)), max(self.height_px, round(height * scale)))
        if size != (width, height):
            shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if pixels.ndim == 2 else shrinks)
        left = round(self.left_share * (size[0] - self.width_px))
        top = round(self.top_share * (size[1] - self.height_px))
        return pixels[top : top + self.height_px, left : left + self.width_px]
