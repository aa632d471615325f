"""Shapes: all categories, sound meshes, a print that shows; and models read from files. Needs no Mitsuba."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from refadgen.studio.camera import View, camera_for, silhouette
from refadgen.studio.meshes import Part, Shape, mirrored, rotation_y, slab, tube
from refadgen.studio.shapes import BUILDERS, CATEGORIES, NOUNS, noun_of, sample_shape, turned_vertices

PAPER_CATEGORIES = """
Backpack, Bench, Body wash, Bottle, Car, Cell phone, Chargers, Clothing, Coffee, Cup, Eyeshadow, Fork, Foundation,
Handbag, Hats, Headphones, Kite, Lipstick, Motorcycle, Notebooks, Pens, Pillows, Rugs, Shampoo, Snacks, Sneakers,
Sports ball, Toothbrush, Umbrella, Wine glass
"""
SEEDS = range(5)
WIDTH_PX, HEIGHT_PX = 128, 160

every_kind = pytest.mark.parametrize("kind", range(len(BUILDERS)), ids=[noun for _, noun, _ in BUILDERS])


def _shapes(kind: int) -> list[Shape]:
    return [BUILDERS[kind][2](np.random.default_rng(seed)) for seed in SEEDS]


def _view(yaw_deg: float) -> View:
    return View(yaw_deg=yaw_deg, pitch_deg=5, height_share=0.75, center_x=0.5, base_y=0.9)


def _seen(shape: Shape, yaw_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """What each pixel shows: index of the part (-1 nothing) and whether the surface faces the camera, [H, W] each.

    Triangles are drawn from far to near.
    """
    camera = camera_for(shape, _view(yaw_deg), width_px=WIDTH_PX, height_px=HEIGHT_PX)
    turn = rotation_y(yaw_deg).T
    corners = np.concatenate([(part.vertices @ turn)[part.faces] for part in shape.parts])
    normals = np.concatenate([(part.normals @ turn)[part.faces].mean(axis=1) for part in shape.parts])
    owner = np.repeat(np.arange(len(shape.parts)), [len(part.faces) for part in shape.parts])
    middle = corners.mean(axis=1)
    facing = ((camera.origin - middle) * normals).sum(axis=1) > 0
    pixels = np.round((camera.project(corners.reshape(-1, 3)).reshape(-1, 3, 2) - 0.5) * 16).astype(np.int32)
    parts = np.full((HEIGHT_PX, WIDTH_PX), -1, np.int16)
    outside = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    for index in np.argsort(-np.linalg.norm(camera.origin - middle, axis=1)):
        cv2.fillConvexPoly(parts, pixels[index], int(owner[index]), lineType=cv2.LINE_8, shift=4)
        cv2.fillConvexPoly(outside, pixels[index], int(facing[index]), lineType=cv2.LINE_8, shift=4)
    return parts, outside > 0


def test_all_thirty_categories_of_the_paper_can_be_built():
    assert sorted(CATEGORIES) == [name.strip() for name in PAPER_CATEGORIES.split(",")]
    assert len(NOUNS) == len(BUILDERS) == len(set(NOUNS))
    assert noun_of("Snacks") == "snack box"


def test_every_category_is_equally_likely():
    drawn = [sample_shape(np.random.default_rng([seed, 0])) for seed in range(900)]
    counts = {category: sum(shape.category == category for shape in drawn) for category in CATEGORIES}
    # 30 expected of each; five standard deviations.
    assert all(5 < count < 57 for count in counts.values()), counts
    assert {shape.noun for shape in drawn} == set(NOUNS)


@every_kind
def test_a_shape_is_what_it_is_listed_as_and_varies(kind: int):
    category, noun, build = BUILDERS[kind]
    shapes = _shapes(kind)
    assert {(shape.category, shape.noun) for shape in shapes} == {(category, noun)}
    assert noun == noun.lower()
    assert noun[0] not in "aeiou"  # captions say "a"
    assert len({turned_vertices(shape, 0).max(axis=0).tobytes() for shape in shapes}) == len(shapes)
    again = build(np.random.default_rng(0))
    np.testing.assert_array_equal(turned_vertices(again, 0), turned_vertices(shapes[0], 0))


@every_kind
def test_a_shape_stands_on_the_floor_in_sane_bounds(kind: int):
    for shape in _shapes(kind):
        vertices = turned_vertices(shape, 0)
        assert np.isfinite(vertices).all()
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        assert abs(low[1]) < 1e-6
        assert 0.45 <= high[1] <= 1.05
        assert high[0] - low[0] <= 1.5
        assert high[2] - low[2] <= 1.3
        assert np.abs((low + high)[0]) < 0.5


@every_kind
def test_parts_are_sound(kind: int):
    for shape in _shapes(kind):
        assert any(part.material == "body" and part.color is None for part in shape.parts)
        assert 0.1 < shape.label_aspect < 6
        for part in shape.parts:
            assert len(part.vertices) == len(part.normals) == len(part.uvs)
            assert 0 <= part.faces.min() <= part.faces.max() < len(part.vertices)
            np.testing.assert_allclose(np.linalg.norm(part.normals, axis=1), 1, atol=1e-6, err_msg=part.name)
            assert np.isfinite(part.uvs).all(), part.name
            assert -1e-9 <= part.uvs[:, 1].min() <= part.uvs[:, 1].max() <= 1 + 1e-9
            assert np.ptp(part.vertices, axis=0)[:2].min() >= 0.029, f"{part.name} is too thin to see"
            a, b, c = (part.vertices[part.faces[:, i]] for i in range(3))
            turned = np.cross(b - a, c - a)
            agree = (turned * part.normals[part.faces].mean(axis=1)).sum(axis=1) > 0
            area = np.linalg.norm(turned, axis=1)
            assert area[agree].sum() > 0.95 * area.sum(), f"{part.name}: faces and normals disagree"


@every_kind
@pytest.mark.parametrize("yaw_deg", [-35, 0, 35])
def test_the_print_shows_from_the_front(kind: int, yaw_deg: float):
    for shape in _shapes(kind):
        parts, outside = _seen(shape, yaw_deg)
        printed = [i for i, part in enumerate(shape.parts) if part.material == "body" and part.color is None]
        covered = parts >= 0
        assert np.isin(parts, printed).sum() >= 0.25 * covered.sum()
        # Edges of a pixel's width and the drawing order of neighbours leave some doubt.
        assert outside[covered].mean() > 0.93
        mask = silhouette(shape, _view(yaw_deg), width_px=WIDTH_PX, height_px=HEIGHT_PX) > 0
        assert (mask & ~covered).sum() <= 0.02 * mask.sum()


@every_kind
def test_the_print_is_not_stretched(kind: int):
    for shape in _shapes(kind):
        stretch, weight = [], []
        for part in shape.parts:
            if part.material != "body":
                continue
            a, b, c = (part.vertices[part.faces[:, i], :2] for i in range(3))
            ua, ub, uc = (part.uvs[part.faces[:, i]] for i in range(3))
            sides = np.stack([b - a, c - a], axis=-1)
            front = part.normals[part.faces].mean(axis=1)[:, 2] > 0.9
            front &= np.abs(np.linalg.det(sides)) > 1e-9
            labels = np.stack([ub - ua, uc - ua], axis=-1)[front]
            slope = labels @ np.linalg.inv(sides[front])  # d(u, v) / d(x, y)
            used = (slope[:, 0, 0] > 1e-6) & (slope[:, 1, 1] > 1e-6)
            stretch.append(slope[used, 1, 1] / slope[used, 0, 0] / shape.label_aspect)
            weight.append(np.abs(np.linalg.det(sides[front]))[used])
        stretch, weight = np.concatenate(stretch), np.concatenate(weight)
        assert 0.6 < np.average(np.log(stretch), weights=weight) + 1 < 1.5


def test_a_mirrored_part_keeps_its_print_readable():
    (plate,) = mirrored([slab("plate", "body", 0.5, 1.0, 0.1).moved(x=0.3)])
    assert plate.vertices[:, 0].max() < 0
    right, left = plate.vertices[:, 0].argmax(), plate.vertices[:, 0].argmin()
    assert plate.uvs[right, 0] > plate.uvs[left, 0]


def test_a_tube_may_bend_in_space_and_be_closed():
    turn = np.linspace(0, 4, 40)
    path = np.stack([np.cos(turn), turn / 4, np.sin(turn)], axis=1)
    part = tube("spring", "accent", path, 0.05, capped=True)
    reach = np.linalg.norm(part.vertices[:, None] - path[None], axis=-1).min(axis=1)
    assert reach.max() < 0.06
    np.testing.assert_allclose(np.linalg.norm(part.normals, axis=1), 1, atol=1e-9)


def _write(path: Path, **geometry: object) -> Path:
    trimesh = pytest.importorskip("trimesh", reason="needs the extra refadgen[studio]")
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Scene(geometry).export(path)
    return path


def _box(center: tuple[float, float, float], **material: object) -> object:
    trimesh = pytest.importorskip("trimesh", reason="needs the extra refadgen[studio]")
    box = trimesh.creation.box(extents=(1, 2, 3))
    box.apply_translation(center)
    uv = box.vertices[:, :2] - box.vertices[:, :2].min(axis=0)
    uv /= uv.max(axis=0)
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.PBRMaterial(**material))
    return box


def _part_vertices(parts: tuple[Part, ...]) -> np.ndarray:
    return np.concatenate([part.vertices for part in parts])


def test_a_model_stands_and_keeps_its_colour(tmp_path):
    from refadgen.studio.glb_models import load_model

    red = _box((5, 5, 5), baseColorFactor=[255, 0, 55, 255])
    grey = _box((5, 8, 5), baseColorFactor=[55, 55, 55, 255])
    shape = load_model(_write(tmp_path / "SNEAKERS" / "one.glb", red=red, grey=grey))
    assert (shape.category, shape.noun) == ("Sneakers", "sneaker")
    vertices = _part_vertices(shape.parts)
    np.testing.assert_allclose(vertices.min(axis=0), [-0.1, 0, -0.3], atol=1e-6)
    np.testing.assert_allclose(vertices.max(axis=0), [0.1, 1, 0.3], atol=1e-6)
    # 55 of 255 is linear light in glTF: 128 in sRGB.
    by_height = sorted(shape.parts, key=lambda part: part.vertices[:, 1].min())
    assert [part.color for part in by_height] == [(255, 0, 128), (128, 128, 128)]
    for part in shape.parts:
        np.testing.assert_allclose(np.linalg.norm(part.normals, axis=1), 1, atol=1e-6)
        assert (np.abs(part.normals).max(axis=1) > 0.99).all()  # a box has hard edges


def test_a_model_keeps_its_picture_and_its_vertex_colours(tmp_path):
    from PIL import Image

    from refadgen.studio.glb_models import load_model

    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4], picture[4:] = (200, 40, 40), (40, 40, 200)  # red above blue
    textured = _box((0, 0, 0), baseColorTexture=Image.fromarray(picture))
    shape = load_model(_write(tmp_path / "things" / "two.glb", box=textured))
    assert (shape.category, shape.noun) == ("Other", "product")
    (part,) = shape.parts
    np.testing.assert_array_equal(part.texture, picture)
    top = part.vertices[:, 1] > 0.5
    assert part.uvs[top, 1].min() > 0.9
    assert part.uvs[~top, 1].max() < 0.1

    painted = _box((0, 0, 0))
    painted.visual = type(painted.visual.to_color())(mesh=painted, vertex_colors=_half_and_half(painted))
    (part,) = load_model(_write(tmp_path / "three.glb", box=painted)).parts
    height, width = part.texture.shape[:2]
    x, y = (part.uvs * [width, height]).astype(int).T
    shown = part.texture[height - 1 - y, x]
    assert {(255, 0, 0), (0, 0, 255)} <= {tuple(color) for color in shown.tolist()}


def _half_and_half(mesh: object) -> np.ndarray:
    left = mesh.vertices[:, :1] < 0
    return np.where(left, [255, 0, 0, 255], [0, 0, 255, 255]).astype(np.uint8)


def test_a_model_without_colour_is_printed(tmp_path):
    from refadgen.studio.glb_models import load_model

    (tmp_path / "plain.obj").write_text("v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\nf 1 2 3\nf 1 3 4\n")
    shape = load_model(tmp_path / "plain.obj")
    (part,) = shape.parts
    assert part.material == "body"
    assert part.color is part.texture is None
    assert np.ptp(part.vertices, axis=0).tolist() == pytest.approx([1.5, 0.75, 0])  # wide models are made lower
    assert part.uvs.min() == pytest.approx(0)
    assert part.uvs.max() == pytest.approx(1)


def test_a_large_model_is_coarsened(tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="needs the extra refadgen[studio]")
    from refadgen.studio.glb_models import MAX_FACES, load_model

    ball = trimesh.creation.icosphere(subdivisions=7)
    assert len(ball.faces) > 300_000
    ball.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=[255] * 4))
    (part,) = load_model(_write(tmp_path / "ball.glb", ball=ball)).parts
    assert MAX_FACES / 4 < len(part.faces) <= MAX_FACES
    np.testing.assert_allclose(np.linalg.norm(part.vertices - [0, 0.5, 0], axis=1), 0.5, atol=0.01)
    assert ((part.vertices - [0, 0.5, 0]) * part.normals).sum(axis=1).min() > 0.45


def test_bad_models_are_named(tmp_path):
    pytest.importorskip("trimesh", reason="needs the extra refadgen[studio]")
    from refadgen.studio.glb_models import load_model

    intact = _write(tmp_path / "b" / "intact.glb", box=_box((0, 0, 0), baseColorFactor=[9, 9, 9, 255]))
    broken = {
        "broken.glb": intact.read_bytes()[:200],
        "empty.glb": b"",
        "text.glb": b"no model at all",
        "points.obj": b"v 0 0 0\nv 1 0 0\n",
        "flat.obj": b"v 0 0 0\nv 1 0 0\nv 1 0 1\nf 1 2 3\n",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.glb"):
        load_model(tmp_path / "missing.glb")


def test_own_colours_win_over_the_appearance():
    pytest.importorskip("mitsuba", reason="needs the extra refadgen[studio]")
    from dataclasses import replace

    from refadgen.studio.appearance import sample_appearance
    from refadgen.studio.dressing import _product_materials
    from refadgen.studio.render import Product, render_product_photo

    picture = np.broadcast_to(np.uint8([30, 30, 220]), (4, 4, 3))
    plate = slab("plate", "body", 0.4, 1.0, 0.1)
    parts = (plate.moved(x=-0.2).colored((220, 30, 30)), replace(plate.moved(x=0.2), texture=picture))
    shape = Shape(category="Other", noun="product", parts=parts, label_aspect=1.0)
    look = replace(sample_appearance(np.random.default_rng(0)), body=(30, 220, 30), pattern="plain", logo="none")
    product = Product(product_id="two-plates", category="Other", shape=shape, appearance=look)
    worn = _product_materials(product, look)
    assert worn["part0"] == (220, 30, 30)
    assert worn["part1"] is picture
    rgb, mask = render_product_photo(product, _view(0), width_px=32, height_px=40, spp=4)
    strongest = rgb[mask > 0].argmax(axis=-1)
    assert set(np.unique(strongest)) == {0, 2}
