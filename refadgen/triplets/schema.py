"""The triplet schema: one parquet row per ad image, with its product images and captions. Every source writes it.

A data set is a folder of parquet files, local or `s3://`, or one file. `scan` checks what can be checked without
decoding; `decode` turns one row into arrays and names the row and the field that is wrong.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from refadgen.config.train import VARIANT_KINDS
from refadgen.storage.store import Storage, split_uri

SPLITS = ("train", "test")

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("ad_image", pa.binary(), nullable=False),
        pa.field(
            "variants",
            pa.list_(pa.struct([("kind", pa.string()), ("image", pa.binary()), ("mask", pa.binary())])),
            nullable=False,
        ),
        pa.field("facts", pa.string()),
    ]
)
"""`ad_image` and a variant's `image`: encoded RGB pictures of one size, the product on white; `mask`: 8-bit grey, 0 or
255, of that image's product. `facts`: JSON with what the source knows besides."""


@dataclass(frozen=True)
class Variant:
    """One product image of a triplet."""

    kind: str
    """One of VARIANT_KINDS."""
    image: np.ndarray
    """uint8 H×W×3, white outside of the mask."""
    mask: np.ndarray
    """uint8 H×W, 0 or 255."""


@dataclass(frozen=True)
class Triplet:
    """One decoded row."""

    row_id: str
    product_id: str
    category: str
    split: str
    captions: list[str]
    ad_image: np.ndarray
    """uint8 H×W×3."""
    variants: list[Variant]
    facts: str = "{}"


def original_variant(ad_image: np.ndarray, mask: np.ndarray) -> Variant:
    """The ad's own pixels under the product's mask, in place on white. Shapes as of `Variant`."""
    return Variant("original", np.where(mask[..., None] > 127, ad_image, 255).astype(np.uint8), mask)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A picture uint8 [H, W] or [H, W, C] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()


def encode(triplet: Triplet) -> dict[str, Any]:
    """A row of SCHEMA, pictures as PNG."""
    return {
        "row_id": triplet.row_id,
        "product_id": triplet.product_id,
        "category": triplet.category,
        "split": triplet.split,
        "captions": triplet.captions,
        "ad_image": png_bytes(triplet.ad_image),
        "variants": [
            {"kind": each.kind, "image": png_bytes(each.image), "mask": png_bytes(each.mask)}
            for each in triplet.variants
        ],
        "facts": triplet.facts,
    }


def decode(row: dict[str, Any]) -> Triplet:
    """The arrays of one row of SCHEMA. Raises: ValueError naming the row and the field."""
    name = f"row {row['row_id']!r}"
    captions = [text for text in row["captions"] or [] if text and text.strip()]
    if not captions:
        raise ValueError(f"{name}: captions: no text")
    ad_image = _pixels(row["ad_image"], "RGB", f"{name}: ad_image")
    variants = []
    for index, entry in enumerate(row["variants"] or []):
        field = f"{name}: variants[{index}]"
        if entry is None:
            raise ValueError(f"{field}: no value")
        if entry["kind"] not in VARIANT_KINDS:
            raise ValueError(f"{field}.kind={entry['kind']!r}: must be one of {', '.join(VARIANT_KINDS)}")
        image = _pixels(entry["image"], "RGB", f"{field}.image")
        mask = np.where(_pixels(entry["mask"], "L", f"{field}.mask") > 127, 255, 0).astype(np.uint8)
        for what, array in (("image", image), ("mask", mask)):
            if array.shape[:2] != ad_image.shape[:2]:
                raise ValueError(f"{field}.{what}: {_size(array)} px, but ad_image is {_size(ad_image)} px")
        if not mask.any():
            raise ValueError(f"{field}.mask: empty")
        variants.append(Variant(entry["kind"], image, mask))
    if not variants:
        raise ValueError(f"{name}: variants: none")
    return Triplet(
        row_id=row["row_id"],
        product_id=row["product_id"],
        category=row["category"] or "",
        split=row["split"],
        captions=captions,
        ad_image=ad_image,
        variants=variants,
        facts=row.get("facts") or "{}",
    )


def _pixels(data: bytes | None, mode: str, field: str) -> np.ndarray:
    if not data:
        raise ValueError(f"{field}: no bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{field}: cannot be decoded: {error}") from error


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"


def write_triplets(storage: Storage, key: str, triplets: Iterable[Triplet]) -> None:
    """Writes one parquet file, whole or not at all. Raises: OSError."""
    write_rows(storage, key, pa.Table.from_pylist([encode(each) for each in triplets], schema=SCHEMA))


def write_rows(storage: Storage, key: str, table: pa.Table) -> None:
    """The same of encoded rows."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=64)
    storage.write(key, buffer.getvalue().to_pybytes())


@dataclass(frozen=True)
class DatasetFile:
    """One parquet file of a data set."""

    uri: str
    key: str
    group_rows: tuple[int, ...]
    """Of each row group."""


@dataclass(frozen=True)
class DatasetScan:
    """What a data set holds, without its pictures."""

    files: list[DatasetFile]
    rows_of_split: dict[str, int]
    fingerprint: str
    """Of all row ids and splits, in order, and of the row groups they lie in."""

    @property
    def num_rows(self) -> int:
        return sum(self.rows_of_split.values())


def dataset_files(uri: str) -> tuple[Storage, list[str]]:
    """The storage and the keys of a data set's parquet files. Raises: ValueError where there is none."""
    storage = Storage(uri)
    kind = storage.root_kind(f"data.path={uri!r}: the data set")
    if kind is None:
        raise ValueError(f"data.path={uri!r}: there is nothing")
    if kind == "file":
        folder, key = split_uri(uri)
        return folder, [key]
    keys = [key for key in storage.keys(suffix=".parquet") if not key.rpartition("/")[2].startswith(".")]
    if not keys:
        raise ValueError(f"data.path={uri!r}: holds no .parquet file")
    return storage, keys


