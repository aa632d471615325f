"""Colour profiles and formats of cameras and phones: what decoding makes of them."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from refadgen.catalog import images, pixels
from refadgen.catalog.images import decode_image
from refadgen.config import FetchConfig
from refadgen.errors import RowError

CONFIG = FetchConfig()
SRGB = ImageCms.createProfile("sRGB")


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
WIDE_PRIMARIES = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""XYZ of red, green and blue at D50: sRGB's, and those of Adobe RGB."""


def _profile(
    space: bytes, gamma: float, name: bytes, primaries: tuple[tuple[float, ...], ...] = SRGB_PRIMARIES
) -> bytes:
    """An ICC profile, version 2: primaries, or grey, with a plain power as its curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH2x", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for letter, values in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + _fixed(*values), letter + b"TRC": curve}
    return _packed(space, b"XYZ ", tags)


def _packed(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of these tags. connection: its profile connection space."""
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = (
        b"none"
        + struct.pack(">I", 0x02100000)
        + (b"prtr" if space == b"CMYK" else b"mntr")
        + space
        + connection
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    )
    header += b"acsp" + bytes(28) + _fixed(0.9642, 1, 0.8249)
    header += bytes(124 - len(header))
    return struct.pack(">I", 128 + len(table) + len(body)) + header + table + body


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB, 0 to 255, in the last axis."""
    share = np.asarray(rgb, float) / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = light @ matrix.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _ink_profile() -> bytes:
    """A press: a table of two points an ink (`mft1`), from its inks to CIELAB; dull inks, as on paper."""
    ink = 1 - 0.85 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lab = _lab(245 * np.prod(np.where(corners[..., None] == 1, ink, 1), axis=1))
    table = np.clip(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], -1), 0, 255).round().astype(np.uint8)
    steps = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += 4 * steps + table.tobytes() + 3 * steps
    description = b"desc" + bytes(4) + struct.pack(">I", 6) + b"press\0" + bytes(79)
    white = b"XYZ " + bytes(4) + _fixed(0.9642, 1, 0.8249)
    return _packed(b"CMYK", b"Lab ", {b"desc": description, b"wtpt": white, b"A2B0": lut})


LINEAR = _profile(b"RGB ", 1.0, b"GIMP built-in Linear sRGB")
GRAY_LINEAR = _profile(b"GRAY", 1.0, b"grey, linear")
RGB_PROFILES = {
    "sRGB": ImageCms.ImageCmsProfile(SRGB).tobytes(),
    "linear": LINEAR,
    "gamma 1.8": _profile(b"RGB ", 1.8, b"old Mac"),
    "wide": _profile(b"RGB ", 2.2, b"wide", WIDE_PRIMARIES),
}
GRAY_PROFILES = {"grey, linear": GRAY_LINEAR, "grey, gamma 1.8": _profile(b"GRAY", 1.8, b"grey")}
INK_PROFILES = {"press": _ink_profile()}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
ALPHA = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8))


def _by_littlecms(image: Image.Image, profile: bytes) -> np.ndarray:
    """`image`, RGB or L, as littlecms shows it in sRGB: int HWC."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")).astype(int)


def test_a_profile_is_judged_by_its_colours_and_not_by_its_name() -> None:
    decoded = decode_image(_encoded(PHOTO, icc_profile=LINEAR), CONFIG)
    np.testing.assert_array_equal(np.asarray(decoded), _by_littlecms(PHOTO, LINEAR))
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(PHOTO)).max() > 40
    srgb = ImageCms.ImageCmsProfile(SRGB).tobytes()
    np.testing.assert_array_equal(
        np.asarray(decode_image(_encoded(PHOTO, icc_profile=srgb), CONFIG)), np.asarray(PHOTO)
    )


def test_profiles_of_palettes_colour_keys_and_alpha_are_applied() -> None:
    palette = PHOTO.quantize(32)
    key = PHOTO.getpixel((3, 4))
    translucent = PHOTO.copy()
    translucent.putalpha(ALPHA)
    wanted = _by_littlecms(PHOTO, LINEAR)
    of_palette = _by_littlecms(palette.convert("RGB"), LINEAR)
    for image, options, want in (
        (palette, {}, of_palette),
        (palette, {"transparency": 5}, of_palette),
        (PHOTO, {"transparency": key}, wanted),
        (translucent, {}, wanted),
    ):
        decoded = decode_image(_encoded(image, icc_profile=LINEAR, **options), CONFIG)
        assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - want).max() <= 1
        plain = decode_image(_encoded(image, **options), CONFIG)
        assert decoded.mode == plain.mode
        if plain.mode == "RGBA":
            assert decoded.getchannel("A").tobytes() == plain.getchannel("A").tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "key", "I;16", "JPEG"])
def test_profiles_of_grey_are_applied(mode: str) -> None:
    gray = PHOTO.convert("L")
    options: dict[str, object] = {"transparency": gray.getpixel((3, 4))} if mode == "key" else {}
    image = gray
    if mode == "LA":
        image = gray.copy()
        image.putalpha(ALPHA)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    kind = {"kind": "JPEG", "quality": 100} if mode == "JPEG" else {"kind": "PNG"}
    decoded = decode_image(_encoded(image, icc_profile=GRAY_LINEAR, **kind, **options), CONFIG)
    far = np.abs(np.asarray(decoded.convert("RGB")).astype(int) - _by_littlecms(gray, GRAY_LINEAR)).max()
    assert far <= (12 if mode == "JPEG" else 1)  # JPEG's own rounding, steepest near black
    assert decoded.mode == ("RGBA" if mode in ("LA", "key") else "RGB")


