"""Triplets from parquet shards into memory: product image, product mask, ad image, captions (see `refadgen.studio`)."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True)
class TripletArrays:
    """Triplets of one split, decoded: n rows, all of one size."""

    product_images: np.ndarray
    """uint8 n×H×W×3, on white, in place."""
    product_masks: np.ndarray
    """uint8 n×H×W, 0 or 255."""
    ad_images: np.ndarray
    """uint8 n×H×W×3."""
    captions: list[list[str]]
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.seeds)


def read_triplets(path: str | Path, split: str) -> TripletArrays:
    """All triplets of `split` ('train' or 'test') in one shard or a folder of shards, in the order of their seeds.

    Raises: ValueError when there is none.
    """
    columns = ["seed", "split", "caption", "product_image", "product_mask", "ad_image"]
    rows = []
    path = Path(path)
    for file in sorted(path.glob("triplets-*.parquet")) if path.is_dir() else [path]:
        rows += [row for row in pq.read_table(file, columns=columns).to_pylist() if row["split"] == split]
    if not rows:
        raise ValueError(f"{path}: no triplets of split {split!r} in triplets-*.parquet")
    rows.sort(key=lambda row: row["seed"])

    def stacked(column: str) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(row[column]))) for row in rows])

    return TripletArrays(
        product_images=stacked("product_image"),
        product_masks=stacked("product_mask"),
        ad_images=stacked("ad_image"),
        captions=[row["caption"] for row in rows],
        seeds=[row["seed"] for row in rows],
    )
