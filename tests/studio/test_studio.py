"""The studio end to end at a small size: determinism, masks, splits, captions, shards and the sample catalogue."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("mitsuba", reason="needs the extra refadgen[studio]")

from PIL import Image

from refadgen.config import DegradationConfig
from refadgen.storage.store import Storage
from refadgen.studio import build_triplets, scenes
from refadgen.studio.appearance import LOGOS, PATTERNS, sample_appearance
from refadgen.studio.build_triplets import (
    RenderOptions,
    require_no_overlap,
    require_same_render,
    shard_seeds,
    write_shard,
)
from refadgen.studio.camera import View, camera_for, sample_view, silhouette
from refadgen.studio.dressing import render_dressed
from refadgen.studio.make_catalog import LISTINGS, Listing, make_catalog
from refadgen.studio.mitsuba_scene import environment_picture, product_dict, trace
from refadgen.studio.phone_photo import render_phone_photo
from refadgen.studio.render import (
    product_id_of,
    render_ad,
    render_product_photo,
    render_triplet,
    sample_product,
    split_of,
)
from refadgen.studio.shapes import CATEGORIES
from refadgen.triplets import schema as triplets
from refadgen.triplets.degradation import degrade, row_rng

SMALL = {"width_px": 64, "height_px": 80, "spp": 2}


def test_one_seed_gives_the_same_bytes_twice():
    first, second = render_triplet(11, **SMALL), render_triplet(11, **SMALL)
    assert first.product_image.tobytes() == second.product_image.tobytes()
    assert first.product_mask.tobytes() == second.product_mask.tobytes()
    assert first.ad_image.tobytes() == second.ad_image.tobytes()
    assert first.captions == second.captions
    assert render_triplet(12, **SMALL).ad_image.tobytes() != first.ad_image.tobytes()


@pytest.mark.parametrize("seed", [3, 105])
def test_photograph_and_ad_share_the_mask_and_white_lies_outside(seed: int):
    product, view = sample_product(seed), sample_view(seed)
    photo, photo_mask = render_product_photo(product, view, **SMALL)
    ad, ad_mask = render_ad(product, scenes.sample_scene(seed), view, **SMALL)
    assert photo.shape == ad.shape == (80, 64, 3)
    assert photo.dtype == ad.dtype == photo_mask.dtype == np.uint8
    assert set(np.unique(photo_mask)) == {0, 255}
    np.testing.assert_array_equal(photo_mask, ad_mask)
    assert (photo[photo_mask == 0] == 255).all()
    assert (photo[photo_mask == 255] < 250).any(axis=-1).mean() > 0.5


@pytest.mark.parametrize("roll_deg", [0.0, 4.0])
@pytest.mark.parametrize("seed", [105, 107, 113])
def test_the_mask_is_what_the_path_tracer_sees(seed: int, roll_deg: float):
    # 105 is a cup with a handle: a hole in the silhouette.
    product = sample_product(seed)
    view = View(yaw_deg=20, pitch_deg=8, height_share=0.7, center_x=0.4, base_y=0.85, roll_deg=roll_deg)
    camera = camera_for(product.shape, view, width_px=64, height_px=80)
    objects = product_dict(product.shape, product.appearance, view)
    seen = trace(objects, camera, None, width_px=64, height_px=80, spp=16)[..., 3] >= 0.5
    _, mask = render_product_photo(product, view, **SMALL)
    # 16 samples leave a pixel's coverage uncertain by 12 %, so single edge pixels differ.
    assert (seen != (mask > 0)).sum() <= 0.02 * seen.sum()


@pytest.mark.parametrize("seed", [3, 107])
def test_the_product_stands_where_the_view_says(seed: int):
    view = sample_view(seed)
    mask = silhouette(sample_product(seed).shape, view, width_px=128, height_px=160)
    rows, columns = np.nonzero(mask)
    assert abs((rows.max() + 1) / 160 - view.base_y) < 0.02
    assert abs((columns.min() + columns.max() + 1) / 2 / 128 - view.center_x) < 0.05
    assert 0.33 < (rows.max() + 1 - rows.min()) / 160 <= view.height_share + 0.01
    assert rows.min() > 0
    assert columns.min() > 0
    assert columns.max() < 127


def test_views_stay_in_their_ranges():
    for view in map(sample_view, range(200)):
        assert 0.35 <= view.center_x <= 0.65
        assert 0.35 <= view.height_share <= 0.75
        assert max(0.7, view.height_share) < view.base_y <= 0.9


def test_another_appearance_keeps_the_silhouette():
    product, other, view = sample_product(7), sample_product(8), sample_view(7)
    dressed = replace(product, appearance=other.appearance)
    photo, mask = render_product_photo(product, view, **SMALL)
    dressed_photo, dressed_mask = render_product_photo(dressed, view, **SMALL)
    np.testing.assert_array_equal(mask, dressed_mask)
    assert np.abs(photo.astype(int) - dressed_photo)[mask > 0].mean() > 20


def test_products_are_split_and_varied():
    products = [sample_product(seed) for seed in range(400)]
    splits = [split_of(f"studio-{seed:07d}") for seed in range(5000)]
    assert 0.03 < splits.count("test") / len(splits) < 0.05
    assert {product.category for product in products} == set(CATEGORIES)
    assert len(CATEGORIES) == 30
    looks = [sample_appearance(np.random.default_rng(seed)) for seed in range(150)]
    assert {look.pattern for look in looks} == set(PATTERNS)
    assert {look.logo for look in looks} == set(LOGOS)


def test_captions_contain_the_scene_words():
    scene = scenes.sample_scene(5)
    texts = scenes.captions("bottle", scene)
    for text in texts:
        assert all(word in text for word in (scene.surface, scene.wall, scene.light))
    assert texts[0] == scenes.scene_prompt(scene.surface, scene.wall, scene.light, "bottle")
    assert sum("bottle" in text for text in texts) == len(texts) - 1
    with pytest.raises(ValueError, match="not a trained wall"):
        scenes.scene_prompt("sand", "purple wall", "soft studio light")


def test_held_out_combinations_stay_out_of_training_but_not_their_words():
    held_out = {(s, w) for s in scenes.SURFACES for w in scenes.WALLS if scenes.is_held_out_combination(s, w)}
    assert 0.1 < len(held_out) / 64 < 0.2
    trained = [scenes.sample_scene(seed) for seed in range(400)]
    assert not held_out & {(scene.surface, scene.wall) for scene in trained}
    assert {scene.surface for scene in trained} == set(scenes.SURFACES)
    assert {scene.wall for scene in trained} == set(scenes.WALLS)
    unseen = scenes.sample_scene(1, held_out=True)
    assert (unseen.surface, unseen.wall) in held_out


def test_every_scene_word_can_be_rendered():
    product, view = sample_product(3), sample_view(3)
    for number, (surface, wall) in enumerate(zip(scenes.SURFACES, scenes.WALLS, strict=True)):
        scene = scenes.make_scene(surface, wall, scenes.LIGHTS[number % 4], seed=number)
        rgb, _ = render_ad(product, scene, view, width_px=32, height_px=40, spp=2)
        assert 15 < rgb.mean() < 250, (surface, wall)


def test_a_phone_photograph_comes_with_its_mask():
    rgb, mask = render_phone_photo(sample_product(3), 1, **SMALL)
    assert rgb.shape == (80, 64, 3)
    assert mask.shape == (80, 64)
    assert 0.05 < (mask > 0).mean() < 0.6
    assert (rgb[mask == 0] < 255).any()


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_a_dressed_view_equals_its_own_render(seed: int):
    """Equal up to noise, filter, and averaging: a dressing averages colour and light over a pixel separately."""
    size = {"width_px": 64, "height_px": 80, "spp": 8}
    base, view = sample_product(seed), sample_view(seed)
    dressed = list(render_dressed(seed, 3, **size))
    assert len({triplet.product_id for triplet in dressed}) == len(dressed)
    for triplet in dressed:
        look = sample_appearance(np.random.default_rng([seed, 1, 1 + triplet.seed - 3 * seed]))
        finish = {"roughness": base.appearance.roughness, "metallic": base.appearance.metallic}
        product = replace(base, appearance=replace(look, **finish))
        for true, ours in (
            (render_ad(product, triplet.scene, view, **size)[0], triplet.ad_image),
            (render_product_photo(product, view, **size)[0], triplet.product_image),
        ):
            error = true.astype(float) - ours
            assert 10 * np.log10(255**2 / (error**2).mean()) > 28
            assert abs(error.mean()) < 1
        assert not scenes.is_held_out_combination(triplet.scene.surface, triplet.scene.wall)
        assert split_of(triplet.product_id) == triplet.split == "train"


@pytest.mark.slow
def test_a_second_run_keeps_complete_shards_and_renders_missing_ones(tmp_path, capsys):
    size = ["--width-px", "32", "--height-px", "40", "--spp", "1"]
    command = ["--output", str(tmp_path), "--num", "3", "--first-seed", "10", "--shard-seeds", "2", *size]
    build_triplets.main(command)
    shards = sorted(tmp_path.glob("*.parquet"))
    assert [shard.name for shard in shards] == [
        "triplets-0000010-0000011.parquet",
        "triplets-0000012-0000012.parquet",
    ]
    kept, lost = (shard.read_bytes() for shard in shards)
    modified = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    build_triplets.main(command)
    assert "1 of 2 shards exist already" in capsys.readouterr().out
    assert [shard.read_bytes() for shard in shards] == [kept, lost]
    assert shards[0].stat().st_mtime_ns == modified
    assert not list(tmp_path.glob(".*"))
    assert triplets.scan(str(tmp_path)).num_rows == 3


def test_a_row_has_all_kinds_of_product_image():
    (row,) = build_triplets.render_rows(10, RenderOptions(width_px=32, height_px=40, spp=1))
    kinds = [variant.kind for variant in row.variants]
    assert kinds[:3] == ["original", "relit", "degraded"]
    assert set(kinds[3:]) == {"novel_view"}
    assert 2 <= len(kinds[3:]) <= 4
    original, relit = row.variants[:2]
    assert (original.image[original.mask > 0] == row.ad_image[original.mask > 0]).all()
    for variant in row.variants:
        assert variant.image.shape == (40, 32, 3)
        assert (variant.image[variant.mask == 0] == 255).all()
    assert any((variant.mask != relit.mask).any() for variant in row.variants[3:])
    assert row.split == split_of(row.product_id)
    assert len(row.captions) == 4


def test_a_shard_cut_off_while_it_is_written_is_not_there(tmp_path, monkeypatch):
    def killed(source: str, destination: str) -> None:
        assert Path(source).stat().st_size > 1000, "the bytes are written"
        raise KeyboardInterrupt

    monkeypatch.setattr("refadgen.storage.store.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(str(tmp_path), range(10, 11), RenderOptions(width_px=32, height_px=40, spp=1))
    assert not list(tmp_path.glob("*.parquet"))


def test_training_products_stand_in_trained_scenes_only():
    """Where the free choice of a seed is a held-out pair: training products get another, test products keep it."""

    def is_held_out(scene: scenes.Scene) -> bool:
        return scenes.is_held_out_combination(scene.surface, scene.wall)

    for split in ("train", "test"):
        seed = next(
            seed
            for seed in range(10_000)
            if split_of(product_id_of(seed)) == split and is_held_out(scenes.sample_scene(seed, held_out=None))
        )
        assert is_held_out(render_triplet(seed, width_px=16, height_px=20, spp=1).scene) == (split == "test")


def test_no_dressing_is_the_seeds_own_product():
    """It would be there under two ids, which may lie in two splits."""
    size = {"width_px": 32, "height_px": 40, "spp": 2, "novel_views": False}
    own = render_product_photo(sample_product(10), sample_view(10), width_px=32, height_px=40, spp=2)[0]
    for triplet in render_dressed(10, 2, **size):
        inside = triplet.product_mask > 0
        assert np.abs(triplet.product_image.astype(int) - own)[inside].mean() > 15


def test_rows_of_one_model_are_degraded_each_in_its_own_way(tmp_path):
    """Their product is one, by the file's bytes."""
    file = str(_model_file(tmp_path / "box.glb"))
    options = RenderOptions(width_px=32, height_px=40, spp=1, models=(file,))
    strengths = []
    for seed in (10, 11):
        (row,) = build_triplets.render_rows(seed, options)
        assert row.product_id.startswith("model-")
        drawn = row_rng(0, row.row_id).random(4)
        strengths.append(drawn.tolist())
        again = degrade(row.variants[1].image, row.variants[1].mask, row_rng(0, row.row_id), DegradationConfig())
        np.testing.assert_array_equal(row.variants[2].image, again[0])
    assert strengths[0] != strengths[1]


