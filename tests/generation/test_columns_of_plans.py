"""The plan is made column by column; here each row is planned alone, from its values to the text that is hashed."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.batch.ledger import short_key
from refadgen.batch.rows import from_table
from refadgen.batch.shards import Shard
from refadgen.catalog.columns import COLUMNS
from refadgen.catalog.layout import merged_layout
from refadgen.catalog.parts import BadText
from refadgen.catalog.rows import CatalogRow, parse_row, parse_rows
from refadgen.catalog.scan import scan_catalog
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig
from refadgen.config.identity import layout_identity
from refadgen.errors import RowError
from refadgen.generation.decisions import Decided
from refadgen.generation.planning import CatalogPlanner, ImageCounts, OpenImages
from refadgen.generation.rows import PlannedProduct
from refadgen.generation.wanted import pixel_settings
from refadgen.storage.addresses import image_identity

CONFIG = GenerateConfig()
SETTINGS = pixel_settings(CONFIG, "f" * 16)
NOTHING = np.array([], np.uint64)

PLAIN = {"sku": "sku", "image": "https://cdn.shop.example/a.jpg"}
ODD_VALUES: dict[str, list[Any]] = {
    "sku": ['ünïcode \U0001f600 " \\ \n', "  padded ", "", "   ", None, "x" * 256, "x" * 257, 12, 7.0, 7.5, True],
    "image": [
        "https://h/a.jpg?v=2&X-Amz-Signature=aa&X-Amz-Date=1",
        "//h/a.jpg",
        "https://h/a b.jpg, https://h/c.jpg",
        "https://h/a.jpg 300w, https://h/b.jpg 900w",
        "https://h/a.jpg?a=1&amp;b=2",
        "www.shop.example/a.jpg",
        '["https://h/a.jpg"]',
        "images/ä.png",
        " ",
        None,
        b"encoded",
        {"bytes": None, "path": "a.png"},
    ],
    "title": ["Blue Mug", " ", None, "Tasse aus Ton", 5],
    "category": ["Kitchen > Mugs", "Sale", "Coats & Jackets", "Küche > Tassen", "187", 187.0, ["Gear", "Bags"], None],
    "brand": ["Mugs", "Acme", None],
    "prompt": [
        None,
        "",
        " ",
        "a cup",
        ["a cup", "ein „Becher“"],
        ["a cup", None],
        ["a", ""],
        [],
        ["p"] * 101,
    ],
    "negative_prompt": ["people", "", 3],
    "num_variants": [None, 1, 3, 100, 101, 0, 2.0, 2.5, True],
    "seed": [None, 0, 2**63 - 1, 2**63, -1, 5.0, float("nan")],
    "placement": [None, "", "size=0.5 anchor=left", "size=7", {"size": 0.4, "anchor": None}],
    "mask": [None, "masks/a.png", b"mask", "", BadText("m")],
}


def odd_rows() -> Iterator[dict[str, Any]]:
    """Rows with one odd value each, and with three."""
    rng = np.random.default_rng(0)
    names = list(ODD_VALUES)
    for name, values in ODD_VALUES.items():
        yield from ({**PLAIN, name: value} for value in values)
    for _ in range(300):
        chosen = rng.choice(names, 3, replace=False)
        yield {**PLAIN, **{name: ODD_VALUES[name][rng.integers(len(ODD_VALUES[name]))] for name in chosen}}


def read_alone(number: int, values: dict[str, Any]) -> CatalogRow | tuple[str, str]:
    """A row as `parse_row` reads it, or the reason and the text of its refusal."""
    for name, value in values.items():
        if isinstance(value, BadText):
            return "bad_text", f"row {number}: {name}: is not UTF-8 text; write it as UTF-8"
    try:
        return parse_row(number, values)
    except RowError as error:
        return error.reason, error.problem


def test_rows_that_are_read_together_are_those_that_are_read_alone() -> None:
    names = [column.name for column in COLUMNS]
    rows = [{name: row.get(name) for name in names} for row in odd_rows()]
    together = parse_rows(range(5, 5 + len(rows)), {name: [row[name] for row in rows] for name in names})
    found = [(row.reason, row.problem) if isinstance(row, RowError) else row for row in together]
    assert found == [read_alone(number, row) for number, row in enumerate(rows, start=5)]
    refused = {row[0] for row in found if not isinstance(row, CatalogRow)}
    assert {"bad_text", "empty_sku", "bad_seed", "empty_prompt", "bad_address", "too_many_prompts"} <= refused
    assert sum(isinstance(row, CatalogRow) for row in found) > 100


def planned_alone(row: CatalogRow, decision: str) -> list[tuple[str, str, int, str, int, str]]:
    """Id, scene, variant, prompt, seed and ratio of each image of a row, from the text that is hashed."""
    scenes = load_scenes()  # anew, so that nothing of another row is remembered
    named = [(f"prompt-{index}", prompt) for index, prompt in enumerate(row.prompts)]
    if not named:
        found = scenes.prompts_for(row.category, row.title, CONFIG.catalog.scenes_per_product, row.brand)
        named = [(scene.name, scene.prompt) for scene in found]
    images = []
    for scene, prompt in named:
        for variant in range(row.num_variants or CONFIG.catalog.num_variants):
            drawn = hashlib.sha256(json.dumps([CONFIG.sampling.seed, row.sku, scene, variant]).encode()).digest()
            own = None if row.seed is None else (row.seed + variant) % 2**63
            identity = {
                "sku": row.sku,
                "image": image_identity(row.image),
                "mask": f"review:{decision}" if decision else None if row.mask is None else image_identity(row.mask),
                "category": row.category,
                "scene": scene,
                "variant": variant,
                "prompt": prompt,
                "negative_prompt": row.negative_prompt,
                "layout": layout_identity(merged_layout(CONFIG.layout, row.placement)),
                "seed": int.from_bytes(drawn[:8], "big") >> 1 if own is None else own,
            }
            text = json.dumps({"settings": SETTINGS.values, "row": identity}, sort_keys=True)
            image_id = hashlib.sha256(text.encode()).hexdigest()[:32]
            images.append((image_id, scene, variant, prompt, int(str(identity["seed"])), ""))
    return images


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Odd rows that parquet can hold, in several batches and row groups, with repeated skus."""
    types = {"num_variants": pa.int64(), "seed": pa.int64(), "placement": pa.string(), "prompt": pa.list_(pa.string())}
    kept: dict[str, list[Any]] = {
        name: [value for value in values if (isinstance(value, str) and type(value) is str) or value is None]
        for name, values in ODD_VALUES.items()
    }
    kept["num_variants"], kept["seed"] = [None, 1, 3, 101], [None, 0, 2**63 - 1, -1]
    kept["prompt"] = [None, None, ["a cup"], ["a cup", "ein „Becher“"], ["a", ""], []]
    rng = np.random.default_rng(1)
    rows = [{name: values[rng.integers(len(values))] for name, values in kept.items()} for _ in range(150)]
    rows += [
        {**PLAIN, "sku": f"s{n}", "category": ["Mugs", "Sale", "Hats"][n % 3], "title": "Mug"} for n in range(1100)
    ]
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name, pa.string())) for name in kept}
    file = tmp_path / "c.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=1200)
    return file


