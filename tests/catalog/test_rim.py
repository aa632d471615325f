"""The rim of the placed product has the product's colour, not the backdrop's."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from refadgen.catalog import layout
from refadgen.catalog.layout import place
from refadgen.config import LayoutConfig

GREEN, BLACK, BLUE, WHITE = (40, 180, 60), (0, 0, 0), (30, 60, 200), (255, 255, 255)
RED = (200, 30, 40)


def _photograph(color, backdrop, size: int, quality: int | None) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse in front of a backdrop, with mixed pixels at its contour, perhaps as JPEG; and its soft mask."""
    large = np.zeros((4 * size, 4 * size), np.uint8)
    cv2.ellipse(large, (2 * size, 2 * size), (size, int(1.2 * size)), 0, 0, 360, 255, -1)
    mask = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    share = mask[..., None] / 255
    image = np.round(share * np.array(color) + (1 - share) * np.array(backdrop)).astype(np.uint8)
    if quality is not None:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        image = np.asarray(Image.open(buffer))
    return image, mask


def _off(placed: layout.PlacedProduct, color) -> float:
    """Median distance of the rim's colours from the line between the product's colour and white, in grey levels."""
    window = np.ones((3, 3), np.uint8)
    rim = (cv2.dilate(placed.mask, window) > 0) & (cv2.erode(placed.mask, window) == 0)
    pixels, way = placed.canvas[rim].astype(float) - 255, np.array(color, float) - 255
    share = np.clip(pixels @ way / (way @ way), 0, 1)
    return float(np.median(np.linalg.norm(pixels - share[:, None] * way, axis=1)))


@pytest.mark.parametrize("backdrop", [GREEN, BLACK, BLUE])
@pytest.mark.parametrize("color", [RED, (225, 220, 205)])
@pytest.mark.parametrize(("size", "quality"), [(200, 92), (500, 60), (1200, 92), (500, None)])
@pytest.mark.parametrize("hard", [False, True])
def test_no_colour_of_the_backdrop_rides_along(color, backdrop, size: int, quality: int | None, hard: bool) -> None:
    image, mask = _photograph(color, backdrop, size, quality)
    if hard:
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    assert _off(place(image, mask, LayoutConfig(), 256, 320), color) < 10


@pytest.mark.parametrize(("size", "quality"), [(200, 92), (500, 60), (500, None)])
@pytest.mark.parametrize("hard", [False, True])
def test_white_backdrops_lose_nothing(size: int, quality: int | None, hard: bool, monkeypatch) -> None:
    """White shining into the rim stays on the line to white. What is off it there is the JPEG's own noise."""
    image, mask = _photograph(RED, WHITE, size, quality)
    if hard:
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    after = _off(place(image, mask, LayoutConfig(), 256, 320), RED)
    monkeypatch.setattr(layout, "without_backdrop", lambda cutout, photo, step: cutout)
    assert after <= _off(place(image, mask, LayoutConfig(), 256, 320), RED) + 0.5


def test_without_it_the_backdrop_would_ride_along(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = _photograph(RED, GREEN, 500, 92)
    monkeypatch.setattr(layout, "without_backdrop", lambda cutout, photo, step: cutout)
    assert _off(place(image, mask, LayoutConfig(), 256, 320), RED) > 20


@pytest.mark.parametrize("backdrop", [GREEN, BLUE, WHITE])
def test_a_dark_outline_and_the_inside_stay(backdrop) -> None:
    image, mask = _photograph(RED, backdrop, 500, None)
    core = cv2.erode(mask, np.ones((7, 7), np.uint8)) > 0
    outline = (mask == 255) & ~core
    image[outline] = 20
    placed = place(image, mask, LayoutConfig(), 512, 640)
    before = place(
        np.where(mask[..., None] > 0, np.where(core[..., None], image, 20), 255).astype(np.uint8),
        mask,
        LayoutConfig(),
        512,
        640,
    )
    solid = cv2.erode(placed.mask, np.ones((3, 3), np.uint8)) > 0
    assert np.abs(placed.canvas[solid].astype(int) - before.canvas[solid]).mean() < 2
    np.testing.assert_array_equal(placed.mask, before.mask)


def test_colours_of_a_cut_out_stay() -> None:
    """Its alpha channel says that they are the product's own."""
    _, mask = _photograph(RED, GREEN, 500, None)
    cutout = np.dstack([np.where(mask[..., None] > 0, RED, 0).astype(np.uint8), mask])
    placed = place(cutout, mask, LayoutConfig(), 256, 320)
    assert _off(placed, RED) < 2
