"""Rows of a step, precomputed and not: both are the same; choices follow the draws; a cache is complete or absent."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import LATENTS, TINY, config_of, online_rows, plan_of

from refadgen.config import TrainConfig
from refadgen.model.encoders import Encoders
from refadgen.storage.store import Storage
from refadgen.training.cache import (
    MANIFEST,
    Cache,
    CachedRow,
    footer_digest,
    load_cache,
    part_groups,
    split_rows,
    unit_name,
    write_part,
)
from refadgen.training.choices import RowChooser
from refadgen.training.loop import BatchMaker
from refadgen.training.networks import load_parts
from refadgen.training.plan import Plan, RowDraw, RowGroup, Segment, draw, with_each_image
from refadgen.training.precompute import TripletEncoder, constants_of, precompute, recipe_of, shapes_of
from refadgen.training.rows import CachedRows
from refadgen.triplets.geometry import CoverCrop
from refadgen.triplets.schema import SCHEMA, dataset_files, decode, scan

EPOCH = Segment(0, 0, 4)
"""All 16 training rows of the data set that ships, at 4 rows a step."""


def cached_rows(config: TrainConfig, folder: Path) -> CachedRows:
    """The data set of a configuration, precomputed in this process."""
    encoder = TripletEncoder(config, config.data.path, str(folder))
    key = Path(config.data.path).name
    made = encoder({"key": [key], "group": [0], "part": ["part.parquet"]})
    assert made["errors"] == ["[]"]
    encoders = load_parts(config).encoders(config, torch.device("cpu"), torch.float32).prepared()
    parts = {"part.parquet": split_rows(json.loads(made["groups"][0]))}
    cache = Cache(str(folder), "whole", shapes_of(config, encoders), parts, constants_of(encoders))
    return CachedRows(cache, RowChooser(config.data, config.objective))


def with_settings(source: Any, config: TrainConfig) -> Any:
    return dataclasses.replace(source, chooser=RowChooser(config.data, config.objective))


@pytest.fixture(scope="module")
def cached(encoder_base: Path, tmp_path_factory: pytest.TempPathFactory) -> CachedRows:
    return cached_rows(config_of(encoder_base), tmp_path_factory.mktemp("cache"))


def load(source: Any, config: TrainConfig, segment: Segment = EPOCH) -> dict[str, np.ndarray]:
    return source.load(plan_of(config, source, 400), segment, rank=0, world_size=1)


def batches(source: Any, config: TrainConfig, online: bool, segment: Segment) -> dict[str, torch.Tensor]:
    """The batch that the module would get, without the constants."""
    parts = load_parts(config)
    encoders = parts.encoders(config, torch.device("cpu"), torch.float32).prepared() if online else None
    make_batch = BatchMaker(config, {}, parts.scheduler.config.num_train_timesteps, torch.device("cpu"), encoders)
    return make_batch(load(source, config, segment))


DROPS = ("objective.image_dropout=0.2", "objective.text_dropout=0.2", "objective.both_dropout=0.2")


@pytest.mark.parametrize("base_name", ["encoder_base", "refadgen_base"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_cached_rows_are_online_rows(
    epoch: int, base_name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The pictures have the canvas's size, so no crop is drawn; a third of the rows each drop image, text and both."""
    config = config_of(request.getfixturevalue(base_name), *DROPS)
    segment = Segment(epoch, 4 * epoch, 4)
    stored = batches(cached_rows(config, tmp_path), config, False, segment)
    encoded = batches(online_rows(config, load_parts(config)), config, True, segment)
    assert stored.keys() == encoded.keys()
    assert ("image_states" in stored) == (base_name == "encoder_base")
    for name, tensor in encoded.items():
        assert stored[name].dtype == tensor.dtype, name
        if name in ("latents", "reference_latents", "text_states", "image_states"):
            # float16 has 11 bits: half a step is 2⁻¹¹ of the number; encoders round by the size of their batch, too.
            torch.testing.assert_close(stored[name], tensor, rtol=2**-10, atol=1e-4, msg=name)
        else:
            assert torch.equal(stored[name], tensor), name
    assert stored["latents"].shape == (16, *LATENTS)


