"""Google Merchant XML by its specification: RSS and Atom; entities are refused, with harmless ones."""

import contextlib
import gzip
import tracemalloc
from collections.abc import Iterator

import pyarrow as pa
import pytest
from feed_files import Open, report_of, told

from refadgen.catalog.feeds.files import FeedFile
from refadgen.catalog.feeds.merchant_xml import MerchantXmlReader
from refadgen.catalog.feeds.report import FeedReport

RSS = """<?xml version="1.0"?>
<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel><title>Shop</title><link>https://h.example</link>
<item><g:id>00123</g:id><title>Other</title><g:title><![CDATA[Tea <b>Cup</b>]]></g:title>
<g:image_link>https://h.example/1.jpg?a=1&amp;b=2</g:image_link>
<g:additional_image_link>https://h.example/1b.jpg</g:additional_image_link>
<g:product_type>Kitchen &gt; Tea Cups</g:product_type><g:product_type>Gifts</g:product_type>
<g:shipping><g:country>DE</g:country><g:price>4 EUR</g:price></g:shipping>
<g:availability>in_stock</g:availability></item>
<!-- a comment --><item><g:id>2</g:id><g:title>Pot</g:title><g:image_link>https://h.example/2.jpg</g:image_link>
<g:availability>out_of_stock</g:availability></item>
</channel></rss>
"""
ATOM = """<?xml version="1.0" encoding="ISO-8859-1"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0"><title>Shop</title>
<entry><id>tag:h.example,2026:1</id><g:id>A-1</g:id><title>Sch\u00fcssel</title><link href="https://h.example/a"/>
<g:image_link>https://h.example/a.jpg</g:image_link></entry></feed>
"""
CUP = ("00123", "https://h.example/1.jpg?a=1&b=2", "Tea Cup", "Kitchen > Tea Cups")


@pytest.mark.parametrize("packed", [False, True])
def test_rss(packed: bool, opened: Open) -> None:
    catalog = opened("feed", gzip.compress(RSS.encode()) if packed else RSS)
    assert "read as Google Merchant XML (RSS)" in catalog.read_as
    assert told(catalog) == [CUP]
    assert dict(report_of(catalog).left_out) == {"out-of-stock (catalog.leave_out)": 1}
    assert catalog.lines()[2] == "columns not used: g:additional_image_link, g:shipping"


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16"])
def test_atom(encoding: str, opened: Open) -> None:
    catalog = opened("feed.xml", ATOM.replace("ISO-8859-1", encoding).encode(encoding))
    assert "read as Google Merchant XML (Atom)" in catalog.read_as
    assert told(catalog) == [("A-1", "https://h.example/a.jpg", "Schüssel", None)]


def test_a_document_type_without_entities_is_taken(opened: Open) -> None:
    assert told(opened("feed.xml", RSS.replace("<rss ", "<!DOCTYPE rss>\n<rss ", 1))) == [CUP]


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE rss [<!ENTITY shop "harmless">]>',
        '<!DOCTYPE rss [<!ENTITY % shop "harmless">]>',
        '<!DOCTYPE rss [<!ENTITY shop SYSTEM "none.txt">]>',
        '<!DOCTYPE rss SYSTEM "http://127.0.0.1:9/none.dtd">',
    ],
)
def test_entities_are_refused(declared: str, opened: Open) -> None:
    title = "&shop;" if "ENTITY shop" in declared else "Pot"
    text = RSS.replace("<rss ", f"{declared}\n<rss ", 1).replace("Pot", title)
    with pytest.raises(ValueError, match=r"feed\.xml: declares entities or a document type .*nothing was fetched"):
        opened("feed.xml", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RSS[:700], r"is cut \(.*line \d+.*export it again"),
        (RSS.replace("<title>Other</title>", "<title>Other & more</title>"), "is no well-formed XML"),
        (RSS.replace('xmlns:g="http://base.google.com/ns/1.0" ', ""), "Namespace prefix g on id is not defined"),
        ("<products><product/></products>", "is XML with the root <products>"),
        (RSS.replace("image_link", "picture"), "no column 'image'"),
    ],
)
def test_what_is_refused(text: str, said: str, opened: Open) -> None:
    with pytest.raises(ValueError, match=rf"feed\.xml: .*{said}"):
        opened("feed.xml", text)


class _EndlessFeed:
    """An open feed of `num` items, made while it is read."""

    def __init__(self, num: int) -> None:
        self._pieces = self._make(num)

    def _make(self, num: int) -> Iterator[bytes]:
        before, _, after = RSS.partition("<!-- a comment -->")
        head, item, tail = *before.partition("<item>")[::2], after.partition("</item>")[2]
        yield head.encode()
        for _ in range(num):
            yield f"<item>{item}".encode()
        yield tail.encode()

    def read(self, size: int = -1) -> bytes:
        return next(self._pieces, b"")


def test_memory_does_not_grow_with_the_feed(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's part of it; tests/benchmarks/feeds.py measures the process."""
    monkeypatch.setattr("refadgen.catalog.feeds.batches.ROWS_AT_ONCE", 100)

    def peak(num: int) -> int:
        monkeypatch.setattr(FeedFile, "bytes", lambda self: contextlib.nullcontext(_EndlessFeed(num)))
        reader = MerchantXmlReader(FeedFile(uri="feed.xml", gzipped=False, encoding="utf-8", head=""))
        tracemalloc.start()
        rows = sum(batch.num_rows for batch in reader.batches(FeedReport(shown="", kind="")))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == num
        return found

    assert peak(2_000) < 1.3 * peak(1_000)


def test_batches_are_arrow(opened: Open) -> None:
    catalog = opened("feed.xml", RSS)
    assert catalog.scan.fragments[0].open().schema.field("id").type == pa.string()
