"""Photographs whose mask was once wrong and looked sure: now it is right, or it is doubted by name."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refadgen.config import SegmentationConfig
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.doubt import DoubtfulMask

Drawing = tuple[Image.Image, Image.Image]
"""A photograph, RGB, and the true mask of its product, L."""
Draw = Callable[[ImageDraw.ImageDraw, bool], None]


def _drawn(size: tuple[int, int], paint: Draw, backdrop: str = "white") -> Drawing:
    """paint: draws the product onto both; its second argument says whether it draws the mask."""
    image, mask = Image.new("RGB", size, backdrop), Image.new("L", size, 0)
    paint(ImageDraw.Draw(image), False)
    paint(ImageDraw.Draw(mask), True)
    return image, mask


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue())).convert("RGB")


def _fan(draw: ImageDraw.ImageDraw, is_mask: bool) -> None:
    blade = 255 if is_mask else (150, 40, 60)
    for top in range(90, 380, 24):
        draw.rectangle((120, top, 380, top + 11), fill=blade)
    for left in (120, 240, 360):
        draw.rectangle((left, 80, left + 20, 440), fill=blade)


def _tablet(draw: ImageDraw.ImageDraw, is_mask: bool) -> None:
    draw.rounded_rectangle((110, 70, 390, 430), 18, fill=255 if is_mask else (30, 32, 38))
    if not is_mask:
        draw.rectangle((122, 84, 378, 416), fill=(253, 253, 253))
        for line in range(120, 380, 40):
            draw.rectangle((150, line, 300, line + 8), fill=(210, 215, 225))


def _jar(draw: ImageDraw.ImageDraw, is_mask: bool) -> None:
    body, lid = (255, 255) if is_mask else ((40, 110, 140), (249, 249, 248))
    draw.rounded_rectangle((160, 150, 340, 430), 24, fill=body)
    draw.rounded_rectangle((170, 90, 330, 150), 10, fill=lid)


def _mug(draw: ImageDraw.ImageDraw, is_mask: bool) -> None:
    color = 255 if is_mask else (200, 120, 30)
    draw.rounded_rectangle((180, 170, 320, 340), 16, fill=color)


def _in_frame() -> Drawing:
    image, mask = _drawn((500, 500), _mug, "#d9dde0")
    ImageDraw.Draw(image).rectangle((0, 0, 499, 499), outline=(60, 90, 160), width=14)
    return image, mask


def _padded() -> Drawing:
    image, mask = _drawn((500, 500), _mug, "#c8ccd2")
    around, none = Image.new("RGB", (660, 660), "white"), Image.new("L", (660, 660), 0)
    around.paste(image, (80, 80))
    none.paste(mask, (80, 80))
    return around, none


PHOTOGRAPHS: dict[str, Callable[[], Drawing]] = {
    "gaps between blades": lambda: _drawn((500, 500), _fan),
    "a white face in a dark frame": lambda: _drawn((500, 500), _tablet),
    "a white lid at the contour": lambda: _drawn((500, 500), _jar),
    "a photograph in a frame": _in_frame,
    "a padded photograph": _padded,
}


@pytest.fixture(scope="module")
def masker() -> ProductMasker:
    return ProductMasker(SegmentationConfig())


@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("width", [500, 800])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_right_or_doubted(name: str, width: int, quality: int, masker: ProductMasker) -> None:
    image, mask = PHOTOGRAPHS[name]()
    size = (width, round(width * image.height / image.width))
    photo, truth = _jpeg(image.resize(size), quality), np.asarray(mask.resize(size)) > 127
    try:
        found = masker.segment(photo, None).mask > 0
    except DoubtfulMask:
        return
    assert (found & truth).sum() / (found | truth).sum() > 0.93


@pytest.mark.parametrize("quality", [60, 75, 90])
def test_gaps_are_not_only_doubted(quality: int, masker: ProductMasker) -> None:
    """A product of slats on white is what a shop has: it passes."""
    image, mask = PHOTOGRAPHS["gaps between blades"]()
    found, truth = masker.segment(_jpeg(image, quality), None).mask > 0, np.asarray(mask) > 127
    assert (found & truth).sum() / (found | truth).sum() > 0.95
