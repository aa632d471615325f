"""How the report of an evaluation grows: time, memory and size of the page for many rows of made-up scores.

    python tests/benchmarks/evaluation_report.py [--images 100000] [--runs 3]

Prints a table and a line of JSON. The pictures are a few that are read again and again. Nothing of Ray: in the job the
same function runs in a task, and the driver gets the summary only.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

from runs_to_compare import make_run
from synthetic_scores import synthetic_scores

from refadgen.config.evaluate import ShowConfig
from refadgen.evaluation.report import KEY, write_page
from refadgen.evaluation.runs import Run
from refadgen.evaluation.summary import summarize
from refadgen.storage.store import Storage

SKIPPED = {"fid": "no weights", "image_reward": "no library"}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="of each run")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(f"run-{number}", str(make_run(Path(folder) / str(number), 2))) for number in range(arguments.runs)]
        for count in sorted({1000, 10_000, arguments.images}):
            tables = [synthetic_scores(count, run.uri, seed) for seed, run in enumerate(runs)]
            started, before = time.perf_counter(), peak_mb()
            summary = summarize(runs, tables, {}, SKIPPED, [None] * len(runs), [])
            table_s = time.perf_counter() - started
            storage = Storage(f"{folder}/out")
            shown = write_page(storage, summary, tables, ShowConfig(), {})
            seconds = time.perf_counter() - started
            page_mb = len(storage.read(KEY)) / 1e6
            arrow_mb = sum(table.nbytes for table in tables) / 1e6
            measured.append(
                {
                    "images": count,
                    "runs": arguments.runs,
                    "seconds": round(seconds, 2),
                    "table_s": round(table_s, 2),
                    "page_mb": round(page_mb, 2),
                    "shown": shown,
                    "scores_mb": round(arrow_mb, 1),
                    "peak_mb_more": round(peak_mb() - before, 1),
                    "peak_mb": round(peak_mb()),
                }
            )
    print(
        "| images a run | runs | seconds | table alone | page, MB | shown | scores, MB | memory more, MB | peak, MB |"
    )
    print("|---" * 9 + "|")
    for each in measured:
        print("| " + " | ".join(str(value) for value in each.values()) + " |")
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