def _in_mode(mode: str) -> tuple[Image.Image, Image.Image, str]:
    """A picture in a mode, what littlecms gets of it, and the format of its file."""
    gray = PHOTO.convert("L")
    if mode in ("LA", "RGBA"):
        image = (gray if mode == "LA" else PHOTO).copy()
        image.putalpha(ALPHA)
        return image, gray if mode == "LA" else PHOTO, "PNG"
    if mode == "P":
        palette = PHOTO.quantize(64)
        return palette, palette.convert("RGB"), "PNG"
    if mode == "I;16":
        return Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), gray, "TIFF"
    inks = np.random.default_rng(2).integers(0, 256, (40, 50, 4), np.uint8)
    image = {"L": gray, "RGB": PHOTO, "CMYK": Image.fromarray(inks, "CMYK")}[mode]
    return image, image, "TIFF" if mode == "CMYK" else "PNG"


MODES_AND_PROFILES = [
    *((mode, name) for mode in ("P", "RGB", "RGBA") for name in RGB_PROFILES),
    *((mode, name) for mode in ("L", "LA", "I;16") for name in GRAY_PROFILES),
    ("CMYK", "press"),
]


def delta_e(mode: str, name: str) -> np.ndarray:
    """ΔE (CIE 1976) of each pixel between what decoding makes of a picture and what littlecms does."""
    image, source, kind = _in_mode(mode)
    profile = {**RGB_PROFILES, **GRAY_PROFILES, **INK_PROFILES}[name]
    decoded = decode_image(_encoded(image, kind, icc_profile=profile), CONFIG)
    return np.linalg.norm(_lab(np.asarray(decoded.convert("RGB"))) - _lab(_by_littlecms(source, profile)), axis=-1)


@pytest.mark.parametrize(("mode", "name"), MODES_AND_PROFILES)
def test_every_mode_and_profile_is_as_littlecms_shows_it(mode: str, name: str) -> None:
    far = delta_e(mode, name)
    assert far.max() <= 1  # hardly visible; a profile that is not applied gives 10 and more, as the next test shows


@pytest.mark.parametrize(("mode", "name"), [each for each in MODES_AND_PROFILES if each[1] != "sRGB"])
def test_a_picture_without_its_profile_is_another(mode: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_to_srgb", lambda image, profile, *, always=False: image)
    assert np.percentile(delta_e(mode, name), 95) > 3


def test_a_profile_of_another_colour_space_costs_nothing() -> None:
    for image, profile in ((PHOTO, GRAY_LINEAR), (PHOTO.convert("L"), LINEAR)):
        decoded = decode_image(_encoded(image, icc_profile=profile), CONFIG)
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 3_000_000)),
        _chunk(b"tEXt", b"Comment\0" + b" " * 2_000_000),
        _chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        _chunk(b"iCCP", b"icc\0\0" + zlib.compress(LINEAR + bytes(2_000_000))),
    ],
)
def test_big_metadata_of_a_png_costs_nothing(chunk: bytes) -> None:
    data = _encoded(PHOTO)
    decoded = decode_image(data[:33] + chunk + data[33:], CONFIG)
    want = _by_littlecms(PHOTO, LINEAR) if b"iCCP" in chunk and len(zlib.decompress(chunk[13:-4])) > 2e6 else PHOTO
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(want))
    if b"iCCP" not in chunk:
        at_the_end = data[:-12] + chunk + data[-12:]
        np.testing.assert_array_equal(np.asarray(decode_image(at_the_end, CONFIG)), np.asarray(PHOTO))


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAALoAAgAAAAACpgABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAOZtZGF0AAAAtigBrwY48Je97bfyGT///ODHof0hOIn7OpadV7AT"
    "vvwzB//xvtLrmtFbtx7scQdgAhj2VsPELowkJkirh0OYYzqw2fnUefXIIP/YJ19X4ergCkCiKCo1Ik9qZfV9bocsXqtbGIei4SiC"
    "CaLZP+0lwaB46SW9AheH7ft/ZU7WXK6MSIwIM9C8P2/b+y3Vdzup70Y/R+hb0uHjvhmUiwoXh+37f2QiVlmdy6iQdRd7kG8b0n0j"
    "SynAAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
"""64×48, red above blue, and EXIF that turns it to the right: by libheif, whose decoder alone is an extra of ours."""


def test_heic_is_decoded_upright() -> None:
    decoded = decode_image(HEIC, CONFIG)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 64))
    for place, want in (((4, 30), (20, 60, 180)), ((44, 30), (200, 30, 40))):
        assert np.abs(np.array(decoded.getpixel(place)) - want).max() <= 4


def test_without_the_decoder_heic_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_heic_format", lambda: ())
    with pytest.raises(RowError, match=r"image: is HEIC, which the extra `heic` reads .* or save it as JPEG") as error:
        decode_image(HEIC, CONFIG)
    assert error.value.reason == "not_an_image"


def test_cut_heic_is_a_rejected_row() -> None:
    for end in (20, 100, 400, len(HEIC) - 40):
        with pytest.raises(RowError) as error:
            decode_image(HEIC[:end], CONFIG)
        assert error.value.status == "rejected"


def test_the_largest_cameras_of_phones_fit() -> None:
    header = struct.pack(">IIBBBBB", 8192, 6144, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(99)))
    with pytest.raises(RowError) as error:
        decode_image(data, CONFIG)
    assert error.value.reason == "truncated_image"
