"""Measures runs of the main job and puts them side by side: a table, plots, and a page with the pictures behind them.

    python jobs/evaluate.py out/demo
    python jobs/evaluate.py ours=out/ours other=out/other --dataset s3://shop/triplets --output out/comparison \\
        clip.model=openai/clip-vit-large-patch14 dino.model=facebook/dinov2-base lpips.backbone=alexnet-owt-7be5be79.pth

Each RUN is an output folder of jobs/generate_catalog.py and one column of the table. A measure whose weights are not
given is left out, and the report says so. The same command again scores only what has no scores yet. Exit codes: 0
done, 2 bad input, 1 a fault.
"""

import argparse
import re
import sys

from refadgen.config import EvaluateConfig, load_config

_SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)+=.*")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="RUN | section.field=value", help="[NAME=]FOLDER, or a setting")
    parser.add_argument("--dataset", help="triplets whose test split holds real ads to compare with (FID)")
    parser.add_argument("--output", default="out/evaluation", help="folder for the results, a path or s3://")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, runs and what would be measured, and end"
    )
    arguments = parser.parse_intermixed_args(words)
    arguments.settings = [word for word in arguments.words if _SETTING.fullmatch(word)]
    arguments.runs = [word for word in arguments.words if not _SETTING.fullmatch(word)]
    if not arguments.runs:
        parser.error("at least one RUN is needed: the output folder of jobs/generate_catalog.py")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    try:
        config = load_config(EvaluateConfig, arguments.config, arguments.settings)

        from refadgen.evaluation import (
            evaluate,
        )  # late, for Ray and torch take seconds: a wrong word is refused at once

        evaluation = evaluate.Evaluation(config, arguments.runs, arguments.output, arguments.dataset)
        evaluate.connect_ray(config)
        print(evaluation.describe() if arguments.dry_run else evaluation.run())
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
