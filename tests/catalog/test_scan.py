"""A catalogue's folder as lakehouses and tools write it: what is read, what is left out by name, what is refused."""

import decimal
import uuid
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from refadgen.catalog.files import catalog_files, left_out_lines
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import parsed_rows, scan_catalog


def write(file: Path, *skus: str, **columns: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {"sku": list(skus), "image": [f"{sku}.png" for sku in skus]}
    pq.write_table(pa.table({**table, **{name: [value] * len(skus) for name, value in columns.items()}}), file)
    return file


def rows_of(folder: Path) -> list[CatalogRow]:
    scan = scan_catalog(str(folder))
    rows = [row for part in scan.fragments for _, _, row in parsed_rows(part, scan.first_rows)]
    assert all(isinstance(row, CatalogRow) for row in rows), rows
    return [row for row in rows if isinstance(row, CatalogRow)]


def skus(folder: Path) -> list[str]:
    return [row.sku for row in rows_of(folder)]


# Tables of a lakehouse.


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("_delta_log/00000000000000000001.json", r"is a Delta table.*COPY \(FROM delta_scan\('{place}'\)\)"),
        ("_delta_log/00000000000000000010.checkpoint.parquet", "is a Delta table"),
        ("metadata/00001-f7608be7.metadata.json", r"is an Iceberg table.*COPY \(FROM iceberg_scan\('{place}'\)\)"),
        ("metadata/v3.gz.metadata.json", "is an Iceberg table"),
        (".hoodie/hoodie.properties", "is a Hudi table"),
    ],
)
def test_a_table_of_a_lakehouse_is_refused_with_the_remedy(mark: str, words: str, tmp_path: Path) -> None:
    table = tmp_path / "lake" / "products"
    file = write(table / "data" / "category=Cup" / "part-00000.parquet", "removed")
    (table / mark).parent.mkdir(exist_ok=True)
    (table / mark).write_bytes(b"{}")
    # Also where the table lies deeper, and where a part of it is given alone.
    for catalog in (table, table.parent, table / "data", file.parent, file):
        with pytest.raises(ValueError, match=words.format(place=table)):
            scan_catalog(str(catalog))


def test_tables_that_only_their_files_names_tell(tmp_path: Path) -> None:
    name = "ducklake-019a3b7c-52f1-7d7e-8a7b-0c1d2e3f4a5b"
    file = write(tmp_path / "lake" / "main" / "products" / f"{name}.parquet", "removed")
    for catalog in (file, file.parent, tmp_path / "lake"):
        with pytest.raises(ValueError, match=r"main/products is a DuckLake table.*write its current rows"):
            scan_catalog(str(catalog))
    paimon = write(tmp_path / "paimon" / "bucket-0" / "data-1.parquet", "removed").parents[1]
    (paimon / "snapshot").mkdir()
    (paimon / "snapshot" / "snapshot-1").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="paimon is a Paimon table"):
        scan_catalog(str(paimon))


def test_a_table_beside_the_catalogue_is_none_of_its_business(tmp_path: Path) -> None:
    write(tmp_path / "data" / "_delta_log" / "x.parquet", "removed")
    file = write(tmp_path / "data" / "catalogue" / "c.parquet", "a")
    assert skus(file) == skus(file.parent) == ["a"]


# Partitions.


@pytest.mark.parametrize("value", ["Bottle", "Cup & Saucer/Sets", "100% cotton=good", "Größe"])
def test_hive_partitions_are_columns_as_text(value: str, tmp_path: Path) -> None:
    write(tmp_path / f"Product-Type={quote(value, safe='')}" / "brand=__HIVE_DEFAULT_PARTITION__" / "0.parquet", "a")
    write(tmp_path / "Product-Type=Cups" / "brand=007" / "0.parquet", "b")
    found = {row.sku: (row.category, row.brand) for row in rows_of(tmp_path)}
    assert found == {"a": (value, None), "b": ("Cups", "007")}


