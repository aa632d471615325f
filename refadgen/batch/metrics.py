"""Prometheus metrics of batch jobs, through Ray's own: the driver's node exports them, an actor's those of its device.

Ray puts `ray_` before the names. Metrics are made on first use, so that importing this module registers nothing.
`entry` is the name of the program in `jobs/` (Prometheus has a `job` of its own), `pool` that of a stage's class, and
`stage` that of its seconds in the ledger.
"""

import functools
import re
import time
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.util.metrics import Counter, Gauge

_INTERVAL_S = 5.0
"""Between two looks at the pools; Ray exports no more often."""
_STAGE = re.compile(r"MapBatches\((\w+)\)")


@functools.cache
def _images() -> Counter:
    return Counter("refadgen_job_images", "Images recorded by jobs.", tag_keys=("entry", "status", "reason"))


@functools.cache
def _stage_seconds() -> Counter:
    return Counter("refadgen_job_stage_seconds", "Time that stages spent on images.", tag_keys=("entry", "stage"))


@functools.cache
def _cost() -> Counter:
    return Counter("refadgen_job_cost", "Cost of the GPUs that jobs hold, at cost.per_gpu_hour.", tag_keys=("entry",))


@functools.cache
def _queue() -> Gauge:
    return Gauge("refadgen_job_queue_blocks", "Blocks that wait for a pool.", tag_keys=("entry", "pool"))


@functools.cache
def _actors() -> Gauge:
    return Gauge("refadgen_job_actors", "Actors of a pool that are ready.", tag_keys=("entry", "pool"))


@functools.cache
def _device_busy() -> Counter:
    return Counter("refadgen_job_device_busy_seconds", "Time that generating actors spent in denoising steps.")


class RowCounts:
    """Counts the rows of a ledger that a job records, some seconds' worth at a time: blocks are small and many.

    A context manager: leaving it counts what is left.
    """

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self._waiting: list[pa.Table] = []
        self._counted_at = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """rows: of the ledger."""
        names = [name for name in rows.column_names if name in ("status", "reason") or name.endswith("_s")]
        self._waiting.append(rows.select(names))
        if time.monotonic() - self._counted_at >= _INTERVAL_S:
            self._count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count()

    def _count(self) -> None:
        self._counted_at = time.monotonic()
        if self._waiting:
            count_rows(self._entry, pa.concat_tables(self._waiting))
            self._waiting = []


def count_rows(entry: str, rows: pa.Table) -> None:
    """Counts rows of a ledger. Columns that end in `_s` are the seconds of its stages."""
    kinds = rows.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    for kind in kinds:
        tags = {"entry": entry, "status": kind["status"] or "", "reason": kind["reason"] or ""}
        _images().inc(kind["count_all"], tags=tags)
    for name in rows.column_names:
        seconds = pc.sum(rows[name]).as_py() if name.endswith("_s") else None
        if seconds:
            _stage_seconds().inc(seconds, tags={"entry": entry, "stage": name.removesuffix("_s")})


def count_step(_num_rows: int, _num_waiting: int, seconds: float) -> None:
    """One denoising step of a generating actor, as the step engine tells of it."""
    if seconds > 0:
        _device_busy().inc(seconds)


def watches_pools(entry: str, cost_per_hour: float = 0.0) -> type[ExecutionCallback]:
    """A callback for Ray Data that tells of a run's pools and of its cost, every five seconds and at the end."""

    class WatchesPools(ExecutionCallback):  # type: ignore[misc] # Ray is Any to mypy
        def __init__(self) -> None:
            self._told_at = time.monotonic()
            self._next = 0.0

        def on_execution_step(self, executor: Any) -> None:
            if time.monotonic() >= self._next:
                self._tell(executor)

        def after_execution_succeeds(self, executor: Any) -> None:
            self._tell(executor, is_over=True)

        def after_execution_fails(self, executor: Any, error: Exception) -> None:
            self._tell(executor, is_over=True)

        def _tell(self, executor: Any, *, is_over: bool = False) -> None:
            now = time.monotonic()
            if cost_per_hour and now > self._told_at:
                _cost().inc(cost_per_hour * (now - self._told_at) / 3600, tags={"entry": entry})
            self._told_at, self._next = now, now + _INTERVAL_S
            for operator, state in (executor._topology or {}).items():
                found = _STAGE.search(operator.name)
                if found and isinstance(operator, ActorPoolMapOperator):
                    tags = {"entry": entry, "pool": found[1]}
                    # What is over has no queue, and its last value would stay for as long as the process.
                    _queue().set(0 if is_over else state.total_enqueued_input_blocks(), tags=tags)
                    _actors().set(0 if is_over else operator._actor_pool.num_running_actors(), tags=tags)

    return WatchesPools
