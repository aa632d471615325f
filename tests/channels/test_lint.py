"""Channels' pictures, and the lint that reads their files back."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from refadgen.channels.lint import lint_file
from refadgen.channels.pictures import channel_picture, is_srgb, srgb_profile
from refadgen.channels.rules import load_rules

RULE = load_rules()["meta-square"]
TRAINED = "trainedAlgorithmicMedia"
MARK = (
    b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/%b</Iptc4xmpExt:DigitalSourceType>"
)


def jpeg(
    size: tuple[int, int] = (1080, 1080), mode: str = "RGB", mark: bytes = MARK % TRAINED.encode(), **more
) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, more.pop("format", "JPEG"), xmp=mark, **more)
    return sink.getvalue()


@pytest.mark.parametrize("size", [(1500, 1500), (1200, 628), (960, 1200)])
def test_a_circle_stays_a_circle(size: tuple[int, int]) -> None:
    from refadgen.channels.canvases import canvas_size

    width, height = canvas_size(f"{size[0] / size[1]:.2f}:1" if size[0] > size[1] else "1:1", 512 * 640)
    if size == (960, 1200):
        width, height = 512, 640
    y, x = np.ogrid[:height, :width]
    circle = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (0.4 * min(width, height)) ** 2, 255, 0)
    picture = channel_picture(np.repeat(circle[..., None], 3, axis=2).astype(np.uint8), size)
    assert picture.shape == (size[1], size[0], 3)
    inside = picture[..., 0] > 127
    across, down = np.ptp(np.flatnonzero(inside.any(axis=0))), np.ptp(np.flatnonzero(inside.any(axis=1)))
    assert abs(across / down - 1) < 0.005
    scale = max(size[0] / width, size[1] / height)
    assert abs(across / (0.8 * min(width, height) * scale) - 1) < 0.01


def test_the_profile_is_srgb_and_the_same_each_time() -> None:
    first = srgb_profile()
    srgb_profile.cache_clear()
    assert srgb_profile() == first
    assert is_srgb(first)
    assert not is_srgb(b"no profile")


def test_a_clean_file() -> None:
    assert lint_file(jpeg(icc_profile=srgb_profile()), RULE, TRAINED) == []
    assert lint_file(jpeg(), RULE, TRAINED) == []  # without a profile it is taken for sRGB


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (jpeg()[:2000], "unreadable: OSError"),
        (b"<html>404</html>", "unreadable: UnidentifiedImageError"),
        (jpeg(format="WEBP"), "format webp, not jpeg or png"),
        (jpeg((1080, 1000)), "ratio 1080:1000, not 1:1"),
        (jpeg((300, 300)), "300×300 px, below 600×600"),
        (jpeg(mode="L"), "colours L, not RGB"),
        (jpeg(mark=b""), "no DigitalSourceType: the mark is lost"),
        (jpeg(mark=MARK % b"digitalCapture"), f"marked digitalCapture, not {TRAINED}"),
        (
            jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
            "a colour profile that is not sRGB",
        ),
    ],
)
def test_what_a_channel_would_not_take(data: bytes, found: str) -> None:
    assert lint_file(data, RULE, TRAINED) == [found]


def test_bytes_and_animation() -> None:
    small = dataclasses.replace(RULE, max_bytes=100)
    data = jpeg()
    assert lint_file(data, small, TRAINED) == [f"{len(data)} bytes, above 100"]
    sink, rule = io.BytesIO(), dataclasses.replace(RULE, formats=("webp",))
    frames = [Image.new("RGB", (640, 640), color) for color in ("red", "blue")]
    frames[0].save(sink, "WEBP", save_all=True, append_images=frames[1:], xmp=MARK % TRAINED.encode())
    assert lint_file(sink.getvalue(), rule, TRAINED) == ["animated"]


@pytest.mark.parametrize(
    "mark",
    [
        b"<rdf:Description Iptc4xmpExt:DigitalSourceType='http://cv.iptc.org/newscodes/digitalsourcetype/%b'/>",
        b'<Iptc4xmpExt:DigitalSourceType rdf:resource="http://cv.iptc.org/newscodes/digitalsourcetype/%b"/>',
    ],
)
def test_a_mark_that_another_tool_has_written_anew(mark: bytes) -> None:
    assert lint_file(jpeg(mark=mark % TRAINED.encode()), RULE, TRAINED) == []