def test_a_sku_may_be_a_partition_and_a_column_of_the_file_wins(tmp_path: Path) -> None:
    folder = tmp_path / "id=a" / "category=Cup"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": ["a.png"], "category": ["Travel Cup"]}), folder / "0.parquet")
    (row,) = rows_of(tmp_path)
    assert (row.sku, row.category) == ("a", "Travel Cup")


def test_a_partition_where_only_numbers_fit_is_refused_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "seed=7" / "0.parquet", "a")
    with pytest.raises(ValueError, match=r"0\.parquet: .*'seed' .* must be integers"):
        scan_catalog(str(tmp_path))


@pytest.mark.parametrize(
    "categories", [[[1, 2]], [[["Home", "Mugs"]]], [[{"id": 1, "name": "Mugs"}]]], ids=["ids", "paths", "structs"]
)
def test_categories_of_another_type_are_no_category(tmp_path: Path, categories: list) -> None:
    """Shops keep lists of ids and of structs under this name; such catalogues have always run."""
    pq.write_table(pa.table({"sku": ["a"], "image": ["a.png"], "categories": categories}), tmp_path / "0.parquet")
    assert [row.category for row in rows_of(tmp_path)] == [None]
    table = {"sku": ["a"], "image": ["a.png"], "product_category": categories}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"'product_category' \(category\) is of type list"):
        rows_of(tmp_path)


@pytest.mark.parametrize("beside", [{}, {"product_type": ["Sale"]}], ids=["alone", "beside another"])
def test_repeated_text_as_structs_of_one_text(tmp_path: Path, beside: dict) -> None:
    structs = [[{"element": "Home"}, {"element": "Mugs"}]]
    pq.write_table(pa.table({"sku": ["a"], "image": ["a"], "category": structs, **beside}), tmp_path / "0.parquet")
    wrapped = {"list": structs[0]}  # as BigQuery exports it
    pq.write_table(pa.table({"sku": ["b"], "image": ["b"], "category": [wrapped], **beside}), tmp_path / "1.parquet")
    assert [row.category for row in rows_of(tmp_path)] == ["Home > Mugs"] * 2


def test_several_columns_of_categories_in_any_accepted_type(tmp_path: Path) -> None:
    numbers = pa.array([2169, None]).cast(pa.decimal128(38, 9))
    table = {"sku": ["a", "b"], "image": ["a.png", "b.png"], "google_product_category": numbers}
    pq.write_table(pa.table({**table, "categories": ["Hats", "Hats"]}), tmp_path / "0.parquet")
    assert [row.category for row in rows_of(tmp_path)] == ["2169", "Hats"]


@pytest.mark.parametrize(
    ("columns", "category"),
    [
        ({"category": [187], "product_type": ["Mugs"]}, "Mugs"),
        ({"category": ["187"], "product_type": ["Mugs"]}, "Mugs"),
        ({"product_type": [187.0], "Google Product Category": ["2169"]}, "2169"),
        ({"category": [187]}, None),
        ({"category": [decimal.Decimal(187)]}, None),
        ({"g:google_product_category": [187]}, "187"),
        ({"Google Shopping / Google Product Category": ["187"], "category": ["Sale"]}, "187"),
    ],
)
def test_numbers_are_googles_in_its_own_column_alone(tmp_path: Path, columns: dict, category: str | None) -> None:
    pq.write_table(pa.table({"sku": ["a"], "image": ["a.png"], **columns}), tmp_path / "0.parquet")
    assert [row.category for row in rows_of(tmp_path)] == [category]


