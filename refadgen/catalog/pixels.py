"""Converts any of Pillow's modes to 8-bit RGB or RGBA: wider values are scaled, not clipped; alpha is kept."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

_SRGB_LEVELS = 3
"""Makers' copies of sRGB differ by rounding: at most so many of 255 levels."""


def to_8bit(image: Image.Image) -> Image.Image:
    """Converts `image`, which must be loaded, to RGB, or to RGBA if a pixel is transparent.

    16 bits are scaled to 8. The range of wider integers and of floats is guessed (`_gray_8bit`). A valid colour profile
    other than sRGB is applied.
    """
    profile = image.info.get("icc_profile")
    transparency = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        converted = _to_srgb(Image.fromarray(_gray_8bit(gray)), profile).convert("RGB")
        if isinstance(transparency, int):
            converted.putalpha(Image.fromarray(np.where(gray == transparency, 0, 255).astype(np.uint8)))
    elif image.mode == "L" and not _has_transparent_color(image):
        converted = _to_srgb(image, profile).convert("RGB")
    elif image.mode in ("LA", "La", "L"):
        alpha = image.convert("RGBA").getchannel("A")
        converted = _to_srgb(image.convert("LA").getchannel("L"), profile).convert("RGB")
        converted.putalpha(alpha)
    elif image.mode in ("PA", "RGBa", "RGBA") or _has_transparent_color(image):
        converted = _to_srgb(image.convert("RGBA"), profile, always=image.mode == "RGBA")
    elif image.mode == "CMYK":
        converted = _to_srgb(image, profile, always=True).convert("RGB")
    else:
        converted = _to_srgb(image.convert("RGB"), profile, always=image.mode == "RGB")
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


def _to_srgb(image: Image.Image, profile: bytes | None, *, always: bool = False) -> Image.Image:
    """Converts L, RGB, RGBA or CMYK from a colour profile to sRGB: RGB or RGBA; unchanged without a valid profile.

    A profile that is sRGB but for rounding is not applied. always: only one that also calls itself so is not.
    """
    if not profile or (_is_srgb(profile, image.mode) and not (always and not _is_called_srgb(profile))):
        return image
    try:
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
        return image if converted is None else converted
    except Exception:  # a broken profile raises PyCMSError, OSError, TypeError, …; the pixels are still good
        return image


def _is_called_srgb(profile: bytes) -> bool:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return "srgb" in (ImageCms.getProfileDescription(source) or "").lower()
    except Exception:  # as above
        return False


@functools.lru_cache(maxsize=32)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Whether a profile leaves colours of `mode` as they are, within `_SRGB_LEVELS`. Its name does not decide it.

    GIMP calls its linear space "Linear sRGB".
    """
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    grays = np.arange(256, dtype=np.uint8).reshape(1, -1)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        sample = Image.fromarray(grays if mode == "L" else cube)
        found = ImageCms.profileToProfile(sample, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # as above
        return False
    if found is None:
        return False
    difference = np.asarray(found).astype(np.int16) - np.asarray(sample.convert("RGB")).astype(np.int16)
    return int(np.abs(difference).max()) <= _SRGB_LEVELS
