"""The main job on a device that has too little memory, or that is lost in mid-run: nothing is lost or done twice."""

from pathlib import Path
from typing import Any

import job_runs
import pytest

from refadgen.generation import job
from refadgen.generation.generator import AdGenerator

pytestmark = pytest.mark.slow


def short_of_memory(fits: int) -> type[AdGenerator]:
    """A generating stage whose device holds `fits` rows."""

    class ShortOfMemory(AdGenerator):
        def _make_denoiser(self) -> Any:
            import torch

            from refadgen.model.denoising import DenoisingBatch

            step = DenoisingBatch.step

            def short(batch: DenoisingBatch) -> Any:
                if (batch.batch_size or 0) > fits:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
                return step(batch)

            DenoisingBatch.step = short  # type: ignore[method-assign]
            return super()._make_denoiser()

    return ShortOfMemory


def losing_its_device(mark: Path, after_steps: int) -> type[AdGenerator]:
    """A generating stage whose first process loses its device; `mark` tells the next one that this has happened."""

    class LosingItsDevice(AdGenerator):
        def _make_denoiser(self) -> Any:
            denoiser: Any = super()._make_denoiser()
            step, steps, is_first = denoiser.step, 0, not mark.exists()

            def use_device(*_: Any) -> None:
                nonlocal steps
                steps += 1
                if is_first and steps > after_steps:
                    mark.touch()
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")

            denoiser.check_device = use_device
            denoiser.step = lambda *arguments: (use_device(), step(*arguments))[1]
            return denoiser

    return LosingItsDevice


@pytest.mark.long
def test_too_little_memory_halves_the_batch_and_the_ledger_names_it(
    whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "AdGenerator", short_of_memory(1))
    finished = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", random_model, *job_runs.QUICK)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = job_runs.ledger_rows(tmp_path / "out")
    assert len(rows) == len({row["image_id"] for row in rows}) == len(job_runs.latest(whole_run))
    assert {(row["status"], row["batch_size"], row["attempts"]) for row in rows} == {("done", 1, 1)}
    assert {row["batch_size"] for row in job_runs.latest(whole_run).values()} == {2}


def test_a_device_that_is_lost_in_mid_run_costs_no_image(
    whole_run: Path, random_model: Path, shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "AdGenerator", losing_its_device(tmp_path / "lost", after_steps=9))
    finished = job_runs.run_here(job_runs.CATALOG, tmp_path / "out", random_model, *job_runs.QUICK)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "lost").exists()
    assert job_runs.images(tmp_path / "out") == job_runs.images(whole_run)
    assert job_runs.latest(tmp_path / "out") == job_runs.latest(whole_run)
    assert job_runs.done_twice(tmp_path / "out") == []
