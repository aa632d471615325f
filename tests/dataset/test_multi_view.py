"""Novel views: the rasterizer against a naive loop, solids turned where geometry says, and what is wrong is found."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import cos, log10, radians, sin, tan
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from refadgen.config import FilterConfig, MultiViewConfig
from refadgen.dataset.content import ContentFilter
from refadgen.dataset.multi_view import NovelView, NovelViews, depth, gaussians, novel_views, rasterizer
from refadgen.dataset.multi_view.depth import InflatedDepth, Relief, inflate, read_base
from refadgen.dataset.multi_view.gaussians import Gaussians, lift, quaternions
from refadgen.dataset.multi_view.rasterizer import Camera, choose_backend, rasterize

HEIGHT, WIDTH = 64, 56
FAR = MultiViewConfig(camera_distance=100, device="cpu", rasterizer="torch")
"""Parallel rays, nearly: what a turn does is then easy to say."""
CPU = MultiViewConfig(device="cpu")


# ---------------------------------------------------------------------------------------------------------- products


def _on_white(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None] > 0, image, 255).astype(np.uint8)


def _bottle() -> tuple[np.ndarray, np.ndarray]:
    """A bottle with a neck and a soft pattern, on white."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[22:56, 16:40] = 255
    mask[10:22, 24:32] = 255
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([120 + 70 * np.sin(x / 3), 110 + 60 * np.cos(y / 4), 90 + x], axis=2)
    return _on_white(np.rint(image), mask), mask


@dataclass
class _Fixed:
    """A depth that is known."""

    front: np.ndarray
    back: np.ndarray

    def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
        return Relief(self.front.astype(np.float32), self.back.astype(np.float32))


def _solid(kind: str, radius: float = 22.0) -> tuple[np.ndarray, np.ndarray]:
    """Mask and half depth of a sphere or an upright cylinder, whose middle is the picture's."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = x - WIDTH / 2, y - HEIGHT / 2
    square = radius**2 - x**2 - (y**2 if kind == "sphere" else 0)
    square[np.abs(y) > 26] = -1
    return np.where(square > 0, 255, 0).astype(np.uint8), np.sqrt(np.maximum(square, 0))


def _dots(places: list[tuple[float, float]]) -> np.ndarray:
    """Soft red dots on blue, at (x, y) from the picture's middle."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    red = np.zeros((HEIGHT, WIDTH))
    for dot_x, dot_y in places:
        red += np.exp(-((x - WIDTH / 2 - dot_x) ** 2 + (y - HEIGHT / 2 - dot_y) ** 2) / (2 * 1.6**2))
    return np.rint(np.stack([240 * red, 0 * red, np.full_like(red, 90)], axis=2)).clip(0, 255).astype(np.uint8)


