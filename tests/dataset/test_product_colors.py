"""Product colours: variants of a product are kept, and its picture made again is still found."""

import functools
import io
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from refadgen.config import FilterConfig
from refadgen.dataset.near_duplicates import find_near_duplicates, perceptual_hash, thumbnail
from refadgen.dataset.product_colors import NUM_BYTES, product_color_differences, product_colors
from refadgen.dataset.stages import fitted

SIDE = 800
LIMIT = FilterConfig().duplicate_product_color
Color = tuple[int, int, int]
Drawing = Callable[[Color, Color], np.ndarray]


def _drawn(shape: Callable[[np.ndarray, Color], None]) -> Drawing:
    """Draws at 2048×2048 and scales down, so that thin parts have soft edges; then a camera's noise."""

    @functools.cache
    def draw(color: Color, backdrop: Color) -> np.ndarray:
        large = np.full((2048, 2048, 3), backdrop, np.uint8)
        shape(large, color)
        small = cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return np.clip(small + np.random.default_rng(0).normal(0, 1, small.shape) + 0.5, 0, 255).astype(np.uint8)

    return draw


def _lipstick(image: np.ndarray, color: Color) -> None:
    cv2.rectangle(image, (944, 768), (1104, 1640), (30, 30, 32), -1)
    cv2.rectangle(image, (968, 560), (1080, 768), color, -1)


def _tee(image: np.ndarray, color: Color) -> None:
    points = [(717, 461), (1331, 461), (1690, 717), (1536, 922), (1382, 819), (1382, 1741), (666, 1741), (666, 819)]
    cv2.fillPoly(image, [np.array([*points, (512, 922), (358, 717)], np.int32)], color)


DRAWINGS: dict[str, Drawing] = {
    "ring": _drawn(lambda image, color: cv2.circle(image, (1024, 1075), 435, color, 50)),
    "thin ring": _drawn(lambda image, color: cv2.circle(image, (1024, 1075), 350, color, 18)),
    "necklace": _drawn(lambda image, color: cv2.ellipse(image, (1024, 800), (560, 650), 0, 0, 180, color, 16)),
    "lipstick": _drawn(_lipstick),
    "T-shirt": _drawn(_tee),
    "strap": _drawn(lambda image, color: cv2.rectangle(image, (960, 300), (1080, 1760), color, -1)),
}
WHITE, BLUE = (255, 255, 255), (205, 218, 230)
GOLD, SILVER, ROSE = (212, 175, 55), (192, 192, 196), (205, 145, 125)
BLACK, MIDNIGHT, NAVY = (25, 25, 28), (25, 28, 45), (25, 35, 80)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def _levels(image: np.ndarray, gain: float | tuple[float, float, float], offset: float = 0.0) -> np.ndarray:
    return np.clip(image * np.array(gain) + offset + 0.5, 0, 255).astype(np.uint8)


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 60": lambda image: _jpeg(image, 60),
    "JPEG 95": lambda image: _jpeg(image, 95),
    "smaller": lambda image: cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "larger": lambda image: cv2.resize(image, None, fx=1.3, fy=1.3, interpolation=cv2.INTER_CUBIC),
    "crop": lambda image: image[6:-9, 9:-3],
    "brighter": lambda image: _levels(image, 1, 9),
    "darker": lambda image: _levels(image, 0.96),
    "warmer": lambda image: _levels(image, (1.04, 1, 0.96)),
    "colder": lambda image: _levels(image, (0.96, 1.01, 1.04)),
    "all": lambda image: _jpeg(_levels(image[4:-6, 6:-3], (0.98, 0.96, 0.95), 3), 65),
}


def _kept(*images: np.ndarray) -> list[bool]:
    """Which of the images are kept by the default settings; the ids follow the order."""
    rules = FilterConfig()
    images = tuple(fitted(image, 256) for image in images)  # as the stage does
    found = find_near_duplicates(
        pa.array([f"{number:03d}" for number in range(len(images))]),
        np.array([perceptual_hash(image) for image in images], np.uint64),
        pa.array([thumbnail(image) for image in images]),
        pa.array([product_colors(image) for image in images]),
        max_distance=rules.duplicate_distance or 0,
        max_color_difference=rules.duplicate_color,
        max_product_difference=rules.duplicate_product_color,
    )
    return (found < 0).tolist()


