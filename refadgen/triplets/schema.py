"""The triplet schema: one parquet row per ad image, with its product images and captions.

The studio, the dataset job and the importers write it; training reads it. A data set is one parquet file or a folder
of them, local or on `s3://`. `scan` reads the small columns and checks them. `decode` turns one row into arrays; its
errors name the row and the field.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from refadgen.config.train import VARIANT_KINDS
from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage, split_uri

SPLITS = ("train", "test")
MAX_ASPECT = 100
"""Longest shape of an ad: resized to cover a canvas, a longer strip would take gigabytes."""

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
"""The columns of a triplet file.

`ad_image` and each variant's `image` are encoded RGB pictures of one size; a variant shows the product on white. `mask`
is 8-bit grey, 0 or 255, and marks the product in that variant's image. `facts` is JSON with the source's metadata.
"""


class VariantRow(TypedDict):
    """One element of the column `variants`, as files hold it. `encode` writes no None; other writers may."""

    kind: str | None
    image: bytes | None
    mask: bytes | None


class TripletRow(TypedDict):
    """One row of SCHEMA, as files hold it. `encode` writes no None; other writers may, also for non-null columns."""

    row_id: str
    product_id: str
    category: str | None
    split: str
    captions: Sequence[str | None] | None
    ad_image: bytes | None
    variants: Sequence[VariantRow | None] | None
    facts: NotRequired[str | None]


@dataclass(frozen=True)
class Variant:
    """One product image of a triplet."""

    kind: str
    """One of VARIANT_KINDS."""
    image: npt.NDArray[np.uint8]
    """H×W×3, 255 outside of the mask."""
    mask: npt.NDArray[np.uint8]
    """H×W, 0 or 255."""


@dataclass(frozen=True)
class Triplet:
    """One decoded row."""

    row_id: str
    product_id: str
    """Rows that share it show the same product and lie in the same split."""
    category: str
    """"" where the source names none."""
    split: str
    """One of SPLITS."""
    captions: list[str]
    """At least one; training draws one of them per step."""
    ad_image: npt.NDArray[np.uint8]
    """H×W×3."""
    variants: list[Variant]
    """At least one; all of the ad's size."""
    facts: str = "{}"
    """JSON object; its keys are the source's own."""


