"""The demo catalogue several times over, with `mini` on this machine: two checkouts in turn.

    python tests/benchmarks/demo_speed.py --root BEFORE --runs 3

Each run is the command that a user types, in a process of its own with a Ray of its own. `images_per_s` is counted from
the first batch's start to the last image's record; a batch starts its size times `generate_s` before its images are
published, and these are all ledger values. `command_s` is the whole command. Then the images of both are compared: of
equal ids byte by byte; where a version has changed the ids, pixel by pixel of the same sku, scene and variant. The last
line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from repeated_catalog import file_roots, write_repeated

PROJECT = Path(__file__).resolve().parents[2]
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the checkout to compare with: the older build")
    parser.add_argument("--runs", type=int, default=1, help="of each checkout, alternating")
    parser.add_argument("--times", type=int, default=8, help="the demo catalogue so many times over; 24 images each")
    arguments = parser.parse_args()
    roots = {"before": arguments.root.resolve(), "after": PROJECT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog.parquet"
        write_repeated(catalog, arguments.times)
        for run in range(arguments.runs):
            for name, root in roots.items():
                figures = run_once(root, catalog, Path(folder) / f"{name}-{run}")
                found[name].append(figures)
                print(f"{name:6} run {run}: " + ", ".join(f"{k} {v:g}" for k, v in figures.items()), flush=True)
        compared = compare(Path(folder) / "before-0", Path(folder) / "after-0")
        again = [compare(Path(folder) / "after-0", Path(folder) / f"after-{n}") for n in range(1, arguments.runs)]
    print(f"images of both: {compared}")
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    ratio = middle["after"]["images_per_s"] / middle["before"]["images_per_s"]
    print(json.dumps({"ratio": round(ratio, 3), **middle, "compared": compared, "runs_alike": again, "runs": found}))


def run_once(root: Path, catalog: Path, output: Path) -> dict[str, float]:
    """Figures of one command."""
    command = [sys.executable, str(root / "jobs" / "generate_catalog.py"), str(catalog), "--output", str(output)]
    env = os.environ | {"PYTHONPATH": str(root)}
    started = time.perf_counter()
    subprocess.run([*command, file_roots()], cwd=root, env=env, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    rows = ledger(output)
    assert {row["status"] for row in rows} == {"done"}, {row["reason"] for row in rows}
    ended = [row["recorded_at"].timestamp() for row in rows]
    first = min(
        at - row["publish_s"] - row["generate_s"] * (row.get("batch_size") or BATCH)
        for at, row in zip(ended, rows, strict=True)
    )
    per_s = len(rows) / (max(ended) - first)
    return {"images": len(rows), "images_per_s": round(per_s, 3), "command_s": round(seconds, 1)}


def ledger(output: Path) -> list[dict[str, Any]]:
    parts = sorted((output / "ledger").glob("*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()
    return rows


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Of the images of both: how many have equal ids, files and pixels; the largest difference in grey levels."""
    sides = [{(row["sku"], row["scene"], row["variant"]): row for row in ledger(output)} for output in (one, other)]
    both = sides[0].keys() & sides[1].keys()
    same_id = same_bytes = same_pixels = largest = 0
    for key in both:
        first, second = (side[key] for side in sides)
        files = one / first["uri"], other / second["uri"]
        same_id += first["image_id"] == second["image_id"]
        same_bytes += files[0].read_bytes() == files[1].read_bytes()
        pixels = [np.asarray(Image.open(file).convert("RGB"), np.int16) for file in files]
        alike = pixels[0].shape == pixels[1].shape
        difference = int(np.abs(pixels[0] - pixels[1]).max()) if alike else 255
        same_pixels += not difference
        largest = max(largest, difference)
    # The file holds its id: other ids are other bytes, whatever the pixels.
    return {
        "images": len(both),
        "only_in_one": len(sides[0].keys() ^ sides[1].keys()),
        "same_ids": same_id,
        "same_bytes": same_bytes,
        "same_pixels": same_pixels,
        "largest_difference": largest,
        "compared_by": "bytes" if same_id == len(both) else "pixels: the ids differ by a version",
    }


if __name__ == "__main__":
    main()
