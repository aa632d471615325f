"""Many generating actors that sleep: how much of their time they work, how even their shares are, what is done twice.

    python tests/benchmarks/actor_scaling.py --actors 1 4 16 32 --seconds 30

The stream is the job's own, from the planned rows to the ledger; fetching and masks are stand-ins, and the device of
each actor sleeps `--image-s` for an image. Work grows with the actors. Counted from when all actors have begun to the
last image: efficiency is the time slept ÷ (that time × actors), its tail included. With `--zipf A`, products want as
many images as a Zipf distribution says (1 to `--most` of them): busiest ÷ mean actor is then what the order costs, and
encodes ÷ products counts the reference encodes (of whole products; those of one actor's cache). The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from checkpoint_shape import stand_ins

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--seconds", type=float, default=30.0, help="of work for each actor")
    parser.add_argument("--image-s", type=float, default=2.0, help="that the device takes for an image")
    parser.add_argument("--rows-per-block", type=int, default=2)
    parser.add_argument("--zipf", type=float, help="exponent of the distribution of variants; default: one each")
    parser.add_argument("--most", type=int, default=8, help="variants of a product at most")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found = {}
    for actors in arguments.actors:
        with tempfile.TemporaryDirectory() as folder:
            found[actors] = one = measure(Path(folder), actors, arguments)
        print(f"{actors:3} actors: " + "  ".join(f"{key} {value}" for key, value in one.items()), flush=True)
    print(json.dumps(found))


def write_catalog(file: Path, images: int, zipf: float | None, most: int) -> int:
    """Writes products that want `images` images together; returns how many products."""
    rng, variants = np.random.default_rng(0), [1] * images
    if zipf is not None:
        shares = np.arange(1, most + 1) ** -zipf
        drawn = rng.choice(np.arange(1, most + 1), images, p=shares / shares.sum())
        variants = drawn[: int(np.searchsorted(np.cumsum(drawn), images)) + 1].tolist()
    numbers = range(len(variants))
    columns = {
        "sku": [f"sku-{number:06}" for number in numbers],
        "image": [f"https://cdn.shop.example/{number}.jpg" for number in numbers],
        "prompt": [f"a cup in front of wall {number}" for number in numbers],
        "num_variants": variants,
    }
    pq.write_table(pa.table(columns), file)
    return len(variants)


def measure(folder: Path, actors: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run with this many actors."""
    import ray

    from refadgen.config import GenerateConfig, load_config
    from refadgen.generation import job

    products = write_catalog(
        folder / "c.parquet", round(actors * arguments.seconds / arguments.image_s), arguments.zipf, arguments.most
    )
    log = folder / "log"
    log.mkdir()
    fetcher, segmenter, _ = stand_ins()
    job.ProductFetcher, job.ProductSegmenter = fetcher, segmenter
    job.AdGenerator = sleeping(log, arguments.image_s)
    words = [f"stages.generate.num_actors={actors}", "stages.generate.num_cpus=0.1", "review.max_masks=0"]
    words += [
        f"catalog.rows_per_block={arguments.rows_per_block}",
        "catalog.scenes_per_product=1",
        "stages.fetch.num_actors=1",
    ]
    config = load_config(GenerateConfig, None, words)
    job.connect_ray(config)
    try:
        done = job.CatalogJob(config, str(folder / "c.parquet"), str(folder / "out")).run()
    finally:
        ray.shutdown()
    images = [json.loads(line) for file in log.iterdir() for line in file.read_text().splitlines()]
    assert done.done == len(images)
    by_actor: dict[int, list[float]] = {}
    for image in images:
        by_actor.setdefault(image["actor"], []).append(image["at"])
    all_begun, last = max(min(ends) for ends in by_actor.values()), max(image["at"] for image in images)
    counted = Counter(image["actor"] for image in images if image["at"] > all_begun)
    busy = [number * arguments.image_s for number in counted.values()]
    return {
        "working": len(by_actor),
        "efficiency": round(sum(busy) / ((last - all_begun) * actors), 3),
        "busiest_over_mean": round(max(busy) / (sum(busy) / actors), 3),
        "encodes_over_products": round(len({(i["actor"], i["product"]) for i in images}) / products, 3),
        "images": len(images),
        "products": products,
        "counted_s": round(last - all_begun, 1),
    }


def sleeping(log: Path, image_s: float) -> type:
    """A generating stage whose actor sleeps for each image; of a function: actors get it by value."""
    from refadgen.batch.rows import from_table, to_table
    from refadgen.generation.rows import GeneratedImage, GeneratedProduct, PlacedProduct

    class AdGenerator:
        def __init__(self, *_: Any) -> None:
            import threading

            self._device = threading.Lock()

        def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
            for product in from_table(table, PlacedProduct):
                images = []
                for wanted in product.wanted:
                    with self._device:
                        time.sleep(image_s)
                    with (log / str(os.getpid())).open("a") as file:
                        told = {"actor": os.getpid(), "product": product.sku, "at": time.time()}
                        file.write(json.dumps(told) + "\n")
                    images.append(GeneratedImage(wanted=wanted, error=None, seed=wanted.seed))
                yield to_table([GeneratedProduct.of(product, tuple(images))], GeneratedProduct)

    return AdGenerator


if __name__ == "__main__":
    main()
