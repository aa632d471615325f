"""Converts any of Pillow's modes to 8-bit RGB or RGBA: wider values are scaled, not clipped; alpha is kept."""

import io

import numpy as np
from PIL import Image, ImageCms


def to_8bit(image: Image.Image) -> Image.Image:
    """Converts `image`, which must be loaded, to RGB, or to RGBA if a pixel is transparent.

    16 bits are scaled to 8. The range of wider integers and of floats is guessed (`_gray_8bit`). A valid colour profile
    other than sRGB is applied.
    """
    transparency = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        converted = Image.fromarray(_gray_8bit(gray)).convert("RGB")
        if isinstance(transparency, int):
            converted.putalpha(Image.fromarray(np.where(gray == transparency, 0, 255).astype(np.uint8)))
    elif image.mode in ("LA", "La", "PA", "RGBa") or _has_transparent_color(image):
        converted = image.convert("RGBA")
    elif image.mode == "RGBA":
        converted = _to_srgb(image)
    else:
        converted = _to_srgb(image).convert("RGB")
    if converted.mode == "RGBA" and converted.getchannel("A").getextrema()[0] == 255:
        converted = converted.convert("RGB")
    return converted


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 (upright) if it has none or a broken EXIF block."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow's EXIF parser raises struct.error, SyntaxError, KeyError and more
        return 1
    return orientation if isinstance(orientation, int) else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turns and mirrors `image` so that it is upright. orientation: of EXIF, 1 to 8."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)


def _has_transparent_color(image: Image.Image) -> bool:
    """Whether a colour, or an entry of the palette, stands for transparent."""
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return True
    return image.mode in ("1", "L", "RGB", "P") and image.info.get("transparency") is not None


def _gray_8bit(gray: np.ndarray) -> np.ndarray:
    """Scales one wide channel, HW, to uint8.

    A file does not say which range its values have. Integers up to 65535 are scaled from 16 bits, floats from 0 to 1 by
    255; floats up to 255 stay; any other range is stretched from its least to its largest value.
    Raises: ValueError if a value is not finite.
    """
    values = gray.astype(np.float32)
    low, high = float(gray.min()), float(gray.max())
    if not np.isfinite(low + high):
        raise ValueError("pixel values are not finite")
    if gray.dtype.kind == "f" and low >= 0 and high <= 1:
        values *= 255
    elif gray.dtype.kind == "f" and low >= 0 and high <= 255:
        pass
    elif low >= 0 and high <= 65535:
        values *= 255 / 65535
    elif high > low:
        values = (values - low) * (255 / (high - low))
    return (values + 0.5).astype(np.uint8)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Converts RGB, RGBA or CMYK from its embedded colour profile to sRGB; unchanged without a valid profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
        return image if converted is None else converted
    except Exception:  # a broken profile raises PyCMSError, OSError, TypeError, …; the pixels are still good
        return image
