"""The review pages: doubtful masks for a person to decide about, each page one HTML file that needs no server.

The ledger says which masks are doubtful, and how much; the pictures come from what the segmenter kept (`doubtful.py`),
a page's worth at a time. The pages' decisions are one downloaded file, which the next run takes (`decisions.py`).
"""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger
from refadgen.batch.rows import field_names
from refadgen.errors import DOUBTS
from refadgen.generation.decisions import FORMAT, REFUSED, REPLACED, VERSION
from refadgen.generation.doubtful import DoubtfulProduct, bounded_size, doubtful_key, read_doubtful
from refadgen.generation.pages import filled_page, page_json
from refadgen.storage.store import Storage

TEMPLATE = "review.html"
MASKS_A_PAGE = 50
_READERS = 16
_ACCEPTED_SHARE = 5
"""One place in five is kept for accepted masks, however many were refused: their ads are published."""
_NEEDED = ("sku", "scene", "reason", "mask_source", "mask_score", "recorded_at")


@dataclass(frozen=True, kw_only=True)
class ReviewPages:
    """What the pages hold. left_out: doubtful masks beyond `review.max_masks`, or of which no picture was kept."""

    masks: int = 0
    left_out: int = 0
    pages: int = 0

    def lines(self, output: str) -> Iterator[str]:
        """For a run's summary."""
        if self.masks:
            more = f" ({self.left_out} more are left out)" if self.left_out else ""
            yield (
                f"{self.masks} doubtful masks{more}: decide in {output}/{TEMPLATE}, then run again with --review FILE"
            )


def write_review(storage: Storage, ledger: Ledger, catalog: str, max_masks: int, accepted_below: float) -> ReviewPages:
    """Writes `review.html`, `review-2.html`, … into the output, and removes pages that are not needed any more.

    catalog: the catalogue's address, without secrets; decisions are about this catalogue. max_masks, accepted_below:
    see ReviewConfig; without masks to show there is one page that says so, and with max_masks=0 none.
    Raises: OSError when a file cannot be written.
    """
    pages = ReviewPages()
    if max_masks:
        doubted = _ever_doubtful(ledger, accepted_below)  # of millions of products a few, and only these are sorted
        skus, num_doubtful = select_doubtful(ledger.latest(_NEEDED, of=("sku", doubted)), max_masks, accepted_below)
        with ThreadPoolExecutor(_READERS) as threads:  # small objects in a store: latency counts
            found = list(threads.map(lambda sku: storage.exists(doubtful_key(sku)), skus))
            kept = [sku for sku, is_there in zip(skus, found, strict=True) if is_there]
            num_pages = max(1, -(-len(kept) // MASKS_A_PAGE))
            pages = ReviewPages(masks=len(kept), left_out=num_doubtful - len(kept), pages=num_pages)
            for number in range(1, num_pages + 1):
                of_page = kept[(number - 1) * MASKS_A_PAGE : number * MASKS_A_PAGE]
                products = threads.map(lambda sku: read_doubtful(storage, sku), of_page)
                data = page_data([each for each in products if each], catalog, pages, number, max_masks)
                storage.write(page_key(number), filled_page(TEMPLATE, data))
    number = pages.pages + 1
    while storage.exists(page_key(number)):
        storage.delete([page_key(number)])
        number += 1
    return pages


def page_key(number: int) -> str:
    """The key of a page, counted from 1."""
    return TEMPLATE if number == 1 else TEMPLATE.replace(".", f"-{number}.")


def select_doubtful(latest: pa.Table, max_masks: int, accepted_below: float) -> tuple[list[str], int]:
    """At most `max_masks` skus, the most doubtful ones first, and the number of all doubtful products.

    latest: the ledger's latest rows. Refused masks come first, those of the highest score before others: about them
    the doubt is greatest, and one key brings them back. Then accepted ones, those of the lowest score first. The last
    row of a product counts, and none that a person has decided about.
    """
    # A row without a scene is a catalogue row that could not be read, and may bear another product's sku.
    rows = latest.filter(pc.fill_null(pc.not_equal(latest["scene"], ""), False))
    rows = _with_refused(rows)
    skus = pc.unique(rows["sku"].filter(_is_doubtful(rows, accepted_below)))
    rows = rows.filter(pc.is_in(rows["sku"], value_set=skus))
    rows = rows.sort_by([("sku", "ascending"), ("recorded_at", "descending")])
    names = rows["sku"].combine_chunks()
    if not len(names):
        return [], 0
    is_last = pa.concat_arrays([pa.array([True]), pc.not_equal(names[1:], names[:-1])])
    rows = rows.filter(is_last)
    rows = rows.filter(_is_doubtful(rows, accepted_below))
    refused = rows.filter(rows["refused"]).sort_by([("mask_score", "descending"), ("sku", "ascending")])["sku"]
    accepted = rows.filter(pc.invert(rows["refused"])).sort_by([("mask_score", "ascending"), ("sku", "ascending")])[
        "sku"
    ]
    num_refused = max(max_masks - len(accepted), max_masks - max_masks // _ACCEPTED_SHARE)
    chosen = [*refused[:num_refused].to_pylist(), *accepted.to_pylist()]
    return chosen[:max_masks], len(rows)


def _ever_doubtful(ledger: Ledger, accepted_below: float) -> pa.Array:
    """The skus with a doubtful row, be it the latest one or not."""
    found = ledger.of_parts(
        _NEEDED,
        lambda pieces: [
            pc.unique(rows["sku"].filter(_is_doubtful(_with_refused(rows), accepted_below))) for rows in pieces
        ],
    )
    return pc.unique(pa.chunked_array([skus for part in found for skus in part], pa.string()))


def _with_refused(rows: pa.Table) -> pa.Table:
    """With a column that says whether the mask was refused for doubt."""
    return rows.append_column("refused", pc.is_in(rows["reason"], value_set=pa.array(sorted(DOUBTS))))


def _is_doubtful(rows: pa.Table, accepted_below: float) -> pa.ChunkedArray:
    """Whether the mask was refused for doubt, or used with a low score and decided by nobody."""
    low = pc.fill_null(pc.less(rows["mask_score"], accepted_below), False)
    decided = pc.is_in(rows["reason"], value_set=pa.array([REFUSED, REPLACED]))
    by_chain = pc.invert(pc.is_in(rows["mask_source"], value_set=pa.array(["", "review"])))
    return pc.or_(rows["refused"], pc.and_(pc.and_(low, by_chain), pc.invert(decided)))


def page_data(products: list[DoubtfulProduct], catalog: str, pages: ReviewPages, number: int, max_masks: int) -> bytes:
    """The JSON of page `number`: its masks, and what a decisions file needs."""
    return page_json(
        {
            "format": FORMAT,
            "version": VERSION,
            "catalog": catalog,
            "page": number,
            "keys": [page_key(each) for each in range(1, pages.pages + 1)],
            "total": pages.masks,
            "left_out": pages.left_out,
            "max_masks": max_masks,
            "masks": [_entry(product) for product in products],
        }
    )


def _entry(product: DoubtfulProduct) -> dict[str, Any]:
    width, height = bounded_size((product.photo_width_px, product.photo_height_px))
    values = {name: getattr(product, name) for name in field_names(DoubtfulProduct) if name not in ("photo", "mask")}
    return values | {
        "mask_width_px": width,
        "mask_height_px": height,
        "photo": _data_uri(product.photo, "image/webp"),
        "mask": _data_uri(product.mask, "image/png") if product.mask else "",
    }


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
