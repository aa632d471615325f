"""The stages that prepare a product, as Ray actors: fetch, segment and place. Rows in, rows out, one for one.

Between stages travel encoded bytes and small columns. A stage never raises for a row: what is wrong with it goes into
its `error` column, and later stages pass it on. A retried task repeats a stage's work on the same rows, without effect
outside.
"""

import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.batch.stage_rows import guarded, to_table
from refadgen.catalog.categories import last_element
from refadgen.catalog.fetch import ImageFetcher
from refadgen.catalog.images import decode_image, decode_mask, encode_png
from refadgen.catalog.layout import place
from refadgen.config import GenerateConfig, LayoutConfig
from refadgen.generation.planning import PLAN_SCHEMA

_DONE_WITH = ("image_bytes", "mask", "mask_bytes")
_THREADS = 16
"""Of one fetcher: enough to hide latency, and a bound on how many photographs are decoded at once."""
FETCH_SCHEMA = pa.schema(
    [
        *(item for item in PLAN_SCHEMA if item.name not in _DONE_WITH),
        ("photo", pa.binary()),  # PNG, RGB or RGBA, upright; empty after an error
        ("own_mask", pa.binary()),  # PNG, L, the photo's size; empty: none
        ("input_sha256", pa.string()),  # of the product image as fetched
        ("fetch_s", pa.float32()),
    ]
)
SEGMENT_SCHEMA = pa.schema(
    [
        *(item for item in FETCH_SCHEMA if item.name not in ("photo", "own_mask", "layout")),
        ("canvas", pa.binary()),  # PNG, RGB: the product placed on white; empty after an error
        ("product_mask", pa.binary()),  # PNG, L, 0 or 255: M′
        ("mask_source", pa.string()),
        ("mask_score", pa.float32()),
        ("mask_area", pa.float32()),
        ("segment_s", pa.float32()),
    ]
)


class ProductFetcher:
    """Fetches and decodes the product image, and the row's own mask where it has one.

    INPUT: PLAN_SCHEMA. OUTPUT: FETCH_SCHEMA, one row per row. Reads the network; needs no GPU and little CPU.
    """

    def __init__(self, config: GenerateConfig, catalog_uri: str) -> None:
        self._config = config.fetch
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(list(self._threads.map(self._row, table.to_pylist())), FETCH_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        fetched = {"photo": b"", "own_mask": b"", "input_sha256": ""}
        if not row["error"]:
            fetched |= guarded(self._fetch, row)
        return {**row, **fetched, "fetch_s": time.monotonic() - started}

    def _fetch(self, row: dict[str, Any]) -> dict[str, Any]:
        data = self._fetcher.fetch(row["image"] or row["image_bytes"])
        photo = decode_image(data, self._config)
        own_mask = b""
        if row["mask"] or row["mask_bytes"]:
            mask_data = self._fetcher.fetch(row["mask"] or row["mask_bytes"])
            own_mask = encode_png(decode_mask(mask_data, self._config, photo.size))
        return {
            "photo": encode_png(photo),
            "own_mask": own_mask,
            "input_sha256": hashlib.sha256(data).hexdigest(),
        }


class ProductSegmenter:
    """Finds the product's mask and places product and mask on the canvas.

    INPUT: FETCH_SCHEMA. OUTPUT: SEGMENT_SCHEMA, one row per row. A GPU only for Grounding DINO and SAM2.
    """

    def __init__(self, config: GenerateConfig) -> None:
        import cv2

        from refadgen.segmentation import ProductMasker

        cv2.setNumThreads(1)
        width_px, height_px = config.sampling.width_px, config.sampling.height_px
        assert width_px is not None  # the job fills in the model's own size
        assert height_px is not None
        self._size = (width_px, height_px)
        self._masker = ProductMasker(config.segmentation, gpu_expected=config.stages.segment.num_gpus > 0)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([self._row(row) for row in table.to_pylist()], SEGMENT_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        found: dict[str, Any] = {"canvas": b"", "product_mask": b"", "mask_source": ""}
        if not row["error"]:
            found |= guarded(self._segment, row)
        return {**row, **found, "segment_s": time.monotonic() - started}

    def _segment(self, row: dict[str, Any]) -> dict[str, Any]:
        photo = Image.open(io.BytesIO(row["photo"]))
        own_mask = np.asarray(Image.open(io.BytesIO(row["own_mask"]))) if row["own_mask"] else None
        found = self._masker.segment(photo, last_element(row["category"]), own_mask)
        placed = place(photo, found.alpha, LayoutConfig(**json.loads(row["layout"])), *self._size)
        return {
            "canvas": encode_png(placed.canvas),
            "product_mask": encode_png(placed.mask),
            "mask_source": found.source,
            "mask_score": found.score,
            "mask_area": found.measurements.area,
        }
