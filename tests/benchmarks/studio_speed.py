"""Compares the seconds of a triplet that is traced by itself with those of one of many dressings of a traced view.

    python tests/benchmarks/studio_speed.py [--seeds 10] [--dressings 12]

The two take turns, seed by seed, in this process with one thread. Needs the studio extra. The last line is JSON.
"""

import argparse
import json
import time

import drjit

from refadgen.studio.dressing import render_dressed
from refadgen.studio.render import render_triplet


def main() -> None:
    """Measures and prints one line of JSON."""
    parser = argparse.ArgumentParser(description="Seconds of a triplet, traced and dressed.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--dressings", type=int, default=12)
    options = parser.parse_args()
    drjit.set_thread_count(1)
    traced_s = dressed_s = 0.0
    num_dressed = 0
    render_triplet(0)  # not timed: the first render loads Mitsuba's plugins
    for seed in range(options.seeds):
        started = time.perf_counter()
        render_triplet(seed)
        traced_s += time.perf_counter() - started
        started = time.perf_counter()
        num_dressed += len(list(render_dressed(seed, options.dressings)))
        dressed_s += time.perf_counter() - started
    traced, dressed = traced_s / options.seeds, dressed_s / num_dressed
    print(
        json.dumps({"traced_s": round(traced, 3), "dressed_s": round(dressed, 3), "ratio": round(traced / dressed, 2)})
    )


if __name__ == "__main__":
    main()
