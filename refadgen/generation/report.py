"""The report page: one HTML file beside `images/` and `products/` that shows the ledger to a person.

Rows go in as compact JSON, column by column; the page (`report.html` of this package) does the rest in the browser and
links to the pictures relatively. Nothing of the ledger ever becomes markup: the JSON cannot end its script element, the
page only sets texts and attributes, and a content security policy allows no other script and no outside address.
"""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger
from refadgen.generation.ledger import SCHEMA
from refadgen.generation.pages import filled_page, page_json
from refadgen.storage.store import Storage

KEY = "report.html"

_LEFT_OUT = ("input_sha256",)  # long, and of no use to the eye
_UNIQUE = ("image_id", "uri")  # all different: a table of distinct values would only add to them
_ADDRESSES = ("uri", "product_uri")
_MAX_TEXT = 600  # characters; a sku of 300 is shown in full
_MAX_DATA_BYTES = 5_500_000
_DONE_SHARE = 10  # one row in ten stays for `done`, however many rows failed


_FOR_TOTALS = ("row", "sku", "status", "reason")


def write_report(storage: Storage, ledger: Ledger, facts: Mapping[str, Any], *, max_rows: int = 10_000) -> str:
    """Writes the report page into the output folder and returns its key.

    facts: entries of run.json; shown as they are, so without secrets. max_rows: images on the page at most; fewer when
    their texts are very long. The page names the rows it leaves out, and its totals are always those of the complete
    ledger. Raises: OSError when the file cannot be written.
    """
    latest = ledger.latest(_FOR_TOTALS)  # few columns of all rows, then all columns of few
    shown = ledger.latest(ids=select_rows(latest, max_rows)["image_id"].combine_chunks())
    data = report_data(storage.uri, latest, shown, facts)
    while len(data) > _MAX_DATA_BYTES and len(shown) > 1:
        shown = select_rows(shown, max(1, len(shown) * _MAX_DATA_BYTES // (len(data) * 11 // 10)))
        data = report_data(storage.uri, latest, shown, facts)
    storage.write(KEY, filled_page(KEY, data))
    return KEY


def report_data(root: str, latest: pa.Table, shown: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """The page's JSON, safe inside a script element.

    `columns` holds SCHEMA's columns of the rows in `shown`, each as a list of values or as `{values, index}`. The
    complete ledger (`latest`) gives `totals` as `[status, reason, images]`, `images`, `products`, and `images_of_sku`
    in the order of the column's values. `facts` as given. root: the output's address.
    """
    rows = shown.sort_by([("row", "ascending"), ("sku", "ascending"), ("variant", "ascending")])
    totals = latest.group_by(["status", "reason"]).aggregate([([], "count_all")])
    skus = rows["sku"].combine_chunks().dictionary_encode().dictionary
    of_sku = pc.value_counts(pc.index_in(latest["sku"], value_set=skus))
    images_of_sku = {entry["values"]: entry["counts"] for entry in of_sku.to_pylist()}
    document = {
        "columns": {name: _column(rows[name], name, root) for name in SCHEMA.names if name not in _LEFT_OUT},
        "totals": [[row["status"], row["reason"], row["count_all"]] for row in totals.to_pylist()],
        "images": len(latest),
        "images_of_sku": [images_of_sku[index] for index in range(len(skus))],
        "products": pc.count_distinct(latest["sku"]).as_py(),
        "facts": facts,
    }
    return page_json(document)


def select_rows(latest: pa.Table, max_rows: int) -> pa.Table:
    """At most `max_rows` rows: failed and rejected first, in turns over their reasons so that each is there, then done.

    Both in the order of the ids; done rows come product by product. A tenth of the places is kept for them.
    """
    if len(latest) <= max_rows:
        return latest
    is_done = pc.fill_null(pc.equal(latest["status"], "done"), False).to_numpy()
    done, trouble = np.flatnonzero(is_done), np.flatnonzero(~is_done)
    trouble = trouble[_in_turns(latest.select(["status", "reason"]).filter(pa.array(~is_done)))]
    trouble = trouble[: max_rows - min(len(done), max_rows // _DONE_SHARE)]
    room = max_rows - len(trouble)
    skus = latest["sku"].take(pa.array(done[:room])).unique()
    product = pc.fill_null(pc.index_in(latest["sku"], value_set=skus), len(skus)).to_numpy()[done]
    done = done[np.argsort(product, kind="stable")][:room]
    chosen = np.zeros(len(latest), dtype=bool)
    chosen[trouble] = chosen[done] = True
    return latest.filter(pa.array(chosen))


def _in_turns(trouble: pa.Table) -> npt.NDArray[np.int64]:
    """An order of the rows in which each round takes one of every status and reason that still has some."""
    kinds = pc.binary_join_element_wise(pc.fill_null(trouble["status"], ""), pc.fill_null(trouble["reason"], ""), "\n")
    codes = kinds.combine_chunks().dictionary_encode().indices.to_numpy()
    by_kind = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_kind], codes[by_kind])  # where each row's kind begins
    rounds = np.empty(len(codes), dtype=np.int64)
    rounds[by_kind] = np.arange(len(codes)) - starts
    return np.argsort(rounds, kind="stable")


def _column(values: pa.ChunkedArray, name: str, root: str) -> list[Any] | dict[str, list[Any]]:
    """One column for the page: numbers rounded, times as seconds, addresses relative, repeated texts once."""
    kind = values.type
    if pa.types.is_floating(kind):
        return [_number(value) for value in values.to_pylist()]
    if pa.types.is_timestamp(kind):
        return [None if value is None else int(value.timestamp()) for value in values.to_pylist()]
    if name == "seed":  # beyond what a browser's numbers hold exactly
        return [None if value is None else str(value) for value in values.to_pylist()]
    if not pa.types.is_string(kind):
        plain: list[Any] = values.to_pylist()
        return plain
    if name in _UNIQUE:
        return [_text(value, name, root) for value in values.to_pylist()]
    encoded = values.combine_chunks().dictionary_encode()
    return {
        "values": [_text(value, name, root) for value in encoded.dictionary.to_pylist()],
        "index": encoded.indices.to_pylist(),
    }


def _text(value: str | None, name: str, root: str) -> str | None:
    if value is None or name not in _ADDRESSES:
        return value if value is None or len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
    return relative_link(value, root)


def relative_link(uri: str, root: str) -> str:
    """`uri` as a percent-encoded link relative to the folder `root`; empty when it leads out of it."""
    path = uri.removeprefix(f"{root}/").lstrip("/")
    return "" if ".." in path.split("/") else quote(path, safe="/")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
