"""Delta and Iceberg tables, written by their own libraries: the current version, and what the installed one cannot."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feed_files import open_here, report_of, rows_of, told

PRODUCTS = pa.table(
    {
        "sku": ["a", "b", "c"],
        "Image": ["a.png", "b.png", "c.png"],
        "category": ["Egg Cups", "Bottle", None],
        "num_variants": pa.array([1, None, 2], pa.int32()),
        "photo": [b"1", b"2", b"3"],
    }
)


def _overwritten(table: Any, deltalake: Any) -> None:
    deltalake.write_deltalake(table.table_uri, PRODUCTS.slice(1), mode="overwrite")


def _deleted(table: Any, deltalake: Any) -> None:
    table.delete("sku = 'a'")


def _with_checkpoint(table: Any, deltalake: Any) -> None:
    for _ in range(3):
        _overwritten(table, deltalake)
    deltalake.DeltaTable(table.table_uri).create_checkpoint()


@pytest.mark.parametrize("change", [_overwritten, _deleted, _with_checkpoint])
def test_delta(change: Callable[[Any, Any], None], tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    folder = tmp_path / "shop" / "products"
    deltalake.write_deltalake(str(folder), PRODUCTS, partition_by=["category"])
    change(deltalake.DeltaTable(str(folder)), deltalake)
    catalog = open_here(folder)
    assert catalog.read_as.endswith(f"read as Delta table, version {3 if change is _with_checkpoint else 1}")
    assert sorted(told(catalog), key=str) == [("b", "b.png", None, "Bottle"), ("c", "c.png", None, None)]
    assert {row.sku: row.num_variants for row in rows_of(catalog)} == {"b": None, "c": 2}
    assert report_of(catalog).rows == 2
    assert "columns not used: photo" in catalog.lines()


def test_a_delta_table_of_a_newer_protocol(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    folder = tmp_path / "shop" / "products"
    deltalake.write_deltalake(str(folder), PRODUCTS)
    newer = {"protocol": {"minReaderVersion": 99, "minWriterVersion": 99}}
    (folder / "_delta_log" / "00000000000000000001.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"products: this Delta table cannot be read by deltalake .*parquet file"):
        open_here(folder)


def test_a_delta_table_that_marks_its_deleted_rows(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    folder = tmp_path / "shop" / "products"
    deltalake.write_deltalake(str(folder), PRODUCTS)
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    newer = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}
    (folder / "_delta_log" / "00000000000000000001.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"cannot be read by deltalake .*deletionVectors.*write its current rows"):
        open_here(folder)


def test_iceberg(tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg")
    sql = pytest.importorskip("pyiceberg.catalog.sql", reason="needs sqlalchemy")
    catalog = sql.SqlCatalog("c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.products", schema=PRODUCTS.schema)
    table.append(PRODUCTS)
    table.overwrite(PRODUCTS.slice(1))
    (folder,) = {file.parents[1] for file in (tmp_path / "lake").rglob("*.metadata.json")}
    found = open_here(folder)
    assert "read as Iceberg table, snapshot" in found.read_as
    assert told(found) == [("b", "b.png", None, "Bottle"), ("c", "c.png", None, None)]
    assert "columns not used: photo" in found.lines()

    newest = max(folder.glob("metadata/*.metadata.json"))
    assert told(open_here(newest)) == told(found)
    newest.with_name(f"{newest.name.partition('-')[0]}-other.metadata.json").write_bytes(newest.read_bytes())
    with pytest.raises(ValueError, match=r"products: has two metadata files of one version, metadata/.*: give the one"):
        open_here(folder)


@pytest.mark.parametrize(
    ("module", "file", "extra"),
    [
        ("deltalake", "_delta_log/00000000000000000000.json", "delta"),
        ("pyiceberg", "metadata/00001-f7608be7.metadata.json", "iceberg"),
    ],
)
def test_a_missing_extra_is_named(
    module: str, file: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    place = tmp_path / "shop" / "products" / file
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    with pytest.raises(ValueError, match=rf"reading it needs the extra '{extra}': pip install 'refadgen\[{extra}\]'"):
        open_here(tmp_path / "shop" / "products")