def _model_file(file: Path) -> Path:
    import trimesh

    trimesh.creation.box((1, 2, 1)).export(file)
    return file


@pytest.mark.slow
def test_broken_models_and_maps_are_named_and_left_out(tmp_path, capsys):
    models, maps = tmp_path / "models", tmp_path / "maps"
    for folder in (models, maps):
        folder.mkdir()
    good = _model_file(models / "box.glb")
    (models / "broken.glb").write_bytes(good.read_bytes()[:100])
    _environment_map(maps / "red desert.exr")
    (maps / "broken.hdr").write_bytes(b"#?RADIANCE")
    size = ["--width-px", "32", "--height-px", "40", "--spp", "1", "--num", "2", "--first-seed", "10"]
    command = ["--output", str(tmp_path / "out"), *size, "--models", str(models), "--environments", str(maps)]
    build_triplets.main(command)
    said = capsys.readouterr().out
    assert "left out: " in said
    assert "broken.glb: cannot be read as a 3D model" in said
    assert "broken.hdr: cannot be read as an environment map" in said
    assert triplets.scan(str(tmp_path / "out")).num_rows == 2
    record = json.loads((tmp_path / "out" / build_triplets.RECORD).read_text())
    assert [name for name, _ in record["models"]] == ["box.glb"]
    good.unlink()
    with pytest.raises(SystemExit):
        build_triplets.main(command)
    assert "--models: no file there can be read" in capsys.readouterr().err


