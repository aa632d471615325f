"""From catalogue files to planned rows: which images each row wants, and which of them the ledger has settled.

`scan_catalog` looks at footers and skus once, on the driver: schema errors stop the job there, and the first row of
each sku is known, however the stream falls. A `Planner` then works in Ray tasks, one per fragment (a row group).
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from refadgen.catalog.addresses import redact_address
from refadgen.catalog.layout import merged_layout
from refadgen.catalog.rows import CatalogRow, parse_row, resolve_columns
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig
from refadgen.errors import RowError
from refadgen.generation.ledger import SCHEMA as LEDGER_SCHEMA
from refadgen.generation.ledger import is_settled
from refadgen.generation.wanted import PixelSettings, WantedImage, unusable_row_id, wanted_images
from refadgen.storage import Storage, split_uri

_READ_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A row group of one catalogue file, or the first `num_rows` of it."""

    uri: str
    row_group: int
    first_row: int
    """Number of its first row in the catalogue."""
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class CatalogScan:
    """What is known of a catalogue before a row of it is read whole."""

    fragments: tuple[Fragment, ...]
    num_rows: int
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """Skus that occur more than once, with the row that keeps each."""


def scan_catalog(uri: str, limit: int | None = None) -> CatalogScan:
    """Looks at all files of a catalogue: a parquet file, or a folder of them, taken in the order of their names.

    limit: only the first rows. Raises: ValueError naming the file and what is wrong with it.
    """
    fragments, first_row = [], 0
    for file in _files(uri):
        parquet = _open(file)
        if set(parquet.schema_arrow.names) >= set(LEDGER_SCHEMA.names):
            continue  # an output folder inside of the catalogue's
        try:
            resolve_columns(parquet.schema_arrow)
        except ValueError as error:
            raise ValueError(f"{redact_address(file)}: {error}") from error
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if limit is not None:
                num_rows = min(num_rows, limit - first_row)
            if num_rows > 0:
                fragments.append(Fragment(uri=file, row_group=group, first_row=first_row, num_rows=num_rows))
                first_row += num_rows
    return CatalogScan(fragments=tuple(fragments), num_rows=first_row, first_rows=_repeated_skus(fragments))


def _files(uri: str) -> list[str]:
    try:
        storage = Storage(uri)
        if storage.is_folder():
            files = [storage.uri_of(key) for key in storage.keys(suffix=".parquet")]
            if not files:
                raise ValueError(f"{redact_address(uri)}: the folder holds no .parquet file")
            return files
        if not storage.exists():
            raise ValueError(f"{redact_address(uri)}: there is no such catalogue")
    except ValueError:
        raise
    except Exception as error:  # s3fs and botocore raise many kinds
        raise ValueError(
            f"{redact_address(uri)}: the catalogue cannot be reached ({type(error).__name__}: {error})"
        ) from error
    return [storage.uri]


def _open(uri: str) -> pq.ParquetFile:
    storage, name = split_uri(uri)
    try:
        return pq.ParquetFile(storage.arrow().open_input_file(storage.path(name)))
    except Exception as error:  # Arrow's, the operating system's, s3fs's and botocore's
        raise ValueError(f"{redact_address(uri)}: not a readable parquet file ({error})") from error


def _repeated_skus(fragments: list[Fragment]) -> dict[str, int]:
    """The first row of each sku that occurs in several; eight bytes a row, whatever the skus' lengths."""
    keys = np.fromiter((_key(sku) for _, sku in _skus(fragments)), dtype=np.uint64)
    unique, counts = np.unique(keys, return_counts=True)
    repeated = set(unique[(counts > 1) & (unique != 0)].tolist())
    first_rows: dict[str, int] = {}
    for row, sku in _skus(fragments) if repeated else []:
        if _key(sku) in repeated:
            first_rows.setdefault(sku, row)
    return first_rows


def _key(sku: str) -> int:
    """64 bits of a sku's hash; 0 for none."""
    return int.from_bytes(hashlib.blake2b(sku.encode(errors="surrogatepass"), digest_size=8).digest()) if sku else 0


def _skus(fragments: list[Fragment]) -> Iterator[tuple[int, str]]:
    for uri, group in groupby(fragments, key=lambda fragment: fragment.uri):
        parquet = _open(uri)  # once: a footer is as long as its file has row groups
        for fragment in group:
            for row, values in _values(fragment, parquet, only_sku=True):
                sku = values["sku"]
                yield row, "" if sku is None or not str(sku).strip() else str(sku)