def test_cached_rows_have_the_crop_of_the_first_epoch(refadgen_base: Path, tmp_path: Path) -> None:
    """On a canvas that cuts the pictures, the cache has the crop that the first epoch draws."""
    config = config_of(refadgen_base, "data.width_px=40", "data.height_px=80")
    stored = batches(cached_rows(config, tmp_path), config, False, EPOCH)
    encoded = batches(online_rows(config, load_parts(config)), config, True, EPOCH)
    torch.testing.assert_close(stored["latents"], encoded["latents"], rtol=2**-10, atol=1e-4)
    assert torch.equal(stored["mask_latents"], encoded["mask_latents"])


def test_a_random_crop_is_another_in_every_epoch_and_one_for_all_three(encoder_base: Path) -> None:
    """The shorter side, 64 px, is resized to the canvas's longer one, 80 px."""
    config = config_of(encoder_base, "data.crop=random", "data.precompute=false", "data.variants=original")
    source = online_rows(config, load_parts(config))
    triplets = {row["row_id"]: decode(row) for row in pq.read_table(TINY).to_pylist()}
    places = set()
    for epoch in range(2):
        arrays = load(source, config, Segment(epoch, 4 * epoch, 4))
        for index, row_id in enumerate(arrays["row_id"]):
            drawn, triplet = draw(0, epoch, row_id), triplets[row_id]
            crop = CoverCrop(64, 80, drawn.crop_left, drawn.crop_top, zoomed=True)
            assert np.array_equal(arrays["ad_images"][index], crop(triplet.ad_image))
            assert np.array_equal(arrays["product_images"][index], crop(triplet.variants[0].image))
            assert np.array_equal(arrays["masks"][index], crop(triplet.variants[0].mask))
            places.add((row_id, round(drawn.crop_left * 16), round(drawn.crop_top * 20)))
    assert len(places) > 16 + 8


