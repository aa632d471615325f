"""Looking at a catalogue: whose files count, texts that are none, and damage that is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.batch.ledger import short_key
from refadgen.batch.planning import attach_inline_images
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.scan import scan_catalog
from refadgen.config import GenerateConfig
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.generation.planning import CatalogPlanner, ImageCounts, OpenImages
from refadgen.generation.rows import PlannedProduct
from refadgen.generation.wanted import pixel_settings
from refadgen.storage.store import Storage

NOTHING = np.array([], dtype=np.uint64)


def write(file: Path, skus: list[str], **columns: pa.Array) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"sku": skus, "image": ["a.png"] * len(skus), **columns}), file, row_group_size=2)


def plans(catalog: Path) -> list[PlannedProduct]:
    scan = scan_catalog(str(catalog), ignored=frozenset(SCHEMA.names))
    config = GenerateConfig()
    planner = CatalogPlanner(
        config=config, settings=pixel_settings(config, "f" * 16), first_rows=scan.first_rows, reconciled=NOTHING
    )
    return [plan for fragment in scan.fragments for plan in from_table(planner(fragment)[0], PlannedProduct)]


def test_an_output_inside_of_the_catalogues_folder_is_no_catalogue(tmp_path: Path) -> None:
    write(tmp_path / "products.parquet", ["a", "b", "c"])
    row = {name: None for name in SCHEMA.names} | {"image_id": "0" * 32, "sku": "a", "status": "done"}
    AdLedger(Storage(str(tmp_path / "ads"))).append(pa.Table.from_pylist([row], schema=SCHEMA))
    scan = scan_catalog(str(tmp_path), ignored=frozenset(SCHEMA.names))
    assert scan.num_rows == 3
    assert not scan.first_rows
    assert [plan.error for plan in plans(tmp_path)] == [None, None, None]


def test_skus_repeat_over_row_groups_and_files(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", ["a", "b", "c"])
    write(tmp_path / "2.parquet", ["d", "b", "d"])
    assert scan_catalog(str(tmp_path)).first_rows == {"b": 1, "d": 3}


@pytest.mark.parametrize("column", ["sku", "title", "prompt"])
def test_a_text_that_is_not_utf8_costs_its_row(column: str, tmp_path: Path) -> None:
    good, bad = "größe".encode(), "größe".encode("latin-1")
    texts = pa.array([good + b"1", bad, good + b"2"], pa.binary()).view(pa.string())
    if column == "prompt":
        texts = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), texts)
    write(tmp_path / "c.parquet", ["a", "b", "c"], **{column: texts})
    first, second, third = plans(tmp_path / "c.parquet")
    assert first.error is third.error is None
    assert second.error is not None
    assert second.error.reason == "bad_text"
    assert f"row 1: {column}: is not UTF-8" in second.error.detail


def test_damage_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    write(file, [f"sku {number}" for number in range(2000)])
    data = bytearray(file.read_bytes())
    data[8:400] = b"\xff" * 392
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"c\.parquet: damaged in row group 0"):
        scan_catalog(str(file))


def test_images_in_the_catalogue_itself_are_attached_when_the_rows_stream(tmp_path: Path) -> None:
    """The plan is held as a whole, so it must not hold the pictures."""
    file = tmp_path / "c.parquet"
    columns = {
        "sku": [f"s{n}" for n in range(6)],
        "image": [{"bytes": f"photo {n}".encode(), "path": None} for n in range(5)]
        + [{"bytes": None, "path": "f.jpg"}],
        "mask": [None, {"bytes": b"mask 1", "path": None}, None, {"bytes": None, "path": "m.png"}, None, None],
    }
    pq.write_table(pa.table(columns), file, row_group_size=4)
    scan = scan_catalog(str(file))
    assert all(fragment.has_inline_images for fragment in scan.fragments)
    planned = plans(file)
    assert not any(row.image_bytes or row.mask_bytes for row in planned)
    kept = [row for row in planned if row.row not in (0, 2)]  # as if the ledger had those
    tables = attach_inline_images(to_table(kept, PlannedProduct), row_type=PlannedProduct, fragments=scan.fragments)
    rows = [row for table in tables for row in from_table(table, PlannedProduct)]
    assert [row.image or row.image_bytes for row in rows] == [b"photo 1", b"photo 3", b"photo 4", "f.jpg"]
    assert [row.mask or row.mask_bytes for row in rows] == [b"mask 1", "m.png", b"", b""]
    assert [row.wanted for row in rows] == [row.wanted for row in kept]


def test_a_catalogue_of_addresses_is_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "c.parquet", ["a", "b"])
    assert not any(fragment.has_inline_images for fragment in scan_catalog(str(tmp_path)).fragments)


def test_reconciled_images_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "c.parquet", ["a", "b", "c"])
    first, second, third = plans(tmp_path / "c.parquet")
    known = [*second.wanted, third.wanted[0]]
    keys = np.sort(np.array([short_key(image.image_id) for image in known], np.uint64))
    table, counts = OpenImages(reconciled=keys)(to_table([first, second, third], PlannedProduct))
    assert (counts.wanted, counts.reconciled, counts.to_make) == (6, 3, 3)
    assert [(row.sku, len(row.wanted)) for row in from_table(table, PlannedProduct)] == [("a", 2), ("c", 1)]


def inline_catalog(file: Path, skus: str, photos: str) -> None:
    images = [{"bytes": f"photo {name}".encode(), "path": None} for name in photos]
    pq.write_table(pa.table({"sku": list(skus), "image": images}), file)


@pytest.mark.parametrize(("skus", "photos"), [("dcba", "dcba"), ("xabcd", "xabcd"), ("ab", "ab"), ("abcd", "abcx")])
def test_a_catalogue_written_anew_during_a_run_gives_no_product_the_picture_of_another(
    skus: str, photos: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.parquet"
    inline_catalog(file, "abcd", "abcd")
    fragments, planned = scan_catalog(str(file)).fragments, plans(file)
    inline_catalog(file, skus, photos)
    tables = attach_inline_images(to_table(planned, PlannedProduct), row_type=PlannedProduct, fragments=fragments)
    rows = [row for table in tables for row in from_table(table, PlannedProduct)]
    assert [row.sku for row in rows] == list("abcd")  # none is lost
    for row in rows:
        if row.error is None:
            assert row.image_bytes == f"photo {row.sku}".encode()
        else:
            assert (row.error.status, row.error.reason) == ("failed", "input_changed")
    assert any(row.error for row in rows)


def test_a_catalogue_that_is_damaged_during_a_run_fails_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    inline_catalog(file, "ab", "ab")
    fragments, planned = scan_catalog(str(file)).fragments, plans(file)
    file.write_bytes(b"PAR1 and nothing more")
    tables = attach_inline_images(to_table(planned, PlannedProduct), row_type=PlannedProduct, fragments=fragments)
    rows = [row for table in tables for row in from_table(table, PlannedProduct)]
    assert [row.error and row.error.reason for row in rows] == ["input_changed", "input_changed"]


def test_a_row_takes_its_category_from_the_first_column_that_names_a_thing(tmp_path: Path) -> None:
    """Magento's `product_type` is a kind of record, and pandas makes floats of Google's numbers beside gaps."""
    write(
        tmp_path / "magento.parquet",
        ["a", "b", "c", "d"],
        product_type=pa.array(["simple", "Home > Mugs", None, "configurable"]),
        google_product_category=pa.array([2169.0, 187.0, None, float("nan")]),
        categories=pa.array([["Default Category/Gear/Bags"], None, ["Sale", "Default Category/Hats"], None]),
    )
    found = plans(tmp_path)
    assert [plan.category for plan in found] == ["2169", "Home > Mugs", "Sale; Default Category/Hats", "configurable"]
    nouns = [plan.wanted[0].prompt.split(" on ")[0] for plan in found]
    assert nouns == ["a mug", "a mug", "a hat", "a product"]


def test_rows_are_counted_by_how_their_noun_was_found(tmp_path: Path) -> None:
    write(
        tmp_path / "c.parquet",
        ["a", "b", "c", "d"],
        category=pa.array(["Aprons", "Aprons", "Sale", "Mugs"]),
        title=pa.array([None, "Blue", "Clay Pot", None]),
        prompt=pa.array([None, None, None, "a scene of its own"]),
    )
    scan = scan_catalog(str(tmp_path))
    planner = CatalogPlanner(
        config=GenerateConfig(),
        settings=pixel_settings(GenerateConfig(), "f" * 16),
        first_rows=scan.first_rows,
        reconciled=NOTHING,
    )
    counts = sum((planner(fragment)[1] for fragment in scan.fragments), ImageCounts())
    place = "on a wooden table in front of a white wall, soft studio light"
    assert counts.rows.nouns == {("category", f"an apron {place}"): 2, ("title", f"a pot {place}"): 1}
