"""Drawn scenes: the same seed twice, kinds and splits, and a mask that is true to the picture and to the classes."""

import inspect
from collections.abc import Iterable
from itertools import combinations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from refadgen.mask_training import drawn, drawn_random, drawn_things, drawn_vessels, overlays, scenes
from refadgen.mask_training.drawn import FAMILIES, Family, Split, draw_product
from refadgen.mask_training.pen import Pen
from refadgen.mask_training.scenes import KINDS, PLAIN_KINDS, Scene, make_scene
from refadgen.segmentation.classes import BACKDROP, FRAME, MARK, NUM_CLASSES, PRODUCT, SHADOW
from refadgen.segmentation.surface import fit_surface

SPLITS: tuple[Split, ...] = ("train", "calibrate", "test")
RULING = {"shadow": SHADOW, "reflection": SHADOW, "marks": MARK, "framed": FRAME}
"""What nearly every scene of a kind shows beside product and backdrop."""


def scene_of(kind: str, split: Split = "train", seed: int = 0, longest_px: int = 96) -> Scene:
    return make_scene(np.random.default_rng([seed, longest_px]), kind, split, longest_px)


def data_of(scene: Scene) -> tuple[str, bytes, bytes, bytes]:
    return scene.family, scene.image.tobytes(), scene.coverage.tobytes(), scene.classes.tobytes()


