"""Encoded images of foreign catalogues, decoded to one form: upright 8-bit RGB or RGBA; masks as 0/255.

Whatever is in the bytes, either an image comes out or a `RowError` that says what is wrong: rejected, or failed where
memory ran out. Sizes are checked in the header, before a pixel is decoded. Formats are a fixed list: some of Pillow's
decoders start programs.
"""

import io
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from refadgen.catalog.pixels import orientation_of, to_8bit, upright
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.storage.pictures import to_png

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MASK_ASPECT_TOLERANCE = 0.01  # a mask exported at another resolution differs by its rounding

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ")
_warnings_lock = threading.Lock()


def decode_image(data: bytes, config: FetchConfig) -> Image.Image:
    """The product image: RGB, or RGBA where something in it is transparent; upright, sRGB, without metadata.

    Raises: RowError (rejected): `not_an_image`, `truncated_image`, `image_too_large`, `image_too_small`,
    `animated_image`, `fully_transparent`, `unreadable_image`; failed: `out_of_memory`.
    """
    image = _decode(data, config, "image")
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[1] == 0:
        raise RowError("fully_transparent", "image: every pixel is transparent; there is no product")
    return image


def decode_mask(data: bytes, config: FetchConfig, size: tuple[int, int]) -> np.ndarray:
    """The product's mask as uint8 HW, 0 or 255 from one half up, at `size` (width, height) of the product image.

    A mask with transparency is its alpha channel, any other its brightness. Another size of the same shape (within
    `MASK_ASPECT_TOLERANCE`) is resized, nearest.
    Raises: RowError (rejected): as `decode_image`, `mask_size_mismatch`, `empty_mask`.
    """
    image = _decode(data, config, "mask")
    aspect = (image.width * size[1]) / (image.height * size[0])
    if abs(aspect - 1) > MASK_ASPECT_TOLERANCE:
        raise RowError(
            "mask_size_mismatch",
            f"mask: is {image.width}×{image.height} px, the image {size[0]}×{size[1]}: must have the same shape",
        )
    channel = image.getchannel("A") if image.mode == "RGBA" else image.convert("L")
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


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """PNG bytes, compressed little: they only travel between stages."""
    return to_png(image, compress_level=1)


def _decode(data: bytes, config: FetchConfig, what: str) -> Image.Image:
    """Header checks, decoding, conversion; `what` (image, mask) begins every complaint."""
    if not data:
        raise _error(what, "not_an_image", "the file is empty")
    try:
        with _open(data) as opened:
            _check_header(opened, config, what)
            opened.load()
            # Some files say one size in the header and bring another.
            _check_size(opened.size, config, what)
            image = upright(to_8bit(opened), orientation_of(opened))
    except RowError:
        raise
    except MemoryError as error:
        raise _error(what, "out_of_memory", "no memory left to decode it") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind there is
        raise _rejection(error, data, what) from error
    image.info = {}
    return image


def _open(data: bytes) -> Image.Image:
    """The image with its header read. Pillow's warnings are dropped, also where they are set to raise: it warns of
    sizes, which are checked here, and of metadata, which is not used."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _check_header(image: Image.Image, config: FetchConfig, what: str) -> None:
    _check_size(image.size, config, what)
    # Phones put previews and gain maps behind an MPO file's first picture, which is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _error(what, "animated_image", "holds several frames or pages; must hold one picture")


def _check_size(size: tuple[int, int], config: FetchConfig, what: str) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise _error(
            what,
            "image_too_large",
            f"{width}×{height} px is more than fetch.max_pixels={config.max_pixels}; raise it",
        )
    if min(width, height) < config.min_side_px:
        raise _error(
            what,
            "image_too_small",
            f"the shorter side of {width}×{height} px is below fetch.min_side_px={config.min_side_px}; lower it",
        )


def _rejection(error: Exception, data: bytes, what: str) -> RowError:
    """What a decoder's exception says about the file."""
    message = " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        # Pillow's own bound, above any sensible fetch.max_pixels: no setting lifts it.
        return _error(what, "image_too_large", f"{message.rstrip('.')}; make it smaller")
    if "truncat" in message.lower() or isinstance(error, EOFError) or _ends_early(data):
        return _error(what, "truncated_image", "the file ends too early: copy or upload it again")
    if isinstance(error, UnidentifiedImageError) and not _looks_like_image(data):
        return _error(what, "not_an_image", f"not an image in one of the formats {', '.join(FORMATS)}")
    if isinstance(error, UnidentifiedImageError):
        message = "its header is damaged"
    return _error(what, "unreadable_image", f"cannot be decoded: {type(error).__name__}: {message}")


def _error(what: str, reason: str, rule: str) -> RowError:
    """what: image or mask, the field that the error is about."""
    return RowError(reason, f"{what}: {rule}", field=what)


def _looks_like_image(data: bytes) -> bool:
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _ends_early(data: bytes) -> bool:
    """Whether a WebP file is shorter than it says, or a PNG ends inside its first chunk."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return data.startswith(b"\x89PNG") and len(data) < 33
