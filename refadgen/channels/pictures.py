"""A generated image as a channel's picture: scaled to its size, never stretched, never cropped through the product."""

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

ImageU8 = npt.NDArray[np.uint8]


def channel_picture(image_u8: ImageU8, size: tuple[int, int]) -> ImageU8:
    """An image, uint8 H×W×3, at a channel's size (width, height; px), by Lanczos.

    The canvas has the size's ratio within about 1 %; what is left is cut off at two sides alike. The product stands
    farther from the border than that (`layout.margin`, and the safe zone).
    """
    height, width = image_u8.shape[:2]
    scale = min(width / size[0], height / size[1])  # px of the image for one of the picture
    cut_x, cut_y = (width - size[0] * scale) / 2, (height - size[1] * scale) / 2
    box = (cut_x, cut_y, width - cut_x, height - cut_y)
    return np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.LANCZOS, box=box))


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An ICC profile of sRGB, the same bytes each time."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # the time at which it was made
    return bytes(profile)


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile says that it is sRGB."""
    try:
        return "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower()
    except (OSError, ImageCms.PyCMSError):
        return False
