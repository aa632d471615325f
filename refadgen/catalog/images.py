"""Decodes the images of foreign catalogues to one form: upright 8-bit RGB or RGBA; masks to 0 and 255.

Any bytes give an image or a `RowError`: rejected, or failed where memory ran out. Decompression bombs are refused by
the size in the header, before a pixel is decoded.
"""

import functools
import importlib
import io
import threading
import warnings

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from refadgen.catalog.pixels import orientation_of, to_8bit, upright
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.storage.pictures import to_png

# Pillow refuses a PNG for a text or profile above 1 MB. Such files are sound, and pixels may take more memory.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# A fixed list: Pillow also has decoders that start programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MASK_ASPECT_TOLERANCE = 0.01
"""A mask that was exported at another resolution differs from the image's shape by rounding."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_warnings_lock = threading.Lock()


def decode_image(data: bytes, config: FetchConfig) -> Image.Image:
    """Decodes a product image: RGB, or RGBA if a pixel is transparent; upright, sRGB, without metadata.

    Raises: RowError (rejected): `not_an_image`, `truncated_image`, `image_too_large`, `image_too_small`,
    `animated_image`, `fully_transparent`, `unreadable_image`; failed: `out_of_memory`.
    """
    image = _decode(data, config, "image")
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[1] == 0:
        raise RowError("fully_transparent", "image: every pixel is transparent; there is no product")
    return image


def decode_mask(data: bytes, config: FetchConfig, size: tuple[int, int]) -> np.ndarray:
    """Decodes a product's mask: uint8 HW, 255 from half brightness up, else 0.

    size: width and height of the product image. A mask of another size but the same shape (within
    `MASK_ASPECT_TOLERANCE`) is resized, nearest. With transparency its alpha channel counts, else its brightness.
    Raises: RowError (rejected): those of `decode_image`, `mask_size_mismatch`, `empty_mask`.
    """
    channel = _mask_channel(data, config, size)
    if channel.size != size:
        channel = channel.resize(size, Image.Resampling.NEAREST)
    values = np.asarray(channel)
    mask = np.where(values >= 128, 255, 0).astype(np.uint8)
    if not mask.any():
        raise RowError(
            "empty_mask",
            f"mask: no pixel reaches half brightness (the brightest is {values.max()} of 255): paint the product white",
        )
    return mask


def decode_soft_mask(data: bytes, config: FetchConfig, size: tuple[int, int]) -> np.ndarray:
    """Decodes a mask with its soft edge: uint8 HW of the mask's own size, 255 is product.

    size, Raises: as in `decode_mask`, but an empty mask is returned as it is.
    """
    return np.asarray(_mask_channel(data, config, size))


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """PNG bytes at the lowest compression: they only travel between stages."""
    return to_png(image, compress_level=1)


def _mask_channel(data: bytes, config: FetchConfig, size: tuple[int, int]) -> Image.Image:
    """The channel of a mask that counts: L, of the mask's own size. Raises: RowError."""
    image = _decode(data, config, "mask")
    # Compared by shape first: a mask of another photograph would be stretched over this one unseen.
    aspect = (image.width * size[1]) / (image.height * size[0])
    if abs(aspect - 1) > MASK_ASPECT_TOLERANCE:
        raise RowError(
            "mask_size_mismatch",
            f"mask: is {image.width}×{image.height} px, the image {size[0]}×{size[1]}: must have the same shape",
        )
    return image.getchannel("A") if image.mode == "RGBA" else image.convert("L")


def _decode(data: bytes, config: FetchConfig, field: str) -> Image.Image:
    """Checks the header, decodes and converts. field: `image` or `mask`, the field that errors name."""
    if not data:
        raise _error(field, "not_an_image", "the file is empty")
    try:
        with _open(data) as opened:
            _check_header(opened, config, field)
            opened.load()
            # Again: some files have one size in the header and another in their pixels.
            _check_size(opened.size, config, field)
            image = upright(to_8bit(opened), orientation_of(opened))
    except RowError:
        raise
    except MemoryError as error:
        raise _error(field, "out_of_memory", "no memory left to decode it") from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        raise _rejection(error, data, field) from error
    image.info = {}
    return image


def _open(data: bytes) -> Image.Image:
    """Opens an image and reads its header.

    Pillow's warnings are dropped, also where they are set to raise: they are about sizes, which are checked here, and
    about metadata, which is not used.
    """
    # `catch_warnings` swaps a list that all threads share.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=(*FORMATS, *_heic_format()))


@functools.cache
def _heic_format() -> tuple[str, ...]:
    """Pillow's name of HEIC where its decoder, the extra `heic`, is installed; else nothing."""
    try:
        importlib.import_module("pi_heif").register_heif_opener()
    except ImportError:
        return ()
    return ("HEIF",)


def _check_header(image: Image.Image, config: FetchConfig, field: str) -> None:
    _check_size(image.size, config, field)
    # In an MPO or HEIC file of a phone, one picture is the photograph; previews, gain maps and the like lie beside it.
    if image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False):
        raise _error(field, "animated_image", "holds several frames or pages; must hold one picture")


def _check_size(size: tuple[int, int], config: FetchConfig, field: str) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise _error(
            field,
            "image_too_large",
            f"{width}×{height} px is more than fetch.max_pixels={config.max_pixels}; raise it",
        )
    if min(width, height) < config.min_side_px:
        raise _error(
            field,
            "image_too_small",
            f"the shorter side of {width}×{height} px is below fetch.min_side_px={config.min_side_px}; lower it",
        )


def _rejection(error: Exception, data: bytes, field: str) -> RowError:
    """The RowError for an exception of a decoder."""
    message = " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        # Pillow's own limit lies above any sensible fetch.max_pixels, and no setting of ours lifts it.
        return _error(field, "image_too_large", f"{message.rstrip('.')}; make it smaller")
    if "truncat" in message.lower() or isinstance(error, EOFError) or _ends_early(data):
        return _error(field, "truncated_image", "the file ends too early: copy or upload it again")
    if _is_heic(data) and not _heic_format():
        return _error(
            field,
            "not_an_image",
            "is HEIC, which the extra `heic` reads (pip install 'refadgen[heic]'); or save it as JPEG or PNG",
        )
    if isinstance(error, UnidentifiedImageError) and not _looks_like_image(data):
        return _error(field, "not_an_image", f"not an image in one of the formats {', '.join(FORMATS)}")
    if isinstance(error, UnidentifiedImageError):
        message = "its header is damaged"
    return _error(field, "unreadable_image", f"cannot be decoded: {type(error).__name__}: {message}")


def _error(field: str, reason: str, rule: str) -> RowError:
    """field: `image` or `mask`, the field that the error names."""
    return RowError(reason, f"{field}: {rule}", field=field)


def _is_heic(data: bytes) -> bool:
    """Whether a file is HEIC by its brand. AVIF has the same container and is read by Pillow itself."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[8:64]


def _looks_like_image(data: bytes) -> bool:
    return _is_heic(data) or data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _ends_early(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header says, or a PNG ends inside its first chunk."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data.startswith(b"\x89PNG") and len(data) < 33