def test_a_folder_holds_one_kind_of_render(tmp_path):
    storage, options = Storage(str(tmp_path)), RenderOptions(models=("a/b.glb",))
    require_same_render(storage, options, {"a/b.glb": "1"})
    require_same_render(storage, replace(options, models=("other/b.glb",)), {"other/b.glb": "1"})
    two = replace(options, models=("a/b.glb", "c/b.glb"))
    with pytest.raises(ValueError, match=r"models=\[\['b\.glb', '1'\]\], not \[\['b\.glb', '2'\], \['b\.glb', '1'\]\]"):
        require_same_render(storage, two, {"a/b.glb": "2", "c/b.glb": "1"})  # one name, two files
    for other, digest in ((replace(options, spp=64), "1"), (replace(options, width_px=64), "1"), (options, "2")):
        with pytest.raises(ValueError, match=r"--output .*: its shards were rendered with (spp|width_px|models)="):
            require_same_render(storage, other, {"a/b.glb": digest})


def test_shards_of_another_grid_are_refused():
    require_no_overlap(["triplets-0000000-0000049.parquet", "notes.parquet"], shard_seeds(0, 120, 50))
    require_no_overlap(["triplets-0000200-0000249.parquet"], shard_seeds(0, 120, 50))
    with pytest.raises(ValueError, match=r"triplets-0000100-0000119\.parquet shares seeds with another shard"):
        require_no_overlap(["triplets-0000100-0000119.parquet"], shard_seeds(0, 200, 50))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--num", "0"),
        ("--first-seed", "-1"),
        ("--shard-seeds", "0"),
        ("--dressings", "-1"),
        ("--width-px", "0"),
        ("--spp", "0"),
    ],
)
def test_wrong_numbers_are_named_before_ray_starts(word, value, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("refadgen.batch.ray_connection.connect", lambda cpus: pytest.fail("Ray was started"))
    with pytest.raises(SystemExit):
        build_triplets.main(["--output", str(tmp_path), word, value])
    assert f"{word} {value}: must be at least" in capsys.readouterr().err


def test_dressings_need_the_studios_own_light():
    with pytest.raises(ValueError, match="--dressings"):
        RenderOptions(dressings=12, depth_of_field=True)


def _environment_map(file: Path) -> str:
    import mitsuba as mi

    sky = np.zeros((16, 32, 3), np.float32)
    sky[:8] = [0.2, 0.4, 1.0]
    sky[8:] = [0.8, 0.3, 0.1]
    mi.Bitmap(sky).write(str(file))
    return str(file)


def test_an_environment_map_is_wall_and_light(tmp_path):
    size = {"width_px": 48, "height_px": 60, "spp": 4}
    file = _environment_map(tmp_path / "red desert.exr")
    found = [render_triplet(seed, environments=[file], **size) for seed in range(8)]
    inside = [triplet for triplet in found if triplet.scene.environment]
    assert inside, "every second ad has one"
    assert len(inside) < 8
    for triplet in inside:
        assert triplet.captions[0].endswith("red desert")
        red, _, blue = triplet.ad_image[0].astype(int).mean(axis=0)
        assert blue > red + 40, "the sky is the map's"
    (tmp_path / "broken.hdr").write_bytes(b"#?RADIANCE")
    with pytest.raises(ValueError, match=r"broken\.hdr: cannot be read as an environment map"):
        [render_triplet(seed, environments=[str(tmp_path / "broken.hdr")], **size) for seed in range(8)]


def test_an_environment_map_is_read_with_one_thread_too(tmp_path):
    """As in a Ray task of one CPU, where it used to wait for ever; and threads stay as they were."""
    import drjit

    file, before = _environment_map(tmp_path / "red desert.exr"), drjit.thread_count()
    drjit.set_thread_count(1)
    try:
        environment_picture.cache_clear()
        assert environment_picture(file).shape == (16, 32, 3)
        assert drjit.thread_count() == 1
    finally:
        drjit.set_thread_count(before)


def test_an_open_lens_blurs_the_wall_and_not_the_product():
    size = {"width_px": 96, "height_px": 120, "spp": 16}
    product, view = sample_product(7), sample_view(7)
    scene = replace(scenes.make_scene("grass", "leafy hedge", "soft studio light", seed=1), wall_distance=2.0)
    blurred = replace(scene, aperture=0.2)
    (sharp, mask), (soft, soft_mask) = (render_ad(product, each, view, **size) for each in (scene, blurred))
    assert (mask == soft_mask).all()

    def edges(image: np.ndarray, where: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float).mean(axis=2), axis=1))[where[:, 1:]].mean())

    wall = np.zeros(mask.shape, bool)
    wall[:20] = True
    assert edges(soft, wall & (mask == 0)) < 0.6 * edges(sharp, wall & (mask == 0))
    assert edges(soft, mask > 0) > 0.75 * edges(sharp, mask > 0)