def scan(uri: str, kinds: Sequence[str] = VARIANT_KINDS) -> DatasetScan:
    """Reads the small columns of a data set and checks them.

    kinds: every training row must have a product image of one of them. Raises: ValueError for a missing column or one
    of another type, an empty data set, an unknown split, captions without text, a row id that is there twice, a product
    in two splits, and a training row that has none of `kinds`.
    """
    storage, keys = dataset_files(uri)
    files, tables = [], []
    for key in keys:
        table, group_rows = _small_columns(storage, key)
        tables.append(table)
        files.append(DatasetFile(storage.uri_of(key), key, group_rows))
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise ValueError(f"data.path={uri!r}: the data set has no rows")
    _check_values(table)
    _check_kinds(table, kinds)
    counts = {entry["values"]: entry["counts"] for entry in table["split"].value_counts().to_pylist()}
    digest = hashlib.sha256(repr([file.group_rows for file in files]).encode())
    for row_id, split in zip(table["row_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        digest.update(f"{row_id}\0{split}\n".encode())
    return DatasetScan(files, {split: counts.get(split, 0) for split in SPLITS}, digest.hexdigest()[:16])


def _small_columns(storage: Storage, key: str) -> tuple[pa.Table, tuple[int, ...]]:
    """What `scan` reads of one file, in the types of SCHEMA, `kinds` besides; and rows of each row group.

    Raises: ValueError.
    """
    names = ["row_id", "product_id", "split", "captions"]
    plain = pa.schema([pa.field(name, SCHEMA.field(name).type) for name in names])
    uri = storage.uri_of(key)
    try:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            _check_columns(file.schema_arrow, uri)
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            kind = next(path for path in leaves if path.startswith("variants.") and path.endswith(".kind"))
            found = file.read(columns=[*names, kind])
            table = found.select(names).cast(plain)
            table = table.append_column("kinds", found["variants"].cast(pa.list_(pa.struct([("kind", pa.string())]))))
            table.validate(full=True)  # texts are not checked otherwise
            groups = range(file.num_row_groups)
            return table, tuple(file.metadata.row_group(index).num_rows for index in groups)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # damaged files raise all of these
        raise ValueError(f"{uri}: not a readable parquet file: {error}") from error


def _check_columns(schema: pa.Schema, uri: str) -> None:
    for field in SCHEMA:
        if field.name == "facts":
            continue
        if field.name not in schema.names:
            raise ValueError(f"{uri}: column {field.name} is missing; a triplet has {', '.join(SCHEMA.names)}")
        kind = schema.field(field.name).type
        if not _alike(kind, field.type):
            raise ValueError(f"{uri}: column {field.name} is {kind}, must be {field.type}")


def _alike(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal, but for large and dictionary types."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(wanted):
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _alike(kind.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        return all(field.name in names and _alike(names[field.name], field.type) for field in wanted)
    if pa.types.is_binary(wanted):
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_values(table: pa.Table) -> None:
    for name in ("row_id", "product_id", "split"):
        if table[name].null_count:
            raise ValueError(f"column {name}: {table[name].null_count} rows have no value")
    unknown = set(table["split"].unique().to_pylist()) - set(SPLITS)
    if unknown:
        raise ValueError(f"column split: {sorted(unknown)[0]!r} is none of {', '.join(SPLITS)}")
    ids = table["row_id"].value_counts()
    twice = ids.filter(pc.greater(ids.field("counts"), 1))
    if len(twice):
        raise ValueError(f"row {twice[0]['values'].as_py()!r}: this row_id is there {twice[0]['counts']} times")
    splits = table.group_by("product_id").aggregate([("split", "count_distinct")])
    both = splits.filter(pc.greater(splits["split_count_distinct"], 1))
    if both.num_rows:
        raise ValueError(
            f"product {both['product_id'][0].as_py()!r} is in both splits; split by product, never by picture"
        )
    for row_id, captions in zip(table["row_id"].to_pylist(), table["captions"].to_pylist(), strict=True):
        if not any(text and text.strip() for text in captions or []):
            raise ValueError(f"row {row_id!r}: captions: no text")


def _check_kinds(table: pa.Table, kinds: Sequence[str]) -> None:
    """table: columns row_id, split, kinds."""
    training = table.filter(pc.equal(table["split"], "train")).combine_chunks()
    if not training.num_rows:
        return
    lists = training["kinds"].combine_chunks()
    wanted = pc.is_in(lists.flatten().field("kind"), value_set=pa.array(kinds))
    having = pc.unique(pc.filter(pc.list_parent_indices(lists), wanted))
    missing = np.setdiff1d(np.arange(len(lists)), having.to_numpy(zero_copy_only=False))
    if len(missing):
        row_id, there = training["row_id"][missing[0]].as_py(), training["kinds"][missing[0]].as_py()
        found = sorted({str(each["kind"]) for each in there or [] if each})
        raise ValueError(
            f"row {row_id!r}: variants of kinds {found}: none of {list(kinds)} (data.variants); "
            f"{len(missing)} training rows are so"
        )


def split_of(product_id: str, test_percent: int = 10) -> str:
    """Split "test" for `test_percent` % of all products, by a hash of the id, else "train" (the paper: nine to one)."""
    number = int.from_bytes(hashlib.sha256(product_id.encode()).digest()[:4])
    return "test" if number % 100 < test_percent else "train"
