"""Ad photographs become training triplets: scene descriptions, product images from several sides, and the ads.

    ray job submit -- python jobs/build_dataset.py ads.parquet --output s3://brand/triplets
    python jobs/build_dataset.py photographs/ --output out/triplets caption.model=Qwen/Qwen2.5-VL-7B-Instruct

The same command again resumes where the last one stopped. Exit code 0 unless the job itself broke: 2 for a wrong
setting or input, 1 for a fault.
"""

import argparse
import sys
from pathlib import PurePosixPath

import refadgen.dataset
from refadgen.config import DatasetConfig, load_config
from refadgen.config.loading import preset_file
from refadgen.storage.addresses import redact_address


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Make training triplets from ad photographs.")
    parser.add_argument(
        "input", help="parquet of ads or a folder of it (a catalogue is one), a folder of images, or the authors' JSON"
    )
    parser.add_argument("--output", help="folder for the data set, a path or s3:// (default: out/NAME-triplets)")
    parser.add_argument("--config", help="a preset (authors) or a YAML file of settings")
    parser.add_argument("--limit", type=int, help="only the first N ads of the input")
    parser.add_argument("--dry-run", action="store_true", help="print settings and the work that is left, and end")
    parser.add_argument("--screen-only", action="store_true", help="only filter by size and find near-duplicates")
    retry = "retry ads that failed before, and those whose image was missing, broken or too small"
    parser.add_argument("--retry-failed", action="store_true", help=retry)
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="settings, which override --config")
    return parser.parse_intermixed_args(words)  # settings may follow options


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    output = arguments.output or f"out/{PurePosixPath(arguments.input.rstrip('/')).stem}-triplets"
    try:
        config = load_config(DatasetConfig, preset_file(arguments.config, refadgen.dataset), arguments.settings)

        from refadgen.batch.ray_connection import submitted
        from refadgen.dataset import job  # late, for Ray and torch take seconds: a wrong word is refused at once

        dataset_job = job.DatasetJob(
            config,
            arguments.input,
            output,
            limit=arguments.limit,
            retry_failed=arguments.retry_failed,
            screen_only=arguments.screen_only,
        )
        if not arguments.dry_run or submitted():
            job.connect_ray(config)
        if not arguments.dry_run:
            dataset_job.require_resources()
    except ValueError as error:
        print(f"build_dataset: {error}", file=sys.stderr)
        return 2
    if not dataset_job.num_rows:
        print(f"{redact_address(arguments.input)}: the input has no rows")
    print(dataset_job.describe() if arguments.dry_run else dataset_job.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