def test_a_lower_alias_that_occurs_twice_is_refused_by_the_scan(tmp_path: Path) -> None:
    table = {"sku": ["a"], "image": ["a.png"], "category": ["Mugs"], "Categories": ["x"], "CATEGORIES": ["y"]}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"0\.parquet: .*'Categories', 'CATEGORIES'"):
        scan_catalog(str(tmp_path))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("dt=2026-05-01/0.parquet", "dt=2026-05-02/0.parquet"),
        ("year=2026/month=04/0.parquet", "year=2026/month=05/0.parquet"),
        ("2026-05-01/c.parquet", "2026-05-02/c.parquet"),
        ("catalog_20260501.parquet", "catalog_20260502.parquet"),
        ("snapshot=7/c.parquet", "snapshot=8/c.parquet"),
    ],
)
def test_snapshots_of_several_days_are_refused_and_one_of_them_is_read(older: str, newer: str, tmp_path: Path) -> None:
    write(tmp_path / older, "a", "removed")
    file = write(tmp_path / newer, "a", "b")
    with pytest.raises(ValueError, match=r"sku 'a' lies in .* whose names differ in a date.*newest .* alone"):
        scan_catalog(str(tmp_path))
    assert skus(file.parent if file.parent != tmp_path else file) == ["a", "b"]


def test_days_that_share_no_sku_and_repeats_in_other_partitions_are_no_snapshots(tmp_path: Path) -> None:
    write(tmp_path / "dt=2026-05-01" / "0.parquet", "a")
    write(tmp_path / "dt=2026-05-02" / "0.parquet", "b")
    assert skus(tmp_path) == ["a", "b"]
    write(tmp_path / "by" / "category=Cup" / "0.parquet", "a", "a")
    write(tmp_path / "by" / "category=Mug" / "0.parquet", "a")
    assert scan_catalog(str(tmp_path / "by")).first_rows == {"a": 0}


# What is left out.


def test_hidden_names_are_left_out_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path / "c.parquet", "a")
    write(tmp_path / "_temporary" / "0" / "part-0.parquet", "ghost")
    (tmp_path / "._c.parquet").write_bytes(b"\0\5\x16\7")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    for number in range(6):
        (tmp_path / f"{number}.csv").write_bytes(b"sku")
    write(tmp_path / "_kind=Cup" / "d.parquet", "b")  # a column's name may begin so
    scan = scan_catalog(str(tmp_path))
    assert skus(tmp_path) == ["b", "a"]
    assert left_out_lines(scan.left_out) == [
        "not read (name begins with _ or .): 3: ._c.parquet, _SUCCESS, _temporary/0/part-0.parquet",
        "not read (no parquet): 6: 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 1 more",
    ]


def test_parquet_by_suffix_in_any_case_and_by_content_without_one(tmp_path: Path) -> None:
    for name in ("c.parquet", "D.PARQUET", "e.pq", "f.parq", "000000_0"):
        write(tmp_path / name, name)
    (tmp_path / "README").write_text("no parquet")
    assert set(skus(tmp_path)) == {"c.parquet", "D.PARQUET", "e.pq", "f.parq", "000000_0"}
    assert catalog_files(str(tmp_path)).left_out == {"no parquet": ("README",)}


