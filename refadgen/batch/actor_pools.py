"""Stages of a job as pools of actors, and the resources they take."""

import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import ray
import ray._private.state
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.data import ActorPoolStrategy, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from tqdm import tqdm

from refadgen.batch.death_marks import DeathMarks, MarkedStage, Refuse, with_error
from refadgen.batch.node_labels import may_hold, placement
from refadgen.batch.pool_sizes import PLANNING_CPUS, NodeSize, PoolSize, fewest, pools_of
from refadgen.config import StageConfig

_log = logging.getLogger("refadgen.batch")
BESIDE_CORES = 3
"""Logical CPUs of a local Ray beside one for each core: for planning, and for the stages that take half a CPU."""


def with_stage(
    dataset: Dataset,
    stage: type,
    pool: StageConfig,
    size: PoolSize,
    batch_size: int,
    marks: DeathMarks,
    *arguments: Any,
    calls_at_once: int = 1,
    refuse: Refuse | None = with_error,
) -> Dataset:
    """Maps `dataset` through a pool of `stage(*arguments)` actors.

    batch_size: rows in one call; Ray Data's default of 1,024 would be far too many images. calls_at_once: calls that
    one actor works on at the same time, each in a thread of its own. marks, refuse: see `MarkedStage`. Ray restarts
    actors and retries their calls without a bound; the marks bound both.
    """
    mapped = dataset.map_batches(
        type(stage.__name__, (MarkedStage,), {}),  # Ray names pools and processes after the class
        fn_constructor_args=(stage, marks, refuse, *arguments),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=size.least,
            max_size=size.most,
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        **placement(pool.label_selector),
    )
    use_callbacks(mapped)
    return mapped


def use_callbacks(dataset: Dataset, *callbacks: type[ExecutionCallback]) -> None:
    """Has a run of `dataset` call these, and those that each run of a pool needs."""
    dataset.context.custom_execution_callback_classes = [IdleActors, *callbacks]


def restart_actor(problem: Exception) -> NoReturn:
    """Ends this actor's process for a fault that a new process may not have, such as a lost device.

    Ray starts the actor again and retries the calls that were in hand, each of their rows alone (`MarkedStage`); an
    error that a call raises would end the job instead. Where the new process cannot start either, the run ends with its
    error (`record_rows`). Outside an actor: raises `problem`.
    """
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        raise problem
    _log.error("this actor's process ends, and a new one retries its blocks: %s", problem, exc_info=problem)
    logging.shutdown()
    os._exit(1)  # not exit_actor: Ray takes that for the wish that there be no such actor any more


def num_cpus(stages: Any, cores: int) -> int:
    """Logical CPUs of a local Ray: for one actor a core, and for all pools at their least."""
    least = sum(fewest(pool) * pool.num_cpus for pool in pools_of(stages).values())
    return max(math.ceil(least) + PLANNING_CPUS, cores + BESIDE_CORES)


def nodes_of_ray(cores: int) -> list[NodeSize]:
    """The nodes that this Ray has, and those that it may add; without a Ray, this machine as a local one.

    cores: of this machine. They bound the CPUs of a Ray of one node, which may have been told of any number.
    """
    if not ray.is_initialized():
        return [NodeSize(cores + BESIDE_CORES, _gpus_here())]
    nodes = _live_nodes()
    if len(nodes) == 1:
        nodes = [replace(nodes[0], cpus=min(nodes[0].cpus, cores + BESIDE_CORES))]
    for group in _node_groups():
        added = NodeSize(group.resources.get("CPU", 0), group.resources.get("GPU", 0))
        nodes += [added] * (max(group.max_count, 1) - nodes.count(added))
    return nodes


def _live_nodes() -> list[NodeSize]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        NodeSize(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0), node.get("Labels")) for node in alive
    ]


def _gpus_here() -> int:
    """The GPUs that a local Ray would find. Unlike torch, Ray knows them at once."""
    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    found: int = manager.get_current_node_num_accelerators()
    return found if visible is None else min(found, len(visible))


def _node_groups() -> list[Any]:
    """The kinds of nodes that a Ray with an autoscaler has or may add. max_count: of nodes; -1: any number."""
    # Ray has no public way to ask; its own Ray Data asks here.
    config = ray._private.state.state.get_cluster_config()
    return [] if config is None else [group for group in config.node_group_configs if group.max_count]


