"""Magento's export of products: simple products, and the configurable ones that they are variations of.

A variation has its parent's picture, category, name and brand where it has none; those that miss one wait for their
parent, which stands after them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from refadgen.catalog.feeds.batches import Record, batches_of
from refadgen.catalog.feeds.delimited import DelimitedFile
from refadgen.catalog.feeds.report import PARENT, STORE_VIEW, FeedReport
from refadgen.catalog.feeds.states import LeftOut, State

_COLUMNS = (
    "sku",
    "store_view_code",
    "product_type",
    "categories",
    "name",
    "base_image",
    "manufacturer",
    "product_online",
    "is_in_stock",
    "manage_stock",
    "configurable_variations",
)
_INHERITED = ("categories", "name", "base_image", "manufacturer")
_CHILD = re.compile(r"(?:^|\|)\s*sku=([^,|]+)")
_VIRTUAL = frozenset({"virtual", "downloadable", "giftcard"})
_Row = dict[str, str]


def is_magento(names: Sequence[str]) -> bool:
    """Whether these are the columns of Magento's export."""
    found = set(names)
    marks = {"attribute_set_code", "product_websites", "configurable_variations", "store_view_code"}
    return {"sku", "product_type"} <= found and bool(found & marks)


class MagentoReader:
    """Reads Magento's export of products."""

    def __init__(self, file: DelimitedFile, left_out: LeftOut) -> None:
        self._file, self._left_out = file, left_out
        places = {name: place for place, name in reversed(list(enumerate(file.names)))}
        self._places = {name: places.get(name, -1) for name in _COLUMNS}

    @property
    def kind(self) -> str:
        return f"Magento's export of products, {self._file.written}"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | set(_COLUMNS)
        return batches_of(self._records(report), report)

    def _records(self, report: FeedReport) -> Iterator[Record]:
        waiting: list[tuple[int, _Row]] = []
        configurable: list[tuple[int, _Row]] = []
        parents: dict[str, _Row] = {}
        seen: set[str] = set()  # skus, for who is a variation is said after it
        for line, cells in self._file.rows(report):
            row = {name: cells[place].strip() if place >= 0 else "" for name, place in self._places.items()}
            if row["base_image"] == "no_selection":
                row["base_image"] = ""
            if row["store_view_code"]:
                report.leave_out(STORE_VIEW, f"line {line} ({row['sku']})")
            elif row["product_type"] == "configurable":
                configurable.append((line, row))
                parents |= {sku.strip(): row for sku in _CHILD.findall(row["configurable_variations"])}
            elif row["product_type"] in _VIRTUAL or all(row[name] for name in ("base_image", "categories", "name")):
                seen.add(row["sku"])
                yield from self._product(line, row, report)
            else:
                waiting.append((line, row))
        for line, row in waiting:
            parent = parents.get(row["sku"], row)
            row |= {name: parent[name] for name in _INHERITED if not row[name]}
            seen.add(row["sku"])
            yield from self._product(line, row, report)
        taken = {parent["sku"] for sku, parent in parents.items() if sku in seen}
        for line, row in configurable:
            if row["sku"] in taken:
                report.leave_out(PARENT, f"line {line} ({row['sku']})")
            else:
                yield from self._product(line, row, report)

    def _product(self, line: int, row: Mapping[str, str], report: FeedReport) -> Iterator[Record]:
        state = State(
            virtual=row["product_type"] in _VIRTUAL,
            draft=row["product_online"] in ("0", "2"),
            out_of_stock=row["is_in_stock"] == "0" and row["manage_stock"] != "0",
        )
        if self._left_out.takes(state, f"line {line} ({row['sku']})", report):
            yield {
                "sku": row["sku"],
                "base_image": row["base_image"],
                "title": row["name"],
                "category": row["categories"],
                "brand": row["manufacturer"],
            }
