"""Decoding what catalogues bring: every colour mode comes out right, every broken file as a rejected row."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from refadgen.catalog.images import decode_image, decode_mask, encode_png
from refadgen.config import FetchConfig
from refadgen.errors import RETRY_HINT, RowError, retried_reasons

CONFIG = FetchConfig()
RED = (200, 30, 40)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _reason(data: bytes, config: FetchConfig = CONFIG) -> str:
    with pytest.raises(RowError) as error:
        decode_image(data, config)
    assert error.value.status == "rejected"
    assert error.value.detail.startswith("image: ")
    assert (RETRY_HINT in error.value.detail) == (error.value.reason in retried_reasons())
    return error.value.reason


def _noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and brings a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_come_out_as_they_went_in(kind):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    image = decode_image(_encoded(_noise(), kind, **options), CONFIG)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(_noise()))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "GIF", "MPO"])
def test_other_formats(kind):
    image = decode_image(_encoded(Image.new("RGB", (40, 30), RED), kind), CONFIG)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4  # lossy codecs and GIF's palette


def test_mpo_with_a_second_picture_is_a_photograph():
    first, second = Image.new("RGB", (40, 30), RED), Image.new("RGB", (40, 30), "blue")
    image = decode_image(_encoded(first, "MPO", save_all=True, append_images=[second]), CONFIG)
    assert image.getpixel((5, 5))[0] > 150


def test_cmyk_jpeg_is_not_inverted():
    # Pillow writes CMYK JPEG the way Adobe does, inverted.
    image = decode_image(_encoded(Image.new("RGB", (32, 32), RED).convert("CMYK"), "JPEG", quality=95), CONFIG)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 6


def test_cmyk_tiff():
    image = decode_image(_encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF"), CONFIG)
    assert image.getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    gray = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    image = decode_image(_encoded(Image.fromarray(gray), kind), CONFIG)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 1], np.round(gray / 257).astype(np.uint8))


def test_wide_integers_and_floats():
    ramp = np.linspace(0, 1, 64 * 32).reshape(32, 64)
    want = np.round(ramp * 255)
    for values in (
        (ramp * 65535).round().astype(np.int32),
        (ramp * 2**31 - 2**30).astype(np.int32),
        ramp.astype(np.float32),
        (ramp * 255).astype(np.float32),
        (ramp * 65535).astype(np.float32),
    ):
        got = np.asarray(decode_image(_encoded(Image.fromarray(values), "TIFF"), CONFIG))[..., 0].astype(int)
        assert np.abs(got - want).max() <= 1, values.dtype
    ramp[0, 0] = np.nan
    assert _reason(_encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF")) == "unreadable_image"


def test_16_bit_png_with_a_transparent_value():
    gray = np.full((32, 32), 40000, np.uint16)
    gray[:16] = 1000
    image = decode_image(_encoded(Image.fromarray(gray), transparency=1000), CONFIG)
    assert image.mode == "RGBA"
    assert image.getpixel((3, 3))[3] == 0
    assert image.getpixel((3, 20)) == (156, 156, 156, 255)


def test_one_bit_gray_and_gray_with_alpha():
    assert decode_image(_encoded(Image.new("1", (20, 20), 1)), CONFIG).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(_encoded(Image.new("L", (20, 20), 77)), CONFIG).getpixel((0, 0)) == (77, 77, 77)
    half = decode_image(_encoded(Image.new("LA", (20, 20), (77, 100))), CONFIG)
    assert (half.mode, half.getpixel((0, 0))) == ("RGBA", (77, 77, 77, 100))


def test_palette_with_and_without_transparency():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (8, 8, 24, 24))
    assert decode_image(_encoded(image), CONFIG).mode == "RGB"
    for transparency in (0, b"\0\xff"):
        clear = decode_image(_encoded(image, transparency=transparency), CONFIG)
        assert (clear.mode, clear.getpixel((0, 0))[3], clear.getpixel((10, 10))) == ("RGBA", 0, (*RED, 255))


def test_rgb_with_a_transparent_colour():
    image = Image.new("RGB", (32, 32), (0, 255, 0))
    image.paste(RED, (8, 8, 24, 24))
    clear = decode_image(_encoded(image, transparency=(0, 255, 0)), CONFIG)
    assert (clear.mode, clear.getpixel((0, 0))[3], clear.getpixel((10, 10))) == ("RGBA", 0, (*RED, 255))


def test_opaque_alpha_is_dropped():
    assert decode_image(_encoded(Image.new("RGBA", (20, 20), (*RED, 255))), CONFIG).mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind, orientation):
    # A red corner, stored as a camera with that orientation would, comes back at the top left.
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste(RED, (0, 0, 16, 16))
    stored_by = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(stored_by[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(_encoded(stored, kind, exif=exif), CONFIG)
    assert image.size == (48, 32)
    assert image.getpixel((8, 8))[1] < 90
    assert image.getpixel((40, 24))[1] > 200
    assert not image.getexif()


def test_broken_exif_costs_nothing():
    data = _encoded(Image.new("RGB", (32, 24), RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, CONFIG).size == (32, 24)


def test_colour_profile_is_applied_and_a_broken_one_ignored():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same with red and green exchanged, under another name.
    swapped = srgb.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile, want in ((srgb, RED), (b"broken", RED), (lab, RED), (swapped, (30, 200, 40))):
        for mode in ("RGB", "RGBA"):
            picture = Image.new(mode, (20, 20), (*RED, 100)[: len(mode)])
            image = decode_image(_encoded(picture, icc_profile=profile), CONFIG)
            assert image.mode == mode
            assert np.abs(np.array(image.getpixel((5, 5))[:3]) - want).max() <= 2
            assert "icc_profile" not in image.info


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<html>404 Not Found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_not_an_image(data):
    assert _reason(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated(kind):
    data = _encoded(_noise(200, 200), kind)
    assert _reason(data[: len(data) // 2]) in ("truncated_image", "unreadable_image")
    if kind in ("JPEG", "PNG", "WEBP"):
        assert _reason(data[: len(data) // 2]) == "truncated_image"


def test_every_cut_and_every_flipped_byte_is_a_row_error_or_an_image():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"):
        data = _encoded(_noise(32, 32), kind)
        broken = [data[:end] for end in rng.integers(0, len(data), 40)]
        for at in rng.integers(0, len(data), 80):
            broken.append(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        for candidate in broken:
            try:
                assert decode_image(candidate, CONFIG).mode in ("RGB", "RGBA")
            except RowError:  # the one exception that may come out
                continue


def test_decompression_bombs_are_seen_in_the_header():
    assert _reason(_png_of_size(8000, 7000)) == "image_too_large"
    assert _reason(_png_of_size(60000, 60000)) == "image_too_large"
    assert _reason(_encoded(_noise()), FetchConfig(max_pixels=1000)) == "image_too_large"
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's own bound is left as it was


def test_large_images_within_the_bound_raise_no_warning():
    # Above Pillow's warning, below ours: decoding then fails only for its missing data.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _reason(_png_of_size(9500, 9500), FetchConfig(max_pixels=10**9)) == "truncated_image"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("AVIF", {})],
    ids=lambda value: str(value),
)
def test_animated_and_many_paged(kind, options):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    assert _reason(_encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == "animated_image"


def test_too_small():
    assert _reason(_encoded(Image.new("RGB", (1, 1)))) == "image_too_small"
    assert _reason(_encoded(Image.new("RGB", (500, 15)))) == "image_too_small"


def test_fully_transparent():
    assert _reason(_encoded(Image.new("RGBA", (32, 32), (*RED, 0)))) == "fully_transparent"


def test_damaged_header_is_not_called_no_image():
    data = bytearray(_encoded(_noise()))
    data[12:16] = b"XXXX"
    assert _reason(bytes(data)) == "unreadable_image"


def test_decoding_in_threads():
    good, bad = _encoded(_noise()), _encoded(_noise(), "JPEG")[:500]
    results: list[bool] = []

    def work(check: Callable[[], bool]) -> None:
        results.extend(check() for _ in range(20))

    checks = [lambda: decode_image(good, CONFIG).size == (64, 48), lambda: _reason(bad) == "truncated_image"]
    threads = [threading.Thread(target=work, args=(checks[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_png_round_trip():
    for mode in ("RGB", "RGBA"):
        image = _noise().convert(mode)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), np.asarray(image))
    mask = np.eye(20, dtype=np.uint8) * 255
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(mask)))), mask)


def _mask_image(mode: str) -> Image.Image:
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 20:50] = 255
    values[10] = 127
    values[29] = 128
    if mode == "alpha":
        return Image.fromarray(np.dstack([np.zeros((40, 60, 3), np.uint8), values]))
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "alpha", "I;16"])
def test_masks_of_every_mode(mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(_mask_image("L")).astype(np.uint16) * 257)
    else:
        image = _mask_image(mode)
    mask = decode_mask(_encoded(image), CONFIG, (60, 40))
    want = np.zeros((40, 60), np.uint8)
    want[11:29, 20:50] = 255
    want[29] = 255
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, want)


def test_one_bit_mask():
    image = _mask_image("L").point(lambda value: 255 if value == 255 else 0).convert("1")
    assert set(np.unique(decode_mask(_encoded(image), CONFIG, (60, 40)))) == {0, 255}


def test_mask_of_another_size_with_the_same_shape():
    mask = decode_mask(_encoded(_mask_image("L")), CONFIG, (601, 400))
    assert mask.shape == (400, 601)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[200, 350] == 255
    assert mask[50, 50] == 0


def _mask_reason(image: Image.Image, size: tuple[int, int]) -> str:
    with pytest.raises(RowError) as error:
        decode_mask(_encoded(image), CONFIG, size)
    assert error.value.status == "rejected"
    assert error.value.detail.startswith("mask: ")
    assert (RETRY_HINT in error.value.detail) == (error.value.reason in retried_reasons())
    return error.value.reason


def test_bad_masks():
    assert _mask_reason(_mask_image("L"), (40, 60)) == "mask_size_mismatch"
    assert _mask_reason(_mask_image("L"), (61, 40)) == "mask_size_mismatch"
    assert _mask_reason(Image.new("L", (60, 40)), (60, 40)) == "empty_mask"
    assert _mask_reason(Image.new("L", (60, 40), 1), (60, 40)) == "empty_mask"  # class numbers, not brightness
    assert _mask_reason(Image.new("RGBA", (60, 40)), (60, 40)) == "empty_mask"
    assert _mask_reason(Image.new("L", (5, 5), 255), (50, 50)) == "image_too_small"
    with pytest.raises(RowError, match="mask: not an image"):
        decode_mask(b"nothing", CONFIG, (60, 40))


def test_no_memory_is_not_the_images_fault(monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("refadgen.catalog.images.to_8bit", exhausted)
    with pytest.raises(RowError) as caught:
        decode_image(encode_png(Image.new("RGB", (64, 64))), FetchConfig())
    assert (caught.value.status, caught.value.reason) == ("failed", "out_of_memory")
