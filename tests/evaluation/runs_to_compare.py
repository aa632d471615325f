"""Output folders as the main job writes them, with planted images: runs for an evaluation."""

import dataclasses
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure_cases import product
from PIL import Image

from refadgen.batch.rows import to_table
from refadgen.generation.encoding import encode_product
from refadgen.generation.ledger import SCHEMA, AdLedger, AdLedgerRow
from refadgen.storage.store import Storage


def ledger_row(number: int, **values: Any) -> AdLedgerRow:
    row = AdLedgerRow(
        **{
            **dict.fromkeys(SCHEMA.names),
            "image_id": f"{number:032x}",
            "run_id": "r",
            "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
            "row": number,
            "sku": f"sku-{number // 2}",
            "scene": f"scene-{number % 2}",
            "variant": 0,
            "status": "done",
            "reason": "",
            "detail": "",
            "attempts": 1,
            "uri": f"images/{number:02}.png",
            "product_uri": f"products/{number // 2:02}.webp",
            "image": "",
            "input_sha256": "",
            "prompt": "a bottle on a table",
            "negative_prompt": "",
            "seed": number,
            "width_px": 64,
            "height_px": 80,
            "mask_source": "alpha",
            "color_similarity": 0.5 + number / 100,
            "structure_similarity": 0.25,
            "fetch_s": 0.0,
            "segment_s": 0.0,
            "publish_s": 0.0,
            "model": "m",
        }
    )
    return dataclasses.replace(row, **values)


def small(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Another product for each number, 64×80 px."""
    canvas, mask = product(hue=40 * number)
    return cv2.resize(canvas, (64, 80), interpolation=cv2.INTER_AREA), cv2.resize(mask, (64, 80)) // 128 * 255


def make_run(folder: Path, count: int = 6, *, rows: list[AdLedgerRow] | None = None, shade: float = 1.0) -> Path:
    """A run of `count` images of half as many products, whose ads are the products in a grey scene."""
    storage = Storage(str(folder))
    for number in range(count):
        canvas, mask = small(number // 2)
        ad = np.where(mask[..., None] > 0, canvas * shade, 128).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(ad).save(sink, "PNG")
        storage.write(f"images/{number:02}.png", sink.getvalue())
        storage.write(f"products/{number // 2:02}.webp", encode_product(canvas, mask, (64, 80)))
    AdLedger(storage).append(to_table(rows or [ledger_row(number) for number in range(count)], AdLedgerRow))
    return folder
