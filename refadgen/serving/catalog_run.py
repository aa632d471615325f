"""Entry point of a catalogue run that was started over HTTP: `python -m refadgen.serving.catalog_run`."""

import json
import os
import sys

from refadgen.batch import ray_connection
from refadgen.config import GenerateConfig, load_config
from refadgen.generation.job import CatalogJob
from refadgen.serving.catalog_runs import VARIABLE, RunOrder


def main() -> None:
    """Runs the job that the environment describes (see `catalog_runs`). Exits with a message for a wrong setting."""
    run = RunOrder(**json.loads(os.environ[VARIABLE]))
    config = load_config(GenerateConfig, None, run.settings)
    try:
        job = CatalogJob(config, run.catalog, run.output, limit=run.limit, retry_failed=run.retry_failed)
        # The number counts only where there is no cluster to join, and the Jobs API always sets one.
        ray_connection.connect(4)
        job.require_resources()
        print(job.run())
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
