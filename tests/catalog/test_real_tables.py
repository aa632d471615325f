"""Catalogues written by the tools themselves, not in their manner: each test is skipped where its tool is missing.

DuckDB and polars are no dependencies; delta-rs and PyIceberg are extras. Python finds them in a folder of PYTHONPATH:
`pip install --constraint constraints.txt --target FOLDER duckdb polars`.
"""

import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import parsed_rows, scan_catalog

Write = Callable[[Path, Any], None]
PRODUCTS = pa.table(
    {"sku": ["a", "b", "c"], "image": ["a.png", "b.png", "c.png"], "category": ["Egg Cups", "Bottle", None]}
)
BY_CATEGORY = {"a": "Egg Cups", "b": "Bottle", "c": None}


def rows_of(folder: Path) -> dict[str, CatalogRow]:
    scan = scan_catalog(str(folder))
    rows = [row for part in scan.fragments for _, _, row in parsed_rows(part, scan.first_rows)]
    found = {row.sku: row for row in rows if isinstance(row, CatalogRow)}
    assert len(found) == len(rows), rows
    return found


def categories(folder: Path) -> dict[str, str | None]:
    return {sku: row.category for sku, row in rows_of(folder).items()}


# Tables of a lakehouse: their folders hold rows that are gone.


def _overwritten(table: Any, deltalake: Any) -> None:
    deltalake.write_deltalake(table.table_uri, PRODUCTS.slice(1), mode="overwrite")


def _deleted(table: Any, deltalake: Any) -> None:
    table.delete("sku = 'a'")


def _merged(table: Any, deltalake: Any) -> None:
    changed = PRODUCTS.slice(1, 1).set_column(2, "category", pa.array(["Mug"]))
    merge = table.merge(changed, predicate="t.sku = s.sku", source_alias="s", target_alias="t")
    merge.when_matched_update_all().execute()


def _with_checkpoint(table: Any, deltalake: Any) -> None:
    for _ in range(10):
        _overwritten(table, deltalake)
    deltalake.DeltaTable(table.table_uri).create_checkpoint()


