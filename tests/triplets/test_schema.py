"""The triplet schema: rows survive writing and reading, and errors name file, row and field."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refadgen.storage.store import Storage
from refadgen.triplets.schema import (
    SCHEMA,
    VARIANT_KINDS,
    Triplet,
    TripletRow,
    Variant,
    VariantRow,
    dataset_files,
    decode,
    encode,
    original_variant,
    png_bytes,
    scan,
    split_of,
    write_triplets,
)

HEIGHT, WIDTH = 20, 16


def _triplet(row_id: str = "a", product_id: str = "p", split: str = "train") -> Triplet:
    rng = np.random.default_rng(0)
    ad_image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:15, 3:12] = 255
    turned = np.roll(mask, 2, axis=1)
    return Triplet(
        row_id=row_id,
        product_id=product_id,
        category="Cup",
        split=split,
        captions=["a cup on a table", "ein Becher, “groß”"],
        ad_image=ad_image,
        variants=[
            original_variant(ad_image, mask),
            Variant("novel_view", np.where(turned[..., None] > 0, 77, np.full_like(ad_image, 255)), turned),
        ],
        facts='{"seed": 3}',
    )


def _row(**changes: Any) -> dict[str, Any]:
    return {**encode(_triplet()), **changes}


def _row_with_variant(**changes: Any) -> dict[str, Any]:
    row = _row()
    row["variants"][1].update(changes)
    return row


def _rows_file(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _schema_with(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(field.name, types.get(field.name, field.type)) for field in SCHEMA])


# One row


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    triplets = [_triplet("a"), replace(_triplet("b", "q", "test"), category="", facts="{}")]
    storage = Storage(str(tmp_path))
    write_triplets(storage, "deep/er/one.parquet", iter(triplets))
    assert pq.read_schema(tmp_path / "deep/er/one.parquet").equals(SCHEMA)
    read = [decode(row) for row in pq.read_table(tmp_path / "deep/er/one.parquet").to_pylist()]
    for triplet, got in zip(triplets, read, strict=True):
        for name in ("row_id", "product_id", "category", "split", "captions", "facts"):
            assert getattr(got, name) == getattr(triplet, name)
        np.testing.assert_array_equal(got.ad_image, triplet.ad_image)
        for one, other in zip(got.variants, triplet.variants, strict=True):
            assert one.kind == other.kind
            assert one.image.dtype == one.mask.dtype == np.uint8
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.mask, other.mask)


def test_the_original_variant_is_the_ad_under_its_mask() -> None:
    triplet = _triplet()
    original = triplet.variants[0]
    inside = original.mask > 0
    assert original.kind == "original"
    np.testing.assert_array_equal(original.image[inside], triplet.ad_image[inside])
    assert (original.image[~inside] == 255).all()
    assert original.image.dtype == np.uint8


def test_the_typed_rows_have_the_columns_of_the_schema() -> None:
    """mypy sees a misspelt key only while these agree: writing would turn it into a null."""
    assert list(TripletRow.__annotations__) == SCHEMA.names
    assert list(VariantRow.__annotations__) == [field.name for field in SCHEMA.field("variants").type.value_type]


def test_optional_columns_may_be_empty_or_away() -> None:
    triplet = decode(_row(category=None, facts=None))
    assert (triplet.category, triplet.facts) == ("", "{}")
    row = _row()
    del row["facts"]
    assert decode(row).facts == "{}"


def test_captions_without_text_are_left_out() -> None:
    assert decode(_row(captions=["", None, "a cup", "  "])).captions == ["a cup"]


def test_masks_are_cut_at_half_and_pictures_become_rgb() -> None:
    grey = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    triplet = decode(_row_with_variant(mask=png_bytes(grey), image=png_bytes(grey)))
    np.testing.assert_array_equal(triplet.variants[1].mask, np.where(grey > 127, 255, 0))
    np.testing.assert_array_equal(triplet.variants[1].image, grey[..., None].repeat(3, axis=2))


def test_jpeg_pictures_are_read_too() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(buffer, format="JPEG")
    assert (decode(_row(ad_image=buffer.getvalue())).ad_image == 90).all()


BIG = png_bytes(np.full((HEIGHT, WIDTH + 1), 255, np.uint8))
EMPTY = png_bytes(np.zeros((HEIGHT, WIDTH), np.uint8))
CUT = png_bytes(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))[:-300]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row(captions=[]), "row 'a': captions: no text"),
        (_row(captions=None), "row 'a': captions: no text"),
        (_row(captions=["", " \n", None]), "row 'a': captions: no text"),
        (_row(ad_image=None), "row 'a': ad_image: no bytes"),
        (_row(ad_image=b""), "row 'a': ad_image: no bytes"),
        (_row(ad_image=b"GIF89 no"), "row 'a': ad_image: cannot be decoded: "),
        (_row(ad_image=CUT), "row 'a': ad_image: cannot be decoded: "),
        (
            _row(ad_image=png_bytes(np.zeros((4, 404, 3), np.uint8))),
            "row 'a': ad_image: 404×4 px is longer than 100 to 1; leave the row out",
        ),
        (_row(ad_image=BIG), "row 'a': variants[0].image: 16×20 px, but ad_image is 17×20 px"),
        (_row(variants=[]), "row 'a': variants: none"),
        (_row(variants=None), "row 'a': variants: none"),
        (_row(variants=[None]), "row 'a': variants[0]: no value"),
        (_row_with_variant(kind="turned"), "row 'a': variants[1].kind='turned': must be one of original, relit, "),
        (_row_with_variant(kind=None), "row 'a': variants[1].kind=None: must be one of "),
        (_row_with_variant(image=None), "row 'a': variants[1].image: no bytes"),
        (_row_with_variant(image=b"?"), "row 'a': variants[1].image: cannot be decoded: "),
        (_row_with_variant(image=BIG), "row 'a': variants[1].image: 17×20 px, but ad_image is 16×20 px"),
        (_row_with_variant(mask=None), "row 'a': variants[1].mask: no bytes"),
        (_row_with_variant(mask=b"?"), "row 'a': variants[1].mask: cannot be decoded: "),
        (_row_with_variant(mask=BIG), "row 'a': variants[1].mask: 17×20 px, but ad_image is 16×20 px"),
        (_row_with_variant(mask=EMPTY), "row 'a': variants[1].mask: empty"),
    ],
)
def test_a_bad_row_is_named_with_its_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        decode(row)


def test_a_damaged_picture_is_never_another_error() -> None:
    rng = np.random.default_rng(0)
    intact = png_bytes(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    bad = 0
    for _ in range(300):
        damaged = bytearray(intact)
        damaged[int(rng.integers(len(intact)))] ^= int(rng.integers(1, 256))
        try:
            decode(_row(ad_image=bytes(damaged)))
        except ValueError:
            bad += 1
    assert bad > 200


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    bomb = bytearray(png_bytes(np.zeros((8, 8), np.uint8)))
    bomb[16:24] = struct.pack(">II", 40_000, 40_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(ValueError, match=r"^row 'a': ad_image: cannot be decoded: .*decompression bomb"):
        decode(_row(ad_image=bytes(bomb)))


# A data set


def test_scan_counts_rows_by_split_over_all_files(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_triplets(storage, "sub/2.parquet", [_triplet("c", "r", "test")])
    write_triplets(storage, "1.parquet", [_triplet("a", "p"), _triplet("b", "p"), _triplet("d", "q")])
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".2.parquet").write_text("half written")
    found = scan(str(tmp_path))
    assert [(file.key, file.group_rows) for file in found.files] == [("1.parquet", (3,)), ("sub/2.parquet", (1,))]
    assert [Path(file.uri) for file in found.files] == [tmp_path / "1.parquet", tmp_path / "sub/2.parquet"]
    assert found.rows_of_split == {"train": 3, "test": 1}
    assert found.num_rows == 4


def test_the_fingerprint_is_of_rows_in_their_row_groups(tmp_path: Path) -> None:
    """The order of training follows from both; and not from how the bytes are packed."""
    table = pa.Table.from_pylist([_row(row_id=name) for name in "abcd"], schema=SCHEMA)
    prints = []
    for number, settings in enumerate(({}, {"compression": "gzip"}, {"row_group_size": 2})):
        pq.write_table(table, tmp_path / f"{number}.parquet", **settings)
        prints.append(scan(str(tmp_path / f"{number}.parquet")).fingerprint)
    assert prints[1] == prints[0]
    assert prints[2] != prints[0]


def test_a_training_row_without_a_usable_variant_is_named(tmp_path: Path) -> None:
    there = _row()["variants"][0]["kind"]
    other = next(kind for kind in VARIANT_KINDS if kind != there)
    only = [{**_row()["variants"][0], "kind": there}]
    both = [{**only[0], "kind": other}, *only]
    rows = [_row(row_id="a", variants=both), _row(row_id="b", variants=only)]
    rows.append(_row(row_id="c", product_id="else", split="test", variants=only))  # nothing trains on it
    _rows_file(tmp_path / "1.parquet", rows)
    assert scan(str(tmp_path), [there]).num_rows == 3
    with pytest.raises(ValueError, match=rf"^row 'b': variants of kinds \['{there}'\]: none of \['{other}'\] .*; 1 tr"):
        scan(str(tmp_path), [other])


def test_one_file_is_a_data_set(tmp_path: Path) -> None:
    write_triplets(Storage(str(tmp_path)), "1.parquet", [_triplet()])
    write_triplets(Storage(str(tmp_path)), "2.parquet", [_triplet("b")])
    found = scan(str(tmp_path / "1.parquet"))
    assert [file.key for file in found.files] == ["1.parquet"]
    assert found.rows_of_split == {"train": 1, "test": 0}
    storage, keys = dataset_files(str(tmp_path / "1.parquet"))
    assert storage.read(keys[0]) == (tmp_path / "1.parquet").read_bytes()


TEXT = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    "types",
    [
        {"row_id": pa.large_string(), "captions": pa.large_list(pa.large_string()), "ad_image": pa.large_binary()},
        {"row_id": TEXT, "product_id": TEXT, "category": TEXT, "split": TEXT},
        {"captions": pa.list_(TEXT)},
        {
            "variants": pa.large_list(
                pa.struct([(name, pa.large_binary()) for name in ("mask", "image")] + [("kind", TEXT)])
            )
        },
    ],
)
def test_other_writers_types_are_read_alone_and_mixed(tmp_path: Path, types: dict[str, pa.DataType]) -> None:
    table = pa.Table.from_pylist([_row(row_id="x"), _row(row_id="y")], schema=SCHEMA)
    for name, kind in types.items():
        values = table[name].to_pylist()
        column = pa.array(values, pa.string()).dictionary_encode() if kind == TEXT else pa.array(values, kind)
        table = table.set_column(table.schema.get_field_index(name), name, column)
        assert table.schema.field(name).type == kind
    pq.write_table(table, tmp_path / "1.parquet")
    assert scan(str(tmp_path)).num_rows == 2
    _rows_file(tmp_path / "2.parquet", [_row(row_id="a")])
    assert scan(str(tmp_path)).rows_of_split == {"train": 3, "test": 0}
    assert decode(pq.read_table(tmp_path / "1.parquet").to_pylist()[1]).row_id == "y"


def test_further_columns_and_no_facts_are_fine(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([_row()], schema=SCHEMA).drop_columns("facts").append_column("note", pa.array([1]))
    pq.write_table(table, tmp_path / "1.parquet")
    assert scan(str(tmp_path)).num_rows == 1


@pytest.mark.parametrize("name", [field.name for field in SCHEMA if field.name != "facts"])
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.Table.from_pylist([_row()], schema=SCHEMA).drop_columns(name), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=rf"1\.parquet: column {name} is missing; a triplet has row_id, product_id, "):
        scan(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("row_id", pa.int64(), 3),
        ("product_id", pa.binary(), b"p"),
        ("category", pa.list_(pa.string()), ["Cup"]),
        ("split", pa.bool_(), True),
        ("captions", pa.string(), "a cup"),
        ("captions", pa.list_(pa.int64()), [1]),
        ("ad_image", pa.string(), "ad.png"),
        ("ad_image", pa.struct([("bytes", pa.binary())]), {"bytes": b""}),
        ("variants", pa.list_(pa.binary()), [b""]),
        ("variants", pa.list_(pa.struct([("kind", pa.string()), ("image", pa.binary())])), []),
        ("variants", pa.list_(pa.struct([("kind", pa.int8()), ("image", pa.binary()), ("mask", pa.binary())])), []),
    ],
)
def test_a_column_of_another_type_is_named_with_both_types(
    tmp_path: Path, name: str, kind: pa.DataType, value: object
) -> None:
    _rows_file(tmp_path / "1.parquet", [_row(**{name: value})], _schema_with(**{name: kind}))
    required = re.escape(str(SCHEMA.field(name).type))
    with pytest.raises(ValueError, match=rf"1\.parquet: column {name} is \w+.*, must be {required}"):
        scan(str(tmp_path))


NULLABLE = _schema_with()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [_row(row_id="a"), _row(row_id="b"), _row(row_id="b")],
            "row 'b': this row_id occurs 2 times; rename all but one",
        ),
        (
            [_row(row_id="a"), _row(row_id="b", split="test")],
            "product 'p' is in both splits; split by product, never by picture",
        ),
        ([_row(split="validation")], "column split: 'validation' is none of train, test"),
        ([_row(split="")], "column split: '' is none of train, test"),
        ([_row(), _row(row_id=None), _row(row_id=None)], "column row_id: 2 rows have no value"),
        ([_row(product_id=None)], "column product_id: 1 rows have no value"),
        ([_row(split=None)], "column split: 1 rows have no value"),
        ([_row(row_id="a"), _row(row_id="b", captions=[])], "row 'b': captions: no text"),
        ([_row(captions=["", " "])], "row 'a': captions: no text"),
        ([_row(captions=[None])], "row 'a': captions: no text"),
        ([_row(captions=None)], "row 'a': captions: no text"),
    ],
)
@pytest.mark.parametrize("spread", [False, True])
def test_bad_values_are_named_within_and_across_files(
    tmp_path: Path, rows: list[dict[str, Any]], message: str, spread: bool
) -> None:
    for index, part in enumerate([[row] for row in rows] if spread else [rows]):
        _rows_file(tmp_path / f"{index}.parquet", part, NULLABLE)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        scan(str(tmp_path))


def _nothing(folder: Path) -> str:
    return str(folder / "nowhere")


def _no_parquet(folder: Path) -> str:
    (folder / "data.json").write_text("[]")
    (folder / ".hidden.parquet").write_text("")
    return str(folder)


def _no_rows(folder: Path) -> str:
    _rows_file(folder / "1.parquet", [])
    _rows_file(folder / "2.parquet", [])
    return str(folder)


def _text_file(folder: Path) -> str:
    (folder / "1.parquet").write_text("row_id,product_id\n")
    return str(folder)


def _no_bytes(folder: Path) -> str:
    (folder / "1.parquet").write_bytes(b"")
    return str(folder / "1.parquet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, r"^data\.path='.*nowhere': does not exist; "),
        (_no_parquet, r"^data\.path='.*': holds no \.parquet file; "),
        (_no_rows, r"^data\.path='.*': the data set has no rows$"),
        (_text_file, r"1\.parquet: not a readable parquet file: "),
        (_no_bytes, r"1\.parquet: not a readable parquet file: "),
    ],
)
def test_what_is_no_data_set_is_said(tmp_path: Path, make: Callable[[Path], str], message: str) -> None:
    uri = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        scan(uri)


def test_a_damaged_file_is_named_and_never_another_error(tmp_path: Path) -> None:
    _rows_file(tmp_path / "1.parquet", [_row(row_id="a"), _row(row_id="b")])
    intact = (tmp_path / "1.parquet").read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(200):
        damaged = bytearray(intact)
        for place in rng.integers(len(intact) // 2, len(intact), 2):  # the footer is in the second half
            damaged[place] = rng.integers(256)
        (tmp_path / "1.parquet").write_bytes(damaged)
        try:
            scan(str(tmp_path))
        except ValueError as error:
            named += "1.parquet: " in str(error)
    assert named > 100


def test_a_text_that_is_not_utf8_is_said_with_its_file(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([_row()], schema=SCHEMA)
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(1, "product_id", bad), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: not a readable parquet file: .*UTF8"):
        scan(str(tmp_path))


# Splits


def test_the_split_of_a_product_is_fixed_and_one_in_ten_is_test() -> None:
    # Data sets made by one version are continued by the next.
    assert [index for index in range(60) if split_of(f"product-{index}") == "test"] == [29, 53]
    tests = sum(split_of(f"sku-{index}") == "test" for index in range(20000))
    assert 1850 < tests < 2150  # 2000, deviation 42
    more = [index for index in range(500) if split_of(f"sku-{index}", 30) == "test"]
    fewer = [index for index in range(500) if split_of(f"sku-{index}", 10) == "test"]
    assert set(fewer) < set(more)
    assert {split_of(f"sku-{index}", 0) for index in range(200)} == {"train"}
    assert {split_of(f"sku-{index}", 100) for index in range(200)} == {"test"}