def original_variant(ad_image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> Variant:
    """The ad's own pixels under the product's mask, in place on white. Shapes as in `Variant`."""
    return Variant("original", np.where(mask[..., None] > 127, ad_image, 255).astype(np.uint8), mask)


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An image uint8 H×W or H×W×C as PNG, in the compression of data sets."""
    # Above the level 1 of columns between stages, since these bytes are kept. A retried task must write the same bytes.
    return to_png(pixels, compress_level=2)


def encode(triplet: Triplet) -> TripletRow:
    """The row of SCHEMA for a triplet, with its images as PNG."""
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


def decode(row: TripletRow) -> Triplet:
    """The arrays of one row of SCHEMA.

    Masks are cut at half brightness and captions without text are dropped.
    Raises: ValueError naming the row and the field, for a row without captions or variants, an image that cannot be
    decoded or has another size than the ad, a strip for an ad, an unknown kind, and an empty mask.
    """
    name = f"row {row['row_id']!r}"
    captions = [text for text in row["captions"] or [] if text and text.strip()]
    if not captions:
        raise ValueError(f"{name}: captions: no text")
    ad_image = _pixels(row["ad_image"], "RGB", f"{name}: ad_image")
    if max(ad_image.shape[:2]) > MAX_ASPECT * min(ad_image.shape[:2]):
        raise ValueError(f"{name}: ad_image: {_size(ad_image)} px is longer than {MAX_ASPECT} to 1; leave the row out")
    variants = []
    for index, entry in enumerate(row["variants"] or []):
        field = f"{name}: variants[{index}]"
        if entry is None:
            raise ValueError(f"{field}: no value")
        kind = entry["kind"]
        if kind is None or kind not in VARIANT_KINDS:
            raise ValueError(f"{field}.kind={kind!r}: must be one of {', '.join(VARIANT_KINDS)}")
        image = _pixels(entry["image"], "RGB", f"{field}.image")
        mask = np.where(_pixels(entry["mask"], "L", f"{field}.mask") > 127, 255, 0).astype(np.uint8)
        for part, array in (("image", image), ("mask", mask)):
            if array.shape[:2] != ad_image.shape[:2]:
                raise ValueError(f"{field}.{part}: {_size(array)} px, but ad_image is {_size(ad_image)} px")
        if not mask.any():
            raise ValueError(f"{field}.mask: empty; no pixel is above 127")
        variants.append(Variant(kind, image, mask))
    if not variants:
        raise ValueError(f"{name}: variants: none; a triplet needs at least one product image")
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


def _pixels(data: bytes | None, mode: str, field: str) -> npt.NDArray[np.uint8]:
    """mode: Pillow's, "RGB" or "L". Raises: ValueError that begins with `field`."""
    if not data:
        raise ValueError(f"{field}: no bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert(mode))
    # Pillow raises SyntaxError and ValueError for damaged PNG chunks; a bomb is a header that claims a huge size.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{field}: cannot be decoded: {error}") from error


def _size(array: npt.NDArray[np.uint8]) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"


def write_triplets(storage: Storage, key: str, triplets: Iterable[Triplet]) -> None:
    """Writes one parquet file in one atomic write. Raises: OSError."""
    write_rows(storage, key, pa.Table.from_pylist([encode(each) for each in triplets], schema=SCHEMA))


def write_rows(storage: Storage, key: str, table: pa.Table) -> None:
    """Writes rows that are encoded already. table: of SCHEMA. Atomic and with the errors of `write_triplets`."""
    buffer = pa.BufferOutputStream()
    # Small groups: training reads a few rows at a time, and a group is the least that parquet reads at once.
    pq.write_table(table, buffer, compression="zstd", row_group_size=64)
    storage.write(key, buffer.getvalue().to_pybytes())


@dataclass(frozen=True)
class DatasetFile:
    """One parquet file of a data set."""

    uri: str
    key: str
    group_rows: tuple[int, ...]
    """The number of rows of each row group."""


@dataclass(frozen=True)
class DatasetScan:
    """The contents of a data set, without its images."""

    files: list[DatasetFile]
    rows_of_split: dict[str, int]
    training_images: tuple[int, ...]
    """Of each training row, in the order of files and rows: its number of product images of the kinds asked for."""
    fingerprint: str
    """16 hex digits of all row ids and splits, in order, and of the row groups that hold them."""

    @property
    def num_rows(self) -> int:
        return sum(self.rows_of_split.values())


def dataset_files(uri: str) -> tuple[Storage, list[str]]:
    """The storage and the keys of a data set's parquet files, hidden files left out.

    Raises: ValueError where `uri` does not exist or holds no parquet file.
    """
    storage = Storage(uri)
    kind = storage.root_kind(f"data.path={uri!r}: the data set")
    if kind is None:
        raise ValueError(f"data.path={uri!r}: does not exist; give a parquet file or a folder of them")
    if kind == "file":
        folder, key = split_uri(uri)
        return folder, [key]
    keys = [key for key in storage.keys(suffix=".parquet") if not key.rpartition("/")[2].startswith(".")]
    if not keys:
        raise ValueError(f"data.path={uri!r}: holds no .parquet file; give the folder that holds them")
    return storage, keys


def scan(uri: str, kinds: Sequence[str] = VARIANT_KINDS) -> DatasetScan:
    """Reads the small columns of a data set and checks them.

    kinds: every training row must have a product image of one of these kinds.
    Raises: ValueError for a missing column or one of another type, an empty data set, an unknown split, captions
    without text, a row id that occurs twice, a product in two splits, and a training row without any of `kinds`.
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
    training_images = _count_images(table, kinds)
    counts = {entry["values"]: entry["counts"] for entry in table["split"].value_counts().to_pylist()}
    # Row groups count as well: the order in which training draws rows depends on them.
    digest = hashlib.sha256(repr([file.group_rows for file in files]).encode())
    for row_id, split in zip(table["row_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        digest.update(f"{row_id}\0{split}\n".encode())
    rows_of_split = {split: counts.get(split, 0) for split in SPLITS}
    return DatasetScan(files, rows_of_split, training_images, digest.hexdigest()[:16])


def _small_columns(storage: Storage, key: str) -> tuple[pa.Table, tuple[int, ...]]:
    """The columns that `scan` needs of one file, and the number of rows of each row group.

    Columns: row_id, product_id, split and captions in the types of SCHEMA; kinds, a list of structs of one `kind`.
    Raises: ValueError naming the file.
    """
    names = ["row_id", "product_id", "split", "captions"]
    plain = pa.schema([pa.field(name, SCHEMA.field(name).type) for name in names])
    uri = storage.uri_of(key)
    try:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            _check_columns(file.schema_arrow, uri)
            # The kinds alone are read: a leaf of `variants` is named by its path, which differs between writers.
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            kind = next(path for path in leaves if path.startswith("variants.") and path.endswith(".kind"))
            found = file.read(columns=[*names, kind])
            table = found.select(names).cast(plain)
            table = table.append_column("kinds", found["variants"].cast(pa.list_(pa.struct([("kind", pa.string())]))))
            table.validate(full=True)  # reading alone does not check that texts are UTF-8
            groups = range(file.num_row_groups)
            return table, tuple(file.metadata.row_group(index).num_rows for index in groups)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # damaged files raise any of these
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


def _alike(kind: pa.DataType, required: pa.DataType) -> bool:
    """Whether the types are equal, apart from large and dictionary types, which other writers use."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(required):
        is_list = bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
        return is_list and _alike(kind.value_type, required.value_type)
    if pa.types.is_struct(required):
        names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        return all(field.name in names and _alike(names[field.name], field.type) for field in required)
    if pa.types.is_binary(required):
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
        row_id = twice[0]["values"].as_py()
        raise ValueError(f"row {row_id!r}: this row_id occurs {twice[0]['counts']} times; rename all but one")
    splits = table.group_by("product_id").aggregate([("split", "count_distinct")])
    both = splits.filter(pc.greater(splits["split_count_distinct"], 1))
    if both.num_rows:
        raise ValueError(
            f"product {both['product_id'][0].as_py()!r} is in both splits; split by product, never by picture"
        )
    for row_id, captions in zip(table["row_id"].to_pylist(), table["captions"].to_pylist(), strict=True):
        if not any(text and text.strip() for text in captions or []):
            raise ValueError(f"row {row_id!r}: captions: no text")


def _count_images(table: pa.Table, kinds: Sequence[str]) -> tuple[int, ...]:
    """The number of product images of `kinds` of each training row. table: columns row_id, split, kinds.

    Raises: ValueError for a training row without any.
    """
    training = table.filter(pc.equal(table["split"], "train")).combine_chunks()
    if not training.num_rows:
        return ()
    lists = training["kinds"].combine_chunks()
    usable = pc.is_in(lists.flatten().field("kind"), value_set=pa.array(kinds))
    rows_of_images = pc.filter(pc.list_parent_indices(lists), usable).to_numpy(zero_copy_only=False)
    counts = np.bincount(rows_of_images, minlength=len(lists))
    missing = np.flatnonzero(counts == 0)
    if len(missing):
        row_id, there = training["row_id"][missing[0]].as_py(), training["kinds"][missing[0]].as_py()
        found = sorted({str(each["kind"]) for each in there or [] if each})
        raise ValueError(
            f"row {row_id!r}: variants of kinds {found}: none of {list(kinds)} (data.variants); "
            f"{len(missing)} training rows have none"
        )
    return tuple(counts.tolist())


def split_of(product_id: str, test_percent: int = 10) -> str:
    """The split of a product: "test" for `test_percent` % of them, else "train" (the paper: nine to one).

    Depends on the id alone, so that a product stays in its split whatever is added to the data set.
    """
    number = int.from_bytes(hashlib.sha256(product_id.encode()).digest()[:4])
    return "test" if number % 100 < test_percent else "train"
