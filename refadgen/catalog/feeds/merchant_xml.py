"""Google Merchant feeds in XML: RSS 2.0 and Atom 1.0.

Entities are refused, and nothing that a file names is fetched. An item is dropped as soon as it is read.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from lxml import etree

from refadgen.catalog.columns import normalized_column
from refadgen.catalog.feeds.batches import AVAILABILITY, Record, batches_of
from refadgen.catalog.feeds.files import FeedFile
from refadgen.catalog.feeds.report import FeedReport

_GOOGLE = "http://base.google.com/ns/1.0"
_ROOTS = {"rss": "RSS", "rdf": "RSS 1.0", "feed": "Atom"}


class MerchantXmlReader:
    """Reads the items of an RSS feed, or the entries of an Atom feed. Google's `g:` elements win over others."""

    def __init__(self, file: FeedFile) -> None:
        """Raises: ValueError naming a file that is no such feed."""
        self._file = file
        self._root = self._first_element()

    @property
    def kind(self) -> str:
        return f"Google Merchant XML ({_ROOTS[self._root]}), {'gzip, ' if self._file.gzipped else ''}entities refused"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        report.read = report.read | {AVAILABILITY}
        return batches_of(self._records(report), report)

    def _first_element(self) -> str:
        for event, element in self._events("start"):
            name = str(element.tag).rpartition("}")[2].lower()
            if name in _ROOTS:
                return name
            words = "an HTML page, such as that of a login" if name == "html" else f"XML with the root <{name}>"
            raise ValueError(
                f"{self._file.shown}: is {words} ({event}): a feed is RSS (<rss><channel><item>…) or Atom "
                "(<feed><entry>…) with Google's elements (g:id, g:image_link, …)"
            )
        raise ValueError(f"{self._file.shown}: holds no element")

    def _events(self, *events: str, tag: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
        """Yields lxml's events. Raises: ValueError naming a file that is damaged, cut, or declares entities."""
        with self._file.bytes() as stream:
            try:
                parsed = etree.iterparse(
                    stream,
                    events=events,
                    tag=tag,
                    resolve_entities=False,
                    load_dtd=False,
                    no_network=True,
                    huge_tree=False,
                    remove_comments=True,
                    remove_pis=True,
                )
                for event, element in parsed:
                    self._refuse_entities(element)
                    yield event, element
            except etree.XMLSyntaxError as error:
                cut = "Premature end" in str(error) or "no element found" in str(error)
                raise ValueError(
                    f"{self._file.shown}: {'is cut' if cut else 'is no well-formed XML'} ({error}): export it again"
                ) from error

    def _refuse_entities(self, element: Any) -> None:
        document = element.getroottree().docinfo.internalDTD
        if document is not None and (document.system_url or document.external_id or any(document.iterentities())):
            raise ValueError(
                f"{self._file.shown}: declares entities or a document type elsewhere (<!DOCTYPE …>), which no feed "
                "needs and which can read files or fill memory: it is refused, and nothing was fetched; export it "
                "without them"
            )

    def _records(self, report: FeedReport) -> Iterator[Record]:
        names: dict[str, tuple[str, bool]] = {}
        for _, item in self._events("end", tag=("{*}item", "{*}entry")):
            report.rows += 1
            record: dict[str, Any] = {}
            of_google: set[str] = set()
            for child in item:
                tag = child.tag
                if not isinstance(tag, str):  # an entity or a comment
                    continue
                found = names.get(tag)
                if found is None:
                    found = names[tag] = _named(tag)
                    report.add_column(found[0], f"g:{found[0]}" if found[1] else found[0])
                name, google = found
                # Of an element that is repeated the first counts, as for Google.
                if name in record and (name in of_google or not google):
                    continue
                record[name] = ("".join(child.itertext()) if len(child) else child.text or "").strip()
                if google:
                    of_google.add(name)
            yield record
            item.clear()
            parent = item.getparent()
            while parent is not None and item.getprevious() is not None:
                del parent[0]


def _named(tag: str) -> tuple[str, bool]:
    """An element's name as columns are compared, and whether it is Google's."""
    space, _, name = tag.rpartition("}")
    return normalized_column(name), space == f"{{{_GOOGLE}" or name.startswith("g:")