def test_encoding_on_the_way_takes_few_pictures_at_once(encoder_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes have the size of the setting; their results differ by rounding only."""
    seen: list[int] = []
    latents = Encoders.latents

    def watched(self: Encoders, images_u8: np.ndarray) -> torch.Tensor:
        seen.append(len(images_u8))
        return latents(self, images_u8)

    monkeypatch.setattr(Encoders, "latents", watched)
    made = []
    for size in (16, 6):
        config = config_of(encoder_base, f"data.encode_batch_size={size}")
        made.append(batches(online_rows(config, load_parts(config)), config, True, EPOCH))
    assert seen == [16, 16, 6, 6, 6, 6, 4, 4]
    for name, tensor in made[0].items():
        torch.testing.assert_close(made[1][name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_where_the_text_encoder_trains_only_token_ids_are_kept(refadgen_base: Path, tmp_path: Path) -> None:
    config = config_of(refadgen_base, "model.trains=everything")
    source = cached_rows(config, tmp_path)
    assert source.cache.shapes.text_states is None
    assert source.cache.constants.keys() == {"empty_token_ids"}
    arrays = load(source, config)
    assert "text_states" not in arrays
    assert arrays["token_ids"].shape == (16, 24)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("epoch", [0, 1])
def test_choices_follow_the_draws(epoch: int, online: bool, cached: CachedRows, encoder_base: Path) -> None:
    config = config_of(encoder_base, *DROPS, "objective.reference_dropout=0.3")
    parts = load_parts(config)
    source = online_rows(config, parts) if online else with_settings(cached, config)
    arrays = load(source, config, Segment(epoch, 4 * epoch, 4))
    triplets = {row["row_id"]: decode(row) for row in pq.read_table(TINY).to_pylist()}
    tokenizer = parts.tokenizer
    for index, row_id in enumerate(arrays["row_id"]):
        drawn, triplet = draw(0, epoch, row_id), triplets[row_id]
        assert triplet.split == "train"
        variant = triplet.variants[int(drawn.variant * len(triplet.variants))]
        assert arrays["variant"][index] == variant.kind
        caption = triplet.captions[int(drawn.caption * len(triplet.captions))]
        text_dropped = drawn.dropout < 0.2 or 0.4 <= drawn.dropout < 0.6
        wanted = tokenizer("" if text_dropped else caption, padding="max_length", max_length=24, truncation=True)
        assert arrays["token_ids"][index].tolist() == wanted.input_ids
        assert arrays["fusion_scale"][index] == (drawn.reference_dropout >= 0.3)
        assert arrays["noise_seed"][index] == drawn.noise_seed
        assert arrays["timestep"][index] == drawn.timestep
        if online:
            assert np.array_equal(arrays["product_images"][index], variant.image)
            assert np.array_equal(arrays["masks"][index], variant.mask)
        else:
            assert np.array_equal(arrays["mask_latents"][index, 0], variant.mask[::8, ::8] > 127)
    assert set(arrays["fusion_scale"]) == {0, 1}
    assert arrays["step"].tolist() == [4 * epoch + index // 4 for index in range(16)]
    assert arrays["position"].tolist() == [0, 1, 2, 3] * 4
    assert arrays["epoch"].tolist() == [epoch] * 16
    assert len(set(arrays["row_id"])) == 16


def test_another_epoch_sees_other_variants(cached: CachedRows, encoder_base: Path) -> None:
    config, seen = config_of(encoder_base), Counter()
    by_row: dict[str, set[str]] = {}
    for epoch in range(12):
        arrays = load(cached, config, Segment(epoch, 4 * epoch, 4))
        seen.update(arrays["variant"])
        for row_id, kind in zip(arrays["row_id"], arrays["variant"], strict=True):
            by_row.setdefault(row_id, set()).add(kind)
    assert set(seen) == {"original", "relit", "degraded", "novel_view"}
    assert min(map(len, by_row.values())) >= 2
    assert seen["novel_view"] > seen["original"]  # each picture is as likely as another, and these are two or more


@pytest.mark.parametrize("online", [False, True])
def test_each_product_image_is_a_row_of_its_own(online: bool, cached: CachedRows, encoder_base: Path) -> None:
    """Where an epoch counts product images: each of the kinds asked for comes once, with its own mask and draws."""
    kinds = ("degraded", "novel_view")
    config = config_of(encoder_base, f"data.variants={list(kinds)}")
    source = online_rows(config, load_parts(config)) if online else with_settings(cached, config)
    triplets = {row["row_id"]: decode(row) for row in pq.read_table(TINY).to_pylist()}
    counts = scan(str(TINY), kinds).training_images
    plan = Plan(with_each_image(source.groups("train"), counts), 0, 2, sum(counts) // 2, 1024)
    arrays = source.load(plan, Segment(0, 0, plan.num_steps), rank=0, world_size=1)
    wanted = []
    for row_id, triplet in triplets.items():
        eligible = [each for each in triplet.variants if each.kind in kinds] if triplet.split == "train" else []
        for image, variant in enumerate(eligible):
            drawn = draw(0, 0, f"{row_id}/{image}")
            wanted.append((row_id, variant.kind, drawn.noise_seed, drawn.timestep, variant.mask))
    assert len(wanted) == sum(counts) == plan.num_rows
    assert len({seed for _, _, seed, _, _ in wanted}) == len(wanted)
    columns = [arrays[name].tolist() for name in ("row_id", "variant", "noise_seed", "timestep")]
    seen = sorted(zip(*columns, range(len(wanted)), strict=True))
    for (*own, mask), (*found, index) in zip(sorted(wanted, key=lambda each: each[:4]), seen, strict=True):
        assert own == found
        if online:
            assert np.array_equal(arrays["masks"][index], mask)
        else:
            assert np.array_equal(arrays["mask_latents"][index, 0], mask[::8, ::8] > 127)


@pytest.mark.parametrize("online", [False, True])
def test_the_mask_is_the_variants_the_ads_or_none(online: bool, cached: CachedRows, encoder_base: Path) -> None:
    masks = {}
    for kind in ("variant", "ad", "none"):
        config = config_of(encoder_base, f"data.mask={kind}", "data.variants=[novel_view]")
        source = online_rows(config, load_parts(config)) if online else with_settings(cached, config)
        arrays = load(source, config)
        masks[kind] = arrays["masks"] > 127 if online else arrays["mask_latents"] == 1
    assert not masks["none"].any()
    assert masks["none"].shape == masks["ad"].shape == masks["variant"].shape
    own = {r["row_id"]: decode(r).variants[0].mask > 127 for r in pq.read_table(TINY).to_pylist()}
    for index, row_id in enumerate(arrays["row_id"]):
        wanted = own[row_id] if online else own[row_id][None, ::8, ::8]
        assert np.array_equal(masks["ad"][index], wanted)
    assert (masks["ad"] != masks["variant"]).any()


def test_only_wanted_kinds_are_drawn(cached: CachedRows, encoder_base: Path) -> None:
    config = config_of(encoder_base, "data.variants=original")
    for epoch in range(3):
        assert set(load(with_settings(cached, config), config, Segment(epoch, 4 * epoch, 4))["variant"]) == {"original"}


@pytest.mark.parametrize("online", [False, True])
def test_a_row_without_a_wanted_kind_is_named(
    online: bool, cached: CachedRows, encoder_base: Path, tmp_path: Path
) -> None:
    config = config_of(encoder_base, "data.variants=[relit]")
    table = pq.read_table(TINY).to_pylist()
    table[5]["variants"] = [each for each in table[5]["variants"] if each["kind"] != "relit"]
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), tmp_path / "rows.parquet")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "rows.parquet")))
    source = online_rows(config, load_parts(config)) if online else cached_rows(config, tmp_path / "cache")
    message = r"row 'studio-0000505': variants \['degraded', 'novel_view', 'original'\]: none is of data\.variants=\["
    with pytest.raises(ValueError, match=message):
        load(source, config)


def test_dropout_shares_are_those_of_the_settings(encoder_base: Path) -> None:
    words = ["objective.image_dropout=0.1", "objective.text_dropout=0.2", "objective.both_dropout=0.05"]
    config = config_of(encoder_base, *words)
    choices = RowChooser(config.data, config.objective)
    count = 20_000
    shares = Counter(choices.drops(draw(0, 0, f"row-{index}")) for index in range(count))
    wanted = {(True, False): 0.1, (False, True): 0.2, (True, True): 0.05, (False, False): 0.65}
    for drops, share in wanted.items():
        assert shares[drops] / count == pytest.approx(share, abs=0.015)  # a deviation of 0.003 at most


def test_dropouts_of_nothing_and_of_all(encoder_base: Path) -> None:
    drawn = RowDraw(*[0.0] * 7, noise_seed=0)
    for which, drops in (("image", (True, False)), ("text", (False, True)), ("both", (True, True))):
        shares = {"image": 0.0, "text": 0.0, "both": 0.0, which: 1.0}
        config = config_of(encoder_base, *(f"objective.{name}_dropout={share}" for name, share in shares.items()))
        for value in (0.0, 0.5, 1 - 2**-53):
            found = RowChooser(config.data, config.objective).drops(dataclasses.replace(drawn, dropout=value))
            assert found == drops
    none = config_of(encoder_base, *(f"objective.{name}_dropout=0" for name in ("image", "text", "both")))
    assert RowChooser(none.data, none.objective).drops(drawn) == (False, False)


def test_stratified_timesteps_are_one_from_each_slice(cached: CachedRows, encoder_base: Path) -> None:
    config = config_of(encoder_base, "objective.timesteps=stratified")
    arrays = load(with_settings(cached, config), config)
    assert (arrays["timestep"] * 4).astype(int).tolist() == arrays["position"].tolist()
    assert len(set((arrays["timestep"] * 4 % 1).tolist())) == 16


@pytest.mark.parametrize("online", [False, True])
def test_workers_share_out_the_rows(online: bool, cached: CachedRows, encoder_base: Path) -> None:
    config = config_of(encoder_base)
    source = online_rows(config, load_parts(config)) if online else cached
    whole, plan = load(source, config), plan_of(config, source)
    for rank in range(2):
        mine = source.load(plan, EPOCH, rank=rank, world_size=2)
        assert mine.keys() == whole.keys()
        for name, values in mine.items():
            assert np.array_equal(values, whole[name][rank::2]), name


def test_both_sources_plan_the_same_rows(cached: CachedRows, encoder_base: Path) -> None:
    online = online_rows(config_of(encoder_base), load_parts(config_of(encoder_base)))
    for split, count in (("train", 16), ("test", 4)):
        for source in (cached, online):
            assert sum(len(group.offsets) for group in source.groups(split)) == count
    assert online.groups("test")[0].offsets == (16, 17, 18, 19)
    assert cached.groups("test") == [RowGroup("part.parquet", 1, (0, 1, 2, 3))]


def test_parts_are_cut_into_row_groups_by_split(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    row = CachedRow("t", "p", b"12", None, [], [])
    rows = {"test": [row], "train": [dataclasses.replace(row, row_id=f"{index}") for index in range(70)]}
    write_part(storage, "a.parquet", rows)
    assert part_groups(storage, "a.parquet") == [("train", 64), ("train", 6), ("test", 1)]
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read_row_group(1)["row_id"].to_pylist() == [str(index) for index in range(64, 70)]
    write_part(storage, "empty.parquet", {})
    assert part_groups(storage, "empty.parquet") == []


def test_part_names_follow_from_source_and_recipe(refadgen_base: Path, encoder_base: Path, image_encoder: Path) -> None:
    recipe = recipe_of(config_of(refadgen_base))
    usual = ("a.parquet", "c0ffee", 0, recipe)
    assert unit_name(*usual) == unit_name("a.parquet", "c0ffee", 0, dict(reversed(recipe.items())))
    names = {unit_name(*usual)}
    for other in (("b.parquet", "c0ffee", 0), ("a.parquet", "c0de", 0), ("a.parquet", "c0ffee", 1)):
        names.add(unit_name(*other, recipe))
    changed = [
        config_of(refadgen_base, "data.width_px=72"),
        config_of(refadgen_base, "data.height_px=88"),
        config_of(refadgen_base, "run.seed=1"),
        config_of(refadgen_base, "run.dtype=bfloat16"),
        config_of(refadgen_base, "model.trains=everything"),
        config_of(refadgen_base, f"model.image_encoder={image_encoder}"),
        config_of(encoder_base),
    ]
    names |= {unit_name("a.parquet", "c0ffee", 0, recipe_of(config)) for config in changed}
    assert len(names) == 4 + len(changed)
    kept = ["optimizer.learning_rate=1", "data.variants=original", "data.mask=ad", "objective.text_dropout=0.5"]
    assert unit_name("a.parquet", "c0ffee", 0, recipe_of(config_of(refadgen_base, *kept))) in names


def test_a_cache_is_there_when_its_manifest_is(cached: CachedRows, tmp_path: Path) -> None:
    assert load_cache(str(tmp_path)) is None
    write_part(Storage(str(tmp_path)), "part.parquet", {})
    assert load_cache(str(tmp_path)) is None
    cache = dataclasses.replace(cached.cache, uri=str(tmp_path))
    cache.save()
    assert load_cache(str(tmp_path)) == cache
    for text in ("", "{", "[]", "null", '{"fingerprint": "x"}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=r"cache\.json: cannot be read .*; delete it to encode anew"):
            load_cache(str(tmp_path))


def test_a_complete_cache_needs_no_encoding(
    refadgen_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts are there but not the manifest, as after a crash before its end; then it is, and no Ray is asked."""
    monkeypatch.setattr("ray.data.from_items", None)
    config, scanned = config_of(refadgen_base), scan(str(TINY))
    with pa.OSFile(str(TINY)) as handle:
        part = unit_name(TINY.name, footer_digest(handle), 0, recipe_of(config))
    encoder = TripletEncoder(config, str(TINY), str(tmp_path))
    encoder({"key": [TINY.name], "group": [0], "part": [part]})
    encoders = load_parts(config).encoders(config, torch.device("cpu"), torch.float32)
    made = precompute(config, str(TINY), str(tmp_path), scanned, encoders)
    assert made.parts == {part: [("train", 16), ("test", 4)]}
    assert load_cache(str(tmp_path)) == made
    assert precompute(config, str(TINY), str(tmp_path), scanned, encoders) == made


def test_bad_rows_are_named_and_no_part_is_written(refadgen_base: Path, tmp_path: Path) -> None:
    rows = pq.read_table(TINY).to_pylist()[:6]
    rows[1]["ad_image"] = b"not a picture"
    rows[3]["variants"][2]["mask"] = rows[4]["ad_image"][:100]
    rows[4]["variants"][1]["kind"] = "sideways"
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), data / "bad.parquet", row_group_size=5)
    encoder = TripletEncoder(config_of(refadgen_base), str(data), str(cache))
    both = {"key": ["bad.parquet"] * 2, "group": [0, 1], "part": ["part-0.parquet", "part-1.parquet"]}
    made = encoder(both)
    errors = json.loads(made["errors"][0])
    assert [error.split(": cannot")[0].split("=")[0] for error in errors] == [
        f"{data}/bad.parquet: row 'studio-0000501': ad_image",
        f"{data}/bad.parquet: row 'studio-0000503': variants[2].mask",
        f"{data}/bad.parquet: row 'studio-0000504': variants[1].kind",
    ]
    assert made["part"] == both["part"]
    assert made["groups"] == ["", '[["train", 1]]']
    assert json.loads(made["errors"][1]) == []
    assert list(Storage(str(cache)).keys()) == ["part-1.parquet"]


