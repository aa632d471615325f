"""Ray's checkpoint benchmark on the main job: a full run, then reruns with some of the images done already.

    python tests/benchmarks/checkpoint_shape.py --rows 1000000 --work FOLDER

Planning, the batch room and the ledger are the product's own; fetching, masks and generating are stand-ins of well
below a millisecond a product, and the publisher has no file to write. Each measurement is a process of its own, and its
figures stay in FOLDER: stopped and started again, the script goes on with those that are missing. Asserted: the images
made are exactly those that were missing. `stream_s` is the time in which rows are recorded, `cpu_s` the processor time
of driver, Ray and actors. The start-up is that of a hundred rows: `startup` makes them, `idle` finds them done. The
last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from planning import write_catalog

PROJECT = Path(__file__).resolve().parents[2]
DONE = (100, 99, 90, 50, 10)
STARTUP_ROWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-block", type=int, default=512)
    parser.add_argument("--work", type=Path, help="folder that keeps what was measured; default: one that goes")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.work, arguments.measure, arguments.rows, arguments.rows_per_block)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        names = ["startup", "idle", "full", "counted", *(f"done-{percent}" for percent in DONE)]
        found = {name: figures(work, name, arguments.rows, arguments.rows_per_block) for name in names}
    print(json.dumps(summary(found, arguments.rows)))


def figures(work: Path, name: str, rows: int, rows_per_block: int) -> dict[str, Any]:
    """The figures of one measurement, which is made unless the folder has them."""
    file = work / f"{name}.json"
    if not file.exists():
        size = ["--rows", str(rows), "--rows-per-block", str(rows_per_block), "--work", str(work)]
        command = [sys.executable, __file__, "--measure", name, *size]
        path = f"{PROJECT}:{Path(__file__).parent}"
        env = os.environ | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(f"{name}: {ran.stderr[-3000:]}")
        file.write_text(ran.stdout.splitlines()[-1])
    one: dict[str, Any] = json.loads(file.read_text())
    print(f"{name:8} " + "  ".join(f"{key} {value}" for key, value in one.items()), flush=True)
    return one


def summary(found: dict[str, dict[str, Any]], rows: int) -> dict[str, Any]:
    """The figures that the issue bounds."""
    full, startup, idle = found["full"], found["startup"], found["idle"]
    beyond = found["done-100"]["cpu_s"] - idle["cpu_s"]
    work_s, actors_s = full["wall_s"] - startup["wall_s"], startup["wall_s"] - idle["wall_s"]
    # What a rerun may take: its share of the work, the planning of all rows, and the start of the actors.
    bounds = {left: 1.1 * (1 - left / 100) * work_s + found["done-100"]["wall_s"] + actors_s for left in DONE}
    reruns = {percent: round(found[f"done-{percent}"]["wall_s"] / bound, 2) for percent, bound in bounds.items()}
    return {
        "ledger_over_counter": round(full["stream_s"] / found["counted"]["stream_s"], 3),
        "done_100_cpu_s_per_million": round(beyond / rows * 1e6, 1),
        "reruns_over_bound": reruns,
        "driver_growth_mb": full["driver_growth_mb"],
        "spilled_mb": max(each["spilled_mb"] for each in found.values()),
    }


def measure(work: Path, name: str, rows: int, rows_per_block: int) -> dict[str, Any]:
    """One run of the job, in this process."""
    from refadgen.config import GenerateConfig, load_config
    from refadgen.generation import job

    job.ProductFetcher, job.ProductSegmenter, job.AdGenerator = stand_ins()
    count = STARTUP_ROWS if name in ("startup", "idle") else rows
    catalog = work / f"prompts-{count}.parquet"
    if not catalog.exists():
        write_catalog(catalog, "prompts", count)
    output = work / f"out-{name}"
    shutil.rmtree(output, ignore_errors=True)
    missing = count
    if name in ("idle", "done-100"):  # the same command again, with the report of before
        shutil.copytree(work / ("out-startup" if name == "idle" else "out-full"), output)
        missing = 0
    elif name.startswith("done-"):
        missing = count - write_done(work / "out-full", output, int(name.removeprefix("done-")))
    if name == "counted":
        job.LedgerWriter = counting_writer()
    words = [f"catalog.rows_per_block={rows_per_block}", "catalog.scenes_per_product=1"]
    # One actor a stage: a pool that grows would be measured instead.
    words += [f"stages.{stage}.num_actors=1" for stage in ("fetch", "segment", "generate", "publish")]
    words.append("review.max_masks=0")
    config = load_config(GenerateConfig, None, words)
    stream = timed_stream(job)
    with Sampler() as sampler:
        started = time.monotonic()
        job.connect_ray(config)
        done = job.CatalogJob(config, str(catalog), str(output)).run()
        wall_s = time.monotonic() - started
        spilled_mb = spilled()
    assert done.done == missing, f"{done.done} images made, {missing} were missing"
    assert done.failed + done.rejected == 0
    return {
        "made": done.done,
        "wall_s": round(wall_s, 1),
        "stream_s": round(sum(end - start for start, end in stream), 1),
        "cpu_s": round(sampler.cpu_s, 1),
        "driver_cpu_s": round(sampler.driver_cpu_s, 1),
        "driver_growth_mb": sampler.growth_mb(stream[0] if stream else (started, started)),
        "driver_peak_mb": round(max(mb for _, mb in sampler.driver_mb)),
        "spilled_mb": spilled_mb,
        "parts": len(list((output / "ledger").glob("*.parquet"))),
    }


def timed_stream(job: Any) -> list[tuple[float, float]]:
    """Start and end of each stream that the job records, as it ends."""
    record, times = job.record_rows, []

    def timed(*arguments: Any, **settings: Any) -> None:
        started = time.monotonic()
        record(*arguments, **settings)
        times.append((started, time.monotonic()))

    job.record_rows = timed
    return times


def stand_ins() -> tuple[type, type, type]:
    """Stages that only make rows; classes of a function, so that actors get them by value."""
    from refadgen.batch.row_stage import RowStage
    from refadgen.batch.rows import from_table, to_table
    from refadgen.generation import stages
    from refadgen.generation.rows import Fetched, GeneratedImage, GeneratedProduct, Placed, PlacedProduct

    # Subclasses: a stage of its own would not survive its way to an actor (`RowStage.__init_subclass__`).
    class ProductFetcher(stages.ProductFetcher):
        def __init__(self, config: Any, run_id: str, *_: Any) -> None:
            RowStage.__init__(self, run_id)

        def process(self, row: Any) -> Fetched:
            return Fetched()

    class ProductSegmenter(stages.ProductSegmenter):
        def __init__(self, config: Any, run_id: str, *_: Any) -> None:
            RowStage.__init__(self, run_id)

        def process(self, row: Any) -> Placed:
            return Placed()

    class AdGenerator:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
            products = from_table(table, PlacedProduct)
            yield to_table(
                [
                    GeneratedProduct.of(
                        product,
                        tuple(
                            GeneratedImage(wanted=image, error=product.error, seed=image.seed)
                            for image in product.wanted
                        ),
                    )
                    for product in products
                ],
                GeneratedProduct,
            )

    return ProductFetcher, ProductSegmenter, AdGenerator


def write_done(full: Path, output: Path, percent: int) -> int:
    """Writes a ledger with a share of the rows of a full run, chosen at random; returns their number."""
    from refadgen.generation.ledger import AdLedger
    from refadgen.storage.store import Storage

    rng, ledger, written = np.random.default_rng(percent), AdLedger(Storage(str(output))), 0
    whole = AdLedger(Storage(str(full)))
    for piece in whole.pieces(whole.parts()):
        chosen = piece.filter(pa.array(rng.random(len(piece)) < percent / 100))
        if len(chosen):
            ledger.append(chosen)
        written += len(chosen)
    return written


def counting_writer() -> type:
    """In the ledger's place: only counts."""
    import pyarrow.compute as pc

    from refadgen.batch.ledger import LedgerWriter

    class Counter(LedgerWriter):
        def add(self, table: pa.Table) -> None:
            for entry in pc.value_counts(table["status"]).to_pylist():
                self.counts[entry["values"]] += entry["counts"]

    return Counter


