"""Renders of the mask's training: the same seed twice, masks, the split of families, and resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("mitsuba", reason="needs the extra refadgen[studio]")

from refadgen.mask_training import photographs, renders
from refadgen.mask_training.photographs import Quality
from refadgen.mask_training.renders import HELD_OUT, SCHEMA, Stock, render, render_item
from refadgen.storage.pictures import from_png
from refadgen.studio import mitsuba_scene
from refadgen.studio.camera import coverage
from refadgen.studio.shapes import NOUNS

TINY = Quality(long_px=64, spp=1)


def seed_of(kind: str) -> int:
    """The first seed of a kind."""
    names, shares = list(renders.KINDS), list(renders.KINDS.values())
    return next(seed for seed in range(99) if np.random.default_rng([seed, 20]).choice(names, p=shares) == kind)


@pytest.mark.parametrize("kind", ["cutout", "plain", "scene"])
def test_a_seed_gives_the_same_picture_twice(kind: str) -> None:
    first, second = (render_item(seed_of(kind), Stock(), TINY) for _ in range(2))
    assert first.kind == kind
    assert first.image.tobytes() == second.image.tobytes()
    mask = first.image[..., 3] if first.mask is None else first.mask
    assert (first.mask is None) == (kind == "cutout")
    assert mask.shape == first.image.shape[:2]
    assert mask.max() == 255
    assert mask[[0, -1]].max() == mask[:, [0, -1]].max() == 0  # the whole product is inside


def test_the_mask_is_what_the_renderer_sees() -> None:
    rng = np.random.default_rng(5)
    family, shape = Stock().draw(rng)
    product = photographs.dress(shape, rng, lying=0.5)
    camera, width_px, height_px = photographs._placed_camera(product, rng, TINY, pitch_deg=30, least=0.5, most=0.7)
    size = {"width_px": width_px, "height_px": height_px}
    seen = mitsuba_scene.trace(product.objects(), camera, None, **size, spp=64)[..., 3]
    mask = coverage(product.shape.parts, camera, **size) / 255
    assert 0.05 < mask.mean() < 0.7, family
    # 64 samples a pixel are right to about 0.06, a half pixel's shift would be 0.5 along the rim.
    assert np.abs(mask - seen).max() < 0.25
    assert np.abs(mask - seen).mean() < 0.01


def test_held_out_families_never_mix_with_the_others(tmp_path: Path) -> None:
    assert set(NOUNS) >= HELD_OUT
    for held_out in (False, True):
        rng = np.random.default_rng(0)
        drawn = {Stock(held_out=held_out).draw(rng)[0] for _ in range(200)}
        assert drawn == ({*HELD_OUT} if held_out else {*NOUNS} - HELD_OUT)
    for name in ("headphones", "cup-coffee", "Sneaker"):
        assert renders.is_held_out(Path(f"{name}.glb"))
    for number in range(40):
        (tmp_path / f"thing-{number}.glb").touch()
        (tmp_path / f"place-{number}.hdr").touch()
    kept, rest = (renders.read_stock(tmp_path, tmp_path, held_out=side) for side in (True, False))
    assert 2 <= len(kept.models) <= 14
    assert 2 <= len(kept.maps) <= 16
    assert not {*kept.models} & {*rest.models}
    assert len(kept.models) + len(rest.models) == len(kept.maps) + len(rest.maps) == 40


def test_a_folder_without_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--maps .* has no training file"):
        renders.read_stock(None, tmp_path, held_out=False)


def test_the_same_command_again_renders_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renders, "SHARD_ROWS", 2)
    options = {"first_seed": 10, "stock": Stock(), "quality": TINY}
    assert render(tmp_path, num=2, **options) == 2
    (first,) = tmp_path.glob("*.parquet")
    before = first.stat().st_mtime_ns
    assert render(tmp_path, num=3, **options) == 1
    assert first.stat().st_mtime_ns == before
    tables = [pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert all(table.schema == SCHEMA for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["seed"] for row in rows] == [10, 11, 12]
    for row in rows:
        image = from_png(row["image"])
        assert image.shape[2] == (4 if row["kind"] == "cutout" else 3)
        assert row["mask"] is None or from_png(row["mask"]).shape == image.shape[:2]
    with pytest.raises(ValueError, match="other held_out"):
        render(tmp_path, num=3, **{**options, "stock": replace(options["stock"], held_out=True)})