def test_files_without_a_suffix_in_s3(s3: str) -> None:
    from refadgen.storage.store import Storage

    store = Storage(f"s3://{s3}/unloaded")
    table = pa.table({"sku": ["a"], "image": ["a.png"]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    for key, data in {"20260501_x": sink.getvalue().to_pybytes(), "empty": b"", "notes": b"?", "_x": b"PAR1"}.items():
        store.write(key, data)
    scan = scan_catalog(store.uri)
    assert [fragment.file.uri for fragment in scan.fragments] == [f"{store.uri}/20260501_x"]
    assert scan.left_out == {"name begins with _ or .": ("_x",), "no parquet": ("empty", "notes")}
    store.write("_delta_log/0.json", b"{}")
    for catalog in (store.uri, f"{store.uri}/20260501_x"):
        with pytest.raises(ValueError, match="is a Delta table"):
            scan_catalog(catalog)


def test_the_ledger_of_a_job_is_left_out_by_name(tmp_path: Path) -> None:
    write(tmp_path / "c.parquet", "a")
    file = write(tmp_path / "out" / "ledger.parquet", "a", status="done")
    scan = scan_catalog(str(tmp_path), ignored={"sku", "status"})
    assert (scan.num_rows, scan.left_out) == (1, {"ledger of a job": (str(file),)})


def test_a_folder_of_none_says_what_lies_there(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("sku")
    with pytest.raises(ValueError, match=r"holds no \.parquet file; not read \(no parquet\): 1: c\.csv"):
        scan_catalog(str(tmp_path))


# Types as tools write them.


def test_a_part_without_rows_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "a")
    pd.DataFrame({"sku": [], "image": []}).to_parquet(tmp_path / "b.parquet")  # columns of floats
    pd.DataFrame().to_parquet(tmp_path / "c.parquet")
    assert skus(tmp_path) == ["a"]


def test_columns_of_floats_that_hold_nothing_or_whole_numbers(tmp_path: Path) -> None:
    gap = float("nan")
    frame = pd.DataFrame({"sku": [1001.0, 1002.0], "image": ["a", "b"], "prompt": [gap] * 2})
    frame["google_product_category"] = [2169.0, gap]
    assert frame.dtypes["prompt"] == "float64"
    frame.to_parquet(tmp_path / "pandas.parquet")
    found = [(row.sku, row.category, row.prompts) for row in rows_of(tmp_path)]
    assert found == [("1001", "2169", ()), ("1002", None, ())]
    # NaN itself, as fastparquet writes it; and a numeric column of a database.
    ids = pa.array([decimal.Decimal("7.000000000")], pa.decimal128(38, 9))
    pq.write_table(pa.table({"sku": ids, "image": ["a"], "mask": [gap]}), tmp_path / "pandas.parquet")
    assert [(row.sku, row.mask) for row in rows_of(tmp_path)] == [("7", None)]


@pytest.mark.parametrize(
    ("values", "kind"), [([1.5, 2.0], pa.float64()), ([decimal.Decimal("1.10")], pa.decimal128(9, 2))]
)
def test_numbers_that_are_not_whole_are_no_skus(values: list, kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"sku": pa.array(values, kind), "image": ["a"] * len(values)}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"'sku' \(sku\) is of type .*; cast it, as in SQL: CAST\(sku AS VARCHAR\)"):
        scan_catalog(str(tmp_path))


def test_a_float_too_large_to_be_exact_costs_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sku": [2.0**60, 5.0], "image": ["a", "b"]}), tmp_path / "c.parquet")
    scan = scan_catalog(str(tmp_path))
    first, second = (row for part in scan.fragments for _, _, row in parsed_rows(part, scan.first_rows))
    assert getattr(first, "reason", None) == "wrong_type"
    assert getattr(second, "sku", None) == "5"


def test_uuids_are_read_as_text(tmp_path: Path) -> None:
    sku = uuid.UUID("3eea243d-5d8d-4335-81f7-e2a7de9a5e5c")
    pd.DataFrame({"sku": [sku], "image": ["a"]}).to_parquet(tmp_path / "c.parquet")
    assert pq.read_schema(tmp_path / "c.parquet").field("sku").type == pa.uuid()
    assert skus(tmp_path) == [str(sku)]


def test_repeated_text_as_structs(tmp_path: Path) -> None:
    item = pa.struct([("element", pa.string())])
    prompts = pa.array([[{"element": "x"}, {"element": "y"}], None], pa.list_(item))
    pq.write_table(pa.table({"sku": ["a", "b"], "image": ["a", "b"], "prompt": prompts}), tmp_path / "c.parquet")
    assert [row.prompts for row in rows_of(tmp_path)] == [("x", "y"), ()]
    bigquery = pa.array([{"list": [{"element": "x"}]}, None], pa.struct([("list", pa.list_(item))]))
    pq.write_table(pa.table({"sku": ["a", "b"], "image": ["a", "b"], "prompt": bigquery}), tmp_path / "c.parquet")
    assert [row.prompts for row in rows_of(tmp_path)] == [("x",), ()]


def test_a_class_label_is_its_name(tmp_path: Path) -> None:
    features = Features(sku=Value("string"), image=Value("string"), category=ClassLabel(names=["Bottle", "Cup"]))
    rows = {"sku": ["a", "b", "c", "d"], "image": ["x"] * 4, "category": [1, 0, -1, None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "c.parquet")
    assert [row.category for row in rows_of(tmp_path)] == ["Cup", "Bottle", None, None]
