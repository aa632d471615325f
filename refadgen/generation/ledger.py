"""The ledger: parquet parts with one row per wanted image, appended and never changed; the latest row of an id counts.

A run appends small parts as its images come; the next run reads them all, and folds many parts into few.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.storage import Storage

FOLDER = "ledger"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # hash of all that decides the picture: 32 hexadecimal digits
        ("run_id", pa.string()),
        ("recorded_at", pa.timestamp("us", tz="UTC")),
        ("row", pa.int64()),  # of the catalogue, from 0
        ("sku", pa.string()),
        ("category", pa.string()),
        ("scene", pa.string()),
        ("variant", pa.int32()),  # from 0
        ("status", pa.string()),  # done, failed, rejected
        ("reason", pa.string()),  # a short code; empty when done
        ("detail", pa.string()),  # one sentence for a person; empty when done
        ("attempts", pa.int32()),  # images drawn
        ("uri", pa.string()),  # of the image, relative to the output; empty unless done
        ("product_uri", pa.string()),  # of the placed product (its alpha is the mask), relative; empty if never placed
        ("image", pa.string()),  # the product image's address, without signatures
        ("input_sha256", pa.string()),  # of the product image's bytes
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("mask_source", pa.string()),  # own_mask, alpha, plain_background, sam2
        ("mask_score", pa.float32()),
        ("mask_area", pa.float32()),  # share of the product photograph
        ("color_similarity", pa.float32()),  # in-mask, to the placed product, 0 to 1
        ("structure_similarity", pa.float32()),  # in-mask SSIM to the placed product
        ("mask_iou", pa.float32()),  # of the wanted and the found mask; null without segmentation networks
        ("fetch_s", pa.float32()),
        ("segment_s", pa.float32()),
        ("generate_s", pa.float32()),  # the image's share of its batches
        ("publish_s", pa.float32()),
        ("model", pa.string()),  # path and fingerprint
    ]
)

_SETTLED = ("done", "rejected")
_COMPACT_PARTS = 64


class Ledger:
    """The ledger of one output folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def parts(self) -> list[str]:
        """Keys of all parts, oldest first: their names start with their time."""
        return list(self._storage.keys(FOLDER, ".parquet"))

    def _read(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        try:
            return pq.read_table(
                pa.BufferReader(self._storage.read(key)), columns=None if columns is None else list(columns)
            )
        except (pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{self._storage.uri_of(key)}: not a part of a ledger: {error}") from error

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes one part. Rows hold all of SCHEMA's fields."""
        self._write(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA))

    def _write(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        key = f"{FOLDER}/part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        self._storage.write(key, sink.getvalue().to_pybytes())

    def latest(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The latest row of each image_id, in the order of the ids; all columns, or those named (and image_id)."""
        wanted = list(SCHEMA.names) if columns is None else ["image_id", *columns]
        needed = list(dict.fromkeys([*wanted, "recorded_at"]))
        tables = [self._read(key, needed) for key in self.parts()]
        if not tables:
            return pa.schema([SCHEMA.field(name) for name in wanted]).empty_table()
        table = pa.concat_tables(tables)
        table = table.append_column("_order", pa.array(np.arange(len(table))))
        table = table.sort_by([("image_id", "ascending"), ("recorded_at", "descending"), ("_order", "descending")])
        ids = table["image_id"].combine_chunks()
        first = np.ones(len(ids), dtype=bool)
        if len(ids) > 1:
            first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        return table.filter(pa.array(first)).select(wanted)

    def settled(self, *, retry_failed: bool) -> npt.NDArray[np.uint64]:
        """Sorted 64-bit keys (`short_key`) of the wanted images that need no work.

        `done` and `rejected` are settled; `failed` too, unless it is taken up again.
        """
        latest = self.latest(["status"])
        statuses = [*_SETTLED] if retry_failed else [*_SETTLED, "failed"]
        chosen = latest.filter(pc.is_in(latest["status"], pa.array(statuses)))
        keys = np.fromiter((short_key(i) for i in chosen["image_id"].to_pylist()), dtype=np.uint64, count=len(chosen))
        return np.sort(keys)

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Images by status, and by reason, of the latest rows."""
        latest = self.latest(["status", "reason"])
        reasons = Counter(reason for reason in latest["reason"].to_pylist() if reason)
        return Counter(latest["status"].to_pylist()), reasons

    def compact(self) -> None:
        """Folds the parts into one when there are many. A crash in between leaves rows twice, which changes nothing."""
        parts = self.parts()
        if len(parts) < _COMPACT_PARTS:
            return
        self._write(pa.concat_tables([self._read(key) for key in parts]))
        self._storage.delete(parts)


def short_key(image_id: str) -> int:
    """The first 64 bits of an image_id."""
    return int(image_id[:16], 16)


def is_settled(image_id: str, settled: npt.NDArray[np.uint64]) -> bool:
    """Whether `image_id` is among the sorted keys that `Ledger.settled` gave."""
    key = np.uint64(short_key(image_id))
    index = int(np.searchsorted(settled, key))
    return index < len(settled) and bool(settled[index] == key)


class LedgerWriter:
    """Appends rows as they come: at once, but at most four parts a second."""

    def __init__(self, ledger: Ledger, min_interval_s: float = 0.25) -> None:
        self._ledger, self._min_interval_s = ledger, min_interval_s
        self._pending: list[Mapping[str, Any]] = []
        self._written_at = -float("inf")
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes rows, and writes them unless a part was written just now."""
        for row in rows:
            self._pending.append(row)
            self.counts[row["status"]] += 1
            if row["reason"]:
                self.reasons[row["reason"]] += 1
        if time.monotonic() - self._written_at >= self._min_interval_s:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending."""
        if self._pending:
            self._ledger.append(self._pending)
            self._pending = []
            self._written_at = time.monotonic()


def ledger_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a ledger table as dictionaries, in bounded memory."""
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def now() -> datetime:
    """The time, as the ledger records it."""
    return datetime.now(UTC)
