"""Finds thresholds of the fidelity gate from images that a person labelled, and writes them as a YAML.

    python jobs/calibrate_gate.py out/demo --labels labels.csv
    python jobs/calibrate_gate.py s3://shop/ads --labels s3://shop/labels.parquet --precision 0.97 --write gate.yaml
    python jobs/generate_catalog.py CATALOG --config gate.yaml

The labels have the columns `image_id` (as in the ledger) and `good` (true or false). Scores come from the run's ledger.
Half of the products choose the thresholds, the other half show precision and recall of catching bad images; both follow
the mix of the labels, so label a random sample. Exit codes: 0 found, 2 bad input.
"""

import argparse
import sys
from pathlib import Path


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run: a path or s3://")
    parser.add_argument("--labels", required=True, help="a parquet or .csv file: a path or s3://")
    parser.add_argument("--precision", type=float, default=0.95, help="least share of bad images among the caught ones")
    parser.add_argument("--write", type=Path, default=Path("gate.yaml"), help="file of the settings")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    from refadgen.evaluation import calibrate_gate  # late, for its imports take a second

    try:
        calibrate_gate.run(arguments)
    except ValueError as error:
        print(f"calibrate_gate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
