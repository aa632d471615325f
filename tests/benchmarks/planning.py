"""How fast a catalogue is planned, and what a resume's filter takes; several checkouts side by side, in one run.

    python tests/benchmarks/planning.py --root BEFORE --root . --rows 100000 --settled 1000000

Rows have a prompt of their own (one image), or a title and a category (two images). `scan` reads footers and skus,
`plan` gives every image its id with nothing in the ledger, `rerun` with all of it there; in rows per second of
processor time of one core, beyond the start. `filter` reads a ledger of settled ids, beyond the start of Python, in a
process of its own. The checkouts take turns, and the best of `--runs` counts. Each root's ids are compared with those
of the first.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = Path(__file__).resolve().parents[2]
KINDS = ("prompts", "categories")
_CATEGORIES = ["Home > Kitchen > Travel Mugs", "Apparel > Shoes > Sneakers", "Bottles", "Toys > Plush Bears", "Lamps"]
_PART_ROWS = 250_000


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Measure planning and the resume's filter.")
    parser.add_argument("--root", type=Path, action="append", help="a checkout to measure; default: this one")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--settled", type=int, default=0, help="ids in the ledger of `filter`; 0: not measured")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, place = arguments.measure
        print(json.dumps(measure_filter(place) if what == "filter" else measure_plan(place)))
        return
    roots = [root.resolve() for root in arguments.root or [PROJECT]]
    with tempfile.TemporaryDirectory() as folder:
        places = {kind: write_catalog(Path(folder) / f"{kind}.parquet", kind, arguments.rows) for kind in KINDS}
        if arguments.settled:
            places["filter"] = write_ledger(Path(folder) / "output", arguments.settled)
        found: dict[str, dict[str, dict[str, Any]]] = {what: {} for what in places}
        for _ in range(arguments.runs):
            for what, place in places.items():
                for root in roots:
                    best = found[what].setdefault(str(root), {})
                    for name, value in run(root, what, place).items():
                        better = min if name.endswith(("_s", "_mb")) else max
                        best[name] = better(best.get(name, value), value)
    for what, by_root in found.items():
        first = next(iter(by_root.values()))
        for root, figures in by_root.items():
            words = [f"{name} {value}{_ratio(value, first[name])}" for name, value in figures.items() if name != "ids"]
            print(f"{what:11} {Path(root).name:12} {', '.join(words)}")
            assert figures.get("ids") == first.get("ids"), f"{root} gives other ids than {roots[0]}"
    print(json.dumps(found))


def _ratio(value: float, first: float) -> str:
    return f" (×{value / first:.2f})"


def run(root: Path, what: str, place: str) -> dict[str, Any]:
    """One measurement, in a process with the code of `root`."""
    command = [sys.executable, __file__, "--measure", what, place]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=env, cwd=root, text=True, check=True, capture_output=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_catalog(file: Path, kind: str, rows: int) -> str:
    """Writes a catalogue of addresses; each row's values but its category are its own."""
    numbers = range(rows)
    columns: dict[str, list[str]] = {
        "sku": [f"SKU-{n:08d}" for n in numbers],
        "image": [f"https://cdn.shop.example/products/{n:08d}/main.jpg" for n in numbers],
    }
    if kind == "prompts":
        columns["prompt"] = [f"a cup on a wooden table in front of wall {n}" for n in numbers]
    else:
        columns["title"] = [f"Model {n} of the year" for n in numbers]
        columns["category"] = [_CATEGORIES[n % len(_CATEGORIES)] for n in numbers]
        columns["brand"] = [f"Brand {n % 50}" for n in numbers]
    pq.write_table(pa.table(columns), file, row_group_size=100_000)
    return str(file)


def measure_plan(catalog: str) -> dict[str, Any]:
    """Rows per second of processor time: of the scan, of a first plan, and of one whose images are all reconciled."""
    from refadgen.batch import planning
    from refadgen.catalog.scan import scan_catalog
    from refadgen.config import GenerateConfig
    from refadgen.generation.planning import CatalogPlanner
    from refadgen.generation.wanted import pixel_settings

    started = time.process_time()
    scan = scan_catalog(catalog)
    scanned = time.process_time() - started
    config = GenerateConfig()
    run = planning._run  # what a Ray task does

    def plan(reconciled: Any) -> tuple[list[pa.Table], float]:
        settings = pixel_settings(config, "f" * 16)
        planner = CatalogPlanner(config=config, settings=settings, first_rows=scan.first_rows, reconciled=reconciled)
        started = time.process_time()
        return [run(planner, fragment)[0] for fragment in scan.fragments], time.process_time() - started

    with tempfile.TemporaryDirectory() as folder:  # loads scenes and dictionaries
        warm = scan_catalog(write_catalog(Path(folder) / "warm.parquet", Path(catalog).stem, 100))
        settings = pixel_settings(config, "f" * 16)
        planner = CatalogPlanner(config=config, settings=settings, first_rows={}, reconciled=np.empty(0, np.uint64))
        planner(warm.fragments[0])
    tables, planned = plan(np.empty(0, np.uint64))
    ids = [image["image_id"] for table in tables for images in table["wanted"].to_pylist() for image in images]
    _, again = plan(np.sort(np.array([int(image_id[:16], 16) for image_id in ids], np.uint64)))
    return {
        "scan": round(scan.num_rows / scanned),
        "plan": round(scan.num_rows / planned),
        "rerun": round(scan.num_rows / again),
        "ids": hashlib.sha256("".join(ids).encode()).hexdigest(),
    }


def write_ledger(output: Path, settled: int) -> str:
    """Writes a ledger of `settled` ids, in parts as the folding of a run leaves them."""
    from refadgen.generation.ledger import SCHEMA, AdLedger
    from refadgen.storage.store import Storage

    ledger = AdLedger(Storage(str(output)))
    rng = np.random.default_rng(0)
    for start in range(0, settled, _PART_ROWS):
        size = min(_PART_ROWS, settled - start)
        digits = rng.bytes(16 * size).hex()
        known = {
            "image_id": pa.array([digits[at : at + 32] for at in range(0, len(digits), 32)]),
            "status": pa.array(rng.choice(["done", "failed", "rejected"], size, p=[0.97, 0.02, 0.01])),
            "reason": pa.repeat("", size),
            "recorded_at": pa.array(np.arange(start, start + size)).cast(SCHEMA.field("recorded_at").type),
        }
        table = [known.get(field.name, pa.nulls(size, field.type)) for field in SCHEMA]
        ledger.append(pa.table(table, schema=SCHEMA))
    return str(output)


def measure_filter(output: str) -> dict[str, Any]:
    """Seconds of processor and clock, and memory at its peak beyond the start, of the keys that a resume leaves out."""
    from refadgen.generation.ledger import AdLedger
    from refadgen.storage.store import Storage

    ledger = AdLedger(Storage(output))
    pa.array([0])  # the first one imports pandas
    before = _peak_mb()
    started, clock = time.process_time(), time.monotonic()
    keys = ledger.reconciled(retry_failed=False)
    peak = _peak_mb()
    return {
        "cpu_s": round(time.process_time() - started, 2),
        "wall_s": round(time.monotonic() - clock, 2),
        "peak_mb": round(peak - before),
        "ids": len(keys),
    }


def _peak_mb() -> float:
    """This process's own: `getrusage` tells the memory of the one that started it, too."""
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
