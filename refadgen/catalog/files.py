"""The files of a catalogue's folder: which are read, which are left out and why, and what their folders' names say.

Tables of a lakehouse are refused: beside their current rows, their folders hold those that were removed or replaced.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote

from refadgen.storage.addresses import redact_address
from refadgen.storage.store import STORE_ERRORS, Storage

HIDDEN = "name begins with _ or ."
NO_PARQUET = "no parquet"
OWN_OUTPUT = "ledger of a job"

_SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = b"PAR1"
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MOST_PROBED = 10_000
"""Files without a suffix that are looked into: a folder of photographs may hold a million of them."""
_MOST_NAMED = 5

_TABLE_FILES = (
    ("a Delta table", "delta_scan", re.compile(r"(?:^|/)_delta_log/")),
    ("an Iceberg table", "iceberg_scan", re.compile(r"(?:^|/)metadata/[^/]+\.metadata\.json(?:\.gz)?$")),
    ("a Hudi table", "", re.compile(r"(?:^|/)\.hoodie/")),
    ("a Paimon table", "", re.compile(r"(?:^|/)snapshot/snapshot-\d+$")),
    ("a DuckLake table", "", re.compile(r"(?:^|/)ducklake-[0-9a-f]{8}-[0-9a-f-]{27}(?:-delete)?\.parquet$")),
)
_DATE = re.compile(r"(?<![0-9A-Za-z])20\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?![0-9A-Za-z])")
_PART_OF_DATE = re.compile(
    r"(?:^|/)((?:dt|ds|date|day|week|month|year|hour|snapshot|version)=[^/]*)(?=/)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A parquet file that stands for a feed (`feeds/staging.py`). shown: the feed's address for people.

    columns: those that hold anything, all of them texts; None: columns keep the types of the table they come from.
    """

    shown: str
    columns: frozenset[str] | None


@dataclass(frozen=True, kw_only=True)
class CatalogFile:
    """One parquet file of a catalogue.

    partitions: columns that its folders' names give (`category=Bottle/`), each with its text or None. day: the dates in
    its path; two files that differ in it may be snapshots of the same catalogue.
    """

    uri: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    day: str = ""
    staged: Staged | None = None


@dataclass(frozen=True, kw_only=True)
class CatalogFiles:
    """The files of a catalogue in the order of their names; left_out: keys of all others, by why they are not read."""

    files: tuple[CatalogFile, ...]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def catalog_files(uri: str) -> CatalogFiles:
    """Lists a parquet file, or a folder of them: `.parquet`, `.parq`, `.pq`; files without a suffix by their content.

    Names that begin with `_` or `.` are left out, as Spark, DuckDB and others do.
    Raises: ValueError naming the catalogue where it is missing, empty, or a table of a lakehouse.
    """
    shown = redact_address(uri)
    storage = Storage(uri)
    kind = storage.root_kind(f"{shown}: the catalogue")
    if kind is None:
        raise ValueError(f"{shown}: there is no such catalogue")
    _refuse_part_of_table(storage, shown, is_file=kind == "file")
    if kind == "file":
        return CatalogFiles(files=(CatalogFile(uri=storage.uri),))
    found, left_out = parquet_keys(storage)
    if not found:
        not_read = "".join(f"; {line}" for line in left_out_lines(left_out))
        raise ValueError(f"{shown}: the folder holds no .parquet file{not_read}")
    files = tuple(CatalogFile(uri=storage.uri_of(key), partitions=_partitions(key), day=_day(key)) for key in found)
    return CatalogFiles(files=files, left_out=left_out)


def parquet_keys(storage: Storage) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The keys of a folder's parquet files, sorted, and all other keys by why they are left out.

    Raises: ValueError naming a table of a lakehouse.
    """
    keys = list(storage.keys())
    for key in keys:
        _refuse_table(key, storage.uri, redact_address(storage.uri))
    visible = [key for key in keys if not is_hidden(key)]
    bare = [key for key in visible if not PurePosixPath(key).suffix][:_MOST_PROBED]
    by_content = {key for key, head in zip(bare, storage.heads(bare, len(_MAGIC)), strict=True) if head == _MAGIC}
    found = [key for key in visible if key.lower().endswith(_SUFFIXES) or key in by_content]
    return found, left_out(keys, found, NO_PARQUET)


def left_out(keys: Iterable[str], read: Iterable[str], reason: str) -> dict[str, tuple[str, ...]]:
    """The keys that are not read: those that are hidden, and all others for `reason`."""
    others = sorted(set(keys).difference(read))
    by_reason = {
        HIDDEN: tuple(key for key in others if is_hidden(key)),
        reason: tuple(key for key in others if not is_hidden(key)),
    }
    return {why: names for why, names in by_reason.items() if names}


def left_out_lines(left_out: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Files that are not read, counted and named, a line for each reason."""
    lines = []
    for reason, keys in left_out.items():
        more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
        named = ", ".join(redact_address(key) for key in keys[:_MOST_NAMED])
        lines.append(f"not read ({reason}): {len(keys)}: {named}{more}")
    return lines


def is_hidden(key: str) -> bool:
    """Whether a key's name, or that of one of its folders, begins with `_` or `.`."""
    # A partition may have a column whose name begins with an underscore.
    return any(name.startswith(".") or (name.startswith("_") and "=" not in name) for name in PurePosixPath(key).parts)


def _partitions(key: str) -> tuple[tuple[str, str | None], ...]:
    """The columns in a key's folders, as Hive, Spark, DuckDB and polars write them: `name=value`, percent-encoded."""
    pairs = [name.partition("=") for name in PurePosixPath(key).parts[:-1] if not name.startswith("=") and "=" in name]
    return tuple(
        (unquote(name), None if value in ("", _NULL_PARTITION) else unquote(value)) for name, _, value in pairs
    )


def _day(key: str) -> str:
    """The dates in a key, and partitions that are parts of one; empty: there are none."""
    return " ".join([*_PART_OF_DATE.findall(key), *(found[0] for found in _DATE.finditer(key))])


def _refuse_table(key: str, table: str, shown: str) -> None:
    """Raises: ValueError if `key` is a file of a lakehouse's own. table: the address of the folder that `key` is in."""
    for name, scan, pattern in _TABLE_FILES:
        if match := pattern.search(key):
            place = "/".join(filter(None, (table.rstrip("/"), key[: match.start()])))
            remedy = f", as in DuckDB: COPY (FROM {scan}('{place}')) TO 'catalog.parquet'" if scan else ""
            raise ValueError(
                f"{shown}: {place} is {name}, whose folder also holds removed and replaced rows: write its current "
                f"rows to a parquet file, and give that{remedy}"
            )


def _refuse_part_of_table(storage: Storage, shown: str, is_file: bool) -> None:
    """Raises: ValueError if the catalogue is a file, or a folder of partitions, of a table of a lakehouse."""
    place, name = storage.uri.rpartition("/")[::2]
    if is_file:
        _refuse_table(name, place, shown)
    climbs = is_file
    while (climbs or "=" in name or name == "data") and place and not place.endswith(("/", ":")):
        above = Storage(place)
        # Only a hint: who may read the catalogue may not be allowed to list what lies around it.
        with contextlib.suppress(*STORE_ERRORS):
            marks = [f"{folder}/" for folder in ("_delta_log", ".hoodie") if above.exists(folder)]
            for key in [*marks, *above.names("metadata")]:
                _refuse_table(key, place, shown)
        place, name = place.rpartition("/")[::2]
        climbs = False
