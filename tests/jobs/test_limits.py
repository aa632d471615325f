"""Budgets and deadlines of the main job: nothing new begins, what has begun is finished, and the next run goes on."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import job_runs
import pyarrow as pa
import pytest
import ray.cloudpickle

from refadgen.batch.limits import EndOfRun, Limits
from refadgen.config import GenerateConfig, load_config
from refadgen.generation.job import CatalogJob
from refadgen.generation.ledger import AdLedger
from refadgen.storage.store import Storage

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class WhenTheFileIsThere(EndOfRun):
    file: str = ""

    @property
    def is_over(self) -> bool:
        return Path(self.file).exists()


@dataclass(frozen=True)
class ByHand(Limits):
    file: str = ""

    def end(self, cost_per_hour: float) -> EndOfRun:
        return WhenTheFileIsThere(why="--budget 5s", file=self.file)


def test_at_its_end_a_run_begins_nothing_and_the_next_goes_on(
    random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    output, stop = tmp_path / "out", tmp_path / "stop"
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))  # workers do not know the tests
    price = "cost.per_gpu_hour=2"
    config = load_config(GenerateConfig, None, [*job_runs.QUICK, f"model.path={random_model}", price])
    job = CatalogJob(config, str(job_runs.CATALOG), str(output), limits=ByHand(file=str(stop)))

    def touch() -> None:
        while not list(output.glob("ledger/*.parquet")):
            time.sleep(0.02)
        stop.touch()

    threading.Thread(target=touch, daemon=True).start()
    summary = job.run()
    rows = job_runs.ledger_rows(output)
    assert 0 < len(rows) == summary.done < 24
    assert {Path(name).stem for name in job_runs.images(output)} == {row["image_id"] for row in rows}  # none is lost
    assert summary.left == 24 - len(rows)
    assert f"{summary.left} images left to the same command, by --budget 5s" in str(summary)
    facts = json.loads((output / "run.json").read_text())
    assert (facts["state"], facts["ended_by"], facts["to_make"]) == ("stopped", "--budget 5s", 24)
    again = job_runs.run_here(job_runs.CATALOG, output, random_model, *job_runs.QUICK)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"done {summary.left}, failed 0, rejected 0, skipped {len(rows)}" in again.stdout
    assert job_runs.done_twice(output) == []
    assert json.loads((output / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0"], "--budget 0: is a budget of nothing"),
        (["--budget", "12"], "--budget 12: is a cost, and nothing of this run has a price"),
        (["--deadline", "2020-01-01"], "--deadline 2020-01-01: is over"),
    ],
)
def test_a_limit_that_is_none_stops_the_job_before_it_starts(
    words: list[str], message: str, random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    refused = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", random_model, *words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "out" / "images").exists()


def test_images_of_another_device_are_not_mixed_in(
    whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ledger = AdLedger(Storage(str(output)))
    done = AdLedger(Storage(str(whole_run))).latest()
    assert {kind.split()[0] for kind in done["device"].to_pylist()} == {"cpu"}
    place = done.schema.get_field_index("device")
    ledger.append(done.set_column(place, "device", pa.array(["NVIDIA L4"] * len(done))).slice(0, 6))
    refused = job_runs.run_here(job_runs.CATALOG, output, random_model, *job_runs.QUICK, "--same-device")
    assert refused.returncode == 2
    assert "--same-device: the images of this output come from 'NVIDIA L4', and an actor has 'cpu" in refused.stderr
    assert len(job_runs.ledger_rows(output)) == 6
