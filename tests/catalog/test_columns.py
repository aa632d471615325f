"""Which column of a catalogue is which of ours, and what stops the job."""

from pathlib import Path

import pyarrow as pa
import pytest

from refadgen.catalog.columns import COLUMNS, resolve_columns


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([("sku", pa.string()), ("image", pa.string()), *columns.items()])


def test_own_names_and_google_names():
    assert resolve_columns(_schema(title=pa.string())) == {"sku": "sku", "image": "image", "title": "title"}
    google = pa.schema([("g:id", pa.string()), ("Image Link", pa.string()), ("Product-Type", pa.string())])
    assert resolve_columns(google) == {"sku": "g:id", "image": "Image Link", "category": "Product-Type"}


def test_own_name_wins_over_alias_and_first_alias_over_later():
    schema = _schema(
        id=pa.int64(), google_product_category=pa.int64(), product_type=pa.string(), image_link=pa.float64()
    )
    assert resolve_columns(schema) == {"sku": "sku", "image": "image", "category": "product_type"}


def test_exact_case_wins_and_two_that_match_alike_are_refused():
    assert (
        resolve_columns(pa.schema([("SKU", pa.string()), ("sku", pa.string()), ("image", pa.string())]))["sku"] == "sku"
    )
    with pytest.raises(ValueError, match=r"sku more than once \('SKU', 'Sku'\)"):
        resolve_columns(pa.schema([("SKU", pa.string()), ("Sku", pa.string()), ("image", pa.string())]))


def test_unknown_columns_are_ignored():
    assert "weight" not in resolve_columns(_schema(weight=pa.float64(), stock=pa.struct([("a", pa.int8())])))


def test_missing_column_lists_what_there_is_and_guesses():
    with pytest.raises(
        ValueError, match=r"no column 'image' \(also accepted: image_link.*'sku', 'imagee'.*'imagee' meant"
    ):
        resolve_columns(pa.schema([("sku", pa.string()), ("imagee", pa.string())]))
    with pytest.raises(ValueError, match="no columns at all"):
        resolve_columns(pa.schema([]))


@pytest.mark.parametrize("name", ["sku", "image"])
def test_null_type_in_a_required_column(name):
    schema = _schema().set(_schema().get_field_index(name), pa.field(name, pa.null()))
    with pytest.raises(ValueError, match=f"'{name}'.*nothing but nulls"):
        resolve_columns(schema)


def test_null_type_is_as_absent():
    assert "prompt" not in resolve_columns(_schema(prompt=pa.null()))
    assert resolve_columns(_schema(category=pa.null(), product_type=pa.string()))["category"] == "product_type"
    assert resolve_columns(pa.schema([("image", pa.string()), ("sku", pa.null()), ("id", pa.int32())]))["sku"] == "id"


IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sku", pa.large_string()),
        ("sku", pa.string_view()),
        ("sku", pa.dictionary(pa.int32(), pa.string())),
        ("sku", pa.uint64()),
        ("sku", pa.decimal128(38, 0)),
        ("image", pa.large_binary()),
        ("image", pa.binary_view()),
        ("image", IMAGE_STRUCT),
        ("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.null())])),
        ("image", pa.dictionary(pa.int8(), pa.large_string())),
        ("mask", IMAGE_STRUCT),
        ("category", pa.int64()),
        ("prompt", pa.list_(pa.string())),
        ("prompt", pa.large_list(pa.large_string())),
        ("prompt", pa.list_(pa.null())),
        ("prompt", pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        ("num_variants", pa.float64()),
        ("seed", pa.decimal128(20, 0)),
        ("placement", pa.struct([("size", pa.float32()), ("anchor", pa.string())])),
        ("placement", pa.struct([("size", pa.int64())])),
    ],
)
def test_accepted_types(name, kind):
    schema = _schema()
    index = schema.get_field_index(name)
    field = pa.field(name, kind)
    assert name in resolve_columns(schema.set(index, field) if index >= 0 else schema.append(field))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sku", pa.float64()),
        ("sku", pa.bool_()),
        ("sku", pa.binary()),
        ("sku", pa.decimal128(10, 2)),
        ("image", pa.int64()),
        ("image", pa.list_(pa.string())),
        ("image", pa.struct([("url", pa.string())])),
        ("image", pa.struct([("bytes", pa.string()), ("path", pa.string())])),
        ("title", pa.list_(pa.string())),
        ("prompt", pa.int32()),
        ("prompt", pa.list_(pa.int32())),
        ("negative_prompt", pa.timestamp("s")),
        ("num_variants", pa.string()),
        ("seed", pa.bool_()),
        ("seed", pa.decimal128(10, 2)),
        ("placement", pa.struct([("size", pa.string())])),
        ("placement", pa.struct([("size", pa.float64()), ("side", pa.string())])),
        ("mask", pa.float32()),
    ],
)
def test_impossible_types_name_column_type_and_rule(name, kind):
    schema = _schema()
    index = schema.get_field_index(name)
    field = pa.field(name, kind)
    with pytest.raises(ValueError, match=f"'{name}'.*of type .*must be") as error:
        resolve_columns(schema.set(index, field) if index >= 0 else schema.append(field))
    assert str(kind) in str(error.value)


def test_column_reference_names_every_column_and_alias():
    text = (Path(__file__).parents[2] / "catalogs" / "README.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" *`"): line for line in text.splitlines() if line.startswith("| ")}
    for column in COLUMNS:
        assert all(f"`{alias}`" in rows[column.name] for alias in column.aliases), column.name
        assert ("**" in rows[column.name]) == column.required


def test_the_guess_is_the_nearest_name():
    with pytest.raises(ValueError, match=r"Is 'Product id code' meant\?"):
        resolve_columns(pa.schema([("Produce", pa.string()), ("Product id code", pa.string()), ("image", pa.string())]))
    with pytest.raises(ValueError, match=r"Is 'Image URLs' meant\?"):
        resolve_columns(pa.schema([("sku", pa.string()), ("image alt", pa.string()), ("Image URLs", pa.string())]))