def names_of(families: Iterable[Family]) -> set[str]:
    return {family.__name__ for family in families}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_scene_twice_and_another_seed_another(kind: str) -> None:
    first, second, other = (data_of(scene_of(kind, seed=seed)) for seed in (3, 3, 4))
    assert first == second
    assert first[1:] != other[1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_is_drawn_in_every_split(split: Split, kind: str) -> None:
    made = [scene_of(kind, split, seed) for seed in range(6)]
    assert {scene.kind for scene in made} == {kind}
    for scene in made:
        shown = np.mean(scene.classes == PRODUCT)
        assert 0.001 < shown < 0.95, scene.family
        assert (scene.classes != PRODUCT).mean() > 0.05, scene.family
    if kind in RULING:
        assert sum((scene.classes == RULING[kind]).any() for scene in made) >= 5
    else:
        assert sum((scene.classes == BACKDROP).any() for scene in made) == 6
        assert not any((scene.classes == FRAME).any() for scene in made)
    families = names_of(FAMILIES[split])
    assert {scene.family for scene in made} <= (families & {*scenes._AMONG.get(kind, families)} or families)


def test_each_split_has_a_family_of_each_kind() -> None:
    lacking = {
        (kind, split)
        for kind, among in scenes._AMONG.items()
        for split in SPLITS
        if not names_of(FAMILIES[split]) & {*among}
    }
    assert not lacking


def test_the_families_of_the_splits_never_overlap_and_none_is_left_out() -> None:
    assert {*FAMILIES} == {*SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not names_of(FAMILIES[one]) & names_of(FAMILIES[other])
    listed = [family.__name__ for split in SPLITS for family in FAMILIES[split]]
    written = [
        name
        for module in (drawn_vessels, drawn_things, drawn_random)
        for name, found in inspect.getmembers(module, inspect.isfunction)
        if found.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert sorted(listed) == sorted(written)
    groups = (drawn.WITH_PALE_PARTS, drawn.WITH_FACE, drawn.WITH_SLATS, drawn.LATTICES, drawn.TRANSLUCENT)
    assert {name for group in groups for name in group} <= {*listed}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_all_of_its_families_and_no_others(split: Split) -> None:
    rng = np.random.default_rng(1)
    assert {draw_product(rng, split, 8)[0] for _ in range(300)} == names_of(FAMILIES[split])


@pytest.mark.parametrize("near", [None, 250.0], ids=["any colours", "backdrop's colour"])
def test_every_family_draws_a_product_with_its_mask(near: float | None) -> None:
    color = None if near is None else np.full(3, near, np.float32)
    for family in (family for split in SPLITS for family in FAMILIES[split]):
        for seed in range(2):
            pen = Pen(np.random.default_rng(seed), 64, near=color)
            family(pen)
            cutout = pen.cutout()
            assert cutout.rgb.shape == (64, 64, 3)
            assert cutout.opacity.shape == cutout.coverage.shape == (64, 64)
            assert cutout.rgb.dtype == cutout.opacity.dtype == cutout.coverage.dtype == np.float32
            assert 0.01 < cutout.coverage.mean() < 0.95, family.__name__
            assert 0.9 < cutout.coverage.max() <= 1, family.__name__  # thin wires have no full pixel
            assert 0 <= cutout.opacity.min() <= cutout.opacity.max() <= 1
            assert (cutout.opacity <= cutout.coverage).all(), family.__name__
            assert np.isfinite(cutout.rgb).all()
    if color is not None:
        steps = color - pen.colors["pale"], color - pen.colors["face"]
        assert np.abs(steps).max() < 25


def test_a_translucent_product_is_whole_in_its_mask() -> None:
    pen = Pen(np.random.default_rng(2), 96, turn=0)
    pen.rectangle(-0.6, -0.6, 0.6, 0.6, opacity=0.3)
    inside = pen.cutout().coverage == 1
    assert inside.mean() > 0.3
    assert pen.cutout().opacity[inside] == pytest.approx(0.3)
    pen.erase([(-0.2, -0.2), (0.2, -0.2), (0.2, 0.2), (-0.2, 0.2)])
    assert pen.cutout().coverage[48, 48] == pen.cutout().opacity[48, 48] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longest_px", [24, 33, 128])
def test_arrays_have_their_types_sizes_and_ranges(kind: str, longest_px: int) -> None:
    for seed in range(3):
        scene = scene_of(kind, "test", seed, longest_px)
        height, width = scene.coverage.shape
        assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
        assert scene.image.flags.c_contiguous
        assert scene.coverage.dtype == np.float32
        assert (scene.classes.shape, scene.classes.dtype) == ((height, width), np.uint8)
        assert scene.coverage.min() >= 0
        assert scene.coverage.max() <= 1 + 1e-6  # resizing rounds
        assert scene.classes.max() < NUM_CLASSES
        assert min(height, width) >= 24
        if kind == "framed":  # a padding adds up to 0.3 of the longer side on both sides
            assert longest_px <= max(height, width) <= round(1.6 * longest_px)
        else:
            assert max(height, width) == longest_px


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_class_is_where_the_mask_is(kind: str) -> None:
    for seed in range(8):
        scene = scene_of(kind, "train", seed)
        assert ((scene.classes == PRODUCT) == (scene.coverage >= 0.5)).all()


def test_a_frame_is_no_product_and_leaves_the_rest_as_it_was() -> None:
    sizes = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, coverage = rng.uniform(0, 255, (60, 80, 3)).astype(np.float32), np.full((60, 80), 0.9, np.float32)
        framed, rest, classes = overlays.framed(rng, image, coverage, np.full((60, 80), PRODUCT, np.uint8))
        frame = classes == FRAME
        assert 0 < frame.mean() < 1
        assert ((rest == 0) == frame).all()
        assert ((classes == PRODUCT) == ~frame).all()
        assert len(np.unique(framed[frame], axis=0)) == 1
        if framed.shape == image.shape:
            assert (framed[~frame] == image[~frame]).all()
        else:
            assert (framed[~frame].reshape(image.shape) == image).all()
        sizes.add(framed.shape)
    assert len(sizes) > 3, "borders, lines and paddings"


@pytest.mark.parametrize("kind", ["white", "coloured", "gradient", "shadow", "slats", "lattice"])
def test_the_mask_lies_where_the_picture_shows_the_product(kind: str) -> None:
    """Colours far from the backdrop's are the product; a mask that is off by three pixels fits them worse."""
    assert kind in PLAIN_KINDS
    offsets = [(0, 0), (3, 0), (-3, 0), (0, 3), (0, -3)]
    fits = np.median([_fits(scene_of(kind, "train", seed, 160), offsets) for seed in range(10)], axis=0)
    assert fits[0] > 0.6
    assert fits[1:].max() < fits[0] - 0.05


def _fits(scene: Scene, offsets: list[tuple[int, int]]) -> list[float]:
    """IoU of the mask, moved by each offset, with the colours that differ from the backdrop's by over 10 ΔE."""
    lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    differs = np.linalg.norm(lab - fit_surface(lab, 12.0).lab, axis=-1) > 10
    counted = (scene.classes == PRODUCT) | (scene.classes == BACKDROP)
    return [_iou(np.roll(scene.coverage >= 0.5, at, (0, 1)) & counted, differs & counted) for at in offsets]


def _iou(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def test_an_unknown_kind_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="portrait is no kind of scene"):
        scene_of("portrait")
