"""Shopify's export of products: a row for each variant and for each further picture, grouped by handle.

Variants have title, category and brand of the first row of their product, and its picture where they have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import pyarrow as pa

from refadgen.catalog.feeds.batches import Record, batches_of
from refadgen.catalog.feeds.delimited import DelimitedFile
from refadgen.catalog.feeds.report import FURTHER_PICTURE, FeedReport
from refadgen.catalog.feeds.states import LeftOut, State

_NAMES: Mapping[str, tuple[str, ...]] = {
    "handle": ("handle", "url_handle"),
    "title": ("title",),
    "brand": ("vendor",),
    "product_type": ("type",),
    "product_category": ("product_category",),
    "google_product_category": ("google_shopping_/_google_product_category",),
    "sku": ("variant_sku", "sku"),
    "price": ("variant_price", "price"),
    "option1": ("option1_value",),
    "option2": ("option2_value",),
    "option3": ("option3_value",),
    "image": ("image_src", "product_image_url"),
    "position": ("image_position",),
    "own_image": ("variant_image", "variant_image_url"),
    "published": ("published", "published_on_online_store"),
    "status": ("status",),
    "gift_card": ("gift_card",),
    "shipped": ("variant_requires_shipping", "requires_shipping"),
    "tracker": ("variant_inventory_tracker", "inventory_tracker"),
    "stock": ("variant_inventory_qty", "inventory_quantity"),
    "oversell": ("variant_inventory_policy", "continue_selling_when_out_of_stock"),
}
"""The columns that are read, of the older and the newer export."""
_OF_PRODUCT = ("title", "brand", "product_type", "product_category", "google_product_category")
_Row = Mapping[str, str]


def is_shopify(names: Sequence[str]) -> bool:
    """Whether these are the columns of Shopify's export."""
    found = set(names)
    return bool(found & {"handle", "url_handle"}) and bool(found & {"image_src", "product_image_url"})


class ShopifyReader:
    """Reads Shopify's export. A variant without a sku is called by its handle and its options: `pot:Large`."""

    def __init__(self, file: DelimitedFile, left_out: LeftOut) -> None:
        self._file, self._left_out = file, left_out
        places = {name: place for place, name in reversed(list(enumerate(file.names)))}
        self._places = {
            ours: next((places[name] for name in theirs if name in places), -1) for ours, theirs in _NAMES.items()
        }

    @property
    def kind(self) -> str:
        return f"Shopify's export of products, {self._file.written}"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | {name for names in _NAMES.values() for name in names}
        return batches_of(self._records(report), report)

    def _records(self, report: FeedReport) -> Iterator[Record]:
        rows = ((line, self._row(cells)) for line, cells in self._file.rows(report))
        for _, group in groupby(rows, key=lambda each: each[1]["handle"]):
            yield from self._products(list(group), report)

    def _row(self, cells: list[str]) -> _Row:
        return {name: cells[place].strip() if place >= 0 else "" for name, place in self._places.items()}

    def _products(self, rows: list[tuple[int, _Row]], report: FeedReport) -> Iterator[Record]:
        first = rows[0][1]
        image = min((row for _, row in rows if row["image"]), key=_position, default=first)["image"]
        for line, row in rows:
            if not any(row[name] for name in ("title", "sku", "price", "option1")):
                report.leave_out(FURTHER_PICTURE, f"line {line} ({row['handle']})")
                continue
            sku = row["sku"] or _named(row)
            if not self._left_out.takes(_state(first, row), f"line {line} ({sku})", report):
                continue
            yield {"sku": sku, "image": row["own_image"] or image, **{name: first[name] for name in _OF_PRODUCT}}


def _position(row: _Row) -> int:
    return int(row["position"]) if row["position"].isdecimal() else 1 << 30


def _named(row: _Row) -> str:
    """The name of a variant that has no sku."""
    options = [row[name] for name in ("option1", "option2", "option3")]
    words = "/".join(option for option in options if option and option != "Default Title")
    return f"{row['handle']}:{words}" if words else row["handle"]


def _state(first: _Row, row: _Row) -> State:
    sold_out = (
        bool(row["tracker"])
        and row["oversell"].lower() not in ("continue", "true")
        and row["stock"].lstrip("-").isdecimal()
        and int(row["stock"]) <= 0
    )
    return State(
        virtual=first["gift_card"].lower() == "true" or row["shipped"].lower() == "false",
        draft=first["published"].lower() == "false" or first["status"].lower() not in ("", "active"),
        out_of_stock=sold_out,
    )
