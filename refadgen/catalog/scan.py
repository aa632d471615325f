"""Reads a catalogue's files: first footers and skus, then the rows of one fragment after another.

`scan_catalog` reads footers and skus once, on the driver. Schema errors stop the job there. It also decides which row
keeps a repeated sku, so that this does not depend on the order in which workers read. `parsed_rows` reads one fragment
(a row group) in bounded memory.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.catalog.categories import last_element
from refadgen.catalog.columns import COLUMNS, Column, category_columns, resolve_columns, unwrapped
from refadgen.catalog.rows import CatalogRow, parse_row, row_images, row_sku
from refadgen.errors import RowError
from refadgen.storage.addresses import image_identity, redact_address
from refadgen.storage.store import Storage, split_uri

_READ_ROWS = 64
"""Rows decoded at once. A row may hold megabytes of inline images."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The first `num_rows` rows of a row group of one catalogue file."""

    uri: str
    row_group: int
    first_row: int
    """The number of its first row in the catalogue, from 0."""
    num_rows: int
    has_inline_images: bool = False
    """Whether the file may hold the encoded images themselves, not only their addresses."""


@dataclass(frozen=True, kw_only=True)
class CatalogScan:
    """The fragments of a catalogue and its repeated skus, from footers and the sku column alone."""

    fragments: tuple[Fragment, ...]
    num_rows: int
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """For each sku that occurs more than once, the number of the row that keeps it."""


def scan_catalog(
    uri: str,
    limit: int | None = None,
    *,
    columns: tuple[Column, ...] = COLUMNS,
    ignored: Set[str] = frozenset(),
) -> CatalogScan:
    """Scans a catalogue: a parquet file, or a folder of them, in the order of their names.

    limit: scan only this many rows; None: all. ignored: files with all of these columns are skipped: outputs of a job
    that writes into the catalogue's folder.
    Raises: ValueError naming the file and the problem.
    """
    fragments, first_row = [], 0
    for file in _files(uri):
        parquet = _open(file)
        if ignored and ignored <= set(parquet.schema_arrow.names):
            continue
        found = _columns_of(file, parquet, columns)
        inline = _has_inline_images(parquet.schema_arrow, found)
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if limit is not None:
                num_rows = min(num_rows, limit - first_row)
            if num_rows > 0:
                fragments.append(
                    Fragment(
                        uri=file, row_group=group, first_row=first_row, num_rows=num_rows, has_inline_images=inline
                    )
                )
                first_row += num_rows
    return CatalogScan(fragments=tuple(fragments), num_rows=first_row, first_rows=_repeated_skus(fragments))


def _files(uri: str) -> list[str]:
    shown = redact_address(uri)
    storage = Storage(uri)
    kind = storage.root_kind(f"{shown}: the catalogue")
    if kind is None:
        raise ValueError(f"{shown}: there is no such catalogue")
    if kind == "file":
        return [storage.uri]
    files = [storage.uri_of(key) for key in storage.keys(suffix=".parquet")]
    if not files:
        raise ValueError(f"{shown}: the folder holds no .parquet file")
    return files


def _open(uri: str) -> pq.ParquetFile:
    storage, name = split_uri(uri)
    try:
        return pq.ParquetFile(storage.arrow().open_input_file(storage.path(name)))
    except Exception as error:  # of Arrow, the operating system, s3fs or botocore
        raise ValueError(f"{redact_address(uri)}: not a readable parquet file ({error})") from error


def _repeated_skus(fragments: list[Fragment]) -> dict[str, int]:
    """The first row of each sku that occurs in several rows."""
    # Eight bytes a row in memory, however long the skus are. A collision of two hashes adds a sku with its own row,
    # which changes nothing.
    keys = np.fromiter((_key(sku) for _, sku in _skus(fragments)), dtype=np.uint64)
    unique, counts = np.unique(keys, return_counts=True)
    repeated = set(unique[(counts > 1) & (unique != 0)].tolist())
    first_rows: dict[str, int] = {}
    for row, sku in _skus(fragments) if repeated else []:
        if _key(sku) in repeated:
            first_rows.setdefault(sku, row)
    return first_rows


def unknown_skus(scan: CatalogScan, skus: Set[str]) -> list[str]:
    """Those of `skus` that no scanned row has, sorted. Raises: ValueError naming a damaged file."""
    left = set(skus)
    for uri, group in groupby(scan.fragments, key=lambda fragment: fragment.uri):
        parquet = _open(uri)
        for row, values in (each for part in group for each in _values(part, parquet=parquet, only=("sku",))):
            if not left:
                return []
            try:
                left.discard(row_sku(row, values) or "")
            except RowError:  # refused when it is planned
                continue
    return sorted(left)


def _key(sku: str) -> int:
    """64 bits of a sku's hash; 0 for an empty sku."""
    # surrogatepass: text with a lone surrogate must not end the scan.
    return int.from_bytes(hashlib.blake2b(sku.encode(errors="surrogatepass"), digest_size=8).digest()) if sku else 0


