"""An actor that ends its own process, on a real local Ray: what it costs, and that it is bounded."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from refadgen.batch import actor_pools, ray_connection
from refadgen.batch.actor_pools import restart_actor, with_stage
from refadgen.batch.ledger import LedgerWriter
from refadgen.batch.run_record import record_rows
from refadgen.config.sections import StageConfig

NUM_ROWS = 12


class Recorded(LedgerWriter):
    """Keeps the rows in memory."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.counts, self.reasons = {}, {}  # type: ignore[assignment]

    def add(self, table: pa.Table) -> None:
        self.rows += table["n"].to_pylist()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray_connection.connect(4)
    yield
    ray.shutdown()


def recorded(folder: Path, *, heals: bool) -> list[int]:
    """The rows that come out of a stage whose process loses its device at row 5, once or each time."""

    class Stage:
        def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
            mark = folder / "lost"
            if 5 in table["n"].to_pylist() and not (heals and mark.exists()):
                mark.touch()
                restart_actor(RuntimeError("the device is lost"))
            yield table

    rows = ray.data.from_arrow(pa.table({"n": list(range(NUM_ROWS))})).repartition(NUM_ROWS)
    writer = Recorded()
    record_rows(with_stage(rows, Stage, StageConfig(), 1, calls_at_once=3), writer, total=NUM_ROWS, unit="row")
    return writer.rows


@pytest.mark.slow
def test_a_device_that_is_lost_costs_retries_and_no_row(local_ray: None, tmp_path: Path) -> None:
    assert sorted(recorded(tmp_path, heals=True)) == list(range(NUM_ROWS))


@pytest.mark.slow
def test_a_device_that_is_always_lost_ends_the_run_with_a_clear_error(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pools, "_TASK_RETRIES", 1)
    with pytest.raises(RuntimeError, match="ended again and again on the same rows"):
        recorded(tmp_path, heals=False)


def test_outside_an_actor_the_error_itself_comes() -> None:
    with pytest.raises(ValueError, match="lost"):
        restart_actor(ValueError("lost"))
