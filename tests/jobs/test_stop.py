"""SIGTERM, as `ray job stop` and Kubernetes send it: the ledger is written within Ray's three seconds."""

import json
import signal
import time
from pathlib import Path

import job_runs
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]
GRACE_S = 3.0
"""After which `ray job stop` kills."""


def test_a_stopped_run_says_so_in_time_and_is_resumed(whole_run: Path, random_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = job_runs.start(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    job_runs.wait_until(lambda: len(list(output.glob("ledger/*.parquet"))) >= 2, process)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    while json.loads((output / "run.json").read_text())["state"] == "running" and time.monotonic() < asked + 60:
        time.sleep(0.02)
    took = time.monotonic() - asked
    facts = json.loads((output / "run.json").read_text())
    assert (facts["state"], facts["error"]) == ("stopped", "SystemExit")
    assert took < GRACE_S
    assert process.wait(timeout=60) != 0
    assert not list(output.glob("*.lease"))
    first = job_runs.ledger_rows(output)
    assert first
    again = job_runs.run(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"skipped {len(first)}" in again.stdout
    assert job_runs.images(output) == job_runs.images(whole_run)
    assert job_runs.latest(output) == job_runs.latest(whole_run)
    assert job_runs.done_twice(output) == []
