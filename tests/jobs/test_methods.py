"""Another method in the main job: killed and resumed, with the ledger, gate and report of RefAdGen's own images."""

import sys
from pathlib import Path

import job_runs
import pytest

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

pytestmark = [pytest.mark.slow, pytest.mark.long]
NUM_IMAGES = 12
RUN = ("--limit", "6", "catalog.rows_per_block=1", "stages.generate.num_actors=1")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """ControlNet from a tiny random checkpoint."""
    import tiny_checkpoints

    folder = tmp_path_factory.mktemp("checkpoints")
    base = tiny_checkpoints.tiny_models.write_base(folder / "base")
    controlnet = tiny_checkpoints.write_controlnet(folder / "controlnet")
    scenes = folder / "scenes.yaml"  # the tiny tokenizer takes 24 letters
    scenes.write_text("default:\n  scenes:\n    sun: a {category}, sun\n    rain: a {category}, rain\n")
    settings = [f"method.settings.base={base}", f"method.settings.controlnet={controlnet}"]
    settings.append(f"catalog.scenes_file={scenes}")
    return (*tiny_checkpoints.words("edges:ControlNet", settings), *RUN)


def test_a_killed_run_of_a_method_resumes(words: tuple[str, ...], tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    process = job_runs.start(job_runs.CATALOG, output, Path("mini"), *words)
    job_runs.wait_until(lambda: len(list((output / "images").rglob("*.jpg"))) >= NUM_IMAGES / 2, process)
    job_runs.kill_all(process)
    first = {row["image_id"] for row in job_runs.ledger_rows(output)}
    assert 0 < len(first) < NUM_IMAGES
    with job_runs.local_ray():
        again = job_runs.run_here(job_runs.CATALOG, output, Path("mini"), *words)
        complete = job_runs.run_here(job_runs.CATALOG, whole, Path("mini"), *words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert complete.returncode == 0, complete.stderr[-3000:]
    assert f"skipped {len(first)}" in again.stdout
    rows = job_runs.latest(whole)
    assert len(rows) == NUM_IMAGES
    assert {(row["status"], row["rung"]) for row in rows.values()} == {("done", "first")}
    assert all(row["model"].startswith("refadgen.evaluation.baselines.edges:ControlNet@") for row in rows.values())
    assert job_runs.latest(output) == rows
    assert job_runs.done_twice(output) == []
    assert job_runs.images(output) == job_runs.images(whole)
    assert (output / "report.html").exists()
    assert job_runs.facts(output)["config"]["method"]["class"] == "refadgen.evaluation.baselines.edges:ControlNet"


def test_a_method_that_cannot_be_stops_the_job_before_it_starts(tmp_path: Path) -> None:
    stopped = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", Path("mini"), "method.class=nowhere:Mine")
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("generate_catalog: method.class='nowhere:Mine': cannot be imported")
