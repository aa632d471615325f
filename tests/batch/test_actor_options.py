"""What a pool asks of Ray: nothing that Ray 2.64 takes away, bounded retries, pools that stay pools of their own."""

import ast
import inspect
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.logical.rules.operator_fusion import FuseOperators
from ray.util.annotations import RayDeprecationWarning

from refadgen.batch.actor_pools import BoundedRetries, IdleActors, use_callbacks, with_stage
from refadgen.batch.pool_sizes import PoolSize
from refadgen.config.sections import StageConfig

ROOT = Path(__file__).parents[2]
GONE = {"ray_remote_args_fn", "ray_remote_args", "concurrency"}


class Recorder:
    """In the place of a Dataset."""

    def __init__(self) -> None:
        self.context = SimpleNamespace(custom_execution_callback_classes=[])

    def map_batches(self, stage: type, **arguments: Any) -> "Recorder":
        self.arguments = arguments
        return self


def test_a_stage_names_only_arguments_that_stay() -> None:
    stream: Any = Recorder()
    made = with_stage(stream, Recorder, StageConfig(num_cpus=2.0, num_gpus=1.0), PoolSize(1, 3), 4, "run-1")
    named = inspect.signature(Dataset.map_batches).parameters
    assert set(stream.arguments) <= set(named) - GONE
    assert (stream.arguments["num_cpus"], stream.arguments["num_gpus"]) == (2.0, 1.0)
    assert made.context.custom_execution_callback_classes == [BoundedRetries, IdleActors]


def test_nothing_in_the_package_uses_what_is_taken_away() -> None:
    used = [
        f"{path.name}:{node.lineno}"
        for folder in ("refadgen", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and GONE & {word.arg for word in node.keywords}
    ]
    assert used == []


def test_ray_warns_of_them_and_the_suite_takes_such_a_warning_for_an_error() -> None:
    with pytest.raises(RayDeprecationWarning, match=r"removed in Ray 2\.64"):
        ray.data.dataset._warn_on_ray_remote_args_fn(dict)
    with pytest.raises(RayDeprecationWarning, match="after January 2027"):
        ray.data.ExecutionOptions().actor_locality_enabled = True
    warnings.warn("a library's own deprecation is none of Ray's", DeprecationWarning, stacklevel=1)


class Pool(ActorPoolMapOperator):  # type: ignore[misc] # Ray is Any to mypy
    def __init__(self) -> None:
        self._ray_remote_args = {"max_task_retries": -1, "max_restarts": -1, "num_cpus": 0.5}

    def __del__(self) -> None:
        pass

    def __hash__(self) -> int:
        return 0


def test_the_actors_of_a_run_have_bounded_retries_and_restarts() -> None:
    pool, other = Pool(), object()
    BoundedRetries().before_execution_starts(SimpleNamespace(_topology={other: None, pool: None}))
    assert pool._ray_remote_args == {"max_task_retries": 10, "max_restarts": 30, "num_cpus": 0.5}


def test_a_runs_own_callbacks_come_beside_those_of_every_pool() -> None:
    class Own(BoundedRetries):
        pass

    stream: Any = Recorder()
    use_callbacks(stream, Own)
    use_callbacks(stream, Own)
    assert stream.context.custom_execution_callback_classes == [BoundedRetries, IdleActors, Own]


def test_ray_never_puts_two_pools_into_one() -> None:
    """Until Ray 2.64 our options did it; from then on only this rule of Ray's keeps a stage's actors to themselves."""
    pool = ActorPoolStrategy(min_size=1, max_size=1)
    assert FuseOperators._fuse_compute_strategy(pool, pool) is None
