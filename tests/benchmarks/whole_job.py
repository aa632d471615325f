"""The whole job through Ray Data on the stand-in device, against what device and processor allow.

    python tests/benchmarks/whole_job.py --images 400 --variants 2

One generating actor has a device that sleeps; fetching, segmenting, scores, encoding and publishing are the product's
own, on real photographs at 512×640. Counted after start-up, from the first image in the ledger, by the times at which
the device finishes images. `possible` is the smaller of the bare loop's images per second and of what the cores allow:
cores ÷ processor seconds an image. Processor seconds are those of each stage's processes after they have started, an
image of the run; of Ray and the driver, those between the first images and the last. Several `--root` are measured in
turn, each in a process of its own. The last line is JSON.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from repeated_catalog import file_roots, write_repeated
from stand_in import StandIn, bare_images_per_s, install, settings, step_seconds

PROJECT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 512, 640


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, action="append", help="a checkout to measure; default: this one")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--variants", type=int, default=2, help="images of a product")
    parser.add_argument("--device-ms", type=float, default=130.0, help="of the stand-in for one image")
    parser.add_argument("--cores", type=int, default=2, help="of this machine, for what the processor allows")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="further settings of the job")
    arguments = parser.parse_intermixed_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    found = {}
    for root in [root.resolve() for root in arguments.root or [PROJECT]]:
        env = os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent}", "STAND_IN_MS": str(arguments.device_ms)}
        command = [sys.executable, __file__, "--measure", *sys.argv[1:]]
        ran = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, check=True, cwd=root)
        found[str(root)] = one = json.loads(ran.stdout.splitlines()[-1])
        print(f"{root.name}: processor ms an image: " + ", ".join(f"{k} {v}" for k, v in one["processor_ms"].items()))
        print(
            f"{root.name}: {one['images_per_s']} images/s; bare loop {one['bare_per_s']}, "
            f"{arguments.cores} cores ÷ processor time {one['processor_per_s']}: {one['of_possible']} of the possible",
            flush=True,
        )
    print(json.dumps({"of_possible": one["of_possible"], "roots": found}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of this process's `refadgen`."""
    from refadgen.config import GenerateConfig, load_config
    from refadgen.generation import job

    class StandInGenerator(job.AdGenerator):
        def __init__(self, config: Any, *others: Any) -> None:
            log = Path(os.environ["STAND_IN_LOG"])
            install(StandIn(step_seconds(float(os.environ["STAND_IN_MS"])), log=log))
            super().__init__(config, *others)

    job.AdGenerator = StandInGenerator  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        catalog, output, log = (Path(folder) / name for name in ("catalog.parquet", "out", "log"))
        os.environ["STAND_IN_LOG"] = str(log)  # before Ray starts, whose workers inherit it
        per_copy = 12 * arguments.variants
        write_repeated(catalog, -(-arguments.images // per_copy), num_variants=arguments.variants)
        words = [*settings(WIDTH, HEIGHT), "catalog.scenes_per_product=1", file_roots(), "stages.generate.num_actors=1"]
        config = load_config(GenerateConfig, None, [*words, *arguments.settings])
        run = job.CatalogJob(config, str(catalog), str(output), limit=-(-arguments.images // arguments.variants))
        job.connect_ray(config)
        with Sampler() as sampler, contextlib.redirect_stdout(io.StringIO()):
            summary = run.run()
        assert not summary.failed + summary.rejected, summary.reasons
        parts = sorted((output / "ledger").glob("*.parquet"))
        recorded = sorted(at for part in parts for at in pq.read_table(part)["recorded_at"].to_pylist())
        finished = sorted(float(line) for line in log.read_text().splitlines())
        actors = json.loads((output / "run.json").read_text()).get("actors", {})
    # All stages have started when the first image is recorded; the device may be far ahead by then.
    images, first, last = len(finished), recorded[0].timestamp(), finished[-1]
    counted = sum(at > first for at in finished)
    processor = sampler.seconds_an_image(images, counted, first, last)
    per_s, bare = counted / (last - first), bare_images_per_s(arguments.device_ms, images)
    by_processor = arguments.cores / sum(processor.values())
    return {
        "of_possible": round(per_s / min(bare, by_processor), 3),
        "images_per_s": round(per_s, 2),
        "bare_per_s": round(bare, 2),
        "processor_per_s": round(by_processor, 2),
        "processor_ms": {name: round(1000 * each, 1) for name, each in processor.items()},
        "images": images,
        "counted": counted,
        "actors": actors,
        "grown": sampler.num_actors,
    }


@dataclass
class Seen:
    """What was seen of one process."""

    name: str
    is_stage: bool
    begun: float = 0.0
    """Processor seconds when its start-up had ended."""
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Times, and processor seconds until then."""


class Sampler:
    """Reads the processor time of this process and of all below it, a few times a second."""

    def __init__(self, every_s: float = 0.2) -> None:
        self._every_s = every_s
        self._seen: dict[int, Seen] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(self._every_s):
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    self._sample(process, "driver" if process == own else " ".join(process.cmdline()))

    def _sample(self, process: psutil.Process, title: str) -> None:
        times = process.cpu_times()
        used = times.user + times.system
        stage = re.search(r"MapWorker\(MapBatches\((\w+)\)\)", title)
        seen = self._seen.setdefault(process.pid, Seen(stage[1] if stage else _kind(title), bool(stage)))
        if stage:
            seen.name, seen.is_stage = stage[1], True
            if "__init__" in title or not seen.samples:
                seen.begun = used
        seen.samples.append((time.time(), used))

    @property
    def num_actors(self) -> dict[str, int]:
        """Processes of each stage."""
        counts: dict[str, int] = defaultdict(int)
        for seen in self._seen.values():
            counts[seen.name] += seen.is_stage
        return {name: count for name, count in counts.items() if count}

    def seconds_an_image(self, images: int, counted: int, first: float, last: float) -> dict[str, float]:
        """Processor seconds an image. images: of the run; counted: of those, made between `first` and `last`."""
        used: dict[str, float] = defaultdict(float)
        for seen in self._seen.values():
            if seen.is_stage:
                used[seen.name] += (seen.samples[-1][1] - seen.begun) / images
                continue
            inside = [seconds for at, seconds in seen.samples if first <= at <= last]
            used[seen.name] += (inside[-1] - inside[0]) / counted if inside else 0.0
        return dict(used)


def _kind(title: str) -> str:
    """What a process of Ray is called in the table."""
    if title == "driver":
        return title
    return "other Ray tasks" if title.startswith("ray::") else "Ray itself"


if __name__ == "__main__":
    main()