def _skus(fragments: list[Fragment]) -> Iterator[tuple[int, str]]:
    for uri, group in groupby(fragments, key=lambda fragment: fragment.uri):
        parquet = _open(uri)  # once per file: a footer grows with the number of its row groups
        for fragment in group:
            for row, values in _values(fragment, parquet=parquet, only=("sku",)):
                sku = values["sku"]
                yield row, "" if sku is None or not str(sku).strip() else str(sku)


def _values(
    fragment: Fragment,
    columns: tuple[Column, ...] = COLUMNS,
    parquet: pq.ParquetFile | None = None,
    *,
    only: tuple[str, ...] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields row numbers and values by our column names, in bounded memory.

    parquet: the fragment's file, if it is open already. only: read these columns, where they exist; empty: all.
    Raises: ValueError naming the file if it is damaged.
    """
    parquet = parquet or _open(fragment.uri)
    found = _columns_of(fragment.uri, parquet, columns)
    if only:
        found = {name: found[name] for name in only if name in found}
    kinds = category_columns(parquet.schema_arrow) if "category" in found else []
    batches = parquet.iter_batches(
        batch_size=8192 if only == ("sku",) else _READ_ROWS,
        row_groups=[fragment.row_group],
        columns=list(dict.fromkeys([*found.values(), *kinds])),
    )
    row = 0
    try:
        for batch in batches:
            for values in _rows_of(batch):
                if row >= fragment.num_rows:
                    return
                ours = {name: values[theirs] for name, theirs in found.items()}
                if len(kinds) > 1:
                    ours["category"] = _first_that_names([values[name] for name in kinds])
                yield fragment.first_row + row, ours
                row += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{redact_address(fragment.uri)}: damaged in row group {fragment.row_group} ({error})"
        ) from error


def _first_that_names(categories: list[Any]) -> Any:
    """The first of a row's categories that names a thing or is a number; else the first that is not empty."""
    given = [value for value in categories if value is not None and value == value and value != ""]
    named = (value for value in given if not isinstance(value, str) or _names_thing(value))
    return next(named, given[0] if given else None)


def _names_thing(category: str) -> bool:
    return last_element(category) is not None or category.strip().removesuffix(".0").isdigit()


def _columns_of(uri: str, parquet: pq.ParquetFile, columns: tuple[Column, ...]) -> dict[str, str]:
    """Our column names, with those of the file. Raises: ValueError naming the file and its wrong column."""
    try:
        return resolve_columns(parquet.schema_arrow, columns)
    except ValueError as error:
        raise ValueError(f"{redact_address(uri)}: {error}") from error


class BadText(str):
    """The readable part of a text that is not UTF-8. Arrow does not check the texts of a parquet file."""


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:  # one bad text fails the batch: value by value, only its own row is lost
        columns = [[_value(item) for item in column] for column in batch.columns]
        rows = [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        plain = pa.types.is_string(item.type) or pa.types.is_large_string(item.type)
        return BadText(item.as_buffer().to_pybytes().decode(errors="replace") if plain else "")


def parsed_rows(
    fragment: Fragment, first_rows: Mapping[str, int], columns: tuple[Column, ...] = COLUMNS
) -> Iterator[tuple[int, dict[str, Any], CatalogRow | RowError]]:
    """Yields (row number, values by our column names, parsed row or RowError).

    first_rows: see CatalogScan. Raises: ValueError naming the file if it is damaged.
    """
    for row_number, values in _values(fragment, columns):
        try:
            for name, value in values.items():
                if isinstance(value, BadText):
                    message = f"row {row_number}: {name}: is not UTF-8 text; write it as UTF-8"
                    raise RowError("bad_text", message, field=name)
            row = parse_row(row_number, values)
            first = first_rows.get(row.sku, row_number)
            if first != row_number:
                message = f"row {row_number}: sku is that of row {first}, which keeps it"
                raise RowError("duplicate_sku", message)
            yield row_number, values, row
        except RowError as error:
            yield row_number, values, error


def _has_inline_images(schema: pa.Schema, found: Mapping[str, str]) -> bool:
    """Whether `image` or `mask` is a column of bytes, or of structs, which may hold bytes."""
    kinds = [unwrapped(schema.field(found[name]).type) for name in ("image", "mask") if name in found]
    return not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)


@dataclass(frozen=True)
class InlineImages:
    """Image and mask of a row: an address, the encoded image itself, or None."""

    row: int
    image: str | bytes | None
    mask: str | bytes | None


def inline_images(fragment: Fragment) -> Iterator[InlineImages]:
    """Yields the images of all rows of a fragment, in bounded memory.

    Raises: ValueError naming the file if it is damaged.
    """
    for row_number, values in _values(fragment, only=("image", "mask")):
        try:
            yield InlineImages(row_number, *row_images(row_number, values))
        except RowError:  # such a row was refused when it was planned
            yield InlineImages(row_number, None, None)


def unusable_row_id(row_number: int, values: Mapping[str, Any]) -> str:
    """The ledger's id for a catalogue row that cannot be parsed, from its number and values."""
    content = {
        name: image_identity(value) if isinstance(value, bytes | str) else repr(value)
        for name, value in sorted(values.items())
    }
    text = json.dumps({"row": row_number, "values": content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
