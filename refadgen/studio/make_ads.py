"""Makes the sample of ad photographs for the dataset job: forty rows, good ads and the usual bad ones.

    python -m refadgen.studio.make_ads --output catalogs/ads.parquet

Thirty-six ads with masks, of all categories in turn. Two near-duplicates: one encoded again, one brighter. One that is
far too small. One without a mask, whose product only segmentation networks can find.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.storage.pictures import to_jpeg
from refadgen.studio.camera import sample_view
from refadgen.studio.render import Product, render_ad, sample_product
from refadgen.studio.scenes import sample_scene
from refadgen.triplets.schema import png_bytes

WIDTH_PX, HEIGHT_PX = 256, 320
NUM_ADS = 36
FIRST_SEED = 7_000_000  # far from the seeds that anything was trained on
COPIES = (4, 17)
"""Numbers of the ads that get a near-duplicate."""
SMALL_PX = (60, 75)

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("category", pa.string()),
        ("mask", pa.binary()),
    ]
)


def _products(count: int) -> list[tuple[int, Product]]:
    """Seeds and products; every category comes once before any comes again."""
    found: list[tuple[int, Product]] = []
    times: dict[str, int] = {}
    seed = FIRST_SEED
    while len(found) < count:
        product = sample_product(seed)
        if times.get(product.category, 0) <= len(found) // 30:
            times[product.category] = times.get(product.category, 0) + 1
            found.append((seed, product))
        seed += 1
    return found


def make_ads(path: Path, *, spp: int = 12, num_ads: int = NUM_ADS) -> Path:
    """Writes the parquet file and returns its path. num_ads: number of good ads; four more rows follow."""
    size = {"width_px": WIDTH_PX, "height_px": HEIGHT_PX, "spp": spp}
    rows: list[dict[str, Any]] = []
    pictures = []

    def add(rgb: np.ndarray, category: str, mask: np.ndarray | None, quality: int = 90) -> None:
        mask_png = None if mask is None else png_bytes(mask)
        image = to_jpeg(rgb, quality=quality)
        rows.append({"id": f"ad-{len(rows) + 1:03d}", "image": image, "category": category, "mask": mask_png})

    for seed, product in _products(num_ads + 2):
        rgb, mask = render_ad(product, sample_scene(seed, held_out=None), sample_view(seed), **size)
        pictures.append((rgb, product.category, mask))
    for picture in pictures[:num_ads]:
        add(*picture)
    first, second = (pictures[min(index, num_ads - 1)] for index in COPIES)
    add(first[0], first[1], first[2], quality=50)
    add(np.clip(second[0] * 1.06 + 3, 0, 255).astype(np.uint8), second[1], second[2])
    rgb, category, mask = pictures[num_ads]
    small = cv2.resize(rgb, SMALL_PX, interpolation=cv2.INTER_AREA)
    add(small, category, cv2.resize(mask, SMALL_PX, interpolation=cv2.INTER_NEAREST))
    rgb, category, _ = pictures[num_ads + 1]
    add(rgb, category, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("catalogs/ads.parquet"))
    parser.add_argument("--spp", type=int, default=12, help="samples per pixel")
    options = parser.parse_args(arguments)
    print(make_ads(options.output, spp=options.spp))


if __name__ == "__main__":
    main()
