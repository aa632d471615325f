"""Triplets become a RefAdGen model: Ray Train fine-tunes the Reference U-Net, the AFM projections and `conv_in`.

    ray job submit -- python jobs/train.py
    python jobs/train.py --config paper --data s3://shop/triplets --base MODEL --output s3://shop/training

`--config` takes a preset (paper, mini-base, mini, debug) or a YAML file; a line that says nothing about the training
runs `debug`, as a check. The same command again resumes from the newest checkpoint. Exit code: 0 for a finished one,
2 for a wrong setting or data set, 1 for a fault.
"""

import argparse
import sys

import refadgen.training
from refadgen.config import TrainConfig, load_config, to_yaml
from refadgen.config.loading import preset_file

CHECK = (
    "a check: preset `debug` trains the built-in model on the triplets that ship. To train for real: python "
    "jobs/train.py --config paper --data TRIPLETS --base STABLE_DIFFUSION_1.5 --output FOLDER"
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Train RefAdGen on triplets.")
    parser.add_argument(
        "--config",
        help="a preset (paper, mini-base, mini, debug) or a YAML file of settings; nothing at all: debug, a check",
    )
    parser.add_argument("--data", help="triplets, a path or s3://, or tiny; short for data.path=…")
    parser.add_argument("--base", help="model to start from; short for model.base=…")
    parser.add_argument("--output", default="out/train", help="folder for everything, a path or s3://")
    parser.add_argument("--dry-run", action="store_true", help="print settings and the parts that train, and end")
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="settings, which override --config")
    return parser.parse_intermixed_args(words)  # settings may follow options


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    if not (arguments.config or arguments.data or arguments.base or arguments.settings):
        print(CHECK, flush=True)
        arguments.config = "debug"
    short = [f"data.path={arguments.data}"] if arguments.data else []
    short += [f"model.base={arguments.base}"] if arguments.base else []
    try:
        config = load_config(
            TrainConfig, preset_file(arguments.config, refadgen.training), [*short, *arguments.settings]
        )
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    from refadgen.storage.store import STORE_ERRORS
    from refadgen.training import job  # late, for Ray and torch take seconds: a wrong word is refused at once

    try:
        measures = None
        if config.measure.every:
            from refadgen.evaluation.sample_measures import IdentityMeasures

            measures = IdentityMeasures()
        training = job.TrainingJob(config, arguments.output, measures)
        print(training.describe(), flush=True)
        if arguments.dry_run:
            print(to_yaml(training.config))
            return 0
        job.connect_ray(config)
        training.require_resources()
        print(training.run())
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except STORE_ERRORS as error:
        print(f"train: {type(error).__name__}: {error}; once repaired, the same command resumes", file=sys.stderr)
        return 1
    except job.TrainingStopped as error:
        print(f"train: stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