def _values(
    fragment: Fragment, parquet: pq.ParquetFile | None = None, *, only_sku: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row numbers and values by our column names, in bounded memory. parquet: the fragment's file, if it is open.

    Raises: ValueError naming the file where it is damaged.
    """
    parquet = parquet or _open(fragment.uri)
    columns = resolve_columns(parquet.schema_arrow)
    if only_sku:
        columns = {"sku": columns["sku"]}
    batches = parquet.iter_batches(
        batch_size=8192 if only_sku else _READ_ROWS, row_groups=[fragment.row_group], columns=list(columns.values())
    )
    row = 0
    try:
        for batch in batches:
            for values in _rows_of(batch):
                if row >= fragment.num_rows:
                    return
                yield fragment.first_row + row, {ours: values[theirs] for ours, theirs in columns.items()}
                row += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{redact_address(fragment.uri)}: damaged in row group {fragment.row_group} ({error})"
        ) from error


class BadText(str):
    """What can be read of a text that is not UTF-8. Arrow does not look at the texts of a parquet file."""


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = [[_value(item) for item in column] for column in batch.columns]
        rows = [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        plain = pa.types.is_string(item.type) or pa.types.is_large_string(item.type)
        return BadText(item.as_buffer().to_pybytes().decode(errors="replace") if plain else "")


PLAN_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("sku", pa.string()),
        ("category", pa.string()),  # null: none
        ("image", pa.string()),  # address; empty: in image_bytes
        ("image_bytes", pa.binary()),
        ("mask", pa.string()),  # address; empty: in mask_bytes, or none
        ("mask_bytes", pa.binary()),
        ("negative_prompt", pa.string()),  # null: the model's
        ("layout", pa.string()),  # JSON of LayoutConfig, the row's placement merged in
        ("wanted", pa.string()),  # JSON list of WantedImage, settled ones left out
        ("error", pa.string()),  # JSON of a RowError; empty: none
    ]
)
"""One product with its wanted images."""


_scenes = functools.lru_cache(maxsize=1)(load_scenes)  # once in a worker, which lives as long as its job


@dataclass(frozen=True, kw_only=True)
class Planner:
    """What planning needs besides the fragment; travels to the tasks."""

    config: GenerateConfig
    settings: PixelSettings
    first_rows: Mapping[str, int]

    def rows(self, fragment: Fragment, settled: npt.NDArray[np.uint64]) -> Iterator[tuple[dict[str, Any] | None, int]]:
        """Per catalogue row: its plan (PLAN_SCHEMA), None where all is settled, and how many images are settled."""
        scenes = _scenes(self.config.catalog.scenes_file)
        for row_number, values in _values(fragment):
            try:
                _require_text(row_number, values)
                row = parse_row(row_number, values)
                first = self.first_rows.get(row.sku, row_number)
                if first != row_number:
                    raise RowError(
                        "rejected", "duplicate_sku", f"row {row_number}: sku is that of row {first}, which keeps it"
                    )
                wanted = wanted_images(row, scenes, self.config, self.settings)
                plan = self._plan(row)
            except RowError as error:
                image_id = unusable_row_id(row_number, values)
                wanted = (WantedImage(image_id=image_id, scene="", variant=0, prompt="", seed=0),)
                plan = _unusable(row_number, values, error)
            open_images = [asdict(image) for image in wanted if not is_settled(image.image_id, settled)]
            num_settled = len(wanted) - len(open_images)
            yield {**plan, "wanted": json.dumps(open_images)} if open_images else None, num_settled

    def _plan(self, row: CatalogRow) -> dict[str, Any]:
        return {
            "row": row.row,
            "sku": row.sku,
            "category": row.category,
            "image": row.image if isinstance(row.image, str) else "",
            "image_bytes": row.image if isinstance(row.image, bytes) else b"",
            "mask": row.mask if isinstance(row.mask, str) else "",
            "mask_bytes": row.mask if isinstance(row.mask, bytes) else b"",
            "negative_prompt": row.negative_prompt,
            "layout": json.dumps(asdict(merged_layout(self.config.layout, row.placement))),
            "error": "",
        }


def _require_text(row_number: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, BadText):
            raise RowError("rejected", "bad_text", f"row {row_number}: {name}: is not UTF-8 text; write it as UTF-8")


def _unusable(row_number: int, values: Mapping[str, Any], error: RowError) -> dict[str, Any]:
    sku = values.get("sku")
    return {
        "row": row_number,
        "sku": "" if sku is None else str(sku)[:256],
        "category": None,
        "image": "",
        "image_bytes": b"",
        "mask": "",
        "mask_bytes": b"",
        "negative_prompt": None,
        "layout": "",
        "error": error_json(error),
    }


def to_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of just the schema's columns; absent ones are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def error_json(error: RowError) -> str:
    """A RowError as it travels in a column."""
    return json.dumps({"status": error.status, "reason": error.reason, "detail": error.detail})


def _fragments_of(table: pa.Table) -> list[Fragment]:
    return [Fragment(**row) for row in table.to_pylist()]


def plan_fragments(table: pa.Table, *, planner: Any, settled: Any) -> Iterator[pa.Table]:
    """INPUT: fields of Fragment. OUTPUT: PLAN_SCHEMA, the rows that have images to make. A Ray task."""
    plans, keys = ray.get([planner, settled])
    for fragment in _fragments_of(table):
        pending: list[dict[str, Any]] = []
        for plan, _ in plans.rows(fragment, keys):
            if plan is not None:
                pending.append(plan)
            if len(pending) >= 64:
                yield to_table(pending, PLAN_SCHEMA)
                pending = []
        yield to_table(pending, PLAN_SCHEMA)


def count_fragments(table: pa.Table, *, planner: Any, settled: Any) -> pa.Table:
    """INPUT: fields of Fragment. OUTPUT: `wanted` and `skipped` images, one row per fragment. A Ray task."""
    plans, keys = ray.get([planner, settled])
    counts = []
    for fragment in _fragments_of(table):
        wanted = skipped = 0
        for plan, num_settled in plans.rows(fragment, keys):
            skipped += num_settled
            wanted += num_settled + (0 if plan is None else len(json.loads(plan["wanted"])))
        counts.append({"wanted": wanted, "skipped": skipped})
    return pa.Table.from_pylist(counts, schema=pa.schema([("wanted", pa.int64()), ("skipped", pa.int64())]))