def _difference(image: np.ndarray, other: np.ndarray) -> float:
    rows = [np.frombuffer(product_colors(fitted(each, 256)), np.uint8)[None] for each in (image, other)]
    return float(product_color_differences(*rows)[0])


@pytest.mark.parametrize("backdrop", [WHITE, BLUE])
@pytest.mark.parametrize(
    ("product", "colors"),
    [
        *((product, (GOLD, SILVER, ROSE)) for product in ("ring", "thin ring", "necklace", "strap")),
        ("lipstick", ((190, 20, 40), (230, 120, 150), (110, 60, 40), (235, 105, 85))),
        ("T-shirt", (BLACK, MIDNIGHT, NAVY)),
        ("strap", (BLACK, MIDNIGHT, NAVY)),
        ("T-shirt", ((140, 140, 142), (140, 152, 130), (150, 140, 160))),
    ],
)
def test_colour_variants_are_kept(product: str, colors: tuple[Color, ...], backdrop: Color) -> None:
    images = [
        _jpeg(DRAWINGS[product](color, backdrop), quality)
        for color, quality in zip(colors, (92, 75, 85, 80), strict=False)
    ]
    assert all(_kept(*images)), [_difference(images[0], image) for image in images[1:]]


@pytest.mark.parametrize("edit", EDITS)
def test_a_picture_made_again_is_no_variant(edit: str) -> None:
    for product, drawing in DRAWINGS.items():
        for color, backdrop in ((GOLD, WHITE), (NAVY, BLUE)):
            image = drawing(color, backdrop)
            assert _difference(image, EDITS[edit](image)) <= LIMIT, (product, color, backdrop)


def test_the_product_may_have_the_backdrops_colour() -> None:
    """Then one picture has product where the other has nothing to see."""
    tee = DRAWINGS["T-shirt"]
    assert _difference(tee(WHITE, WHITE), tee((245, 225, 205), WHITE)) > LIMIT
    assert _difference(tee(BLACK, BLACK), tee(NAVY, BLACK)) > LIMIT
    assert _difference(tee(WHITE, WHITE), tee(WHITE, WHITE)) == 0


def test_the_bytes_are_backdrop_and_fields() -> None:
    image = np.full((80, 80, 3), (250, 240, 230), np.uint8)
    image[20:40, 40:50] = (10, 90, 200)  # half of the field in the second row, third column
    entries = np.frombuffer(product_colors(image), np.uint8).reshape(17, 4)
    assert entries[0].tolist() == [250, 240, 230, 255]
    assert np.abs(entries[1 + 4 + 2] - [10, 90, 200, 127.5]).max() <= 0.5
    assert entries[np.arange(17) != 7][1:].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 300), (33, 31)])
def test_a_picture_may_be_tiny(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert len(product_colors(image)) == NUM_BYTES == 68
    assert _difference(image, image) == 0


def test_colours_never_measured_are_near_to_all() -> None:
    row = np.frombuffer(product_colors(DRAWINGS["ring"](GOLD, WHITE)), np.uint8)[None]
    assert product_color_differences(row, np.zeros_like(row)).tolist() == [0]
    assert product_color_differences(row[:0], row[:0]).shape == (0,)


def test_equal_thumbnails_with_other_product_colours_are_not_equal_rows() -> None:
    """The search looks for equal rows first; product colours belong to them."""
    colors = [product_colors(DRAWINGS["ring"](color, WHITE)) for color in (GOLD, SILVER, GOLD)]
    found = find_near_duplicates(
        pa.array(["a", "b", "c"]),
        np.full(3, 7, np.uint64),
        pa.array([bytes(48)] * 3),
        pa.array(colors),
        max_distance=4,
        max_color_difference=12,
        max_product_difference=LIMIT,
    )
    assert found.tolist() == [-1, -1, 0]
