"""Opens a catalogue of any kind: parquet is scanned where it lies, a feed is staged first."""

from collections.abc import Set
from dataclasses import dataclass
from itertools import islice

from refadgen.catalog.columns import normalized_column
from refadgen.catalog.feeds.kinds import Feed, feed_of
from refadgen.catalog.feeds.report import FeedReport, unused_line
from refadgen.catalog.feeds.staging import Stage
from refadgen.catalog.feeds.states import LeftOut
from refadgen.catalog.files import CatalogFiles
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import CatalogScan, parsed_rows, scan_catalog
from refadgen.config import CatalogConfig
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class OpenCatalog:
    """A catalogue whose rows can be read. report, stage: of a feed; None: it is parquet."""

    shown: str
    scan: CatalogScan
    report: FeedReport | None = None
    stage: Stage | None = None

    @property
    def read_as(self) -> str:
        """The first line that a job says."""
        return f"{self.shown}: read as {'parquet' if self.report is None else self.report.kind}"

    def lines(self) -> list[str]:
        """What a dry run tells about columns and rows."""
        if self.report is None:
            counted, unused = [], list(self.scan.unused)
        else:
            counted = self.report.lines()
            unused = self.report.unused({normalized_column(name) for name in self.scan.read})
        return [*counted, unused_line(unused), *self._first_rows()]

    def facts(self) -> dict[str, object]:
        """The entry `feed` of run.json; empty for parquet."""
        if self.report is None:
            return {}
        report = self.report
        return {
            "feed": {
                "kind": report.kind,
                "rows": report.rows,
                "products": report.products,
                "left_out": dict(report.left_out),
            }
        }

    def discard(self, *, others: bool = False) -> None:
        """Removes what was staged. others: instead, what killed drivers of the same shard have left."""
        if self.stage is not None:
            self.stage.discard(others=others)

    def _first_rows(self) -> list[str]:
        rows = (row for part in self.scan.fragments for _, _, row in parsed_rows(part, self.scan.first_rows))
        shown = [
            f"  {_understood(row)}" if isinstance(row, CatalogRow) else f"  {row.reason}: {row.detail}"
            for row in islice(rows, _NUM_SHOWN)
        ]
        return [f"the first {len(shown)} rows as understood:", *shown] if shown else []


def open_catalog(
    uri: str,
    config: CatalogConfig,
    limit: int | None,
    *,
    ignored: Set[str],
    output: Storage,
    label: str,
    in_output: bool,
) -> OpenCatalog:
    """limit, ignored: as in `scan_catalog`. in_output: a feed is staged in the job's output, for all machines;
    else on this one. label: of the driver's shard.

    Raises: ValueError naming the catalogue and the problem.
    """
    shown = redact_address(uri)
    feed = feed_of(uri, config, output)
    if feed is None:
        return OpenCatalog(shown=shown, scan=scan_catalog(uri, limit, ignored=ignored))
    return _staged(feed, FeedReport(shown=shown, kind=feed.readers[0].kind), config, limit, output, label, in_output)


def _staged(
    feed: Feed,
    report: FeedReport,
    config: CatalogConfig,
    limit: int | None,
    output: Storage,
    label: str,
    in_output: bool,
) -> OpenCatalog:
    stage = Stage(output if in_output else None, label)
    try:
        file = stage.write(feed.readers, report, LeftOut(config.leave_out), limit)
        listed = CatalogFiles(files=(file,) if report.products else (), left_out=feed.not_read)
        scan = scan_catalog(report.shown, listed=listed)
    except BaseException:  # KeyboardInterrupt too: nobody else would remove what is staged
        stage.discard()
        raise
    return OpenCatalog(shown=report.shown, scan=scan, report=report, stage=stage)


def _understood(row: CatalogRow) -> str:
    """A row by our names, without what it does not give."""
    values = {
        "sku": row.sku,
        "image": "encoded in the catalogue" if isinstance(row.image, bytes) else redact_address(row.image),
        "title": row.title,
        "category": row.category,
        "brand": row.brand,
        "prompts": list(row.prompts) or None,
        "num_variants": row.num_variants,
        "seed": row.seed,
    }
    return ", ".join(f"{name} {value!r}" for name, value in values.items() if value is not None)
