"""Runs of the dataset job as a user starts them, and the contents of their outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import job_runs
import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = job_runs.PROJECT
SMALL = ("filter.min_side_px=64", "triplet.rows_per_file=4")
VOLATILE = ("run_id", "recorded_at", "file", "screen_s", "fetch_s", "extract_s", "describe_s", "augment_s")
"""Times and run, and the file: its name depends on the rows that were made together."""


def command(ads: Path | str, output: Path | str, *words: str) -> list[str]:
    job = str(PROJECT / "jobs" / "build_dataset.py")
    return [sys.executable, job, str(ads), "--output", str(output), *SMALL, *words]


def run(ads: Path | str, output: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ads, output, *words), capture_output=True, text=True, timeout=500, cwd=PROJECT, check=False
    )


def run_here(ads: Path | str, output: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process; see `job_runs`."""
    import build_dataset  # in jobs/

    return job_runs.call(build_dataset.main, command(ads, output, *words)[2:])


def start(ads: Path | str, output: Path | str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(ads, output, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ, cwd=PROJECT
    )


def latest(output: Path) -> dict[str, dict[str, Any]]:
    """The latest ledger row of each ad, by its row id."""
    rows = pa.concat_tables(pq.read_table(part) for part in sorted((output / "ledger").glob("*.parquet")))
    return {row["row_id"]: row for row in rows.sort_by("recorded_at").to_pylist()}


def num_ledger_rows(output: Path) -> int:
    return sum(pq.ParquetFile(part).metadata.num_rows for part in (output / "ledger").glob("*.parquet"))


def comparable(output: Path) -> dict[str, dict[str, Any]]:
    """`latest` without the columns that may differ between two runs."""
    return {
        key: {name: value for name, value in row.items() if name not in VOLATILE} for key, row in latest(output).items()
    }


def triplets(output: Path) -> dict[str, dict[str, Any]]:
    """Every row of the data files by its id. Asserts that no id occurs twice."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((output / "data").rglob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            assert row["row_id"] not in found, f"{row['row_id']} is there twice"
            assert file.parent.name == row["split"]
            found[row["row_id"]] = row
    return found


def facts(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())