def planner(catalog: Path, reconciled: np.ndarray, decided: dict[str, Decided]) -> CatalogPlanner:
    return CatalogPlanner(
        config=CONFIG,
        settings=SETTINGS,
        first_rows=scan_catalog(str(catalog)).first_rows,
        reconciled=reconciled,
        decided=decided,
    )


def test_the_plan_of_columns_is_the_plan_of_single_rows(catalog: Path) -> None:
    values = pq.read_table(catalog).to_pylist()
    decided = {"s0": Decided("d" * 64, ""), "s1": Decided("", " by A")}
    planned = planner(catalog, NOTHING, decided)
    tables, counts = zip(*map(planned, scan_catalog(str(catalog)).fragments), strict=True)
    products = [row for table in tables for row in from_table(table, PlannedProduct)]
    assert [product.row for product in products] == list(range(len(values)))
    first_rows = scan_catalog(str(catalog)).first_rows
    assert first_rows
    num_read = num_prompts = 0
    for product, given in zip(products, values, strict=True):
        row = read_alone(product.row, given)
        images = [tuple(getattr(image, each.name) for each in dataclasses.fields(image)) for image in product.wanted]
        if not isinstance(row, CatalogRow):
            assert product.error is not None
            assert (product.error.reason, len(images)) == (row[0], 1)
            continue
        if first_rows.get(row.sku, row.row) != row.row:
            assert product.error is not None
            assert product.error.reason == "duplicate_sku"
            continue
        num_read += 1
        num_prompts += bool(row.prompts)
        by = decided.get(row.sku)
        if product.row < 150 or by or product.row % 50 == 0:  # scenes are loaded anew for each
            assert images == planned_alone(row, by.digest if by else "")
        assert (product.error is not None) == (by is not None and not by.digest)
        assert (product.sku, product.category, product.image) == (row.sku, row.category, row.image)
        assert (product.mask, product.negative_prompt) == (row.mask or "", row.negative_prompt)
        assert product.layout == merged_layout(CONFIG.layout, row.placement)
        assert (product.image_bytes, product.mask_bytes, product.inline) == (b"", b"", "")
    assert num_read > 1100
    findings = sum(counts, ImageCounts()).rows
    assert findings.nouns.total() + findings.refused.total() + num_prompts == len(values)
    refused = Counter(product.error.reason for product in products if product.error)
    assert findings.refused == refused - Counter(refused_by_review=1)


