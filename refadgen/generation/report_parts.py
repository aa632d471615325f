"""The parts of a large report: script files that the page loads one at a time, in the order of skus.

A page that is opened from a disk may not fetch files, but may load scripts: each part is one call of `refadgenPart`
with the columns of some thousand images. The page's index says where each part begins, so a sku, or its beginning, is
found by its place, and how many images of each status and reason each part holds.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.key_order import KEY, in_key_order
from refadgen.batch.ledger import Ledger, short_keys
from refadgen.generation.ledger import SCHEMA
from refadgen.generation.page_columns import page_columns
from refadgen.generation.pages import plain_json
from refadgen.generation.report_selection import select_rows
from refadgen.storage.store import Storage

PART_ROWS = 4_000
_MAX_PART_BYTES = 8_000_000
_KEY_LENGTH = 100
_WRITERS = 8
_IMAGES_OF_SKU = "_images_of_sku"

Kind = tuple[str, str]


def sku_keys(rows: pa.Table) -> pa.Array:
    """Where the page looks for a row: its sku's first 100 characters, ASCII letters in lower case.

    Rows without a sku come first, by their number. The page makes the same of what a person looks for (`placeOf`).
    """
    sku = pc.fill_null(rows["sku"], "").combine_chunks()
    number = pc.utf8_lpad(pc.fill_null(rows["row"], 0).combine_chunks().cast(pa.string()), 12, "0")
    named = pc.utf8_slice_codeunits(pc.ascii_lower(sku), 0, _KEY_LENGTH)
    return pc.if_else(pc.equal(sku, ""), pc.binary_join_element_wise("\0", number, ""), named)


@dataclass
class WholeLedger:
    """What the page tells of all images, gathered piece by piece. selection: the rows that the page itself holds.

    index: where the parts begin, and what is in them.
    """

    max_rows: int
    totals: Counter[Kind] = field(default_factory=Counter)
    images: int = 0
    products: int = 0
    selection: pa.Table = field(default_factory=lambda: _with_images_of_sku(SCHEMA.empty_table()))
    index: dict[str, list[Any]] = field(default_factory=lambda: {"first": [], "rows": [], "counts": []})
    _has_nameless: bool = False

    def add(self, piece: pa.Table) -> pa.Table:
        """Counts a piece with all images of its products, and chooses from it what the page shows at first.

        Returns the piece with a column that says how many images the row's sku has (`images_of_skus`).
        """
        piece = _with_images_of_sku(piece)
        self.images += len(piece)
        self.totals.update(_kinds(piece))
        skus = pc.unique(piece["sku"])
        has_nameless = bool(pc.any(pc.equal(skus, "")).as_py())
        self.products += len(skus) - skus.null_count - (has_nameless and self._has_nameless)
        self._has_nameless |= has_nameless
        rows = pa.concat_tables([self.selection, piece.select(self.selection.column_names)])
        order = np.argsort(short_keys(rows["image_id"]), kind="stable")
        narrow = rows.select(["sku", "status", "reason"]).append_column("_at", pa.array(np.arange(len(rows))))
        chosen = select_rows(narrow.take(pa.array(order)), self.max_rows)
        self.selection = rows.take(chosen["_at"]).combine_chunks()
        return piece

    def add_part(self, part: pa.Table) -> int:
        """Notes a part in the index, and returns its number, counted from 1."""
        self.index["first"].append(part[KEY][0].as_py())
        self.index["rows"].append(len(part))
        kinds = list(self.totals)
        counts = _kinds(part)
        self.index["counts"].append([number for kind in counts for number in (kinds.index(kind), counts[kind])])
        return len(self.index["rows"])


def write_parts(storage: Storage, ledger: Ledger, parts: Sequence[str], folder: str, max_rows: int) -> WholeLedger:
    """Writes the parts of the report below the key `folder`.

    parts: of the ledger. max_rows: images that the page itself holds. One piece of the ledger, of about a hundred
    thousand rows, is in memory at a time; all rows lie on this machine's disk meanwhile, compressed.
    Raises: FileNotFoundError where another driver has folded a part of the ledger meanwhile; OSError.
    """
    whole = WholeLedger(max_rows)
    with _Writes(storage) as writes:
        for piece in in_key_order(ledger, parts, sku_keys, ("sku", "row"), ("sku", "row", "variant")):
            piece = whole.add(piece)
            for start in range(0, len(piece), PART_ROWS):
                for part, data in _bounded(piece.slice(start, PART_ROWS), storage.uri):
                    number = whole.add_part(part)
                    writes.add(part_key(folder, number), b"refadgenPart(%d,%b)\n" % (number, data))
    return whole


def part_key(folder: str, number: int) -> str:
    """The key of a part, counted from 1."""
    return f"{folder}/{number}.js"


def images_of_skus(rows: pa.Table) -> list[int]:
    """How many images each sku has in all, in the order in which skus first come.

    rows: as `WholeLedger.add` gave them.
    """
    skus = rows["sku"].combine_chunks()
    first = pc.index_in(pc.unique(skus), value_set=skus, skip_nulls=False)
    numbers: list[int] = rows[_IMAGES_OF_SKU].take(first).to_pylist()
    return numbers


def _kinds(rows: pa.Table) -> Counter[Kind]:
    """Images by status and reason."""
    pairs = rows.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({(pair["status"], pair["reason"]): pair["count_all"] for pair in pairs})


def _with_images_of_sku(piece: pa.Table) -> pa.Table:
    """With a column that says how many images the row's sku has."""
    codes = pc.fill_null(piece["sku"], "").combine_chunks().dictionary_encode().indices.to_numpy()
    return piece.append_column(_IMAGES_OF_SKU, pa.array(np.bincount(codes, minlength=1)[codes]))


def _bounded(rows: pa.Table, root: str) -> Iterator[tuple[pa.Table, bytes]]:
    """The rows and their JSON; in halves where it is too long for one part."""
    data = b'{"columns":%b,"images_of_sku":%b}' % (page_columns(rows, root), plain_json(images_of_skus(rows)))
    if len(data) <= _MAX_PART_BYTES or len(rows) == 1:
        yield rows, data
        return
    middle = len(rows) // 2
    yield from _bounded(rows.slice(0, middle), root)
    yield from _bounded(rows.slice(middle), root)


class _Writes:
    """Writes files in threads, a few at a time: an object store answers late, and the texts must not pile up."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._threads = ThreadPoolExecutor(_WRITERS)
        self._room = threading.Semaphore(2 * _WRITERS)
        self._error: BaseException | None = None

    def add(self, key: str, data: bytes) -> None:
        """Writes later. Raises: the error of an earlier write."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._threads.submit(self._storage.write, key, data).add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        self._error = self._error or future.exception()
        self._room.release()

    def __enter__(self) -> "_Writes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        if kind is None and self._error is not None:
            raise self._error