def spilled() -> float:
    """Megabytes that the object store has written to disk."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return round(get_memory_info_reply(state).store_stats.spilled_bytes_total / 1e6, 1)


class Sampler:
    """Processor time of this process and of all below it, and this process's memory, a few times a second."""

    def __init__(self, every_s: float = 0.25) -> None:
        self._every_s = every_s
        self._used: dict[int, float] = {}
        self._own = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.driver_mb: list[tuple[float, float]] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        return sum(self._used.values())

    @property
    def driver_cpu_s(self) -> float:
        return self._used[self._own.pid]

    def growth_mb(self, stream: tuple[float, float]) -> int:
        """How much the memory of this process grows from the first fifth of the stream to its end."""
        inside = [mb for at, mb in self.driver_mb if stream[0] <= at <= stream[1]]
        fifth = inside[: max(1, len(inside) // 5)]
        return round(max(inside, default=0) - max(fifth, default=0))

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            memory = self._own.memory_info()
            # Without what it shares with the object store: that is the store's.
            self.driver_mb.append((time.monotonic(), (memory.rss - memory.shared) / 1e6))
            for process in [self._own, *self._own.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                self._used[process.pid] = max(self._used.get(process.pid, 0.0), times.user + times.system)


if __name__ == "__main__":
    main()