def test_what_is_reconciled_leaves_the_plan_image_by_image(catalog: Path) -> None:
    fragments = scan_catalog(str(catalog)).fragments
    tables, all_counts = zip(*map(planner(catalog, NOTHING, {}), fragments), strict=True)
    ids = [image.image_id for table in tables for row in from_table(table, PlannedProduct) for image in row.wanted]
    chosen = np.random.default_rng(2).random(len(ids)) < 0.5
    done = {image_id for image_id, is_done in zip(ids, chosen, strict=True) if is_done}
    keys = np.unique(np.array([short_key(image_id) for image_id in done], np.uint64))
    expected = []
    for row in (row for table in tables for row in from_table(table, PlannedProduct)):
        left = tuple(image for image in row.wanted if image.image_id not in done)
        expected += [dataclasses.replace(row, wanted=left)] if left else []
    again, counts = zip(*map(planner(catalog, keys, {}), fragments), strict=True)
    assert [row for table in again for row in from_table(table, PlannedProduct)] == expected
    filtered, of_filter = zip(*map(OpenImages(reconciled=keys), tables), strict=True)
    assert [row for table in filtered for row in from_table(table, PlannedProduct)] == expected
    num_done = sum(image_id in done for image_id in ids)
    for each in (sum(counts, ImageCounts()), sum(of_filter, ImageCounts())):
        assert (each.wanted, each.reconciled) == (len(ids), num_done)
    assert sum(all_counts, ImageCounts()).to_make == len(ids)
    every = np.unique(np.array([short_key(image_id) for image_id in ids], np.uint64))
    nothing, counted = planner(catalog, every, {})(fragments[0])
    assert (len(nothing), counted.to_make) == (0, 0)


def test_shards_share_a_catalogue_out(catalog: Path) -> None:
    fragments = scan_catalog(str(catalog)).fragments
    whole = planner(catalog, NOTHING, {})

    def rows(shard: Shard) -> list[PlannedProduct]:
        tables = [dataclasses.replace(whole, shard=shard)(fragment)[0] for fragment in fragments]
        return [row for table in tables for row in from_table(table, PlannedProduct)]

    shares = [rows(Shard(number, 3)) for number in (1, 2, 3)]
    assert sorted((row for share in shares for row in share), key=lambda row: row.row) == rows(Shard())
    assert all(350 < len(share) < 500 for share in shares)
    of_sku: dict[str, set[int]] = {}
    for number, share in enumerate(shares):
        for row in share:
            of_sku.setdefault(row.sku, set()).add(number)
    assert all(len(numbers) == 1 for sku, numbers in of_sku.items() if sku.strip())  # all rows of a sku in one


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "1/0", "a/b", "-1/4", "1/4/2"])
def test_a_shard_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"--shard {text}: "):
        Shard.parse(text)
