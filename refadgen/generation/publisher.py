"""The last stage: encode, write, and only then the ledger row."""

import dataclasses
import hashlib
import io
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.batch.stage_rows import to_table
from refadgen.catalog.categories import last_element
from refadgen.config import GenerateConfig
from refadgen.generation import ledger
from refadgen.generation.encoding import EXTENSIONS, encode_ad, encode_product, generation_record
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage


def image_key(image_id: str, format: str) -> str:
    """Where an ad image lies in the output: `images/3f/3fa9….jpg`. A folder of millions of files serves nobody."""
    return f"images/{image_id[:2]}/{image_id}.{EXTENSIONS[format]}"


class AdPublisher:
    """Writes images and placed products, and makes the ledger rows.

    INPUT: GENERATE_SCHEMA. OUTPUT: ledger.SCHEMA, one row per row. A retried task writes the same bytes to the same
    places.
    """

    def __init__(self, config: GenerateConfig, output_uri: str, run_id: str, model: str) -> None:
        self._config = config
        self._storage = Storage(output_uri)
        self._run_id = run_id
        self._model = model
        self._masker = None
        self._last_product = ""
        if config.segmentation.grounding_dino is not None:
            from refadgen.segmentation import ProductMasker

            # On the CPU unless this stage has a GPU of its own: the segment stage's is another actor's.
            has_gpu = config.stages.publish.num_gpus > 0
            device = config.segmentation.device if has_gpu else "cpu"
            self._masker = ProductMasker(dataclasses.replace(config.segmentation, device=device), gpu_expected=has_gpu)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([self._row(row) for row in table.to_pylist()], ledger.SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        entry = {
            **row,
            "run_id": self._run_id,
            "status": "done",
            "reason": "",
            "detail": "",
            "uri": "",
            "product_uri": "",
            "image": redact_address(row["image"]) if row["image"] else "",
            "model": self._model,
        }
        try:
            entry |= self._publish(row)
        except Exception as error:  # storage raises many kinds; the image can be made and written again
            entry |= {
                "status": "failed",
                "reason": "publish_failed",
                "detail": f"{type(error).__name__}: {error}"[:300],
            }
        if row["error"]:
            entry |= json.loads(row["error"])
        return {**entry, "publish_s": time.monotonic() - started}

    def _publish(self, row: dict[str, Any]) -> dict[str, Any]:
        if not row["canvas"]:
            return {}
        canvas = np.asarray(Image.open(io.BytesIO(row["canvas"])))
        mask = np.asarray(Image.open(io.BytesIO(row["product_mask"])))
        height, width = mask.shape
        product = encode_product(canvas, mask)
        name = hashlib.sha256(product).hexdigest()[:32]
        published: dict[str, Any] = {
            "product_uri": f"products/{name[:2]}/{name}.webp",
            "width_px": width,
            "height_px": height,
        }
        if published["product_uri"] != self._last_product:  # a product's images come together
            self._storage.write(published["product_uri"], product)
            self._last_product = published["product_uri"]
        if row["ad"]:
            ad = np.asarray(Image.open(io.BytesIO(row["ad"])))
            published["uri"] = image_key(row["image_id"], self._config.output.format)
            published["mask_iou"] = self._mask_iou(ad, mask, row["category"])
            record = generation_record(row, self._config.sampling, self._model.rpartition("@")[2])
            self._storage.write(published["uri"], encode_ad(ad, record, self._config.output))
        return published

    def _mask_iou(self, ad: np.ndarray, mask: np.ndarray, category: str | None) -> float | None:
        """Overlap of M′ with the product that the segmentation networks find in the ad; None without networks."""
        if self._masker is None:
            return None
        found = self._masker.find(ad, last_element(category)) >= 128
        wanted = mask >= 128
        return float((found & wanted).sum() / max(1, (found | wanted).sum()))
