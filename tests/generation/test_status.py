"""How a run stands, from its output alone."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.generation.status import output_status
from refadgen.storage.store import Storage

sys.path.append(str(Path(__file__).resolve().parents[2] / "jobs"))
START = datetime(2026, 1, 1, tzinfo=UTC)


def record(output: Path, key: str = "run.json", **facts: Any) -> None:
    output.mkdir(exist_ok=True)
    own = {"run_id": "now", "state": "running", "started_at": START.isoformat(), "wanted": 14, "to_make": 12}
    (output / key).write_text(json.dumps(own | facts))


def append(output: Path, numbers: range, status: str, reason: str = "", run_id: str = "now", second: int = 0) -> None:
    nothing: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    rows = [
        nothing
        | {
            "image_id": f"{number:016x}{0:016x}",
            "run_id": run_id,
            "status": status,
            "reason": reason,
            "recorded_at": START + timedelta(seconds=second + index),
        }
        for index, number in enumerate(numbers)
    ]
    AdLedger(Storage(str(output))).append(pa.Table.from_pylist(rows, schema=SCHEMA))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two images of an earlier run, and ten of the twelve of this one."""
    folder = tmp_path / "out"
    append(folder, range(2), "done", run_id="earlier", second=-5000)
    append(folder, range(2, 8), "done", second=1)
    append(folder, range(8, 10), "failed", "image_timeout", second=10)
    append(folder, range(10, 11), "rejected", "file_outside_roots", second=12)
    append(folder, range(11, 12), "rejected", "duplicate_sku", second=19)
    record(folder)
    return folder


def test_state_reasons_rate_and_what_a_rerun_does(output: Path) -> None:
    status = output_status(Storage(str(output)))
    (run,) = status.runs
    assert (run.recorded, run.left) == (10, 2)
    assert run.images_per_s == pytest.approx(10 / 19)
    assert status.retried == 3  # what failed, and what another setting lifts
    assert str(status).splitlines()[1:] == [
        "run now: running, or killed without a word; started 2026-01-01T00:00:00+00:00",
        "  recorded 10 images, 2 of its images left; the last one 2026-01-01 00:00:19 UTC",
        "  0.53 images/s, 0.53 in the last ten minutes that it worked",
        "ledger: 12 images: done 8, failed 2, rejected 2",
        "  2 × image_timeout (failed)",
        "  1 × file_outside_roots (rejected)",
        "  1 × duplicate_sku (rejected)",
        "the same command again: makes the 2 that are left, and leaves all others alone",
        "  with --retry-failed: 3 more",
    ]


def test_the_rate_of_late_is_that_of_the_last_ten_minutes(output: Path) -> None:
    append(output, range(100, 400), "done", second=10_000)
    (run,) = output_status(Storage(str(output))).runs
    assert run.images_per_s == pytest.approx(310 / 10_299)
    assert run.recent_per_s == pytest.approx(300 / 600)


def test_a_retried_image_counts_as_it_ended_last(output: Path) -> None:
    append(output, range(8, 10), "done", run_id="retry", second=100)
    status = output_status(Storage(str(output)))
    assert (status.counts["done", ""], status.counts["failed", "image_timeout"], status.retried) == (10, 0, 1)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"state": "finished"}, "run now: finished;"),
        ({"state": "stopped", "error": "SystemExit"}, "run now: stopped by SystemExit;"),
        ({"state": "stopped", "ended_by": "--budget 2h"}, "run now: stopped by --budget 2h;"),
    ],
)
def test_how_a_run_ended(facts: dict[str, str], said: str, output: Path) -> None:
    record(output, **facts)
    assert said in str(output_status(Storage(str(output))))


def test_shards_are_one_output(output: Path) -> None:
    (output / "run.json").unlink()
    record(output, "run-1-of-2.json", shard="1-of-2")
    record(output, "run-2-of-2.json", shard="2-of-2", run_id="other", to_make=5)
    append(output, range(50, 53), "done", run_id="other", second=3)
    told = str(output_status(Storage(str(output))))
    assert "run now: shard 1-of-2, running" in told
    assert "run other: shard 2-of-2, running" in told
    assert "ledger: 15 images: done 11" in told
    assert "makes the 4 that are left" in told


def test_a_record_of_before_says_less(output: Path) -> None:
    (output / "run.json").write_text(json.dumps({"run_id": "now", "state": "finished"}))
    told = str(output_status(Storage(str(output))))
    assert "the same command again: makes what has no row in the ledger" in told


def test_the_job_tells_it_and_names_what_is_no_output(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import status  # in jobs/

    assert status.main([str(output)]) == 0
    assert "ledger: 12 images" in capsys.readouterr().out
    assert status.main([str(tmp_path / "nowhere")]) == 2
    assert f"status: {tmp_path}/nowhere: there is no such output" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert status.main([str(tmp_path / "empty")]) == 2
    assert "holds neither run.json nor a ledger" in capsys.readouterr().err
