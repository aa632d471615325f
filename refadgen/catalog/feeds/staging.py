"""A feed is read once, in one pass and bounded memory, and staged as parquet: one product a row, many row groups.

From there all is as with any catalogue of parquet: Ray plans its row groups side by side, repeated skus are found, and
a row means the same. A feed that is written anew while the job runs changes nothing any more.
"""

import html
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.catalog.feeds.batches import AVAILABILITY, KNOWN, TEXT_SCHEMA, FeedReader
from refadgen.catalog.feeds.lakehouse import TableReader
from refadgen.catalog.feeds.report import FeedReport
from refadgen.catalog.feeds.states import LeftOut, State, is_out_of_stock
from refadgen.catalog.files import CatalogFile, Staged
from refadgen.storage.store import STORE_ERRORS, Storage

_ROWS_OF_GROUP = 50_000
_BYTES_OF_GROUP = 64 << 20
_TITLES = ("title", "name", "product_name", "product_title")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Stage:
    """Where a feed is staged: below an output that all nodes share, or in a temporary folder of this machine."""

    def __init__(self, output: Storage | None, label: str) -> None:
        """output: None: a temporary folder. label: of the driver's shard, which has a file of its own."""
        self._folder = tempfile.TemporaryDirectory(prefix="refadgen-feed-") if output is None else None
        self._storage = output if self._folder is None else Storage(self._folder.name)
        self._prefix = f"feed/{label or 'all'}."
        self._key = f"{self._prefix}{uuid.uuid4().hex}.parquet"

    def write(
        self, readers: Sequence[FeedReader], report: FeedReport, left_out: LeftOut, limit: int | None
    ) -> CatalogFile:
        """Reads a feed, `limit` products at most. Raises: ValueError naming the feed and what is wrong with it."""
        assert self._storage is not None
        first = readers[0]
        schema = first.schema if isinstance(first, TableReader) else TEXT_SCHEMA
        text = schema is TEXT_SCHEMA
        filled: set[str] = set()
        try:
            with (
                self._storage.new_file(self._key) as place,
                pq.ParquetWriter(place, schema, compression="zstd") as file,
            ):
                for table in _groups(_products(readers, report, left_out, limit, text), schema):
                    filled |= {name for name in schema.names if table[name].null_count < len(table)}
                    file.write_table(table, row_group_size=len(table))
        except STORE_ERRORS as error:
            raise ValueError(
                f"{report.shown}: cannot be read, or not be staged in {self._storage.uri}: {error}"
            ) from error
        staged = Staged(shown=report.shown, columns=frozenset(filled) if text else None)
        return CatalogFile(uri=self._storage.uri_of(self._key), staged=staged)

    def discard(self, *, others: bool = False) -> None:
        """Removes what is staged. others: instead, what killed drivers of the same shard have left."""
        assert self._storage is not None
        with suppress(*STORE_ERRORS):
            keys = [key for key in self._storage.names("feed") if key.startswith(self._prefix)]
            self._storage.delete([key for key in keys if (key == self._key) != others])


def _products(
    readers: Sequence[FeedReader], report: FeedReport, left_out: LeftOut, limit: int | None, text: bool
) -> Iterator[pa.RecordBatch]:
    for reader in readers:
        for batch in reader.batches(report):
            found = _for_sale(_clean(batch), left_out, report) if text else batch
            if limit is not None:
                found = found.slice(0, limit - report.products)
            report.products += found.num_rows
            yield found
            if report.products == limit:
                return


def _groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of as many rows as a row group has."""
    held: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        held.append(_with_columns(batch, schema))
        rows, num_bytes = rows + batch.num_rows, num_bytes + batch.nbytes
        if rows >= _ROWS_OF_GROUP or num_bytes >= _BYTES_OF_GROUP:
            yield pa.Table.from_batches(held, schema)
            held, rows, num_bytes = [], 0, 0
    if rows:
        yield pa.Table.from_batches(held, schema)


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    names = set(batch.schema.names)
    arrays = [
        batch.column(field.name) if field.name in names else pa.nulls(batch.num_rows, field.type) for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _clean(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with plain texts for titles."""
    for name in _TITLES:
        place = batch.schema.get_field_index(name)
        if place >= 0 and pc.any(pc.match_substring_regex(batch.column(place), "[<&]")).as_py():
            titles = [None if value is None else plain_title(value) for value in batch.column(place).to_pylist()]
            batch = batch.set_column(place, name, pa.array(titles, pa.string()))
    return batch


def plain_title(title: str) -> str:
    """A title without tags of HTML, its entities decoded: `<b>Pots</b> &amp; Pans` is `Pots & Pans`."""
    return " ".join(html.unescape(_TAG.sub(" ", title)).split()) if "<" in title or "&" in title else title


def _for_sale(batch: pa.RecordBatch, left_out: LeftOut, report: FeedReport) -> pa.RecordBatch:
    place = batch.schema.get_field_index(AVAILABILITY)
    if place < 0:
        return batch
    values = batch.column(place)
    sold_out = {value for value in pc.unique(values).to_pylist() if is_out_of_stock(value)}
    batch = batch.remove_column(place)
    if not sold_out:
        return batch
    names = next((batch.column(name) for name in ("sku", "id", *KNOWN) if name in batch.schema.names), values)
    kept = [
        value not in sold_out or left_out.takes(State(out_of_stock=True), str(names[row]), report)
        for row, value in enumerate(values.to_pylist())
    ]
    return batch.filter(pa.array(kept))