def _dot_place(image: np.ndarray, mask: np.ndarray, near: tuple[float, float]) -> tuple[float, float]:
    """Centre of the red within 6 pixels of a place, from the picture's middle."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = x - WIDTH / 2, y - HEIGHT / 2
    red = np.where((mask > 0) & ((x - near[0]) ** 2 + (y - near[1]) ** 2 < 36), image[..., 0].astype(float), 0)
    return float((red * x).sum() / red.sum()), float((red * y).sum() / red.sum())


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _check_pair(view: NovelView, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    assert view.image.shape == (*shape, 3)
    assert view.mask.shape == shape
    assert view.image.dtype == view.mask.dtype == np.uint8
    assert set(np.unique(view.mask)) <= {0, 255}
    assert (view.image[view.mask == 0] == 255).all()


def _iou(mask: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(mask & other) / np.count_nonzero(mask | other)


# -------------------------------------------------------------------------------------------------------- rasterizer


def _random_scene(num: int, seed: int, channels: int = 3) -> tuple[Gaussians, Camera]:
    """Gaussians of all sizes and opacities, some of them behind the camera or outside of the picture."""
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(num, 4))
    values = {
        "means": rng.normal(size=(num, 3)) * [3, 3, 4],
        "quats": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "scales": rng.uniform(0.02, 1.2, size=(num, 3)),
        "opacities": rng.choice([0.002, 0.3, 0.9, 1.0], size=num),
        "colors": rng.uniform(size=(num, channels)),
    }
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)) * 0.2 + np.eye(3))
    camera = Camera(
        rotation=torch.tensor(rotation * np.sign(np.diag(rotation)), dtype=torch.float32),
        translation=torch.tensor([0.3, -0.2, 6.0]),
        focal_px=11.0,
        principal=(6.3, 4.6),
        width_px=13,
        height_px=10,
    )
    return Gaussians(**{name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}), camera


def _rotate(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """By quaternion products: q v q*."""

    def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        scalar = a[0] * b[0] - a[1:] @ b[1:]
        return np.concatenate([[scalar], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])])

    return times(times(quat, np.concatenate([[0], vector])), quat * [1, -1, -1, -1])[1:]


def _naive(scene: Gaussians, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """3D Gaussian Splatting pixel by pixel and Gaussian by Gaussian, in float64."""
    view, shift = camera.rotation.double().numpy(), camera.translation.double().numpy()
    flat = []
    for index in range(len(scene)):
        mean, quat, scale, opacity, color = (
            getattr(scene, name)[index].double().numpy() for name in ("means", "quats", "scales", "opacities", "colors")
        )
        x, y, z = view @ mean + shift
        if z <= 0.01:
            continue
        axes = np.stack([_rotate(quat, axis) for axis in np.eye(3)], axis=1)
        world = axes @ np.diag(scale**2) @ axes.T
        f = camera.focal_px
        jacobian = np.array([[f / z, 0, -f * x / z**2], [0, f / z, -f * y / z**2]])
        covariance = jacobian @ view @ world @ view.T @ jacobian.T + 0.3 * np.eye(2)
        center = np.array([camera.principal[0] + f * x / z, camera.principal[1] + f * y / z])
        flat.append((z, center, np.linalg.inv(covariance), float(opacity), color))
    flat.sort(key=lambda each: each[0])
    picture = np.zeros((camera.height_px, camera.width_px, scene.colors.shape[1]))
    alphas = np.zeros((camera.height_px, camera.width_px))
    for row, column in product(range(camera.height_px), range(camera.width_px)):
        light = 1.0
        for _, center, conic, opacity, color in flat:
            way = np.array([column + 0.5, row + 0.5]) - center
            alpha = min(0.999, opacity * np.exp(-0.5 * way @ conic @ way))
            if alpha < 1 / 255:
                continue
            if light * (1 - alpha) <= 1e-4:
                break
            picture[row, column] += light * alpha * color
            alphas[row, column] += light * alpha
            light *= 1 - alpha
    return picture, alphas


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("num", "seed"), [(1, 0), (12, 1), (60, 2), (300, 3)])
def test_rasterizer_equals_a_naive_loop(num: int, seed: int, channels: int) -> None:
    scene, camera = _random_scene(num, seed, channels)
    color, alpha = rasterize(scene, camera)
    wanted_color, wanted_alpha = _naive(scene, camera)
    assert color.shape == (10, 13, channels)
    assert color.dtype == alpha.dtype == torch.float32
    # float32 against float64, sums of at most 1; no alpha of these scenes is that near to a threshold.
    np.testing.assert_allclose(color.numpy(), wanted_color, atol=2e-5)
    np.testing.assert_allclose(alpha.numpy(), wanted_alpha, atol=2e-5)


def test_a_scene_without_anything_to_see_is_black() -> None:
    scene, camera = _random_scene(40, 0)
    behind = replace(scene, means=scene.means - torch.tensor([0, 0, 100.0]))
    nobody = scene.chosen(torch.zeros(40, dtype=torch.bool))
    for empty in (behind, nobody):
        color, alpha = rasterize(empty, camera)
        assert not color.any()
        assert not alpha.any()


def test_tiles_are_no_more_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, camera = _random_scene(300, 4)
    whole = rasterize(scene, camera)
    seen: list[int] = []
    composite = rasterizer._composite
    monkeypatch.setattr(rasterizer, "_MAX_PAIRS", 500)
    monkeypatch.setattr(
        rasterizer, "_composite", lambda splats, tile: seen.append(splats.num_pairs()) or composite(splats, tile)
    )
    tiled = rasterize(scene, camera)
    assert len(seen) > 10
    assert max(seen) <= 500
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)  # the logarithms are summed from another place


def test_the_same_scene_gives_the_same_bytes() -> None:
    scene, camera = _random_scene(300, 5)
    first, second = rasterize(scene, camera), rasterize(scene, camera)
    assert [each.numpy().tobytes() for each in first] == [each.numpy().tobytes() for each in second]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gsplat runs on CUDA only, and there is no GPU here")
@pytest.mark.parametrize("channels", [3, 4])
def test_gsplat_equals_the_reference(channels: int) -> None:
    pytest.importorskip("gsplat", reason="the package gsplat is not installed")
    scene, camera = _random_scene(300, 3, channels)
    there = Gaussians(**{name: value.cuda() for name, value in vars(scene).items()})
    over_there = replace(camera, rotation=camera.rotation.cuda(), translation=camera.translation.cuda())
    theirs = rasterize(there, over_there, "gsplat")
    # Two orders of float32 work; a pair at the edge of what counts weighs at most 1/255 of what it covers.
    for ours, other in zip(rasterize(scene, camera), theirs, strict=True):
        difference = (ours - other.cpu()).abs()
        assert difference.max() < 1 / 255
        assert difference.mean() < 1e-4


def test_quaternions_are_those_of_the_rotations() -> None:
    rotations, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 3, 3)))
    rotations[:, :, 0] *= np.linalg.det(rotations)[:, None]
    half_turns = np.array([np.diag(signs) for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))])
    rotations = np.concatenate([rotations, half_turns])
    quats = quaternions(rotations)
    for quat, rotation in zip(quats, rotations, strict=True):
        turned = np.stack([_rotate(quat, axis) for axis in np.eye(3)], axis=1)
        np.testing.assert_allclose(turned, rotation, atol=1e-12)


# ------------------------------------------------------------------------------------------------ depth and Gaussians


def test_a_silhouette_becomes_round_columns() -> None:
    inside = np.zeros((120, 60), bool)
    inside[5:115, 10:50] = True
    half = inflate(inside)
    x = np.arange(10, 50) + 0.5 - 30
    # 5 %: the surface is smoothed, and a little lower than a circle because its height is bounded too.
    np.testing.assert_allclose(half[60, 12:48], np.sqrt(20**2 - x[2:-2] ** 2), rtol=0.09)
    assert not half[~inside].any()


def test_thin_parts_are_thin_whatever_their_direction() -> None:
    inside = np.zeros((100, 100), bool)
    inside[20:80, 10:50] = True
    inside[47:53, 50:90] = True  # an arm
    half = inflate(inside)
    assert half[50, 70] < 6
    assert half[35, 30] > 15


def _standing(corners: np.ndarray, distance: float, pitch_deg: float = 5.0) -> np.ndarray:
    """Silhouette, bool [H, W], of the prism over a ground plan [N, 2] (x right, z toward the camera), 100 px high."""
    pitch = radians(pitch_deg)
    points = np.array([(x, y, z) for x, z in corners for y in (-50, 50)])
    x, y, z = points.T
    down, near = y * cos(pitch) + z * sin(pitch), z * cos(pitch) - y * sin(pitch)
    flat = np.stack([x, down], axis=1) * (distance / (distance - near))[:, None] + 100
    canvas = np.zeros((200, 200), np.uint8)
    cv2.fillConvexPoly(canvas, cv2.convexHull(np.rint(flat * 16 - 8).astype(np.int32)), 255, shift=4)
    left, top, right, bottom = _box(canvas)
    return canvas[top:bottom, left:right] > 0


def _board(yaw_deg: float, thickness: float) -> np.ndarray:
    yaw = radians(yaw_deg)
    corners = np.array([(x, z) for x in (-40, 40) for z in (-thickness / 2, thickness / 2)])
    return corners @ np.array([[cos(yaw), -sin(yaw)], [sin(yaw), cos(yaw)]])


@pytest.mark.parametrize("yaw_deg", [-35, -20, 0, 20, 35])
def test_the_base_line_tells_how_a_board_is_turned(yaw_deg: float) -> None:
    turn, ratio = read_base(_standing(_board(yaw_deg, 8), 400.0), 400.0)
    # Positive yaw moves the right side away. The prior draws the slope to zero a little, and thickness hides some.
    assert turn == pytest.approx(-tan(radians(yaw_deg)), abs=0.12)
    assert ratio < 0.45


def test_the_base_line_tells_a_round_product_from_a_flat_one() -> None:
    angles = np.linspace(0, 2 * np.pi, 90)
    for radius, least in ((25, 0.62), (40, 0.75)):  # its base sags by 5 and 8 pixels, and pixels are whole
        turn, ratio = read_base(_standing(radius * np.stack([np.cos(angles), np.sin(angles)], 1), 400.0), 400.0)
        assert abs(turn) < 0.05
        assert least < ratio <= 1.0


def test_a_base_that_is_not_level_says_nothing() -> None:
    slanting = np.array([[y < 50 + 0.5 * x for x in range(100)] for y in range(100)])
    assert read_base(slanting, 400.0)[0] == 0.0
    dot = np.ones((1, 1), bool)
    assert read_base(dot, 4.0) == (pytest.approx(0, abs=0.01), pytest.approx(0.6, abs=0.1))


def test_colours_at_the_edge_come_from_inside() -> None:
    image, mask = _bottle()
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
    mixed = image.copy()
    mixed[(mask > 0) & (inner == 0)] = 215  # half white
    cleaned = gaussians.clean_edge(mixed, mask > 0)
    np.testing.assert_array_equal(cleaned[inner > 0], image[inner > 0])
    assert cleaned[mask > 0].max() <= image[inner > 0].max()
    thin = np.zeros_like(mask)
    thin[10:40, 20:22] = 255
    np.testing.assert_array_equal(gaussians.clean_edge(mixed, thin > 0), mixed)


def test_a_surfel_covers_its_pixel_and_faces_out() -> None:
    image, mask = _bottle()
    relief = InflatedDepth().relief(image, mask, 180.0)
    shell = lift(image, mask, relief, 180.0, (28.0, 33.0))
    own, num = shell.gaussians, shell.num_front
    assert num == np.count_nonzero(mask)
    camera = Camera(
        rotation=torch.eye(3),
        translation=torch.tensor([0, 0, 180.0]),
        focal_px=180.0,
        principal=(28.0, 33.0),
        width_px=WIDTH,
        height_px=HEIGHT,
    )
    splats = rasterizer.project(own, camera)
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], axis=1) + 0.5
    np.testing.assert_allclose(splats.centers[:num], pixels, atol=1e-3)
    np.testing.assert_allclose(splats.centers[num : 2 * num], pixels, atol=1e-3)
    # Where the surface is not too steep, a round spot of one size; the thickness adds next to nothing.
    free = own.scales[:num, 0] < gaussians.MAX_SIGMA * 45 * 0.999
    spot = torch.tensor([gaussians.SIGMA_PX**2, 0, gaussians.SIGMA_PX**2])
    assert free.float().mean() > 0.9
    assert (splats.covariances[:num][free] - spot).abs().max() < 0.01
    normals = own.rotations()[:, :, 2]
    assert (normals[:num, 2] < 0).all()
    assert (normals[num : 2 * num, 2] > 0).all()
    assert normals[2 * num :, 2].abs().max() < 1e-6
    eye = torch.tensor([0, 0, -180.0])
    assert own.facing(eye)[:num].all()
    assert not own.facing(eye)[num : 2 * num].any()


# -------------------------------------------------------------------------------------------------------------- views


def test_no_turn_gives_back_the_photograph() -> None:
    image, mask = _bottle()
    view = NovelViews(CPU).render(image, mask, 0.0)
    _check_pair(view)
    assert _iou(view.mask, mask) > 0.99
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
    error = (view.image[inner].astype(float) - image[inner]) ** 2
    # 34.9 dB: what a Gaussian a pixel and its filter blur of waves of 19 and 25 pixels, and the edge's carried colours.
    assert 10 * log10(255**2 / error.mean()) > 33
    assert view.holes == view.stretch == 0


@pytest.mark.parametrize("yaw_deg", [-20.0, -8.0, 8.0, 20.0])
@pytest.mark.parametrize("kind", ["sphere", "cylinder"])
def test_a_pattern_moves_where_geometry_says(kind: str, yaw_deg: float) -> None:
    mask, half = _solid(kind)
    places = [(0.0, 0.0), (-9.0, 8.0), (10.0, -7.0)]
    image = _on_white(_dots(places), mask)
    view = NovelViews(FAR, _Fixed(half, -half)).render(image, mask, yaw_deg)
    _check_pair(view)
    assert _iou(view.mask, mask) > 0.97  # a turned sphere is the same sphere
    yaw = radians(yaw_deg)
    for x, y in places:
        z = np.sqrt(22**2 - x**2 - (y**2 if kind == "sphere" else 0))
        expected = x * cos(yaw) + z * sin(yaw), y
        # Half a pixel: the product's place is known to that, and a dot on a slope is no longer quite round.
        assert _dot_place(view.image, view.mask, expected) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("pitch_deg", [-10.0, 10.0])
def test_a_higher_camera_sees_the_front_lower(pitch_deg: float) -> None:
    mask, half = _solid("sphere")
    image = _on_white(_dots([(4.0, 0.0)]), mask)
    view = NovelViews(FAR, _Fixed(half, -half)).render(image, mask, 0.0, pitch_deg)
    expected = 4.0, np.sqrt(22**2 - 16) * sin(radians(pitch_deg))
    assert _dot_place(view.image, view.mask, expected) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("distance", [0.9, 1.1])
def test_a_nearer_camera_shows_the_product_larger(distance: float) -> None:
    image, mask = _bottle()
    view = NovelViews(FAR).render(image, mask, 0.0, 0.0, distance)
    left, top, right, bottom = _box(view.mask)
    assert bottom == 56
    assert (right - left, bottom - top) == (pytest.approx(24 / distance, abs=1), pytest.approx(46 / distance, abs=1))


def test_the_mask_is_the_rendered_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = _bottle()
    rendered = []
    real = novel_views.rasterize
    monkeypatch.setattr(novel_views, "rasterize", lambda *args: rendered.append(real(*args)) or rendered[-1])
    view = NovelViews(CPU).render(image, mask, 15.0, 3.0, 0.97)
    _, fine = rendered[0]
    alpha = fine.reshape(HEIGHT, 2, WIDTH, 2).mean(dim=(1, 3)).numpy()
    np.testing.assert_array_equal(view.mask > 0, alpha > 0.5)


@pytest.mark.parametrize("place", [(0, 0), (0, 20), (24, 0), (12, 9)])
@pytest.mark.parametrize(("yaw_deg", "pitch_deg", "distance"), [(20, 5, 0.95), (-20, -5, 1.05), (60, 0, 0.5)])
def test_the_product_keeps_its_place(place: tuple[int, int], yaw_deg: float, pitch_deg: float, distance: float) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = place
    mask[top : top + 40, left : left + 36] = 255
    mask[top : top + 10, left : left + 12] = 0
    image = _on_white(np.full((HEIGHT, WIDTH, 3), 90), mask)
    view = NovelViews(CPU).render(image, mask, yaw_deg, pitch_deg, distance)
    new_left, new_top, new_right, new_bottom = _box(view.mask)
    # A pixel for the threshold of the mask. At the border the product moves inwards as far as it must.
    if new_bottom - new_top < top + 39:
        assert new_bottom == pytest.approx(top + 40, abs=1)
    if new_right - new_left < 2 * min(left + 18, WIDTH - left - 18) - 1:
        assert (new_left + new_right) / 2 == pytest.approx(left + 18, abs=1)
    # Nothing is cut off: in a larger picture, where there is room on all sides, the view has as much of the product.
    margin = ((60, 60), (60, 60))
    wide = np.pad(image, (*margin, (0, 0)), constant_values=255), np.pad(mask, margin)
    free = NovelViews(CPU).render(*wide, yaw_deg, pitch_deg, distance)
    if distance > 0.9:  # nearer ones do not fit, and get smaller
        assert np.count_nonzero(view.mask) == pytest.approx(np.count_nonzero(free.mask), rel=0.03)
    assert min(new_left, new_top) >= 0


def test_a_product_that_would_be_larger_than_the_picture_fits() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:60, 4:52] = 255
    image = _on_white(np.full((HEIGHT, WIDTH, 3), 90), mask)
    view = NovelViews(CPU).render(image, mask, 10.0, 0.0, 0.5)
    left, top, right, bottom = _box(view.mask)
    assert min(left, top, WIDTH - right, HEIGHT - bottom) <= 1
    shape = (bottom - top) / (right - left)
    assert shape == pytest.approx(56 / 48, rel=0.06)


def test_nothing_of_the_white_comes_in() -> None:
    mask, _ = _solid("sphere")
    image = _on_white(np.full((HEIGHT, WIDTH, 3), (40, 60, 80)), mask)
    # As photographs have it: half of the light of the edge's pixels is the paper's.
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
    image[(mask > 0) & (inner == 0)] = (148, 158, 168)
    for yaw_deg in (0.0, 20.0, -40.0):
        view = NovelViews(CPU).render(image, mask, yaw_deg, 4.0)
        _check_pair(view)
        assert np.abs(view.image[view.mask > 0].astype(int) - (40, 60, 80)).max() <= 1


def test_thin_parts_do_not_vanish() -> None:
    image, mask = np.full((HEIGHT, WIDTH, 3), 60, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:58, 16:40] = 255
    mask[8:40, 20] = mask[8:40, 34] = 255  # two wires of one pixel …
    mask[8, 20:35] = 255
    cv2.line(mask, (40, 48), (52, 36), 255)  # … and a slanting one
    for yaw_deg, distance in product((-20.0, -7.0, 0.0, 7.0, 20.0), (0.95, 1.0, 1.05)):
        view = NovelViews(CPU).render(_on_white(image, mask), mask, yaw_deg, 2.0, distance)
        count, _ = cv2.connectedComponents(view.mask, connectivity=8)
        left, _, right, bottom = _box(view.mask)
        assert count == 2  # background and one piece
        assert bottom - _box(view.mask)[1] > 46
        assert (right - left) / distance > 30 * cos(radians(yaw_deg)) / distance - 2
        assert view.holes == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("place", ["corner", "middle"])
def test_the_smallest_masks(shape: tuple[int, int], place: str) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = (0, 0) if place == "corner" else (20, 20)
    mask[top : top + shape[0], left : left + shape[1]] = 255
    image = _on_white(np.full((HEIGHT, WIDTH, 3), 90), mask)
    views = NovelViews(CPU)
    for seed in range(4):
        view = views.draw(image, mask, np.random.default_rng(seed))
        if view is not None:
            _check_pair(view)
            assert view.mask.any()
    _check_pair(views.render(image, mask, 20.0, 5.0, 2.0))


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1), (3, 40), (40, 3)])
def test_a_product_that_fills_the_picture(size: tuple[int, int]) -> None:
    mask = np.full(size, 255, np.uint8)
    image = np.full((*size, 3), 90, np.uint8)
    for yaw_deg, distance in ((0.0, 1.0), (20.0, 0.9), (-20.0, 1.1)):
        view = NovelViews(CPU).render(image, mask, yaw_deg, 4.0, distance)
        _check_pair(view, size)
        if min(size) > 2:
            assert np.count_nonzero(view.mask) > 0.6 * mask.size


def test_two_far_pieces_are_one_product() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:14, 4:14] = mask[50:60, 42:52] = 255
    view = NovelViews(CPU).render(_on_white(np.full((HEIGHT, WIDTH, 3), 90), mask), mask, 15.0)
    assert cv2.connectedComponents(view.mask)[0] == 3


# -------------------------------------------------------------------------------------------------------------- draws


def test_the_same_seed_gives_the_same_bytes_and_sets_nothing() -> None:
    image, mask = _bottle()
    before = torch.random.get_rng_state(), np.random.get_state()[1].tobytes(), torch.get_num_threads()
    first, second, other = (NovelViews(CPU).draw(image, mask, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert first.measures() == second.measures()
    assert first.image.tobytes() != other.image.tobytes()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tobytes(), torch.get_num_threads())
    np.testing.assert_array_equal(image, _bottle()[0])
    np.testing.assert_array_equal(mask, _bottle()[1])


def test_angles_and_distance_come_from_their_ranges() -> None:
    image, mask = _bottle()
    config = MultiViewConfig(yaw_deg=(3, 9), pitch_deg=(1, 2), distance=(0.9, 1.2), max_stretch=1.0, device="cpu")
    views = NovelViews(config)
    drawn = [views.draw(image, mask, np.random.default_rng(seed)) for seed in range(24)]
    assert all(3 <= abs(view.yaw_deg) <= 9 and 1 <= abs(view.pitch_deg) <= 2 for view in drawn)
    assert all(0.9 <= view.distance <= 1.2 and view.num_tries == 1 for view in drawn)
    assert {(view.yaw_deg > 0, view.pitch_deg > 0) for view in drawn} == set(product((True, False), repeat=2))
    assert np.ptp([abs(view.yaw_deg) for view in drawn]) > 4
    again = views.render(image, mask, drawn[0].yaw_deg, drawn[0].pitch_deg, drawn[0].distance)
    assert again.image.tobytes() == drawn[0].image.tobytes()
    facts = json.loads(json.dumps(drawn[0].measures()))
    assert set(facts) == {"yaw_deg", "pitch_deg", "distance", "holes", "stretch", "num_tries"}


def test_a_stretched_view_is_drawn_again_nearer() -> None:
    image, mask = _bottle()
    angles = {"yaw_deg": (20, 20), "pitch_deg": (4, 4), "distance": (1, 1)}
    measure = [NovelViews(CPU).render(image, mask, 20 / 2**n, 4 / 2**n).stretch for n in range(3)]
    assert measure[0] > measure[1] > measure[2] > 0
    for tries, limit in ((2, (measure[0] + measure[1]) / 2), (3, (measure[1] + measure[2]) / 2)):
        config = MultiViewConfig(**angles, max_stretch=limit, num_tries=tries, device="cpu")
        view = NovelViews(config).draw(image, mask, np.random.default_rng(0))
        assert view.num_tries == tries
        assert (abs(view.yaw_deg), abs(view.pitch_deg)) == (20 / 2 ** (tries - 1), 4 / 2 ** (tries - 1))
        less = MultiViewConfig(**angles, max_stretch=limit, num_tries=tries - 1, device="cpu")
        rngs = [np.random.default_rng(0) for _ in range(2)]
        assert NovelViews(less).draw(image, mask, rngs[0]) is None
        NovelViews(config).draw(image, mask, rngs[1])
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


def _torn() -> tuple[np.ndarray, np.ndarray, _Fixed]:
    """A board whose middle floats in front of it: turned, it leaves the board with a hole."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[6:58, 4:52] = 255
    front = np.zeros((HEIGHT, WIDTH))
    front[24:40, 20:36] = 40.0
    return _on_white(np.full((HEIGHT, WIDTH, 3), 90), mask), mask, _Fixed(front, front - 1)


