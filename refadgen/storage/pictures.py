"""Images as encoded bytes, for files and for columns that travel between stages."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def to_png(image: Image.Image | npt.NDArray[np.uint8], *, compress_level: int) -> bytes:
    """A picture, or an array uint8 H×W or H×W×C, as PNG. compress_level: zlib's, 0 (none) … 9 (smallest, slowest)."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def to_jpeg(image_u8: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """An array uint8 H×W×3 as JPEG with optimised tables. quality: Pillow's, 1 … 95."""
    buffer = io.BytesIO()
    Image.fromarray(image_u8).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def from_png(data: bytes) -> npt.NDArray[np.uint8]:
    """The array that `to_png` was given: uint8 H×W or H×W×C."""
    return np.asarray(Image.open(io.BytesIO(data)))