def test_plain_files_and_folders_have_the_same_keys(tmp_path: Path) -> None:
    (tmp_path / TINY.name).write_bytes(TINY.read_bytes())
    assert dataset_files(str(TINY))[1] == dataset_files(str(tmp_path))[1] == [TINY.name]


def test_a_plan_of_the_cache_reads_across_parts(cached: CachedRows, encoder_base: Path, tmp_path: Path) -> None:
    """Rows of two parts in one segment come back in the plan's order."""
    part = (Path(cached.cache.uri) / "part.parquet").read_bytes()
    for name in ("one.parquet", "two.parquet"):
        (tmp_path / name).write_bytes(part)
    groups = cached.cache.parts["part.parquet"]
    cache = dataclasses.replace(cached.cache, uri=str(tmp_path), parts={"one.parquet": groups, "two.parquet": groups})
    source = dataclasses.replace(cached, cache=cache)
    plan = Plan(source.groups("train"), 0, 8, 4, 4096)
    arrays = source.load(plan, Segment(0, 0, 4), rank=0, world_size=1)
    names = pq.ParquetFile(tmp_path / "one.parquet").read_row_group(0)["row_id"].to_pylist()
    planned = plan.rows(Segment(0, 0, 4))
    assert {row.group for row in planned} == {0, 1}
    assert arrays["row_id"].tolist() == [names[row.offset] for row in planned]


def test_a_changed_file_of_equal_size_is_another_source(tmp_path: Path) -> None:
    digests = set()
    for text in ("one", "two", "one"):
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table({"row_id": [text]}), file)
        with Storage(str(tmp_path)).arrow().open_input_file(str(file)) as handle:
            digests.add(footer_digest(handle))
    assert len(digests) == 2
