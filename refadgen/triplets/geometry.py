"""The crop that training and sampling share: resize, then cut ad, product image and mask alike."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class CoverCrop:
    """The place of a canvas in an image that was resized to cover it, or more than that."""

    width_px: int
    height_px: int
    left_share: float
    """Share of the surplus width that is cut off on the left, 0 … 1."""
    top_share: float
    """Share of the surplus height that is cut off at the top, 0 … 1."""
    zoomed: bool = False
    """Whether the image's shorter side is resized to the canvas's longer one, as in the authors' training."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 H×W or H×W×C → height_px×width_px(×C). Arrays of two dimensions are masks and keep their values."""
        height, width = pixels.shape[:2]
        if self.zoomed:
            scale = max(self.width_px, self.height_px) / min(width, height)
        else:
            scale = max(self.width_px / width, self.height_px / height)
        # Rounding may fall one pixel short of the canvas.
        size = (max(self.width_px, round(width * scale)), max(self.height_px, round(height * scale)))
        if size != (width, height):
            smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if pixels.ndim == 2 else smooth)
        left = round(self.left_share * (size[0] - self.width_px))
        top = round(self.top_share * (size[1] - self.height_px))
        return pixels[top : top + self.height_px, left : left + self.width_px]
