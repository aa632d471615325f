"""How long the fidelity scores of an image take on one core, any number of checkouts in turns in one run.

    python tests/benchmarks/fidelity_speed.py --root BEFORE --root .

The last line is JSON: milliseconds by size and checkout, and the ratio of the first checkout's to the last one's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

SIZES = ((640, 512), (512, 512), (160, 128))
NUM_TURNS, NUM_IMAGES = 5, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, action="append", help="a checkout to measure; default: this one")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps([_milliseconds(size) for size in SIZES]))
        return
    roots = [root.resolve() for root in arguments.root or [Path(__file__).parents[2]]]
    found: dict[Path, list[list[float]]] = {root: [] for root in roots}
    for _ in range(NUM_TURNS):
        for root in roots:
            environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--measure"]
            done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
            found[root].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {root: np.median(turns, axis=0) for root, turns in found.items()}
    for root, values in medians.items():
        print(f"{root.name}: " + ", ".join(f"{h}×{w} {ms:.1f} ms" for (h, w), ms in zip(SIZES, values, strict=True)))
    ratios = np.round(medians[roots[0]] / medians[roots[-1]], 2).tolist()
    named = {"×".join(map(str, size)): ratio for size, ratio in zip(SIZES, ratios, strict=True)}
    print(json.dumps({"ms": {str(root): np.round(ms, 2).tolist() for root, ms in medians.items()}, "ratio": named}))


def _milliseconds(size: tuple[int, int]) -> float:
    """Of one image whose product covers a third of it, the median of `NUM_IMAGES`."""
    from refadgen.generation.scores import score_fidelity

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    height, width = size
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 255, -1)
    times = []
    for _ in range(NUM_IMAGES + 1):
        image, canvas = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        started = time.perf_counter()
        score_fidelity(image, canvas, mask)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[1:]))


if __name__ == "__main__":
    main()