def test_the_sample_catalogue_shows_unseen_products_in_trained_scenes(tmp_path):
    products = [sample_product(listing.seed) for listing in LISTINGS]
    assert len(LISTINGS) == 12
    assert all(split_of(product.product_id) == "test" for product in products)
    assert len({product.category for product in products}) >= 8
    assert sorted(listing.kind for listing in LISTINGS if listing.kind != "white") == ["cutout", "phone"]
    for listing in LISTINGS:
        assert len(listing.scenes) in (0, 2)
        assert not any(scenes.is_held_out_combination(surface, wall) for surface, wall, _ in listing.scenes)

    chosen = [listing for listing in LISTINGS if listing.kind != "white" or listing.name == "heart-ball"]
    rows = pq.read_table(make_catalog(tmp_path, spp=1, listings=chosen)).to_pylist()
    for row in rows:
        image = Image.open(tmp_path / row["image"])
        assert image.mode == ("RGBA" if row["image"].endswith(".png") else "RGB")
        if row["mask"]:
            assert Image.open(tmp_path / row["mask"]).size == image.size
    assert [bool(row["mask"]) for row in rows].count(True) == 1
    with pytest.raises(ValueError, match="training product"):
        make_catalog(tmp_path, listings=[Listing(seed=1, name="seen", title="Seen", brand="Seen")])
