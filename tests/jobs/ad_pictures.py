"""Synthetic ad photographs: a striped product before a backdrop, and its mask. A number decides the picture."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CATEGORIES = ("Bottle", "Mug", "Sneaker", "Backpack")
SMALL = ("filter.min_side_px=64", "triplet.rows_per_file=4", "stages.augment.num_cpus=0.5")


def ad(number: int, width: int = 96, height: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture uint8 H×W×3 and its mask uint8 H×W. Numbers differ in shape, place, stripes and colours."""
    rng = np.random.default_rng(number)
    top, bottom = rng.integers(60, 240, (2, 3))
    share = np.linspace(0, 1, height)[:, None, None]
    picture = np.broadcast_to(top * (1 - share) + bottom * share, (height, width, 3)).astype(np.uint8).copy()
    for _ in range(6):  # objects in the scene, so that perceptual hashes differ
        x, y = int(rng.integers(width)), int(rng.integers(height))
        color = tuple(int(each) for each in rng.integers(0, 255, 3))
        cv2.circle(picture, (x, y), int(rng.integers(6, width // 3)), color, -1)
    mask = np.zeros((height, width), np.uint8)
    half, tall = int(width * rng.uniform(0.15, 0.25)), int(height * rng.uniform(0.3, 0.5))
    left, base = width // 2 - half, int(height * 0.85)
    if number % 2:
        cv2.rectangle(mask, (left, base - tall), (left + 2 * half, base), 255, -1)
    else:
        cv2.ellipse(mask, (width // 2, base - tall // 2), (half, tall // 2), 0, 0, 360, 255, -1)
    body, accent = rng.integers(0, 255, (2, 3))
    stripes = (np.arange(height) // 6 % 2 == number % 3 % 2)[:, None, None]
    product = np.broadcast_to(np.where(stripes, body, accent), (height, width, 3))
    picture[mask > 0] = product[mask > 0]
    return picture, mask


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def row(number: int, **others: Any) -> dict[str, Any]:
    picture, mask = ad(number)
    return {
        "id": f"ad-{number:03d}",
        "image": encoded(picture),
        "category": CATEGORIES[number % len(CATEGORIES)],
        "mask": encoded(mask),
        "captions": None,
        "group": None,
        **others,
    }


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("category", pa.string()),
        ("mask", pa.binary()),
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
    ]
)


def write(path: Path, rows: list[dict[str, Any]], row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=row_group_size)
    return path
