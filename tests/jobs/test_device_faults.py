"""The main job on a device that has too little memory or is lost, and with products that kill its process."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import job_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

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


def poisoned(skus: frozenset[str], deaths: Path) -> type[AdGenerator]:
    """A generating stage that paints each canvas, and whose process is killed by some skus; `deaths` gets a line."""

    class Painter:
        batch_size, num_kinds = 2, 1

        def start(self, order: Any) -> Any:
            return order

        def kind(self, row: Any) -> int:
            return 0

        num_steps = kind

        def step(self, rows: list[Any], batch_size: int) -> list[Any]:
            return rows

        def finish(self, order: Any, row: Any) -> Any:
            return order.canvas

        def preview(self, row: Any) -> bytes:
            return b""

        def check_device(self) -> None:
            pass

    class Poisoned(AdGenerator):
        def _make_denoiser(self) -> Any:
            return Painter()

        def _order(self, task: Any) -> None:
            if task.product.sku in skus:
                with deaths.open("a") as file:
                    file.write(f"{task.product.sku}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            super()._order(task)

    return Poisoned


@pytest.mark.parametrize(
    ("poison", "most_deaths"),
    [
        (frozenset({"sku-077"}), 3),
        # Of two in one block, the first death is the death of both.
        pytest.param(frozenset({"sku-077", "sku-078"}), 5, marks=pytest.mark.long),
    ],
)
def test_a_product_that_kills_its_worker_fails_after_three_deaths_and_costs_no_other(
    poison: frozenset[str],
    most_deaths: int,
    random_model: Path,
    shared_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_out = Image.new("RGBA", (64, 80))
    ImageDraw.Draw(cut_out).ellipse((12, 12, 52, 68), fill=(180, 40, 40, 255))
    cut_out.save(tmp_path / "cut-out.png")
    skus = [f"sku-{number:03}" for number in range(200)]
    columns = {"sku": skus, "image": ["cut-out.png"] * 200, "prompt": ["a mug on a table"] * 200}
    pq.write_table(pa.table(columns), tmp_path / "catalog.parquet")
    monkeypatch.setattr(job, "AdGenerator", poisoned(poison, tmp_path / "deaths"))
    words = ("sampling.num_inference_steps=1", "sampling.batch_size=2", "stages.generate.num_actors=1")
    finished = job_runs.run_here(tmp_path / "catalog.parquet", tmp_path / "out", random_model, *words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = job_runs.ledger_rows(tmp_path / "out")
    failed = {row["sku"]: (row["status"], row["reason"]) for row in rows if row["status"] != "done"}
    assert failed == dict.fromkeys(poison, ("failed", "killed_worker"))
    assert sorted(row["sku"] for row in rows) == skus
    killed = Counter((tmp_path / "deaths").read_text().split())
    assert set(killed) == poison
    assert killed.total() == most_deaths
    assert max(killed.values()) <= 3
    assert not list((tmp_path / "out" / "marks" / "all").iterdir())
