"""Where the product stands: size, anchor, margins, edges."""

import itertools
import typing

import numpy as np
import pytest
from PIL import Image

from refadgen.catalog.layout import PlacedProduct, SafeZone, file_size, merged_layout, place
from refadgen.catalog.placement import Placement
from refadgen.config import Anchor, LayoutConfig
from refadgen.errors import RowError

WIDTH, HEIGHT = 128, 160
RED = (200, 30, 40)


def _product(width: int, height: int, border: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A red block on a black background, and its hard mask."""
    image = np.zeros((height + 2 * border, width + 2 * border, 3), np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)
    image[border : border + height, border : border + width] = RED
    mask[border : border + height, border : border + width] = 255
    return image, mask


def _placed(width: int, height: int, layout: LayoutConfig) -> PlacedProduct:
    return place(*_product(width, height), layout, WIDTH, HEIGHT)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("shape", [(50, 200), (300, 300), (800, 100), (9, 21), (3000, 2400)])
@pytest.mark.parametrize("size", [0.2, 0.6])
def test_larger_relative_extent_is_size(shape, size):
    placed = _placed(*shape, LayoutConfig(size=size))
    left, top, right, bottom = _box(placed.mask)
    relative = (right - left) / WIDTH, (bottom - top) / HEIGHT
    assert max(relative) == pytest.approx(size, abs=1 / WIDTH)
    # The shape is kept, but for the rounding to whole pixels.
    assert (right - left) / (bottom - top) == pytest.approx(
        shape[0] / shape[1], rel=1.1 / min(right - left, bottom - top)
    )
    assert placed.canvas.shape == (HEIGHT, WIDTH, 3)
    assert placed.canvas.dtype == placed.mask.dtype == np.uint8
    assert set(np.unique(placed.mask)) == {0, 255}


@pytest.mark.parametrize("anchor", typing.get_args(Anchor))
def test_anchor(anchor):
    placed = _placed(100, 100, LayoutConfig(size=0.4, anchor=anchor, margin=0.125))
    left, top, right, bottom = _box(placed.mask)
    sides = anchor.split("-")
    gaps = {"left": left - 16, "right": WIDTH - 16 - right, "top": top - 20, "bottom": HEIGHT - 20 - bottom}
    for side in sides:
        assert gaps.get(side, 0) == 0, gaps
    if not {"left", "right"} & set(sides):
        assert abs(left - (WIDTH - right)) <= 1
    if not {"top", "bottom"} & set(sides):
        assert abs(top - (HEIGHT - bottom)) <= 1


@pytest.mark.parametrize(("size", "margin"), list(itertools.product([0.05, 0.7, 1.0], [0.0, 0.2, 0.4])))
def test_never_past_the_margins(size, margin):
    for shape in ((400, 500), (900, 20), (20, 900)):
        left, top, right, bottom = _box(_placed(*shape, LayoutConfig(size=size, margin=margin)).mask)
        assert left >= round(margin * WIDTH)
        assert right <= WIDTH - round(margin * WIDTH)
        assert top >= round(margin * HEIGHT)
        assert bottom <= HEIGHT - round(margin * HEIGHT)


@pytest.mark.parametrize("shape", [(50, 400), (300, 300), (800, 100)])
@pytest.mark.parametrize("anchor", ["bottom", "center", "top-left", "right"])
def test_the_product_stays_out_of_the_safe_zone(shape, anchor):
    layout, zone = LayoutConfig(size=1.0, margin=0.1, anchor=anchor), SafeZone(top=0.14, bottom=0.35, left=0.05)
    placed = place(*_product(*shape), layout, WIDTH, HEIGHT, zone)
    left, top, right, bottom = _box(placed.mask)
    # The margin of 10 % is larger than the zone at the left, and the only one at the right.
    assert (left >= 13, top >= 22, right <= WIDTH - 13, bottom <= HEIGHT - 56) == (True, True, True, True)
    assert abs((right - left) / (bottom - top) / (shape[0] / shape[1]) - 1) < 0.1


def test_a_safe_zone_leaves_room():
    with pytest.raises(ValueError, match=r"safe_zone\.top=0\.5: must be 0 to below 0\.5"):
        SafeZone(top=0.5)


def test_no_fringe_of_the_cut_away_background():
    for shape in ((1000, 1300), (333, 217), (20, 17)):
        placed = _placed(*shape, LayoutConfig())
        canvas = placed.canvas.astype(int)
        # Every pixel is a mix of product red and white, never of the black behind the product.
        share = (255 - canvas[..., 1]) / (255 - RED[1])
        expected = 255 + share[..., None] * (np.array(RED) - 255)
        assert np.abs(canvas - expected).max() <= 2.5  # rounding of premultiplied 8-bit values
        assert (canvas[placed.mask > 0][:, 1] <= 150).all()
        assert (canvas[0] == 255).all()
        inside = _box(placed.mask)
        middle = canvas[(inside[1] + inside[3]) // 2, (inside[0] + inside[2]) // 2]
        assert tuple(middle) == RED


def test_soft_edges_stay_soft_and_the_mask_cuts_at_one_half():
    ys, xs = np.mgrid[:400, :400]
    distance = np.hypot(ys - 199.5, xs - 199.5)
    mask = (np.clip((180 - distance) / 40 + 0.5, 0, 1) * 255).astype(np.uint8)
    image = np.full((400, 400, 3), RED, np.uint8)
    placed = place(image, mask, LayoutConfig(size=0.6, anchor="center"), WIDTH, HEIGHT)
    # 360 source pixels of radius-180 circle become 0.6 of the width.
    radius = 0.6 * WIDTH / 2
    assert placed.mask.astype(bool).sum() == pytest.approx(np.pi * radius**2, rel=0.03)
    green = np.unique(placed.canvas[..., 1])
    assert len(green) > 50


def test_hard_mask_of_a_transparent_image_keeps_its_soft_edge():
    alpha = np.zeros((60, 60), np.uint8)
    alpha[20:40, 20:40] = 255
    alpha[19, 20:40] = 100  # an antialiased upper edge, below the mask's threshold
    image = np.dstack([np.full((60, 60, 3), RED, np.uint8), alpha])
    mask = np.where(alpha >= 128, 255, 0).astype(np.uint8)
    layout = LayoutConfig(size=20 / HEIGHT, anchor="center")
    soft = place(Image.fromarray(image), mask, layout, HEIGHT, HEIGHT)
    left, top, _, _ = _box(soft.mask)
    assert soft.mask.astype(bool).sum() == 400
    assert tuple(soft.canvas[top, left]) == RED
    assert soft.canvas[top - 1, left + 5, 1] == pytest.approx(255 + 100 / 255 * (RED[1] - 255), abs=2)
    assert (soft.canvas[top - 2] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1), (3000, 1)])
def test_hairs_and_dots(shape):
    placed = _placed(*shape, LayoutConfig())
    assert placed.mask.any()
    assert placed.canvas[placed.mask > 0][:, 1].max() < 200


def test_a_hair_thin_diagonal_keeps_a_mask():
    mask = np.eye(2000, dtype=np.uint8) * 255
    assert place(np.zeros((2000, 2000, 3), np.uint8), mask, LayoutConfig(), WIDTH, HEIGHT).mask.any()


def test_a_product_that_fills_its_image():
    image = np.full((300, 200, 3), RED, np.uint8)
    placed = place(image, np.full((300, 200), 255, np.uint8), LayoutConfig(size=1.0, margin=0.0), WIDTH, HEIGHT)
    left, top, right, bottom = _box(placed.mask)
    assert (top, bottom, right - left) == (0, HEIGHT, round(HEIGHT * 2 / 3))


def test_deterministic_and_inputs_untouched():
    image, mask = _product(333, 217)
    before = image.copy(), mask.copy()
    first, second = (place(image, mask, LayoutConfig(), WIDTH, HEIGHT) for _ in range(2))
    np.testing.assert_array_equal(first.canvas, second.canvas)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_empty_masks():
    image, mask = _product(30, 30)
    for empty in (np.zeros_like(mask), np.full_like(mask, 127)):
        with pytest.raises(RowError) as error:
            place(image, empty, LayoutConfig(), WIDTH, HEIGHT)
        assert error.value.reason == "empty_mask"
    with pytest.raises(RowError, match="transparent where"):
        place(np.dstack([image, np.zeros_like(mask)]), mask, LayoutConfig(), WIDTH, HEIGHT)


def test_merged_layout():
    layout = LayoutConfig(size=0.5, anchor="top")
    assert merged_layout(layout, None) is layout
    assert merged_layout(layout, Placement(anchor="left")) == LayoutConfig(size=0.5, anchor="left")


@pytest.mark.parametrize("photo", [(640, 480), (300, 1200), (4000, 3000), (97, 41)])
def test_as_photographed_keeps_the_box_of_the_photograph(photo):
    width, height = photo
    left, top, right, bottom = round(0.55 * width), round(0.1 * height), round(0.9 * width), round(0.45 * height)
    image = np.full((height, width, 3), 70, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    image[top:bottom, left:right], mask[top:bottom, left:right] = RED, 255
    canvas = (512, 640)
    placed = place(image, mask, LayoutConfig(as_photographed=True), *canvas)
    found = np.asarray(_box(placed.mask)) / np.tile(canvas, 2)
    assert found == pytest.approx(np.asarray([left, top, right, bottom]) / np.tile(photo, 2), abs=0.01)
    middle = (slice(int(640 * 0.15), int(640 * 0.4)), slice(int(512 * 0.6), int(512 * 0.85)))
    assert (placed.canvas[middle] == RED).all()
    assert (placed.canvas[placed.mask == 0].reshape(-1, 3)[::97] == 255).mean() > 0.97  # white, but for the soft edge


def test_the_file_has_the_photographs_ratio():
    as_photographed, canvas = LayoutConfig(as_photographed=True), (512, 640)
    assert file_size(LayoutConfig(), (3000, 4000), canvas) == canvas
    assert file_size(as_photographed, (3000, 4000), canvas) == (496, 661)
    assert file_size(LayoutConfig(as_photographed=True, long_side_px=1000), (4000, 3000), canvas) == (1000, 750)
    assert file_size(as_photographed, (100_000, 16), canvas) == (8192, 1)


def test_a_row_with_a_placement_is_placed():
    job = LayoutConfig(as_photographed=True, long_side_px=1000)
    assert merged_layout(job, None) == job
    assert merged_layout(job, Placement(size=0.4)) == LayoutConfig(size=0.4)


def test_as_photographed_without_a_product():
    with pytest.raises(RowError, match="no product"):
        place(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), LayoutConfig(as_photographed=True), 64, 64)