def test_a_torn_view_is_found() -> None:
    image, mask, torn = _torn()
    free = {"max_stretch": 1.0, "device": "cpu", "yaw_deg": (20, 20), "pitch_deg": (0, 0), "distance": (1, 1)}
    holes = [NovelViews(CPU, torn).render(image, mask, yaw_deg).holes for yaw_deg in (20.0, 10.0, 0.0)]
    assert holes[0] > holes[1] > holes[2] == 0
    assert holes[0] > 0.03
    nearer = MultiViewConfig(max_holes=(holes[0] + holes[1]) / 2, **free)
    assert NovelViews(nearer, torn).draw(image, mask, np.random.default_rng(0)).num_tries == 2
    strict = MultiViewConfig(max_holes=holes[1] / 2, num_tries=2, **free)
    assert NovelViews(strict, torn).draw(image, mask, np.random.default_rng(0)) is None


def test_the_photographs_own_holes_are_none() -> None:
    image, mask = _bottle()
    mask[30:40, 20:36] = 0  # a handle's
    for yaw_deg in (0.0, 12.0, -20.0):
        view = NovelViews(CPU).render(_on_white(image, mask), mask, yaw_deg)
        assert cv2.connectedComponents(255 - view.mask)[0] == 3  # it is there
        assert view.holes == 0


