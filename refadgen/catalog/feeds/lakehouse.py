"""Tables of a lakehouse: the rows of their current version, never files that the table has given up."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from refadgen.catalog.columns import COLUMNS, normalized_column, resolve_columns
from refadgen.catalog.feeds.batches import KNOWN
from refadgen.catalog.feeds.report import FeedReport
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_ROWS_AT_ONCE = 1024


class TableReader:
    """Reads a table that another library has opened. Values keep their types."""

    def __init__(self, kind: str, shown: str, schema: pa.Schema, batches: Any) -> None:
        """batches: gives Arrow batches of the columns that it is called with. Raises: ValueError naming a column."""
        self._kind, self._shown, self._batches = kind, shown, batches
        self._names = schema.names
        self._columns = [name for name in schema.names if normalized_column(name) in KNOWN]
        resolve_columns(schema, COLUMNS)
        self.schema = pa.schema([schema.field(name) for name in self._columns])

    @property
    def kind(self) -> str:
        return self._kind

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        for name in self._names:
            report.add_column(normalized_column(name), name)
        try:
            for batch in self._batches(self._columns):
                report.rows += batch.num_rows
                yield batch.cast(self.schema)
        except Exception as error:  # of Arrow, the operating system, object stores, and the library's own
            raise ValueError(f"{self._shown}: cannot be read ({type(error).__name__}: {error})") from error


def delta_reader(storage: Storage) -> TableReader:
    """The current version of a Delta table. Raises: ValueError naming a table that `deltalake` cannot read."""
    shown = redact_address(storage.uri)
    try:
        import deltalake
    except ImportError as error:
        raise ValueError(_missing(shown, "a Delta table", "delta")) from error
    try:
        table = deltalake.DeltaTable(storage.uri)
        # A newer protocol may delete rows by marks beside the files: the library refuses what it does not know.
        rows = table.to_pyarrow_dataset()
    except Exception as error:  # its own, and those of object stores
        raise ValueError(
            f"{shown}: this Delta table cannot be read by deltalake {deltalake.__version__} "
            f"({type(error).__name__}: {error}): write its current rows to a parquet file, and give that"
        ) from error
    kind = f"Delta table, version {table.version()}"
    return TableReader(
        kind,
        shown,
        rows.schema,
        lambda columns: rows.to_batches(columns=columns, batch_size=_ROWS_AT_ONCE, use_threads=False),
    )


def iceberg_reader(storage: Storage, metadata_keys: list[str]) -> TableReader:
    """The current snapshot of an Iceberg table without its catalogue. metadata_keys: of its `*.metadata.json` files.

    Raises: ValueError naming a table that `pyiceberg` cannot read.
    """
    shown = redact_address(storage.uri)
    try:
        import pyiceberg
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise ValueError(_missing(shown, "an Iceberg table", "iceberg")) from error
    try:
        table = StaticTable.from_metadata(storage.uri_of(_newest(metadata_keys, shown)))
        scan = table.scan()
        schema = scan.projection().as_arrow()
    except _AmbiguousError:
        raise
    except Exception as error:  # its own, and those of object stores
        raise ValueError(
            f"{shown}: this Iceberg table cannot be read by pyiceberg {pyiceberg.__version__} "
            f"({type(error).__name__}: {error}): write its current rows to a parquet file, and give that"
        ) from error
    snapshot = table.current_snapshot()
    kind = f"Iceberg table, snapshot {snapshot.snapshot_id if snapshot else 'none'}"
    return TableReader(
        kind, shown, schema, lambda columns: table.scan(selected_fields=tuple(columns)).to_arrow_batch_reader()
    )


class _AmbiguousError(ValueError):
    """Which snapshot is the current one, only the table's catalogue knows."""


def _newest(keys: list[str], shown: str) -> str:
    """The newest metadata file: their names count up. Raises: ValueError naming two of one number."""
    *_, before, newest = sorted(["", *keys], key=lambda key: (_number(key), key))
    if before and _number(before) == _number(newest):
        raise _AmbiguousError(
            f"{shown}: has two metadata files of one version, {before} and {newest}: give the one that the table's "
            "catalogue names as CATALOG"
        )
    return newest


def _number(key: str) -> int:
    """The version in the name of a metadata file: `00012-….metadata.json`, `v12.metadata.json`."""
    digits = key.rpartition("/")[2].lstrip("v").partition("-")[0].partition(".")[0]
    return int(digits) if digits.isdecimal() else -1


def _missing(shown: str, kind: str, extra: str) -> str:
    return (
        f"{shown}: is {kind}; reading it needs the extra {extra!r}: pip install 'refadgen[{extra}]' (here: "
        f"uv pip install --constraint constraints.txt '.[{extra}]'); or write its current rows to a parquet file"
    )
