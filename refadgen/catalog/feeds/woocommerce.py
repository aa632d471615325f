"""WooCommerce's export of products: one row a product or variation; variations name their parent.

A variation has its parent's picture, category, name and brand where it has none. Parents are kept in memory, without
their texts, until the end: a variation may stand before its parent, or in another file of the export.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from refadgen.catalog.feeds.batches import Record, batches_of
from refadgen.catalog.feeds.delimited import DelimitedFile
from refadgen.catalog.feeds.report import PARENT, FeedReport
from refadgen.catalog.feeds.states import LeftOut, State

# The header is in the shop's language, the values of `type` never are. As found in exports of 2019 to 2026: English,
# German, Spanish, French. French writes a no-break space before its question marks, or a plain one.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "type": ("type", "typ", "tipo"),
    "sku": ("sku", "artikelnummer", "ugs"),
    "title": ("name", "nombre", "nom"),
    "published": ("published", "veröffentlicht", "publicado", "publié"),
    "in_stock": ("in_stock?", "vorrätig?", "¿en_inventario?", "¿existencias?", "en_stock_?", "en_stock\u00a0?"),
    "categories": ("categories", "kategorien", "categorías", "catégories"),
    "brand": ("brands", "brand", "marken", "marcas"),
    "images": ("images", "bilder", "imágenes"),
    "parent": ("parent", "übergeordnetes_produkt", "superior"),
}
_FEATURED = frozenset(
    ("is_featured?", "ist_hervorgehoben?", "¿está_destacado?", "mis_en_avant_?", "mis_en_avant\u00a0?")
)
_INHERITED = ("title", "categories", "brand", "images")


def is_woocommerce(names: Sequence[str]) -> bool:
    """Whether these are the columns of WooCommerce's export."""
    found = set(names)
    needed = all(not found.isdisjoint(_NAMES[name]) for name in ("type", "title", "images"))
    return needed and not found.isdisjoint({*_NAMES["parent"], *_FEATURED})


class WooCommerceReader:
    """Reads WooCommerce's export. A product without a sku is called by its id as WooCommerce does: `id:14`."""

    def __init__(self, file: DelimitedFile, left_out: LeftOut, further: Sequence[DelimitedFile] = ()) -> None:
        """further: files of the same export, each with a header of its own."""
        self._files, self._left_out = (file, *further), left_out

    def joined(self, others: Sequence["WooCommerceReader"]) -> "WooCommerceReader":
        """A reader of all files: variations find their parents in any of them."""
        return WooCommerceReader(
            self._files[0], self._left_out, [*self._files[1:], *(file for other in others for file in other._files)]
        )

    @property
    def kind(self) -> str:
        return f"WooCommerce's export of products, {self._files[0].written}"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | {name for names in _NAMES.values() for name in names}
        return batches_of(self._records(report), report)

    def _rows(self, report: FeedReport) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields where a row stands, for people, and its cells under our names."""
        for file in self._files:
            at = {name: place for place, name in reversed(list(enumerate(file.names)))}
            places = {ours: next((at[name] for name in theirs if name in at), -1) for ours, theirs in _NAMES.items()}
            named = f"{file.shown.rpartition('/')[2]}, " if len(self._files) > 1 else ""
            for line, cells in file.rows(report):
                yield (
                    f"{named}line {line}",
                    {name: cells[place].strip() if place >= 0 else "" for name, place in places.items()},
                )

    def _records(self, report: FeedReport) -> Iterator[Record]:
        parents: dict[str, tuple[str, dict[str, str]]] = {}
        names_of_parents: dict[str, str] = {}  # a parent's sku and its `id:…`, each to its key in `parents`
        with_children: set[str] = set()
        waiting: list[tuple[str, dict[str, str]]] = []
        for line, row in self._rows(report):
            kinds = {kind.strip() for kind in row["type"].lower().split(",")}
            if "variable" in kinds:
                key = row["sku"] or f"id:{row['id']}"
                parents[key] = (line, row)
                names_of_parents |= {name: key for name in (row["sku"], f"id:{row['id']}") if name}
            elif "variation" not in kinds:
                yield from self._product(line, row, report)
            elif row["parent"] in names_of_parents:
                key = names_of_parents[row["parent"]]
                with_children.add(key)
                yield from self._product(line, _inherited(row, parents[key][1]), report)
            else:
                waiting.append((line, row))
        for line, row in waiting:
            found = names_of_parents.get(row["parent"])
            if found:
                with_children.add(found)
            yield from self._product(line, _inherited(row, parents[found][1]) if found else row, report)
        for key, (line, row) in parents.items():
            if key in with_children:
                report.leave_out(PARENT, f"{line} ({key})")
            else:
                yield from self._product(line, row, report)

    def _product(self, line: str, row: Mapping[str, str], report: FeedReport) -> Iterator[Record]:
        sku = row["sku"] or (f"id:{row['id']}" if row["id"] else "")
        state = State(
            virtual=bool({"virtual", "downloadable"} & {kind.strip() for kind in row["type"].lower().split(",")}),
            draft=row["published"] in ("0", "-1"),
            out_of_stock=row["in_stock"] == "0",
        )
        if self._left_out.takes(state, f"{line} ({sku})", report):
            yield {
                "sku": sku,
                "image": row["images"],
                "title": row["title"],
                "category": row["categories"],
                "brand": row["brand"],
            }


def _inherited(row: dict[str, str], parent: Mapping[str, str]) -> dict[str, str]:
    """A variation with what it does not give itself; a draft or private parent hides it."""
    row |= {name: parent[name] for name in _INHERITED if not row[name]}
    if parent["published"] in ("0", "-1"):
        row["published"] = parent["published"]
    return row
