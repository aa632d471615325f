"""The ledger of a job: parquet parts, appended and never changed. The latest row of each id counts.

A run appends small parts as rows come, and folds them level by level, so that there are never many.
"""

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.batch.rows import optional_columns, require_columns, schema_of
from refadgen.errors import retried_reasons
from refadgen.storage.store import Storage

T = TypeVar("T")
Keys = npt.NDArray[np.uint64]
"""Short keys of ids (see `short_key`)."""
_RECONCILED = ("done", "rejected")

_FOLD = 64
_LEVELS = 3
"""A part of level n holds what 64ⁿ appends wrote; the highest level is not folded, so no fold outgrows memory."""
_READERS = 16
_PIECE_ROWS = 65_536
_LISTINGS = 5
"""Times that the parts are listed where another driver folds them meanwhile."""
_HURRIED_ROWS = 4
"""Pending rows that do not wait for the interval: what is published and has no row is made again after a kill."""
_HURRIED_PARTS = 16
"""Parts at most that are written ahead of their interval in one burst; each interval gives one back. So a kill in a
burst, as when the publisher starts late, costs few rows, and a long fast run still makes few parts."""


class Ledger:
    """The ledger of one output folder."""

    def __init__(
        self,
        storage: Storage,
        row_type: type,
        folder: str = "ledger",
        *,
        retried: Sequence[str] = retried_reasons(),
        writer: str = "",
    ) -> None:
        """row_type: a row type (see `rows`). Its first field is the id: hexadecimal text of 16 digits or more. It has
        `recorded_at`, `status` and `reason`.

        retried: rejections that `--retry-failed` retries together with what failed. writer: which of several drivers
        writes here, for names of parts: each folds its own; "": the only one, which folds all.
        """
        self._writer = f"-{writer}" if writer else ""
        self._retried = frozenset(retried)
        self._storage = storage
        self.row_type = row_type
        self.schema: pa.Schema = schema_of(row_type)
        self._id = self.schema.names[0]
        self._folder = folder

    def parts(self) -> list[str]:
        """Keys of all parts, oldest first: their names start with their time. Of all drivers."""
        return list(self._storage.keys(self._folder, ".parquet"))

    def _read(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        file = self._open(key)
        return self._completed(file.read(self._present(file, columns)), columns, key)

    def _open(self, key: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(pa.BufferReader(self._storage.read(key)))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self._storage.uri_of(key)}: not a part of a ledger: {error}") from error

    def _present(self, file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str]:
        names = self.schema.names if columns is None else columns
        return [name for name in names if name in file.schema_arrow.names]

    def _completed(self, table: pa.Table, columns: Sequence[str] | None, key: str) -> pa.Table:
        """The columns in their order, with nulls in those that an earlier version of the part's writer did not know."""
        names = self.schema.names if columns is None else list(columns)
        for name in names:
            if name in table.column_names:
                continue
            if name not in optional_columns(self.row_type):
                raise ValueError(f"{self._storage.uri_of(key)}: not a part of a ledger: it has no column {name}")
            table = table.append_column(self.schema.field(name), pa.nulls(len(table), self.schema.field(name).type))
        return table.select(names)

    def append(self, table: pa.Table) -> None:
        """Writes one part. Raises: TypeError naming a column that is missing or that the row type does not have."""
        require_columns(table.schema, self.row_type)
        self._write(table.select(self.schema.names), f"{time.time_ns():020d}", level=0)

    def _write(self, table: pa.Table, written: str, *, level: int) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._storage.write(
            f"{self._folder}/part-{written}-{level}-{uuid.uuid4().hex[:8]}{self._writer}.parquet",
            sink.getvalue().to_pybytes(),
        )

    def compact(self) -> None:
        """Folds parts where a level has many. A crash in between leaves rows twice, which changes nothing."""
        for level in range(_LEVELS - 1):
            own = [key for key in self.parts() if key.endswith(f"{self._writer}.parquet")]
            parts = [key for key in own if key.split("-")[2] == str(level)]
            for start in range(0, len(parts) - _FOLD + 1, _FOLD):
                folded = parts[start : start + _FOLD]
                # The name keeps the place in time: of rows with equal times the later part counts.
                written = folded[-1].split("-")[1]
                self._write(pa.concat_tables(_in_threads(self._read, folded)), written, level=level + 1)
                self._storage.delete(folded)
                pa.default_memory_pool().release_unused()  # what was read: the driver would keep it for days

    def _of_parts(self, read: Callable[[str], T]) -> list[T]:
        """What `read` gives for each part, oldest first."""
        for attempt in range(_LISTINGS):
            try:
                return _in_threads(read, self.parts())
            except FileNotFoundError:  # another driver of this ledger has folded it meanwhile
                if attempt == _LISTINGS - 1:
                    raise
        raise AssertionError

    def latest(
        self,
        columns: Sequence[str] | None = None,
        ids: pa.Array | None = None,
        *,
        of: tuple[str, pa.Array] | None = None,
    ) -> pa.Table:
        """The latest row of each id, in the order of the ids; all columns, or those named (and the id).

        ids: only of these. of: a column that all rows of an id share, and values; only rows that have one of them.
        """
        chosen = list(self.schema.names) if columns is None else [self._id, *columns]
        name, values = of or (self._id, ids)
        needed = list(dict.fromkeys([*chosen, "recorded_at", name]))
        if values is None:
            tables = self._of_parts(lambda key: self._read(key, needed))
        else:
            found = self.of_parts(
                needed, lambda pieces: [each.filter(pc.is_in(each[name], value_set=values)) for each in pieces]
            )
            tables = [table for part in found for table in part]
        if not tables:
            return pa.schema([self.schema.field(name) for name in chosen]).empty_table()
        table = pa.concat_tables(tables)
        table = table.append_column("_order", pa.array(np.arange(len(table))))
        return latest_rows(table, self._id).select(chosen)

    def pieces(self, parts: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields all rows of these parts, not only the latest, in the order in which they were written.

        A piece holds 65,536 rows at most: for work on ledgers that do not fit into memory.
        columns: None, all. Raises: FileNotFoundError where another driver has folded a part meanwhile.
        """
        for part in parts:
            file = self._open(part)
            for batch in file.iter_batches(_PIECE_ROWS, columns=self._present(file, columns)):
                yield self._completed(pa.Table.from_batches([batch]), columns, part)

    def of_parts(self, columns: Sequence[str], read: Callable[[Iterator[pa.Table]], T]) -> list[T]:
        """What `read` makes of each part's rows, oldest part first, of all rows, in tables of 65,536 rows at most."""
        return self._of_parts(lambda part: read(self.pieces([part], columns)))

    def reconciled(self, *, retry_failed: bool) -> Keys:
        """Sorted 64-bit keys (`short_key`) of the ids that need no work.

        These are `done` and `rejected` ids, and `failed` ones. With `retry_failed`, `failed` ids and rejections for a
        reason in `retried` need work again.
        """
        outcomes = self.outcomes()
        settled = [self.is_settled(*kind, retry_failed=retry_failed) for kind in outcomes.kinds]
        keys: Keys = outcomes.keys[np.array(settled, bool)[outcomes.codes]]
        return keys

    def is_settled(self, status: str, reason: str, *, retry_failed: bool) -> bool:
        """Whether an id of this status and reason needs no work, as in `reconciled`."""
        if retry_failed:
            return status in _RECONCILED and reason not in self._retried
        return status in (*_RECONCILED, "failed")

    def outcomes(self) -> "Outcomes":
        """The latest status and reason of every id, read without its other columns: for ledgers of millions."""
        parts = self._of_parts(self._outcomes_of)
        kinds: dict[tuple[str, str], int] = {}
        codes = [
            np.array([kinds.setdefault(kind, len(kinds)) for kind in part.kinds], np.int16)[part.codes]
            for part, _ in parts
        ]
        keys = np.concatenate([np.empty(0, np.uint64), *(part.keys for part, _ in parts)])
        times = np.concatenate([np.empty(0, np.int64), *(times for _, times in parts)])
        # By key, then by time; two rows may bear one time, and the order in which they were written then decides.
        order = np.lexsort((times, keys))
        keys = keys[order]
        last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.empty(0, bool)
        codes_in_order = np.concatenate([np.empty(0, np.int16), *codes])[order]
        return Outcomes(keys[last], codes_in_order[last], tuple(kinds))

    def pace(self, run_ids: Sequence[str]) -> dict[str, Counter[int]]:
        """For each of these runs, the rows that it recorded in each second since 1970."""
        found: dict[str, Counter[int]] = {run_id: Counter() for run_id in run_ids}
        for part in self._of_parts(lambda key: self._pace_of(key, run_ids)):
            for run_id, counter in part.items():
                found[run_id].update(counter)
        return found

    def _pace_of(self, part: str, run_ids: Sequence[str]) -> dict[str, Counter[int]]:
        table = self._read(part, ["run_id", "recorded_at"])
        found = {}
        for run_id in run_ids:
            times = table.filter(pc.equal(table["run_id"], run_id))["recorded_at"].drop_null().cast(pa.int64())
            seconds, numbers = np.unique(times.to_numpy() // 10**6, return_counts=True)
            found[run_id] = Counter(dict(zip(seconds.tolist(), numbers.tolist(), strict=True)))
        return found

    def _outcomes_of(self, part: str) -> tuple["Outcomes", npt.NDArray[np.int64]]:
        """The outcomes of all rows of a part, in their order, and when they were recorded, in microseconds."""
        table = self._read(part, [self._id, "status", "reason", "recorded_at"])
        texts = [pc.fill_null(table[name], "") for name in ("status", "reason")]
        kinds = pc.binary_join_element_wise(*texts, "\n").combine_chunks().dictionary_encode()
        pairs = tuple((text.partition("\n")[0], text.partition("\n")[2]) for text in kinds.dictionary.to_pylist())
        times = pc.fill_null(table["recorded_at"].cast(pa.int64()), 0).to_numpy()
        return Outcomes(short_keys(table[self._id]), kinds.indices.to_numpy().astype(np.int16), pairs), times


@dataclass(frozen=True)
class Outcomes:
    """Status and reason of ids. keys: short keys, sorted. codes: the place of each (status, reason) in `kinds`."""

    keys: Keys
    codes: npt.NDArray[np.int16]
    kinds: tuple[tuple[str, str], ...]

    def counts(self) -> Counter[tuple[str, str]]:
        """Ids by status and reason."""
        numbers = np.bincount(self.codes, minlength=len(self.kinds)).tolist()
        return Counter({kind: number for kind, number in zip(self.kinds, numbers, strict=True) if number})


def latest_rows(table: pa.Table, id_name: str) -> pa.Table:
    """The latest row of each id, in the order of the ids.

    table: has `recorded_at`, and in `_order` each row's place in the ledger, which decides where two bear one time.
    """
    by = [(id_name, "ascending"), ("recorded_at", "descending"), ("_order", "descending")]
    order = pc.sort_indices(table.select([name for name, _ in by]), by)
    in_order = table[id_name].combine_chunks().take(order)
    first = np.ones(len(in_order), dtype=bool)
    if len(in_order) > 1:
        first[1:] = pc.not_equal(in_order[1:], in_order[:-1]).to_numpy(zero_copy_only=False)
    return table.take(order.filter(pa.array(first)))


def mean_of(ledger: Ledger, column: str) -> float:
    """The mean of a column's values above 0, in all rows; 0: there are none."""

    def sums(pieces: Iterator[pa.Table]) -> list[tuple[float, int]]:
        positive = (piece[column].filter(pc.greater(piece[column], 0)) for piece in pieces)
        return [(pc.sum(values).as_py() or 0.0, len(values)) for values in positive]

    found = [each for part in ledger.of_parts([column], sums) for each in part]
    return sum(total for total, _ in found) / max(1, sum(number for _, number in found))


def _in_threads(read: Callable[[str], T], keys: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(_READERS) as threads:  # small objects in a store: latency counts, not bandwidth
        return list(threads.map(read, keys))


def short_key(row_id: str) -> int:
    """The first 64 bits of an id."""
    return int(row_id[:16], 16)


def short_keys(row_ids: pa.ChunkedArray) -> Keys:
    """The short keys of ids, in their order; ten million Python strings would be a gigabyte."""
    keys = np.empty(len(row_ids), np.uint64)
    start = 0
    for chunk in row_ids.chunks:
        text = pc.utf8_slice_codeunits(chunk, 0, 16).cast(pa.binary()).cast(pa.binary(16))
        digits = np.frombuffer(text.buffers()[1], np.uint8, count=16 * len(text), offset=16 * text.offset)
        values = (digits & 15) + 9 * (digits >> 6)  # of "0" to "9", "a" to "f"
        big_endian = (values[::2] << 4 | values[1::2]).view(">u8")
        keys[start : start + len(text)] = big_endian
        start += len(text)
    return keys


def are_reconciled(keys: Keys, reconciled: Keys) -> npt.NDArray[np.bool_]:
    """Whether each of the short keys is among the sorted ones that `Ledger.reconciled` gave."""
    if not len(reconciled):
        return np.zeros(len(keys), bool)
    order = np.argsort(keys)  # so that neighbours are looked up beside each other: ten times faster in ten million
    found = np.empty(len(keys), bool)
    places = np.minimum(np.searchsorted(reconciled, keys[order]), len(reconciled) - 1)
    found[order] = reconciled[places] == keys[order]
    return found


class LedgerWriter:
    """Appends rows as they come, from a thread of its own: at once, but at most four parts a second, and in a burst a
    few more.

    A context manager: leaving it, also by an error, writes the pending rows.
    """

    def __init__(self, ledger: Ledger, min_interval_s: float = 0.25) -> None:
        self._ledger, self._min_interval_s = ledger, min_interval_s
        self._pending: list[pa.Table] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._ahead = float(_HURRIED_PARTS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Takes rows, and stamps them with this process's time. Raises: the error of writing an earlier part."""
        if not len(table):
            return
        # Workers' clocks differ: the latest row of an id must be the one that came last.
        index = table.schema.get_field_index("recorded_at")
        field = self._ledger.schema.field("recorded_at")
        stamped = table.set_column(index, field, pa.repeat(pa.scalar(now(), field.type), len(table)))
        for name, counter in (("status", self.counts), ("reason", self.reasons)):
            for entry in pc.value_counts(table[name]).to_pylist():
                if entry["values"]:
                    counter[entry["values"]] += entry["counts"]
        with self._changed:
            self._raise_error()
            self._pending.append(stamped)
            self._changed.notify()

    def close(self) -> None:
        """Writes the pending rows and ends the thread. Raises: the error of writing."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()
        self._raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _hurries(self) -> bool:
        """Whether pending rows are written before their interval is over."""
        many = sum(map(len, self._pending)) >= _HURRIED_ROWS
        return self._closing.is_set() or (many and self._ahead >= 1)

    def _run(self) -> None:
        num_parts, written_at = 0, -math.inf
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing.is_set())
                wait_s = written_at + self._min_interval_s - time.monotonic()
                if wait_s > 0:
                    self._ahead -= self._changed.wait_for(self._hurries, wait_s)
                tables, self._pending = self._pending, []
            if not tables:
                return
            try:
                self._ledger.append(pa.concat_tables(tables))
                num_parts += 1
                if num_parts % _FOLD == 0:
                    self._ledger.compact()
            except BaseException as error:
                self._error = error
                return
            before, written_at = written_at, time.monotonic()
            if self._min_interval_s:
                self._ahead = min(_HURRIED_PARTS, self._ahead + (written_at - before) / self._min_interval_s)


def now() -> datetime:
    """The present time, as the ledger records it."""
    return datetime.now(UTC)
