"""From input rows to planned ads: their ids, and which of them a pass over the input takes up."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from refadgen.batch.ledger import is_reconciled, short_key
from refadgen.batch.stage_rows import error_json, to_table
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import Fragment, parsed_rows, unusable_row_id
from refadgen.errors import RowError
from refadgen.storage.addresses import image_identity

Keys = npt.NDArray[np.uint64]

PLAN_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("row", pa.int64()),
        ("ad_id", pa.string()),
        ("group", pa.string()),
        ("category", pa.string()),  # null: none
        ("title", pa.string()),
        ("own_captions", pa.list_(pa.string())),
        ("image", pa.string()),  # address; empty: in image_bytes
        ("image_bytes", pa.binary()),
        ("mask", pa.string()),  # address; empty: in mask_bytes, or none
        ("mask_bytes", pa.binary()),
        ("error", pa.string()),  # JSON of a RowError; empty: none
    ]
)


@dataclass(frozen=True, kw_only=True)
class AdPlanner:
    """What planning needs besides the fragment; travels to the tasks."""

    first_rows: Mapping[str, int]

    def rows(self, fragment: Fragment) -> Iterator[dict[str, Any]]:
        """The plan (PLAN_SCHEMA) of each row of the input."""
        for row_number, values, row in parsed_rows(fragment, self.first_rows, DATASET_COLUMNS):
            if isinstance(row, RowError):
                yield _unusable(row_number, values, row)
            else:
                yield _plan(row)

    def of_rows(self, fragments: Iterable[Fragment], rows: Collection[int]) -> dict[int, dict[str, Any]]:
        """The plans of a few rows of the input by row; reads only the fragments that they lie in."""
        plans = {}
        for fragment in fragments:
            inside = {row for row in rows if fragment.first_row <= row < fragment.first_row + fragment.num_rows}
            if inside:
                plans |= {plan["row"]: plan for plan in self.rows(fragment) if plan["row"] in inside}
        return plans


def _plan(row: CatalogRow) -> dict[str, Any]:
    said = {
        "ad_id": row.sku,
        "group": row.group or row.sku,
        "category": row.category,
        "title": row.title,
        "own_captions": list(row.captions),
    }
    identity = {
        **said,
        "image": image_identity(row.image),
        "mask": None if row.mask is None else image_identity(row.mask),
    }
    return {
        **said,
        "row_id": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32],
        "row": row.row,
        "image": row.image if isinstance(row.image, str) else "",
        "image_bytes": row.image if isinstance(row.image, bytes) else b"",
        "mask": row.mask if isinstance(row.mask, str) else "",
        "mask_bytes": row.mask if isinstance(row.mask, bytes) else b"",
        "error": "",
    }


def _unusable(row_number: int, values: Mapping[str, Any], error: RowError) -> dict[str, Any]:
    ad_id = values.get("sku")
    return {
        "row_id": unusable_row_id(row_number, values),
        "row": row_number,
        "ad_id": "" if ad_id is None else str(ad_id)[:256],
        "error": error_json(error),
        **{name: "" for name in ("group", "image", "mask")},
        **{name: b"" for name in ("image_bytes", "mask_bytes")},
        "own_captions": [],
    }


def plan_fragments(table: pa.Table, *, planner: Any, keys: Any, are_open: bool) -> Iterator[pa.Table]:
    """INPUT: fields of Fragment. OUTPUT: PLAN_SCHEMA. A Ray task.

    keys: sorted short keys of row ids. are_open: whether just these rows are taken up, or all but these.
    """
    plans, known = ray.get([planner, keys])
    for fragment in table.to_pylist():
        pending: list[dict[str, Any]] = []
        for plan in plans.rows(Fragment(**fragment)):
            if is_reconciled(plan["row_id"], known) == are_open:
                pending.append(plan)
            if len(pending) >= 64:
                yield to_table(pending, PLAN_SCHEMA)
                pending = []
        yield to_table(pending, PLAN_SCHEMA)


def row_keys(table: pa.Table, *, planner: Any) -> pa.Table:
    """INPUT: fields of Fragment. OUTPUT: `keys`, the short keys of its row ids as bytes. A Ray task."""
    plans = ray.get(planner)
    of_each = [
        np.fromiter((short_key(plan["row_id"]) for plan in plans.rows(Fragment(**fragment))), np.uint64).tobytes()
        for fragment in table.to_pylist()
    ]
    return pa.table({"keys": pa.array(of_each, pa.large_binary())})


def fragments_as_items(fragments: tuple[Fragment, ...]) -> list[dict[str, Any]]:
    """Fragments as rows of a Dataset."""
    return [dataclasses.asdict(fragment) for fragment in fragments]
