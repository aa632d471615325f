"""Reads a catalogue's files: first footers and skus, then the rows of one fragment after another.

`scan_catalog` reads footers and skus once, on the driver. Schema errors stop the job there. It also decides which row
keeps a repeated sku, so that this does not depend on the order in which workers read. `parsed_rows` reads one fragment
(a row group) in bounded memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from refadgen.catalog.columns import COLUMNS, Column, category_columns
from refadgen.catalog.files import OWN_OUTPUT, CatalogFile, CatalogFiles, catalog_files
from refadgen.catalog.parts import Part
from refadgen.catalog.rows import CatalogRow, parse_rows, row_images, row_skus
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
    read: Mapping[str, str] = field(default_factory=dict)
    """The files' columns that are read, each with our name."""
    unused: tuple[str, ...] = ()
    """The files' columns that are not read."""


def scan_catalog(
    uri: str,
    limit: int | None = None,
    *,
    columns: tuple[Column, ...] = COLUMNS,
    ignored: Set[str] = frozenset(),
    listed: CatalogFiles | None = None,
) -> CatalogScan:
    """Scans a catalogue: a parquet file, or a folder of them, in the order of their names.

    limit: scan only this many rows; None: all. ignored: files with all of these columns are skipped: outputs of a job
    that writes into the catalogue's folder. listed: its files, where they are known; None: those at `uri`.
    Raises: ValueError naming the file and the problem.
    """
    listed = listed or catalog_files(uri)
    read: dict[str, str] = {}
    unused: dict[str, None] = {}
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
        found = part.columns(columns)
        inline = part.holds_images(found)
        read |= {theirs: ours for ours, theirs in found.items()}
        read |= dict.fromkeys(set(category_columns(part.schema)).difference(read), "category")
        unused |= dict.fromkeys(part.schema.names)
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
        fragments=tuple(fragments),
        num_rows=first_row,
        first_rows=_repeated_skus(fragments),
        left_out=left_out,
        read=read,
        unused=tuple(name for name in unused if name not in read),
    )


def _open(file: CatalogFile) -> Part:
    return Part(file.uri, file.partitions, file.staged)


def _repeated_skus(fragments: list[Fragment]) -> dict[str, int]:
    """The first row of each sku that occurs in several rows. Raises: ValueError where they are snapshots of days."""
    # Eight bytes a row in memory, however long the skus are. A collision of two hashes adds a sku with its own row,
    # which changes nothing.
    keys = np.concatenate([np.empty(0, np.uint64), *(sku_keys(skus) for _, _, skus in _skus(fragments))])
    unique, counts = np.unique(keys, return_counts=True)
    repeated = unique[(counts > 1) & (unique != 0)]
    first_rows: dict[str, int] = {}
    files: dict[str, CatalogFile] = {}
    for file, first_row, skus in _skus(fragments) if len(repeated) else []:
        for index in np.flatnonzero(np.isin(sku_keys(skus), repeated)).tolist():
            sku = skus[index]
            first_rows.setdefault(sku, first_row + index)
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
    for _, _, found in _skus(scan.fragments) if left else []:
        left.difference_update(found)
        if not left:
            break
    return sorted(left)


def sku_keys(skus: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64 bits of each sku's hash; 0 for an empty sku."""
    # surrogatepass: text with a lone surrogate must not end the scan.
    digests = [
        hashlib.blake2b(sku.encode(errors="surrogatepass"), digest_size=8).digest() if sku else bytes(8) for sku in skus
    ]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _skus(fragments: Iterable[Fragment]) -> Iterator[tuple[CatalogFile, int, list[str]]]:
    """Yields the skus of all rows, some at a time: their file, the number of the first row, and each's sku or ""."""
    for file, group in groupby(fragments, key=lambda fragment: fragment.file):
        part = _open(file)  # once per file: a footer grows with the number of its row groups
        for fragment in group:
            for first_row, values in _values(fragment, part=part, only=("sku",)):
                yield file, first_row, row_skus(values["sku"])


def _values(
    fragment: Fragment,
    columns: tuple[Column, ...] = COLUMNS,
    part: Part | None = None,
    *,
    only: tuple[str, ...] = (),
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Yields the number of a row, and the values of it and those after it by our column names, in bounded memory.

    part: the fragment's file, if it is open already. only: read these columns, where they exist; empty: all.
    Raises: ValueError naming the file if it is damaged.
    """
    part = part or fragment.open()
    left = fragment.num_rows
    for values in part.batches(fragment.row_group, columns, only):
        first_row = fragment.first_row + fragment.num_rows - left
        yield first_row, {name: each[:left] for name, each in values.items()}
        left -= len(next(iter(values.values())))
        if left <= 0:
            break


def parsed_rows(
    fragment: Fragment,
    first_rows: Mapping[str, int],
    columns: tuple[Column, ...] = COLUMNS,
    chosen: Callable[[npt.NDArray[np.uint64], int], npt.NDArray[np.bool_]] | None = None,
) -> Iterator[tuple[int, Mapping[str, Any], CatalogRow | RowError]]:
    """Yields (row number, values by our column names, parsed row or RowError); no values where the row is parsed.

    first_rows: see CatalogScan. chosen: which rows, by the keys of their skus and the number of the first; None: all.
    Raises: ValueError naming the file if it is damaged.
    """
    for first_row, values in _values(fragment, columns):
        numbers: Sequence[int] = range(first_row, first_row + len(values["sku"]))
        if chosen is not None:
            places = np.flatnonzero(chosen(sku_keys(row_skus(values["sku"])), first_row)).tolist()
            numbers = [numbers[place] for place in places]
            values = {name: [each[place] for place in places] for name, each in values.items()}
        for index, (number, row) in enumerate(zip(numbers, parse_rows(numbers, values), strict=True)):
            if not isinstance(row, RowError):
                first = first_rows.get(row.sku, number)
                if first == number:
                    yield number, {}, row
                    continue
                row = RowError("duplicate_sku", f"row {number}: sku is that of row {first}, which keeps it")
            yield number, {name: each[index] for name, each in values.items()}, row


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
    for first_row, values in _values(fragment, only=("image", "mask")):
        for number, each in enumerate(zip(*values.values(), strict=True), start=first_row):
            try:
                yield InlineImages(number, *row_images(number, dict(zip(values, each, strict=True))))
            except RowError:  # such a row was refused when it was planned
                yield InlineImages(number, None, None)


def unusable_row_id(row_number: int, values: Mapping[str, Any]) -> str:
    """The ledger's id for a catalogue row that cannot be parsed, from its number and values."""
    content = {
        name: image_identity(value) if isinstance(value, bytes | str) else repr(value)
        for name, value in sorted(values.items())
    }
    text = json.dumps({"row": row_number, "values": content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
