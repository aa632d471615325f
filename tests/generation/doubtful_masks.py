"""Doubtful masks for the tests of the review: products as the segmenter leaves them, and what a page decides."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.generation.decisions import FORMAT, VERSION
from refadgen.generation.doubtful import bounded_size, doubtful_product, write_doubtful
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage

CATALOG = "/shop/products.parquet"


def photograph(size: tuple[int, int] = (60, 80)) -> tuple[Image.Image, np.ndarray]:
    """A red box on white, and its mask, uint8 HW."""
    width, height = size
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    photo, mask = Image.new("RGB", size, "white"), Image.new("L", size)
    photo.paste((200, 30, 30), box)
    mask.paste(255, box)
    return photo, np.asarray(mask)


def keep(storage: Storage, sku: str, *, score: float | None = 0.4, size: tuple[int, int] = (60, 80)) -> None:
    """What the stage keeps of a product. score None: no mask was proposed."""
    photo, mask = photograph(size)
    found = None
    if score is not None:
        found = DoubtfulMask("mask_low_score", "", alpha=mask, source="plain_background", score=score)
    product = doubtful_product(
        found,
        photo,
        sku=sku,
        row=1,
        category="Cups",
        image="https://ann:secret@shop.example/a.jpg?X-Amz-Signature=1",
        input_sha256="a" * 64,
        reason="mask_low_score",
        detail="the mask's score is low",
    )
    write_doubtful(storage, product)


def ledger_row(number: int, sku: str, **values: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(SCHEMA.names),
        "image_id": f"{number:016x}{0:016x}",  # the first half is the short key
        "run_id": "r1",
        "recorded_at": datetime(2026, 3, 1, 0, 0, number, tzinfo=UTC),
        "row": number,
        "sku": sku,
        "scene": "marble",
        "variant": 0,
        "status": "rejected",
        "reason": "mask_low_score",
        "detail": "",
        "attempts": 0,
        "uri": "",
        "product_uri": "",
        "image": "",
        "input_sha256": "",
        "prompt": "",
        "negative_prompt": "",
        "seed": 1,
        "mask_source": "plain_background",
        "mask_score": 0.4,
        "fetch_s": 0.0,
        "segment_s": 0.0,
        "publish_s": 0.0,
        "model": "m",
        "decision": "",
        **values,
    }


def ledger_of(storage: Storage, rows: Sequence[dict[str, Any]]) -> AdLedger:
    ledger = AdLedger(storage)
    ledger.append(pa.Table.from_pylist(list(rows), schema=SCHEMA))
    return ledger


def entry(sku: str, decision: str = "accept", *, size: tuple[int, int] = (60, 80), **values: Any) -> dict[str, Any]:
    """One decision as the page writes it."""
    mask = photograph(bounded_size(size))[1]
    found = {
        "sku": sku,
        "decision": decision,
        "input_sha256": "a" * 64,
        "photo_width_px": size[0],
        "photo_height_px": size[1],
        "by": "Ann",
        "at": "2026-03-02T10:00:00.000Z",
    }
    if decision != "refuse":
        found |= {"mask_width_px": mask.shape[1], "mask_height_px": mask.shape[0]}
        found |= {"mask_png": base64.b64encode(to_png(mask, compress_level=1)).decode()}
    return found | values


def document(*entries: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "catalog": CATALOG, "decisions": list(entries)} | values
