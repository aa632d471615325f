"""Finds the cheapest sampling settings that a model's images do not suffer from, and writes them as a YAML.

    python jobs/tune_sampling.py mini
    python jobs/tune_sampling.py models/shop --data s3://shop/triplets --clip openai/clip-vit-large-patch14
    python jobs/generate_catalog.py CATALOG --model models/shop --config tuned.yaml

Solvers with fewer steps, guidance in a part of the steps and features that are used again are tried alone and together,
against the model's own run. The same command again goes on where it was. Exit codes: 0 found, 1 nothing is cheaper and
no worse, 2 bad input.
"""

import argparse
import sys
from pathlib import Path


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="mini (built in), a folder, or a hub id")
    parser.add_argument(
        "--data", default="studio", help="a folder of triplets, or studio: for models that were trained on the studio"
    )
    parser.add_argument("--clip", help="a folder or hub id of a CLIP, which measures the scene of triplets")
    parser.add_argument("--products", type=int, default=48, help="products to measure on; of the studio 3, 6, … 48")
    parser.add_argument("--seeds", type=int, default=3, help="images of each product")
    parser.add_argument("--steps", type=int, default=20, help="steps of the run that is compared with")
    parser.add_argument("--output", type=Path, default=Path("tuned.yaml"), help="file of the settings")
    parser.add_argument("--sheet", type=Path, help="picture of the full run beside the settings that were found")
    parser.add_argument("settings", nargs="*", metavar="model.field=value", help="how the model runs")
    return parser.parse_intermixed_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    from refadgen.evaluation import tune_sampling  # late, for torch takes seconds

    try:
        found = tune_sampling.run(arguments)
    except ValueError as error:
        print(f"tune_sampling: {error}", file=sys.stderr)
        return 2
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
