"""Reads a catalogue's files: first footers and skus, then the rows of one fragment after another.

`scan_catalog` reads footers and skus once, on the driver. Schema errors stop the job there. It also decides which row
keeps a repeated sku, so that this does not depend on the order in which workers read. `parsed_rows` reads one fragment
(a row group) in bounded memory.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa

from refadgen.catalog.columns import COLUMNS, Column, unwrapped
from refadgen.catalog.files import OWN_OUTPUT, CatalogFile, catalog_files
from refadgen.catalog.parts import BadText, Part
from refadgen.catalog.rows import CatalogRow, parse_row, row_images, row_sku
from refadgen.errors import RowError
from refadgen.storage.addresses import image_identity, redact_address


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The first `num_rows` rows of a row group of one catalogue file."""

    file: CatalogFile
    row_group: int
    first_row: int
    """The number of its first row in the catalogue, from 0."""
    num_rows: int
    has_inline_images: bool = False
    """Whether the file may hold the encoded images themselves, not only their addresses."""

    def open(self) -> Part:
        """Opens its file. Raises: ValueError naming a file that cannot be read."""
        return _open(self.file)


@dataclass(frozen=True, kw_only=True)
class CatalogScan:
    """The fragments of a catalogue and its repeated skus, from footers and the sku column alone."""

    fragments: tuple[Fragment, ...]
    num_rows: int
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """For each sku that occurs more than once, the number of the row that keeps it."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys of the files of the catalogue's folder that are not read, by why."""


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
    listed = catalog_files(uri)
    fragments: list[Fragment] = []
    outputs: list[str] = []
    first_row = 0
    empty = None
    for file in listed.files:
        part = _open(file)
        if ignored and ignored <= set(part.names):
            outputs.append(file.uri)
            continue
        groups = part.rows_of_groups
        if not sum(groups):
            # Without rows, types mean nothing: pandas writes floats or nulls.
            empty = empty or part
            continue
        part.require_row_a_product()
        inline = _has_inline_images(part.schema, part.columns(columns))
        for group, rows_of_group in enumerate(groups):
            num_rows = rows_of_group if limit is None else min(rows_of_group, limit - first_row)
            if num_rows > 0:
                fragment = Fragment(
                    file=file, row_group=group, first_row=first_row, num_rows=num_rows, has_inline_images=inline
                )
                fragments.append(fragment)
                first_row += num_rows
    if not fragments and empty is not None:
        empty.columns(columns)  # a catalogue without rows needs its columns all the same
    left_out = {**listed.left_out, **({OWN_OUTPUT: tuple(outputs)} if outputs else {})}
    return CatalogScan(
        fragments=tuple(fragments), num_rows=first_row, first_rows=_repeated_skus(fragments), left_out=left_out
    )


def _open(file: CatalogFile) -> Part:
    return Part(file.uri, file.partitions)


def _repeated_skus(fragments: list[Fragment]) -> dict[str, int]:
    """The first row of each sku that occurs in several rows. Raises: ValueError where they are snapshots of days."""
    # Eight bytes a row in memory, however long the skus are. A collision of two hashes adds a sku with its own row,
    # which changes nothing.
    keys = np.fromiter((_key(sku) for _, _, sku in _skus(fragments)), dtype=np.uint64)
    unique, counts = np.unique(keys, return_counts=True)
    repeated = set(unique[(counts > 1) & (unique != 0)].tolist())
    first_rows: dict[str, int] = {}
    files: dict[str, CatalogFile] = {}
    for file, row, sku in _skus(fragments) if repeated else []:
        if _key(sku) in repeated:
            first_rows.setdefault(sku, row)
            _refuse_snapshots(sku, files.setdefault(sku, file), file)
    return first_rows


def _refuse_snapshots(sku: str, first: CatalogFile, file: CatalogFile) -> None:
    """Raises: ValueError if a sku lies in files of two days. Which of them is right, only the shop knows."""
    if first.day != file.day:
        raise ValueError(
            f"sku {sku!r} lies in {redact_address(first.uri)} and in {redact_address(file.uri)}, whose names differ "
            "in a date: where each holds the whole catalogue, give the newest file or folder alone; where each holds "
            "changes, write the newest row of each sku to one file"
        )


def unknown_skus(scan: CatalogScan, skus: Set[str]) -> list[str]:
    """Those of `skus` that no scanned row has, sorted. Raises: ValueError naming a damaged file."""
    left = set(skus)
    for file, group in groupby(scan.fragments, key=lambda fragment: fragment.file):
        part = _open(file)
        for row, values in (each for fragment in group for each in _values(fragment, part=part, only=("sku",))):
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


def _skus(fragments: list[Fragment]) -> Iterator[tuple[CatalogFile, int, str]]:
    for file, group in groupby(fragments, key=lambda fragment: fragment.file):
        part = _open(file)  # once per file: a footer grows with the number of its row groups
        for fragment in group:
            for row, values in _values(fragment, part=part, only=("sku",)):
                try:
                    yield file, row, row_sku(row, values) or ""
                except RowError:  # refused when it is planned
                    yield file, row, ""


def _values(
    fragment: Fragment,
    columns: tuple[Column, ...] = COLUMNS,
    part: Part | None = None,
    *,
    only: tuple[str, ...] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields row numbers and values by our column names, in bounded memory.

    part: the fragment's file, if it is open already. only: read these columns, where they exist; empty: all.
    Raises: ValueError naming the file if it is damaged.
    """
    part = part or fragment.open()
    rows = part.rows(fragment.row_group, columns, only)
    for number, values in enumerate(islice(rows, fragment.num_rows)):
        yield fragment.first_row + number, values


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
