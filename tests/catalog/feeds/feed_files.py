"""Feeds as texts, opened as the job opens them; some have their own reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from refadgen.catalog.feeds.opening import OpenCatalog, open_catalog
from refadgen.catalog.feeds.report import FeedReport
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import parsed_rows
from refadgen.config import CatalogConfig, GenerateConfig, load_config
from refadgen.storage.store import Storage


class Open(Protocol):
    """Writes a feed and opens it: `opened("feed.csv", text, "catalog.format=csv")`."""

    def __call__(self, name: str, content: str | bytes, *words: str, limit: int | None = None) -> OpenCatalog: ...


def settings(words: Sequence[str] = ()) -> CatalogConfig:
    return load_config(GenerateConfig, None, words).catalog


def open_here(place: Path, *words: str, limit: int | None = None) -> OpenCatalog:
    return open_catalog(
        str(place),
        settings(words),
        limit,
        ignored=frozenset(),
        output=Storage(str(place.parent.parent / "out")),
        label="",
        in_output=False,
    )


def rows_of(catalog: OpenCatalog) -> list[CatalogRow]:
    found = [row for part in catalog.scan.fragments for _, _, row in parsed_rows(part, catalog.scan.first_rows)]
    assert all(isinstance(row, CatalogRow) for row in found), found
    return found


def told(catalog: OpenCatalog) -> list[tuple[object, ...]]:
    """Sku, image, title and category of each row."""
    return [(row.sku, row.image, row.title, row.category) for row in rows_of(catalog)]


def report_of(catalog: OpenCatalog) -> FeedReport:
    """The report, in which every row is a product or left out."""
    report = catalog.report
    assert report is not None
    assert report.rows == report.products + report.left_out.total()
    return report
