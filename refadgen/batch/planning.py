"""The plan of a run: each fragment of the input is read, checked and given its ids once, in a Ray task of its own.

The planned rows stay in Ray's object store, which spills to disk; the driver only sees counts. Encoded images that lie
in the input itself would make a plan as large as the input. So planned rows come without them, and
`attach_inline_images` reads them again when the rows stream.
"""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset

from refadgen.batch.ray_connection import results_of
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import iter_rows, to_table
from refadgen.catalog.scan import Fragment, InlineImages, inline_images
from refadgen.errors import RowError
from refadgen.storage.addresses import image_identity

Counts = TypeVar("Counts")
T = TypeVar("T")
Work = Callable[[Any], tuple[pa.Table, Counts]]
_TASK_RETRIES = 10
"""Retries of a planning task whose worker or node was lost."""
_ROWS_AT_ONCE = 64
"""Rows with their encoded images in one table: some 20 MB of photographs."""


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """The fields of a planned row that concern images in the input itself. Row types of plans inherit them."""

    row: int
    """Its number in the input."""
    error: RowFailure | None
    image_bytes: bytes = b""
    """The encoded image, once it is attached; empty where `image` is an address."""
    mask_bytes: bytes = b""
    """The row's own mask, likewise."""
    inline: str = ""
    """Hashes of the encoded images in the input, as planned (see `inline_digest`); empty: there are none."""


PlannedRows = TypeVar("PlannedRows", bound=PlannedRow)


def inline_digest(image: str | bytes | None, mask: str | bytes | None) -> str:
    """The value of `PlannedRow.inline` for a row's image and mask, each an address or the encoded image itself."""
    if not isinstance(image, bytes) and not isinstance(mask, bytes):
        return ""
    hashes = [image_identity(each) if isinstance(each, bytes) else "" for each in (image, mask)]
    return ",".join(hashes)


@dataclass(frozen=True)
class Plan:
    """Planned rows: a table for each fragment, in the input's order, in Ray's object store."""

    row_type: type[PlannedRow]
    fragments: tuple[Fragment, ...]
    tables: tuple[Any, ...]
    """References to tables of `row_type`, one for each fragment."""

    def stream(self, rows_per_block: int) -> Dataset:
        """The rows, complete with their images, in blocks of `rows_per_block`."""
        dataset = ray.data.from_arrow_refs(list(self.tables))
        if any(fragment.has_inline_images for fragment in self.fragments):
            dataset = dataset.map_batches(
                attach_inline_images,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"row_type": self.row_type, "fragments": self.fragments},
            )
        return dataset.repartition(target_num_rows_per_block=rows_per_block)

    def filtered(self, keep: Work[Counts]) -> tuple["Plan", list[Counts]]:
        """The plan with each table as `keep` leaves it, and the counts that `keep` gives beside it."""
        tables, counts = _run_all(keep, self.tables)
        return Plan(self.row_type, self.fragments, tables), counts


def plan_fragments(
    fragments: Sequence[Fragment], row_type: type[PlannedRow], plan: Work[Counts]
) -> tuple[Plan, list[Counts]]:
    """Plans all fragments. plan: gives a fragment's table of `row_type`, and counts for the driver. Needs Ray.

    Raises: the errors of `plan`.
    """
    tables, counts = _run_all(plan, fragments)
    return Plan(row_type, tuple(fragments), tables), counts


def count_fragments(fragments: Sequence[Fragment], plan: Work[Counts]) -> list[Counts]:
    """The counts of `plan_fragments`, made in this process and without a Ray. Raises: the errors of `plan`."""
    return [_run(plan, fragment)[1] for fragment in fragments]


def table_of(rows: Iterable[PlannedRow], row_type: type[PlannedRow]) -> pa.Table:
    """Rows as they are planned, as one table; a million Python objects would be gigabytes."""
    pieces = [to_table(piece, row_type) for piece in _batched(rows, 1024)]
    return pa.concat_tables([*pieces, to_table([], row_type)])


def _run_all(work: Work[Counts], items: Sequence[Any]) -> tuple[tuple[Any, ...], list[Counts]]:
    shared = ray.put(work)  # once for all tasks: it holds the keys of all reconciled ids
    # Plain tasks instead of a Dataset: each gives its table and its counts, and the driver holds only references.
    pairs = [_run_task.remote(shared, item) for item in items]
    return tuple(table for table, _ in pairs), results_of([counts for _, counts in pairs])


def _run(work: Work[Counts], item: Any) -> tuple[pa.Table, Counts]:
    # Millions of small tuples and no circles among them: to look for some would take a fifth of the time.
    gc.disable()
    try:
        return work(item)
    finally:
        gc.enable()


_run_task = ray.remote(num_returns=2, max_retries=_TASK_RETRIES)(_run)


def attach_inline_images(
    table: pa.Table, *, row_type: type[PlannedRow], fragments: Sequence[Fragment]
) -> Iterator[pa.Table]:
    """INPUT, OUTPUT: planned rows, one for one, in tables of a few. A Ray task that reads the input again."""
    starts = [fragment.first_row for fragment in fragments]
    for index, rows in groupby(iter_rows(table, row_type), key=lambda row: bisect_right(starts, row.row) - 1):
        images = inline_images(fragments[index])
        for piece in _batched((_with_next_images(row, images) for row in rows), _ROWS_AT_ONCE):
            yield to_table(piece, row_type)


def _with_next_images(row: PlannedRows, images: Iterator[InlineImages]) -> PlannedRows:
    """The row with its images. images: of this row and those after it; both come in the input's order."""
    try:
        found = next((each for each in images if each.row == row.row), None)
    except ValueError:  # damaged since it was planned
        found = None
    return with_inline_images(row, found)


def with_inline_images(row: PlannedRows, found: InlineImages | None) -> PlannedRows:
    """The row with its encoded images; failed where they are not those that its id was made from.

    The input is read twice, perhaps hours apart. A catalogue that is written anew in between must not put one
    product's picture under another's id.
    """
    if row.error is not None:
        return row
    if found is None or inline_digest(found.image, found.mask) != row.inline:
        problem = f"row {row.row}: the input was changed while the job ran; run again"
        return replace(row, error=RowFailure.of(RowError("input_changed", problem)))
    return replace(
        row,
        image_bytes=found.image if isinstance(found.image, bytes) else b"",
        mask_bytes=found.mask if isinstance(found.mask, bytes) else b"",
    )


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter. Python 3.12 has it as itertools.batched."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
