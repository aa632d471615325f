"""The latest rows of a ledger in the order of a key, some at a time: for ledgers that do not fit into memory.

Two passes over the parts. The first samples keys, which become the bounds of buckets; the second writes each row to its
bucket, a compressed file on this machine's disk. Then one bucket after the other is in memory.
"""

import bisect
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger, latest_rows, short_keys

KEY = "_key"
_BUCKET_ROWS = 100_000
_SAMPLES = 256
"""Sampled keys a bucket: its size is then within a few hundredths of what it should be."""
_MAX_BUCKETS = 500
"""So many files are open at once; many systems allow a process 1,024."""
_COMPRESSION = pa.ipc.IpcWriteOptions(compression="lz4")

Key = Callable[[pa.Table], pa.Array]
"""Gives the keys of a table's rows: text, the same for all rows of an id, and compared by its code points."""


def in_key_order(
    ledger: Ledger,
    parts: Sequence[str],
    key: Key,
    key_columns: Sequence[str],
    then_by: Sequence[str] = (),
    bucket_rows: int = _BUCKET_ROWS,
) -> Iterator[pa.Table]:
    """Yields the latest rows of all ids in the order of their keys, in tables with all columns, and the key in `_key`.

    Rows of one key are in one table. key_columns: columns that `key` needs. then_by: columns that order the rows of one
    key. bucket_rows: rows of a table, about; it has more where that many rows share a key.
    Raises: FileNotFoundError where another driver has folded a part meanwhile; OSError where the disk is full.
    """
    bounds = _bounds(ledger, parts, key, key_columns, bucket_rows)
    with tempfile.TemporaryDirectory(prefix="refadgen-") as folder:
        files = [Path(folder) / f"{number}.arrow" for number in range(len(bounds) + 1)]
        _fill(ledger, parts, key, bounds, files)
        for file in files:
            if not file.exists():
                continue
            with pa.ipc.open_stream(pa.OSFile(str(file))) as stream:
                table = stream.read_all().combine_chunks()
            file.unlink()
            table = _latest(table, ledger.schema.names[0])
            names = [KEY, *then_by]
            order = pc.sort_indices(table.select(names), [(name, "ascending") for name in names])
            yield table.take(order).drop_columns("_order")


def _latest(table: pa.Table, id_name: str) -> pa.Table:
    keys = np.sort(short_keys(table[id_name]))
    # Most ledgers have one row an id, and sorting texts is dear.
    return latest_rows(table, id_name).combine_chunks() if (keys[1:] == keys[:-1]).any() else table


def _bounds(ledger: Ledger, parts: Sequence[str], key: Key, key_columns: Sequence[str], bucket_rows: int) -> list[str]:
    """The least key of each bucket but the first, ascending."""
    step = max(1, bucket_rows // _SAMPLES)
    samples: list[str] = []
    num_rows = 0
    for piece in ledger.pieces(parts, key_columns):
        chosen = np.arange(-num_rows % step, len(piece), step)
        samples += key(piece.take(pa.array(chosen))).to_pylist()
        num_rows += len(piece)
    samples.sort()
    num_buckets = min(-(-num_rows // bucket_rows), _MAX_BUCKETS)
    return sorted({samples[len(samples) * number // num_buckets] for number in range(1, num_buckets)})


def _fill(ledger: Ledger, parts: Sequence[str], key: Key, bounds: Sequence[str], files: Sequence[Path]) -> None:
    """Writes all rows to the files of their buckets, with `_key` and `_order`."""
    with contextlib.ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        num_rows = 0
        for piece in ledger.pieces(parts):
            keys = key(piece)
            table = piece.append_column(KEY, keys)
            table = table.append_column("_order", pa.array(np.arange(num_rows, num_rows + len(piece))))
            num_rows += len(piece)
            table = table.take(pc.sort_indices(keys))
            in_order, rows = table[KEY].combine_chunks(), range(len(table))
            found = (bisect.bisect_left(rows, bound, key=lambda row: in_order[row].as_py()) for bound in bounds)
            starts = [0, *found, len(table)]
            for number, (start, end) in enumerate(itertools.pairwise(starts)):
                if start == end:
                    continue
                if number not in writers:
                    file = stack.enter_context(pa.OSFile(str(files[number]), "wb"))
                    writers[number] = stack.enter_context(pa.ipc.new_stream(file, table.schema, options=_COMPRESSION))
                writers[number].write_table(table.slice(start, end - start))