@pytest.mark.parametrize("change", [_overwritten, _deleted, _merged, _with_checkpoint])
def test_delta(change: Callable[[Any, Any], None], tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    folder = tmp_path / "products"
    deltalake.write_deltalake(str(folder), PRODUCTS)
    change(deltalake.DeltaTable(str(folder)), deltalake)
    for place in (folder, next(folder.glob("*.parquet"))):
        with pytest.raises(ValueError, match=r"products is a Delta table, .* removed and replaced rows: write its"):
            scan_catalog(str(place))
    # The remedy: its current rows, in a file.
    pq.write_table(deltalake.DeltaTable(str(folder)).to_pyarrow_table(), tmp_path / "now.parquet")
    assert ("a" in categories(tmp_path / "now.parquet")) == (change is _merged)


def test_iceberg(tmp_path: Path) -> None:
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    catalog = sql.SqlCatalog("c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.products", schema=PRODUCTS.schema)
    table.append(PRODUCTS)
    table.overwrite(PRODUCTS.slice(1))
    (folder,) = {file.parents[1] for file in (tmp_path / "lake").rglob("*.metadata.json")}
    assert len(list((folder / "data").glob("*.parquet"))) == 2
    for place in (tmp_path / "lake", folder, folder / "data", next((folder / "data").iterdir())):
        with pytest.raises(ValueError, match=r"products is an Iceberg table, .* removed and replaced rows: write its"):
            scan_catalog(str(place))


# Partitions.


def _by_duckdb(folder: Path, table: pa.Table) -> None:
    duckdb = pytest.importorskip("duckdb")
    duckdb.connect().from_arrow(table).write_parquet(str(folder), partition_by=[table.schema.names[-1]])


def _by_polars(folder: Path, table: pa.Table) -> None:
    polars = pytest.importorskip("polars")
    polars.from_arrow(table).write_parquet(folder, partition_by=table.schema.names[-1], mkdir=True)


def _by_pandas(folder: Path, table: pa.Table) -> None:
    table.to_pandas().to_parquet(folder, partition_cols=[table.schema.names[-1]])


partitioned = pytest.mark.parametrize("write", [_by_duckdb, _by_polars, _by_pandas])


@partitioned
def test_partitions_are_columns(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "products", PRODUCTS)
    assert any("category=" in folder.name for folder in (tmp_path / "products").iterdir())
    assert categories(tmp_path / "products") == BY_CATEGORY


@partitioned
def test_daily_snapshots_are_refused(write: Write, tmp_path: Path) -> None:
    days = [PRODUCTS.append_column("dt", pa.array([day] * 3)) for day in ("2026-05-01", "2026-05-02")]
    write(tmp_path / "products", pa.concat_tables(days))
    with pytest.raises(ValueError, match=r"names differ in a date: .* give the newest file or folder alone"):
        scan_catalog(str(tmp_path / "products"))
    assert categories(tmp_path / "products" / "dt=2026-05-02") == BY_CATEGORY


# Types.


def _query(file: Path, select: str) -> None:
    pytest.importorskip("duckdb").connect().execute(f"COPY (SELECT {select}) TO '{file}' (FORMAT parquet)")


@pytest.mark.parametrize(
    ("sku", "text"),
    [
        ("1001::NUMERIC(38, 9)", "1001"),
        ("1001::DOUBLE", "1001"),
        ("1001::HUGEINT", "1001"),
        ("1001::USMALLINT", "1001"),
        ("'3eea243d-5d8d-4335-81f7-e2a7de9a5e5c'::UUID", "3eea243d-5d8d-4335-81f7-e2a7de9a5e5c"),
        ("'red'::ENUM('red', 'green')", "red"),
    ],
)
def test_skus_of_duckdb(sku: str, text: str, tmp_path: Path) -> None:
    _query(tmp_path / "c.parquet", f"{sku} AS sku, 'a.png' AS image")
    assert list(rows_of(tmp_path)) == [text]


def test_the_remedy_for_a_text_file_keeps_its_skus(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("sku,image,google_product_category\n007,a.png,2169\n1e5,b.png,\n", encoding="utf-8")
    with pytest.raises(ValueError, match="as in DuckDB: COPY") as error:
        scan_catalog(str(tmp_path / "c.csv"))
    statement = str(error.value).partition("as in DuckDB: ")[2].replace("catalog.parquet", f"{tmp_path}/c.parquet")
    pytest.importorskip("duckdb").connect().execute(statement)
    assert categories(tmp_path / "c.parquet") == {"007": "2169", "1e5": None}


def test_repeated_text_of_duckdb(tmp_path: Path) -> None:
    lists = "[{'element': 'on sand'}, {'element': 'on grass'}] AS prompt, ['Home', 'Mugs'] AS category"
    _query(tmp_path / "c.parquet", f"'a' AS sku, 'a.png' AS image, {lists}")
    row = rows_of(tmp_path)["a"]
    assert (row.prompts, row.category) == (("on sand", "on grass"), "Home > Mugs")


def test_categoricals_and_views_of_polars(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.from_arrow(PRODUCTS).with_columns(polars.col("category").cast(polars.Categorical))
    frame.write_parquet(tmp_path / "c.parquet")
    assert categories(tmp_path) == BY_CATEGORY


def test_pandas(tmp_path: Path) -> None:
    gap = float("nan")
    frame = pd.DataFrame({"sku": [1.0, 2.0], "image": ["a", "b"], "seed": [7, gap], "prompt": [gap, gap]})
    frame.assign(category=pd.Categorical(["Cup", None])).to_parquet(tmp_path / "part-0.parquet")
    ids = pd.DataFrame({"sku": [uuid.UUID(int=1), uuid.UUID(int=2)], "image": ["a", "b"]})
    ids.to_parquet(tmp_path / "part-1.parquet")
    numbers = pd.DataFrame({"sku": [decimal.Decimal("7.000000000")], "image": ["a"]})
    numbers.to_parquet(tmp_path / "part-2.parquet")
    frame.iloc[:0].to_parquet(tmp_path / "part-3.parquet")
    rows = rows_of(tmp_path)
    assert list(rows) == ["1", "2", str(uuid.UUID(int=1)), str(uuid.UUID(int=2)), "7"]
    assert [(row.category, row.seed, row.prompts) for row in rows.values()][:2] == [("Cup", 7, ()), (None, None, ())]


def test_a_class_label_of_datasets(tmp_path: Path) -> None:
    features = Features(sku=Value("string"), image=Value("string"), category=ClassLabel(names=["Bottle", "Cup"]))
    rows = {"sku": ["a", "b"], "image": ["x", "y"], "category": [1, None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "c.parquet")
    assert categories(tmp_path) == {"a": "Cup", "b": None}


# Sizes.


def test_small_row_groups_and_many_files_of_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb").connect()
    select = "SELECT 'sku-' || i AS sku, i || '.png' AS image, i % 300 AS part FROM range(12_000) r(i)"
    duckdb.execute(f"COPY ({select}) TO '{tmp_path}/groups.parquet' (ROW_GROUP_SIZE 5_000)")
    duckdb.execute(f"COPY ({select}) TO '{tmp_path}/files' (FORMAT parquet, PARTITION_BY (part))")
    assert len(list((tmp_path / "files").rglob("*.parquet"))) == 300
    groups, files = (scan_catalog(str(tmp_path / name)) for name in ("groups.parquet", "files"))
    assert (groups.num_rows, files.num_rows, len(files.fragments)) == (12_000, 12_000, 300)
    assert len(groups.fragments) > 1
