"""Stages of a job as pools of actors of fixed size, and the resources they take."""

import dataclasses
import logging
import math
import os
from typing import Any, NoReturn

import ray
from ray.data import ActorPoolStrategy, Dataset

from refadgen.config import StageConfig

_log = logging.getLogger("refadgen.batch")
_TASK_RETRIES = 10
"""Retries of a block whose actor or node was lost. Ray's default has no bound: a poison row would run for ever."""


def with_stage(
    dataset: Dataset, stage: type, pool: StageConfig, batch_size: int, *arguments: Any, calls_at_once: int = 1
) -> Dataset:
    """Maps `dataset` through a pool of `stage(*arguments)` actors.

    batch_size: rows in one call; Ray Data's default of 1,024 would be far too many images. calls_at_once: calls that
    one actor works on at the same time, each in a thread of its own.
    """
    return dataset.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=pool.num_actors,
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        # The only way that Ray 2.60 offers to bound the retries of an actor's task.
        ray_remote_args_fn=_actor_options,
    )


def _actor_options() -> dict[str, Any]:
    return {"max_task_retries": _TASK_RETRIES}


def restart_actor(problem: Exception) -> NoReturn:
    """Ends this actor's process for a fault that a new process may not have, such as a lost device.

    Ray starts the actor again and retries the calls that were in hand, each up to `_TASK_RETRIES` times; an error that
    a call raises would end the job instead. Outside an actor: raises `problem`.
    """
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        raise problem
    _log.error("this actor's process ends, and a new one retries its blocks: %s", problem, exc_info=problem)
    logging.shutdown()
    os._exit(1)  # not exit_actor: Ray takes that for the wish that there be no such actor any more


def pools_of(stages: Any) -> dict[str, StageConfig]:
    """The pools of a job's `stages` section by name."""
    return {field.name: getattr(stages, field.name) for field in dataclasses.fields(stages)}


def num_cpus(stages: Any) -> int:
    """Logical CPUs that all actors and one planning task need at once."""
    return math.ceil(sum(pool.num_actors * pool.num_cpus for pool in pools_of(stages).values())) + 1


def require_resources(stages: Any) -> None:
    """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
    pools = pools_of(stages)
    have = ray.cluster_resources()
    need_gpus = sum(pool.num_actors * pool.num_gpus for pool in pools.values())
    need_cpus = sum(pool.num_actors * pool.num_cpus for pool in pools.values()) + 1  # one for the tasks that plan
    if need_gpus > have.get("GPU", 0):
        raise ValueError(f"stages.*.num_gpus: the actors ask for {need_gpus:g} GPUs, Ray has {have.get('GPU', 0):g}")
    if need_cpus > have.get("CPU", 0):
        raise ValueError(
            f"stages.*.num_cpus: the actors ask for {need_cpus:g} CPUs (one of them for planning), "
            f"Ray has {have.get('CPU', 0):g}; ask for less, or start Ray with more (--num-cpus)"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, pool in pools.items():
        for kind, asked in (("GPU", pool.num_gpus), ("CPU", pool.num_cpus)):
            largest = max(node.get(kind, 0) for node in nodes)
            if asked > largest:
                raise ValueError(
                    f"stages.{name}.num_{kind.lower()}s={asked:g}: the largest node of this Ray has {largest:g}"
                )