def _most(kind: str) -> float:
    """Logical resources of a kind that this Ray has or can ever have."""
    added = [(group.resources.get(kind, 0), group.max_count) for group in _node_groups()]
    unbounded = any(each and count < 0 for each, count in added)
    possible = math.inf if unbounded else sum(each * count for each, count in added if each)
    return float(max(possible, sum(node.gpus if kind == "GPU" else node.cpus for node in _live_nodes())))


def require_resources(stages: Any, sizes: Mapping[str, PoolSize]) -> None:
    """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
    pools = pools_of(stages)
    need_gpus = sum(sizes[name].least * pool.num_gpus for name, pool in pools.items())
    need_cpus = sum(sizes[name].least * pool.num_cpus for name, pool in pools.items()) + PLANNING_CPUS
    if need_gpus > _most("GPU"):
        raise ValueError(
            f"stages.*.num_gpus: the actors ask for {need_gpus:g} GPUs, Ray has {_most('GPU'):g}; ask for less, or fix "
            "fewer actors (stages.*.num_actors)"
        )
    if need_cpus > _most("CPU"):
        raise ValueError(
            f"stages.*.num_cpus: the actors ask for {need_cpus:g} CPUs (one of them for planning), "
            f"Ray has {_most('CPU'):g}; ask for less, or start Ray with more (--num-cpus)"
        )
    groups = [NodeSize(group.resources.get("CPU", 0), group.resources.get("GPU", 0)) for group in _node_groups()]
    for name, pool in pools.items():
        actor = NodeSize(pool.num_cpus, pool.num_gpus)
        nodes = [node for node in [*_live_nodes(), *groups] if may_hold(node.labels, pool.label_selector)]
        if not nodes:
            raise ValueError(
                f"stages.{name}.label_selector={list(pool.label_selector)}: no node of this Ray has such labels; "
                f"there are {_labels_of_nodes()}"
            )
        for kind, asked in (("GPU", pool.num_gpus), ("CPU", pool.num_cpus)):
            largest = max(node.gpus if kind == "GPU" else node.cpus for node in nodes)
            if asked > largest:
                raise ValueError(
                    f"stages.{name}.num_{kind.lower()}s={asked:g}: the largest node of this Ray has {largest:g}"
                    + (f" (of those with stages.{name}.label_selector)" if pool.label_selector else "")
                )
        if not any(node.num_of(actor) for node in nodes):
            raise ValueError(
                f"stages.{name}: an actor asks for num_cpus={pool.num_cpus:g} with num_gpus={pool.num_gpus:g}, and no "
                "node of this Ray has both; ask for fewer CPUs"
            )


def _labels_of_nodes() -> str:
    """For people; without the ids, which differ from node to node."""
    pairs = {f"{name}={value}" for node in _live_nodes() for name, value in (node.labels or {}).items()}
    return ", ".join(sorted(pair for pair in pairs if not pair.startswith("ray.io/node-id"))) or "none"


class IdleActors(ExecutionCallback):  # type: ignore[misc] # Ray is Any to mypy
    """Ends a run of Ray Data one of whose actors has died for good while it had no call in hand.

    Ray Data hears of deaths by the calls that fail. Nothing would be given to this actor any more, and nothing replace
    it: where it was its pool's only one, the run would wait for ever.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Raises: RuntimeError naming the stage."""
        for operator in executor._topology:
            if not isinstance(operator, ActorPoolMapOperator):
                continue
            for actor, state in operator._actor_pool._running_actors.items():
                # Of a call in hand comes the actor's own error.
                if (
                    actor._get_local_state() == actor_pool_map_operator._ACTOR_STATE_DEAD
                    and not state.num_tasks_in_flight
                ):
                    raise RuntimeError(
                        f"{operator.name}: an actor ended while it had no work, and could not start again"
                    )


class _Growth(logging.Handler):
    """Says which pools Ray Data enlarges: it says so itself in a log file of its own only."""

    _SAID = re.compile(r"Scaling up MapWorker\(MapBatches\((\w+)\)\) actor pool by (\d+) \(reason=utilization")

    def emit(self, record: logging.LogRecord) -> None:
        if found := self._SAID.match(record.getMessage()):
            tqdm.write(f"{found[1]}: {found[2]} more, for its blocks pile up", file=sys.stderr)


@contextmanager
def growth_shown() -> Iterator[None]:
    """Shows how pools grow meanwhile."""
    logger, shown = logging.getLogger(actor_pool_map_operator.__name__), _Growth()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(shown)
    try:
        yield
    finally:
        logger.removeHandler(shown)
        logger.setLevel(level)
