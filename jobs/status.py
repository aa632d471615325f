"""How the runs of an output stand, told from the output alone: needs no Ray, and changes nothing.

    python jobs/status.py out/demo
    python jobs/status.py s3://shop/ads

Shows each run's state and rate, what the ledger says of all images, what fails most, and what the same command would
do next, with and without --retry-failed. Exit codes: 0, or 2 where there is no such output.
"""

import argparse
import sys


def main(words: list[str] | None = None) -> int:
    """Prints how an output stands. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Tell how the runs of an output stand.")
    parser.add_argument("output", help="the --output of jobs/generate_catalog.py: a path or s3://")
    arguments = parser.parse_args(words)

    from refadgen.generation.status import output_status  # late: a wrong word is refused at once
    from refadgen.storage.store import STORE_ERRORS, Storage

    try:
        print(output_status(Storage(arguments.output)))
    except (ValueError, *STORE_ERRORS) as error:
        print(f"status: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
