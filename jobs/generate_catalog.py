"""A product catalogue becomes ad images, a ledger of every one of them, and a report.

    ray job submit -- python jobs/generate_catalog.py catalogs/demo.parquet
    python jobs/generate_catalog.py s3://shop/catalogue/ --output s3://shop/ads --model org/model sampling.seed=7

The same command again resumes where the last one stopped. Exit code 0 unless the job itself broke: 2 for a wrong
setting or catalogue, 1 for a fault.
"""

import argparse
import sys
from pathlib import PurePosixPath

from refadgen.config import GenerateConfig, load_config


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Make ad images of every product of a catalogue.")
    parser.add_argument("catalog", help="parquet, a shop's feed or export, a table; a path or s3://")
    parser.add_argument("--output", help="folder for the results, a path or s3:// (default: out/NAME of the catalogue)")
    parser.add_argument("--model", help="mini (built in), a folder, or a hub id; short for model.path=…")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--limit", type=int, help="only the first N rows of the catalogue")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, the images to make and to skip, and end"
    )
    parser.add_argument("--retry-failed", action="store_true", help="retry images that failed before")
    parser.add_argument(
        "--check-inputs", action="store_true", help="fetch all product images again; remake ads of changed ones"
    )
    parser.add_argument(
        "--review",
        action="append",
        default=[],
        metavar="FILE",
        help="a person's decisions about masks, from review.html; may be given several times",
    )
    parser.add_argument(
        "--budget", help="start no image after this: a time (8h, 90m), or a cost (see cost.per_gpu_hour)"
    )
    parser.add_argument("--deadline", help="start no image after this date and time, such as 2027-01-31T18:00 (UTC)")
    parser.add_argument("--shard", metavar="3/16", help="make the third of sixteen shares; a driver each, one output")
    parser.add_argument(
        "--same-device", action="store_true", help="refuse to mix images of several kinds of device in one output"
    )
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="settings, which override --config")
    return parser.parse_intermixed_args(words)  # settings may follow options


def main(words: list[str] | None = None) -> int:
    """Runs the job. Returns the exit code."""
    arguments = parse_arguments(words)
    model = [f"model.path={arguments.model}"] if arguments.model else []
    output = arguments.output or f"out/{PurePosixPath(arguments.catalog.rstrip('/')).stem}"
    try:
        config = load_config(GenerateConfig, arguments.config, [*model, *arguments.settings])

        from refadgen.batch.lease import OutputInUseError
        from refadgen.batch.limits import Limits
        from refadgen.batch.ray_connection import submitted
        from refadgen.batch.shards import Shard
        from refadgen.generation import job  # late, for Ray and torch take seconds: a wrong word is refused at once
        from refadgen.generation.same_device import MixedDevicesError

        uses_ray = not arguments.dry_run or arguments.check_inputs or submitted()
        catalog_job = job.CatalogJob(
            config,
            arguments.catalog,
            output,
            limit=arguments.limit,
            retry_failed=arguments.retry_failed,
            check_inputs=arguments.check_inputs,
            review=arguments.review,
            limits=Limits.parse(arguments.budget, arguments.deadline),
            shard=Shard.parse(arguments.shard),
            local=not uses_ray,
            same_device=arguments.same_device,
        )
        print(catalog_job.read_as)
        if uses_ray:
            job.connect_ray(config)
        if not arguments.dry_run:
            catalog_job.require_resources()
    except ValueError as error:
        print(f"generate_catalog: {error}", file=sys.stderr)
        return 2
    if not catalog_job.num_rows:
        print(f"{arguments.catalog}: the catalogue has no rows")
    try:
        print(catalog_job.describe() if arguments.dry_run else catalog_job.run())
    except (OutputInUseError, MixedDevicesError) as error:
        print(f"generate_catalog: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
