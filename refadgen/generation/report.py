"""The report page: one HTML file beside `images/` and `products/` that shows the ledger to a person.

Rows go in as compact JSON, column by column; the page (`report.html` of this package) does the rest in the browser and
links to the pictures relatively. Nothing of the ledger ever becomes markup: the JSON cannot end its script element, the
page only sets texts and attributes, and a content security policy allows no other script and no outside address.

A run that fits on the page is that one file. Beyond, the page holds a selection, and all images lie in parts below
`report/` (`report_parts.py`), which the page finds by sku, status and reason. From an output alone:

    python -m refadgen.generation.report out/demo
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from refadgen.batch.ledger import Ledger
from refadgen.batch.run_record import KEY as RUN_KEY
from refadgen.batch.shards import record_keys
from refadgen.generation.ledger import AdLedger
from refadgen.generation.page_columns import page_columns
from refadgen.generation.pages import filled_page, plain, plain_json
from refadgen.generation.report_parts import WholeLedger, images_of_skus, write_parts
from refadgen.generation.report_selection import select_rows
from refadgen.storage.store import Storage

KEY = "report.html"
OVERVIEW_KEY = "report/overview.json"

_MAX_DATA_BYTES = 5_500_000
_VERSION = "1"
"""Of the parts' form: another one makes them anew."""
_TRIES = 5
"""Times that the parts are made where another driver folds its part of the ledger meanwhile."""


def write_report(storage: Storage, ledger: Ledger, facts: Mapping[str, Any], *, max_rows: int = 10_000) -> str:
    """Writes the report into the output folder and returns the key of its page.

    facts: entries of run.json; shown as they are, so without secrets. max_rows: images on the page at most; fewer when
    their texts are very long. The page names the rows it leaves out, and its totals are always those of the complete
    ledger. Parts that an earlier run wrote stay where the ledger has not changed since.
    Raises: OSError when a file cannot be written.
    """
    parts = ledger.parts()
    if _has_more(ledger, parts, max_rows):
        overview = _with_parts(storage, ledger, max_rows)
    else:
        whole = WholeLedger(max_rows)
        whole.add(ledger.latest())
        overview = _bounded_overview(storage.uri, whole)
        _remove_parts(storage, _earlier(storage), "")
    storage.write(KEY, filled_page(KEY, _with(overview, "facts", plain(facts))))
    return KEY


def _has_more(ledger: Ledger, parts: Sequence[str], max_rows: int) -> bool:
    """Whether the ledger has more rows than that."""
    num_rows = 0
    return any((num_rows := num_rows + len(piece)) > max_rows for piece in ledger.pieces(parts, ["status"]))


def _with(document: bytes, name: str, value: Any) -> bytes:
    """A JSON object with one entry more. value: of JSON's own types."""
    return document[:-1] + b',"%b":%b}' % (name.encode(), plain_json(value))


def _with_parts(storage: Storage, ledger: Ledger, max_rows: int) -> bytes:
    """The page's data for a ledger that does not fit on it, after writing the parts where they are not there yet."""
    earlier = _earlier(storage)
    for attempt in range(_TRIES):
        parts = ledger.parts()
        # Parts of a ledger never change, so their names say what it holds.
        told = "\n".join([_VERSION, storage.uri, str(max_rows), *parts])
        folder = f"report/{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        if earlier.get("parts", {}).get("folder") == folder:
            return storage.read(OVERVIEW_KEY)
        try:
            whole = write_parts(storage, ledger, parts, folder, max_rows)
            break
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
    index = {"folder": folder, "kinds": [list(kind) for kind in whole.totals], **whole.index}
    overview = _with(_bounded_overview(storage.uri, whole), "parts", index)
    storage.write(OVERVIEW_KEY, overview)
    _remove_parts(storage, earlier, folder)
    return overview


def _earlier(storage: Storage) -> dict[str, Any]:
    """The page's data of the last report with parts; empty: there was none."""
    if not storage.exists(OVERVIEW_KEY):
        return {}
    found: dict[str, Any] = json.loads(storage.read(OVERVIEW_KEY))
    return found


def _remove_parts(storage: Storage, earlier: Mapping[str, Any], kept: str) -> None:
    """Removes the parts of earlier reports, in other folders than `kept`."""
    named = earlier.get("parts", {}).get("folder", "")
    # Another driver of a shared output may be writing its own right now. Otherwise others are those of killed runs.
    shared = any(key != RUN_KEY for key in record_keys(storage))
    folders = [named] if shared else storage.names("report")
    for folder in folders:
        if folder not in ("", kept, OVERVIEW_KEY):
            storage.delete([key for key in storage.names(folder) if key.endswith(".js")])
    if earlier and not kept:
        storage.delete([OVERVIEW_KEY])


def _bounded_overview(root: str, whole: WholeLedger) -> bytes:
    """The page's data without facts, of fewer rows where their texts are very long."""
    shown = whole.selection
    while len(overview := report_data(root, shown, whole)) > _MAX_DATA_BYTES and len(shown) > 1:
        shown = select_rows(shown, max(1, len(shown) * _MAX_DATA_BYTES // (len(overview) * 11 // 10)))
    return overview


def report_data(root: str, shown: pa.Table, whole: WholeLedger) -> bytes:
    """The page's data without facts, as a JSON object.

    `columns` holds SCHEMA's columns of the rows in `shown` (`page_columns`). `totals` as `[status, reason, images]`,
    `images` and `products` are of the complete ledger; so is `images_of_sku`, in the order of the column's values.
    root: the output's address.
    """
    rows = shown.sort_by([("row", "ascending"), ("sku", "ascending"), ("variant", "ascending")])
    told = {
        "totals": [[*kind, number] for kind, number in whole.totals.items()],
        "images": whole.images,
        "images_of_sku": images_of_skus(rows),
        "products": whole.products,
    }
    return b'{"columns":%b,%b' % (page_columns(rows, root), plain_json(told)[1:])


def main() -> None:
    """Writes the report of an output."""
    parser = argparse.ArgumentParser(description="Write the report of an output of the main job.")
    parser.add_argument("output", help="output folder of a run, a path or s3://")
    storage = Storage(parser.parse_args().output)
    records = sorted((json.loads(storage.read(key)) for key in record_keys(storage)), key=lambda run: run["started_at"])
    write_report(storage, AdLedger(storage), records[-1] if records else {})
    print(storage.uri_of(KEY))


if __name__ == "__main__":
    main()
