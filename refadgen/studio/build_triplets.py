"""Renders training triplets into parquet shards; the same command again makes only what is missing.

    python -m refadgen.studio.build_triplets --output triplets --num 2000 --first-seed 0 --dressings 12

One shard holds `--shard-seeds` consecutive seeds and is written under a hidden name, then renamed: a shard that can be
seen is whole. Rendering uses one thread, so run one process per core over disjoint ranges of seeds.
"""

import argparse
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    from refadgen.studio.render import Triplet

SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("product_id", pa.string()),
        ("category", pa.string()),
        ("split", pa.string()),
        ("surface", pa.string()),
        ("wall", pa.string()),
        ("light", pa.string()),
        ("caption", pa.list_(pa.string())),
        ("product_image", pa.binary()),
        ("product_mask", pa.binary()),
        ("ad_image", pa.binary()),
    ]
)
"""Pictures are PNG bytes: photograph and ad RGB, mask 8-bit grey with 0 and 255."""


def png_bytes(pixels: np.ndarray) -> bytes:
    """A picture uint8 [H, W] or [H, W, C] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()


def render_rows(seed: int, dressings: int, **render_options: int) -> list[dict]:
    """The rows of SCHEMA that one seed gives: one render as it is, or `dressings` products in its light.

    `render_options`: width_px, height_px, spp as `render_triplet` takes them.
    """
    from refadgen.studio.dressing import render_dressed
    from refadgen.studio.render import render_triplet

    if dressings:
        return [_row(triplet) for triplet in render_dressed(seed, dressings, **render_options)]
    return [_row(render_triplet(seed, **render_options))]


def _row(triplet: "Triplet") -> dict:
    return {
        "seed": triplet.seed,
        "product_id": triplet.product_id,
        "category": triplet.category,
        "split": triplet.split,
        "surface": triplet.scene.surface,
        "wall": triplet.scene.wall,
        "light": triplet.scene.light,
        "caption": triplet.captions,
        "product_image": png_bytes(triplet.product_image),
        "product_mask": png_bytes(triplet.product_mask),
        "ad_image": png_bytes(triplet.ad_image),
    }


def shard_seeds(first_seed: int, num: int, shard_seeds: int) -> list[range]:
    """The seeds of each shard; the last one may be shorter."""
    end = first_seed + num
    return [range(start, min(start + shard_seeds, end)) for start in range(first_seed, end, shard_seeds)]


def write_shard(output: Path, seeds: range, dressings: int, **render_options: int) -> bool:
    """Renders one shard unless it is there. Returns: whether it rendered."""
    path = output / f"triplets-{seeds.start:07d}-{seeds.stop - 1:07d}.parquet"
    if path.exists():
        return False
    rows = [row for seed in seeds for row in render_rows(seed, dressings, **render_options)]
    hidden = output / f".{path.name}.{os.getpid()}"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), hidden, compression="zstd")
    os.replace(hidden, path)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--num", type=int, default=2000, help="seeds to render")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--dressings", type=int, default=0, help="products a seed; 0: the seed's own, fully traced")
    parser.add_argument("--shard-seeds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="Mitsuba's threads")
    parser.add_argument("--width-px", type=int, default=128)
    parser.add_argument("--height-px", type=int, default=160)
    parser.add_argument("--spp", type=int, default=6, help="samples per pixel")
    options = parser.parse_args(arguments)

    import drjit

    drjit.set_thread_count(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seeds in shard_seeds(options.first_seed, options.num, options.shard_seeds):
        start = time.monotonic()
        made = write_shard(
            options.output,
            seeds,
            options.dressings,
            width_px=options.width_px,
            height_px=options.height_px,
            spp=options.spp,
        )
        pace = f"{(time.monotonic() - start) / len(seeds):.2f} s per seed" if made else "already there"
        print(f"seeds {seeds.start}-{seeds.stop - 1}: {pace}", flush=True)


if __name__ == "__main__":
    main()
