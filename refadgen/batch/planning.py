"""The plan of a run: each fragment of the input is read, checked and given its ids once, in a Ray task of its own.

The planned rows stay in Ray's object store, which spills to disk; the driver only sees counts. Encoded images that lie
in the input itself would make a plan as large as the input. So planned rows come without them, and
`attach_inline_images` reads them again when the rows stream.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset

from refadgen.batch.ray_connection import results_of
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.scan import Fragment, inline_images

Counts = TypeVar("Counts")
T = TypeVar("T")
Work = Callable[[Any], tuple[pa.Table, Counts]]
_TASK_RETRIES = 10
"""Retries of a planning task whose worker or node was lost."""
_ROWS_AT_ONCE = 64
"""Rows with their encoded images in one table: some 20 MB of photographs."""


class PlannedRow(Protocol):
    """A row of a plan, whose images may lie in the input itself."""

    @property
    def row(self) -> int:
        """Its number in the input."""

    def with_images(self, image: str | bytes | None, mask: str | bytes | None) -> Self:
        """The row with those of the two that are encoded images."""


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


def table_of(rows: Iterable[PlannedRow], row_type: type[PlannedRow]) -> pa.Table:
    """Rows as they are planned, as one table; a million Python objects would be gigabytes."""
    pieces = [to_table(piece, row_type) for piece in _batched(rows, 1024)]
    return pa.concat_tables([*pieces, to_table([], row_type)])


def _run_all(work: Work[Counts], items: Sequence[Any]) -> tuple[tuple[Any, ...], list[Counts]]:
    shared = ray.put(work)  # once for all tasks: it holds the keys of all reconciled ids
    pairs = [_run_task.remote(shared, item) for item in items]
    return tuple(table for table, _ in pairs), results_of([counts for _, counts in pairs])


def _run(work: Work[Counts], item: Any) -> tuple[pa.Table, Counts]:
    return work(item)


_run_task = ray.remote(num_returns=2, max_retries=_TASK_RETRIES)(_run)


def attach_inline_images(
    table: pa.Table, *, row_type: type[PlannedRow], fragments: Sequence[Fragment]
) -> Iterator[pa.Table]:
    """INPUT, OUTPUT: planned rows, one for one, in tables of a few. A Ray task that reads the input again."""
    starts = [fragment.first_row for fragment in fragments]
    rows = from_table(table, row_type)
    for index, group in groupby(rows, key=lambda row: bisect_right(starts, row.row) - 1):
        planned = {row.row: row for row in group}
        images = inline_images(fragments[index], frozenset(planned))
        for piece in _batched(images, _ROWS_AT_ONCE):
            yield to_table([planned[number].with_images(image, mask) for number, image, mask in piece], row_type)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter. Python 3.12 has it as itertools.batched."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
