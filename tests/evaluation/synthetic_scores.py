"""Scores of many images, made up: for the report's tests and benchmark."""

import numpy as np
import pyarrow as pa

from refadgen.batch.rows import schema_of
from refadgen.evaluation.measures.table import MEASURES
from refadgen.evaluation.rows import ImageScores


def synthetic_scores(count: int, run: str, seed: int, *, scenes: int = 4, skipped: tuple[str, ...] = ()) -> pa.Table:
    """Rows of ImageScores of `count` images, `scenes` of each product. skipped: measures without values."""
    rng = np.random.default_rng(seed)
    products = np.arange(count) // scenes
    columns = {
        "score_id": [f"{seed:02x}{number:030x}" for number in range(count)],
        "run_id": ["r"] * count,
        "status": ["done"] * count,
        "reason": [""] * count,
        "detail": [""] * count,
        "run": [run] * count,
        "image_id": [f"{number:032x}" for number in range(count)],
        "sku": [f"sku-{number}" for number in products],
        "scene": [f"scene-{number % scenes}" for number in range(count)],
        "variant": [0] * count,
        "uri": ["images/00.png"] * count,
        "product_uri": ["products/00.webp"] * count,
        "features": [""] * count,
    }
    for measure in MEASURES:
        if measure.per_image and measure.name in schema_of(ImageScores).names and measure.name not in skipped:
            values = rng.beta(6, 2, count) + 0.01 * seed
            columns[measure.name] = np.where(rng.random(count) < 0.02, np.nan, values)
    schema = schema_of(ImageScores)
    arrays = [
        pa.array(columns[field.name], field.type, from_pandas=True)
        if field.name in columns
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
