"""Products of a feed as Arrow batches: the columns that a catalogue knows, under their names as they are compared."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from refadgen.catalog.columns import COLUMNS
from refadgen.catalog.feeds.report import NOT_TEXT, FeedReport

ROWS_AT_ONCE = 4096
AVAILABILITY = "availability"
_LISTS = frozenset({"prompt", "prompts"})
KNOWN = tuple(dict.fromkeys(name for column in COLUMNS for name in (column.name, *column.aliases)))
"""Every name under which a catalogue may have a column."""
TEXT_SCHEMA = pa.schema([(name, pa.list_(pa.string()) if name in _LISTS else pa.string()) for name in KNOWN])
_CARRIED = (*KNOWN, AVAILABILITY)

Record = Mapping[str, Any]
"""A product: texts, or lists of texts, by column."""


class FeedReader(Protocol):
    """Reads one kind of feed."""

    @property
    def kind(self) -> str:
        """What the feed is read as, for people."""

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        """Yields the products in order, some at a time; the report is filled on the way.

        Raises: ValueError naming the feed and what is wrong with it.
        """


def batches_of(records: Iterable[Record], report: FeedReport) -> Iterator[pa.RecordBatch]:
    """Products as batches. Of a list in a column of single values the first counts."""
    iterator = iter(records)
    while block := list(islice(iterator, ROWS_AT_ONCE)):
        given = set().union(*block)
        columns = {name: [record.get(name) for record in block] for name in _CARRIED if name in given}
        yield text_batch({name: values for name, values in columns.items() if any(values)}, len(block), report)


def text_batch(columns: Mapping[str, Sequence[Any]], num_rows: int, report: FeedReport) -> pa.RecordBatch:
    """Columns of texts as a batch; empty texts are nulls. Rows that hold what is no text are left out and counted."""
    try:
        arrays = [_array(name, values) for name, values in columns.items()]
    except UnicodeEncodeError:  # a lone surrogate: bytes that are not of the feed's encoding
        kept = [row for row in range(num_rows) if all(_is_text(values[row]) for values in columns.values())]
        for row in sorted(set(range(num_rows)).difference(kept)):
            shown = {name: str(values[row]).encode(errors="replace").decode() for name, values in columns.items()}
            report.leave_out(NOT_TEXT, shown.get("sku") or shown.get("id") or f"row {row} of a block")
        columns = {name: [values[row] for row in kept] for name, values in columns.items()}
        arrays = [_array(name, values) for name, values in columns.items()]
        num_rows = len(kept)
    if not arrays:
        arrays, columns = [pa.nulls(num_rows, pa.string())], {"sku": []}
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    if name in _LISTS:
        return pa.array([_texts(value) for value in values], pa.list_(pa.string()))
    try:
        texts = pa.array(values, pa.string())
    except pa.ArrowException:  # lists among them
        texts = pa.array([_text(value) for value in values], pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _texts(value: Any) -> list[str] | None:
    if not value:
        return None
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        return next((str(item) for item in value if item), None)
    return None if value is None else str(value)


def _is_text(value: Any) -> bool:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
