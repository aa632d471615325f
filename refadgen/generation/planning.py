"""From catalogue rows to planned rows: which images each row wants, and which of them the ledger has settled.

A `Planner` works in Ray tasks, one per fragment of the catalogue (a row group).
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from refadgen.batch.ledger import is_settled
from refadgen.batch.stage_rows import error_json, to_table
from refadgen.catalog.layout import merged_layout
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import Fragment, parsed_rows, unusable_row_id
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig
from refadgen.errors import RowError
from refadgen.generation.wanted import PixelSettings, WantedImage, wanted_images

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
        for row_number, values, row in parsed_rows(fragment, self.first_rows):
            try:
                if isinstance(row, RowError):
                    raise row
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
