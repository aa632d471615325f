"""Metrics of jobs: what is counted, with which tags, and that a run that is over has no queues."""

import time
from collections import defaultdict
from types import SimpleNamespace

import pyarrow as pa
import pytest
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

from refadgen.batch import metrics

Told = dict[str, dict[tuple[str, ...], float]]


class Kept:
    """In the place of Ray's counter or gauge."""

    def __init__(self, values: dict[tuple[str, ...], float]) -> None:
        self._values = values

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        assert value > 0  # Ray raises for others
        self._values[tuple((tags or {}).values())] += value

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self._values[tuple((tags or {}).values())] = value


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found: Told = defaultdict(lambda: defaultdict(float))
    for name in ("images", "stage_seconds", "cost", "queue", "actors", "device_busy"):
        monkeypatch.setattr(metrics, f"_{name}", lambda name=name: Kept(found[name]))
    return found


def test_rows_are_counted_by_status_and_reason_and_seconds_by_stage(told: Told) -> None:
    rows = pa.table(
        {
            "status": ["done", "failed", "done", "done"],
            "reason": ["", "image_timeout", "", None],
            "sku": ["a", "b", "c", "d"],
            "fetch_s": pa.array([0.5, 20.0, 0.25, 0.25]),
            "generate_s": pa.array([2.0, None, 3.0, None]),
            "publish_s": pa.array([None] * 4, pa.float32()),
        }
    )
    metrics.count_rows("generate_catalog", rows)
    metrics.count_rows("generate_catalog", rows.slice(0, 1))
    assert told["images"] == {
        ("generate_catalog", "done", ""): 4,
        ("generate_catalog", "failed", "image_timeout"): 1,
    }
    assert told["stage_seconds"] == {("generate_catalog", "fetch"): 21.5, ("generate_catalog", "generate"): 7.0}


def test_blocks_are_counted_some_seconds_worth_at_a_time_and_at_the_end(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    block = pa.table({"status": ["done"] * 2, "reason": [""] * 2, "fetch_s": [0.5, 1.0], "sku": ["a", "b"]})
    with metrics.RowCounts("build_dataset") as counts:
        counts.add(block)
        assert told["images"] == {}
        clock.now = 106.0
        counts.add(block)
        assert told["images"] == {("build_dataset", "done", ""): 4}
        counts.add(block)
        assert told["images"] == {("build_dataset", "done", ""): 4}
    assert told["images"] == {("build_dataset", "done", ""): 6}
    assert told["stage_seconds"] == {("build_dataset", "fetch"): 4.5}


def test_a_step_is_counted_by_its_seconds(told: Told) -> None:
    metrics.count_step(8, 3, 0.25)
    metrics.count_step(8, 3, 0.0)
    assert told["device_busy"] == {(): 0.25}


class Pool(ActorPoolMapOperator):  # type: ignore[misc] # Ray is Any to mypy
    name = "MapBatches(AdGenerator)"

    def __init__(self, num_actors: int) -> None:
        self._actor_pool = SimpleNamespace(num_running_actors=lambda: num_actors)

    def __del__(self) -> None:
        pass


class Read:
    name = "ReadParquet->MapBatches(plan)"


def test_pools_and_cost_are_told_every_five_seconds_and_end_at_zero(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    waiting = SimpleNamespace(total_enqueued_input_blocks=lambda: 7)
    executor = SimpleNamespace(_topology={Read(): waiting, Pool(3): waiting})
    watching = metrics.watches_pools("generate_catalog", cost_per_hour=36.0)()
    watching.on_execution_step(executor)
    assert told["queue"] == {("generate_catalog", "AdGenerator"): 7}
    assert told["actors"] == {("generate_catalog", "AdGenerator"): 3}
    clock.now = 104.0
    watching.on_execution_step(executor)
    assert told["cost"] == {}
    clock.now = 110.0
    watching.on_execution_step(executor)
    assert told["cost"] == {("generate_catalog",): pytest.approx(0.1)}
    clock.now = 120.0
    watching.after_execution_fails(executor, RuntimeError())
    assert told["cost"] == {("generate_catalog",): pytest.approx(0.2)}
    assert told["queue"] == told["actors"] == {("generate_catalog", "AdGenerator"): 0}


def test_a_run_without_a_price_tells_no_cost(told: Told) -> None:
    metrics.watches_pools("evaluate")().after_execution_succeeds(SimpleNamespace(_topology=None))
    assert told["cost"] == {}
