"""Renders training triplets into parquet shards; the same command again makes only what is missing.

    python -m refadgen.studio.build_triplets --output triplets --num 6000 --first-seed 0 --threads 1

One shard holds `--shard-rows` consecutive seeds and is written under a hidden name, then renamed: a shard that can be
seen is whole. Rendering uses one thread, so run one process per core over disjoint ranges of seeds.
"""

import argparse
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def render_row(seed: int, **render_options: int) -> dict:
    """One row of SCHEMA. `render_options`: width_px, height_px, spp as `render_triplet` takes them."""
    from refadgen.studio.render import render_triplet

    triplet = render_triplet(seed, **render_options)
    return {
        "seed": seed,
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


def shard_seeds(first_seed: int, num: int, shard_rows: int) -> list[range]:
    """The seeds of each shard; the last one may be shorter."""
    end = first_seed + num
    return [range(start, min(start + shard_rows, end)) for start in range(first_seed, end, shard_rows)]


def write_shard(output: Path, seeds: range, **render_options: int) -> bool:
    """Renders one shard unless it is there. Returns: whether it rendered."""
    path = output / f"triplets-{seeds.start:07d}-{seeds.stop - 1:07d}.parquet"
    if path.exists():
        return False
    rows = [render_row(seed, **render_options) for seed in seeds]
    hidden = output / f".{path.name}.{os.getpid()}"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), hidden, compression="zstd")
    os.replace(hidden, path)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--num", type=int, default=6000, help="triplets to render")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--shard-rows", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="Mitsuba's threads")
    parser.add_argument("--width-px", type=int, default=128)
    parser.add_argument("--height-px", type=int, default=160)
    parser.add_argument("--spp", type=int, default=6, help="samples per pixel")
    options = parser.parse_args(arguments)

    import drjit

    drjit.set_thread_count(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seeds in shard_seeds(options.first_seed, options.num, options.shard_rows):
        start = time.monotonic()
        made = write_shard(
            options.output, seeds, width_px=options.width_px, height_px=options.height_px, spp=options.spp
        )
        pace = f"{(time.monotonic() - start) / len(seeds):.2f} s per triplet" if made else "already there"
        print(f"seeds {seeds.start}-{seeds.stop - 1}: {pace}", flush=True)


if __name__ == "__main__":
    main()