def test_holes_are_counted_by_their_pixels() -> None:
    mask = np.full((20, 20), 255, np.uint8)
    background = np.zeros((20, 20), bool)
    mask[5:7, 5:7] = 0
    mask[12:14, 12:15] = 0
    mask[0:3, 9] = 0  # open to the outside
    area = np.count_nonzero(mask)
    assert novel_views.measure_holes(mask, background) == pytest.approx(10 / area)
    background[12:14, 12:14] = True
    assert novel_views.measure_holes(mask, background) == pytest.approx(4 / area)
    assert novel_views.measure_holes(np.zeros_like(mask), background) == 1.0


# ----------------------------------------------------------------------------------------------------------- settings


def test_settings_that_cannot_be_kept_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^multi_view\.rasterizer='gsplat'.*not installed"):
        NovelViews(MultiViewConfig(rasterizer="gsplat", device="cpu"))
    monkeypatch.setattr(rasterizer.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"^multi_view\.rasterizer='gsplat'.*multi_view\.device"):
        NovelViews(MultiViewConfig(rasterizer="gsplat", device="cpu"))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [choose_backend(*each) for each in (("auto", cpu), ("auto", cuda), ("torch", cuda), ("gsplat", cuda))] == [
        "torch",
        "gsplat",
        "torch",
        "gsplat",
    ]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^multi_view\.device='cuda'"):
            NovelViews(MultiViewConfig(device="cuda"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("yaw_deg", (10, 5)),
        ("yaw_deg", (0, 61)),
        ("yaw_deg", (float("nan"), 5)),
        ("pitch_deg", (-1, 5)),
        ("pitch_deg", (0, 31)),
        ("distance", (0.4, 1)),
        ("distance", 1.0),
        ("camera_distance", 1.4),
        ("camera_distance", float("nan")),
        ("max_holes", 1.1),
        ("max_stretch", -0.1),
        ("num_tries", 0),
        ("device", "tpu"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^multi_view\.{name}="):
        MultiViewConfig(**{name: value})


def test_the_cameras_distance_counts() -> None:
    image, mask = _bottle()
    near, far = (NovelViews(MultiViewConfig(camera_distance=each, device="cpu")) for each in (1.5, 100))
    assert (near.render(image, mask, 15.0).image != far.render(image, mask, 15.0).image).any()


# ------------------------------------------------------------------------------------------------------ Depth Anything


def _save_depth_anything(folder: Path, **changes: object) -> str:
    """The real classes at their smallest, with random weights, as a model folder."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save_depth_anything(tmp_path_factory.mktemp("depth"))


def test_depth_anything_runs_in_the_stage(depth_anything: str) -> None:
    image, mask = _bottle()
    config = MultiViewConfig(depth_model=depth_anything, max_stretch=1.0, max_holes=1.0, device="cpu")
    views = NovelViews(config)
    view = views.draw(image, mask, np.random.default_rng(0))
    _check_pair(view)
    again = NovelViews(config).draw(image, mask, np.random.default_rng(0))
    assert view.image.tobytes() == again.image.tobytes()
    network, inflated = (each.relief(image, mask, 184.0) for each in (views._depth, InflatedDepth()))
    assert network.front.shape == network.back.shape == mask.shape
    assert (network.back <= network.front).all()
    inside = mask > 0
    assert np.ptp(network.front[inside]) <= 2 * np.ptp(inflated.front[inside])
    assert not np.array_equal(network.front[inside], inflated.front[inside])


@pytest.mark.parametrize("scale", [0.001, 30.0])
def test_relative_depth_gets_scale_and_shift_from_the_silhouette(scale: float) -> None:
    image, mask = _bottle()
    inflated = InflatedDepth().relief(image, mask, 184.0)
    found = depth.fitted_relief((scale * inflated.front + 7).astype(np.float32), mask, inflated)
    inside = mask > 0
    error = np.abs(found.front - inflated.front)[inside]
    assert error.mean() < 0.05 * np.ptp(inflated.front[inside])  # the farthest and nearest 2 % are cut
    # What has nothing in common with a product, or is turned inside out, comes out flat.
    for nothing in (np.ones(mask.shape, np.float32), -inflated.front):
        assert np.ptp(depth.fitted_relief(nothing, mask, inflated).front[inside]) == 0


def _break_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "head.conv3" not in name}, file)


def _other_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "glpn"}))


def _no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (_break_weights, {}, "2 weights are missing, the first is head.conv3.bias"),
        (_other_kind, {}, "glpn model, must be depth_anything"),
        (lambda folder: None, {"depth_estimation_type": "metric", "max_depth": 20}, "metric depth, must be"),
        (_no_processor, {}, "cannot be loaded"),
    ],
)
def test_a_damaged_depth_model_is_named(
    damage: Callable[[Path], None], changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    _save_depth_anything(tmp_path, **changes)
    damage(tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)^multi_view\.depth_model=.*{message}"):
        NovelViews(MultiViewConfig(depth_model=str(tmp_path), device="cpu"))


def test_the_filter_of_occluders_asks_the_network(depth_anything: str, tmp_path: Path) -> None:
    image, mask = np.full((64, 48, 3), 200, np.uint8), np.zeros((64, 48), np.uint8)
    mask[20:50, 10:40] = 255
    mask[30:40, 10:30] = 0
    ContentFilter(FilterConfig(occluders=True, max_hidden=1.0, depth_model=depth_anything), None, "cpu").check(
        image, mask, None
    )
    with pytest.raises(ValueError, match=r"^filter\.depth_model=.*cannot be loaded"):
        ContentFilter(FilterConfig(occluders=True, depth_model=str(tmp_path / "nothing")), None, "cpu")


def test_a_depth_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^multi_view\.depth_model=.*cannot be loaded"):
        NovelViews(MultiViewConfig(depth_model=str(tmp_path / "nothing"), device="cpu"))


def test_views_drawn_together_are_those_drawn_alone_and_need_the_depth_once() -> None:
    image, mask = _bottle()
    image = _on_white(image, mask)
    asked = []

    class Counted(InflatedDepth):
        def relief(self, image_u8: np.ndarray, mask: np.ndarray, distance: float) -> Relief:
            asked.append(distance)
            return super().relief(image_u8, mask, distance)

    together = NovelViews(CPU, Counted()).draw_each(image, mask, [np.random.default_rng(n) for n in range(3)])
    assert len(asked) == 1
    for number, view in enumerate(together):
        alone = NovelViews(CPU).draw(image, mask, np.random.default_rng(number))
        assert view is not None
        assert alone is not None
        assert (view.image == alone.image).all()
        assert view.measures() == alone.measures()
    assert NovelViews(CPU).draw_each(image, mask, []) == []


def test_hairs_of_revealed_sides_are_cut_and_the_products_own_stay() -> None:
    inside = np.zeros((600, 500), dtype=bool)
    inside[50:550, 100:400] = True
    is_stretched = np.zeros_like(inside)
    solid = inside.copy()
    inside[200:202, 400:430] = is_stretched[200:202, 400:430] = True  # a hair of the revealed side
    inside[300:302, 400:430] = True  # a bristle that the photograph shows
    inside[380:420, 400:430] = is_stretched[380:420, 400:430] = True  # a side
    cut = novel_views.without_fringes(inside, is_stretched)
    assert not cut[200:202, 402:].any()
    assert cut[300:302, 400:430].all()
    assert cut[385:415, 400:425].all()
    assert cut[solid].all()


def test_small_pictures_and_empty_ones_have_no_hairs() -> None:
    inside = np.zeros((100, 80), dtype=bool)
    assert not novel_views.without_fringes(inside, ~inside).any()
    inside[10:90, 20:60] = inside[40, 60:70] = True
    assert (novel_views.without_fringes(inside, np.ones_like(inside)) == inside).all()
