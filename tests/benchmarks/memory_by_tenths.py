"""Memory of the driver and of every actor over a long run, by tenths of its images: does any of it grow?

    python tests/benchmarks/memory_by_tenths.py --images 100000

The run is the job's own with stand-ins for fetching, masks and pictures (`checkpoint_shape.py`): a hundred thousand
images stand for ten hours. Of each process the resident memory without what it shares with the object store, sampled
twice a second; of a tenth its median. `growth_mb`: from the second tenth, when all has been loaded, to the largest
after it. The last line is JSON.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
from checkpoint_shape import stand_ins
from planning import write_catalog

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
_TITLE = re.compile(r"MapWorker\(MapBatches\((\w+)\)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rows-per-block", type=int, default=16)
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.images, arguments.rows_per_block)
    for name, one in found.items():
        print(f"{name:24} {one['tenths_mb']}  growth {one['growth_mb']} MB")
    print(json.dumps(found))


def measure(folder: Path, images: int, rows_per_block: int) -> dict[str, Any]:
    """Memory by tenths of the driver and of each actor."""
    from refadgen.config import GenerateConfig, load_config
    from refadgen.generation import job

    job.ProductFetcher, job.ProductSegmenter, job.AdGenerator = stand_ins()
    write_catalog(folder / "prompts.parquet", "prompts", images)
    words = [f"catalog.rows_per_block={rows_per_block}", "catalog.scenes_per_product=1", "review.max_masks=0"]
    config = load_config(GenerateConfig, None, [*words, "stages.generate.num_actors=1", "stages.fetch.num_actors=1"])
    samples: dict[str, list[tuple[int, float]]] = defaultdict(list)
    recorded, ended = [0], threading.Event()
    record = job.LedgerWriter.add

    def counted(writer: Any, table: Any) -> None:
        record(writer, table)
        recorded[0] += len(table)

    job.LedgerWriter.add = counted  # type: ignore[method-assign]

    def sample() -> None:
        own = psutil.Process()
        while not ended.wait(0.5):
            for process in [own, *own.children(recursive=True)]:
                try:
                    title = "driver" if process == own else " ".join(process.cmdline())
                    name = "driver" if process == own else _TITLE.search(title)
                    if name and recorded[0]:
                        memory = process.memory_info()
                        key = "driver" if process == own else f"{name[1]} {process.pid}"
                        samples[key].append((recorded[0], (memory.rss - memory.shared) / 1e6))
                except psutil.Error:
                    continue

    job.connect_ray(config)
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    started = time.monotonic()
    done = job.CatalogJob(config, str(folder / "prompts.parquet"), str(folder / "out")).run()
    ended.set()
    thread.join()
    assert done.done == images
    print(f"{images} images in {time.monotonic() - started:.0f} s")
    return {name: _tenths(each, images) for name, each in samples.items()}


def _tenths(samples: list[tuple[int, float]], images: int) -> dict[str, Any]:
    by_tenth: dict[int, list[float]] = defaultdict(list)
    for count, mb in samples:
        by_tenth[min(9, 10 * count // (images + 1))].append(mb)
    tenths = [round(statistics.median(by_tenth[n])) for n in sorted(by_tenth)]
    return {"tenths_mb": tenths, "growth_mb": max(tenths[1:], default=0) - (tenths[1] if len(tenths) > 1 else 0)}


if __name__ == "__main__":
    main()
