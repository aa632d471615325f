"""Runs of the training job as a user starts them, and their outputs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import job_runs

from refadgen.training.loop import read_metrics


def command(output: Path | str, base: Path, *words: str) -> list[str]:
    job = str(job_runs.PROJECT / "jobs" / "train.py")
    fixed = ("--config", "debug", "--base", str(base), "--output", str(output), "run.sample_every=0")
    # All runs share one cache; a setting of the caller comes later on the command line and overrides it.
    return [sys.executable, job, *fixed, f"data.cache={base.parent / 'cache'}", *words]


def run(
    output: Path | str, base: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(output, base, *words),
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, **(env or {})},
        cwd=job_runs.PROJECT,
        check=False,
    )


def run_here(output: Path | str, base: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process; see `job_runs`."""
    import train  # in jobs/

    return job_runs.call(train.main, command(output, base, *words)[2:])


def start(output: Path | str, base: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(output, base, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        cwd=job_runs.PROJECT,
    )


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the training workers below a job."""
    found = []
    for pid in job_runs.descendants(process.pid):
        try:
            name = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in name:
            found.append(pid)
    return found


def checkpoints(output: Path) -> list[int]:
    """Steps of the checkpoints that have a manifest."""
    manifests = (output / "checkpoints").glob("step-*/checkpoint.json")
    return sorted(int(file.parent.name.removeprefix("step-")) for file in manifests)


def history(output: Path | str) -> list[dict[str, Any]]:
    """Metrics of each step."""
    return read_metrics(str(output))
