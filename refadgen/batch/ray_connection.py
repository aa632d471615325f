"""How every job finds its Ray: the cluster it was submitted to, or a local one that ends with the process."""

import logging
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from refadgen.config.devices import num_cores

P = ParamSpec("P")
T = TypeVar("T")


def connect(num_cpus: int, *, dashboard: bool = False) -> None:
    """Joins the cluster of RAY_ADDRESS, which `ray job submit` sets, or starts a local Ray.

    num_cpus: logical CPUs that the job needs; a local Ray gets at least four. dashboard: whether a local Ray serves
    its State API, where Ray Train looks up which of its actors are alive.
    """
    if not ray.is_initialized():
        if submitted():
            ray.init(logging_level=logging.WARNING)
        else:
            # Unset, ray.init would turn token authentication on and write a token file into the user's home.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            ray.init(
                address="local",
                num_cpus=max(4, num_cpus, num_cores()),  # pools of one-CPU actors deadlock on two
                include_dashboard=dashboard,
                logging_level=logging.WARNING,
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False  # jobs have their own, in images
    # Ray would end a run after half an hour without a finished block; a block at full size on a CPU takes longer.
    context.execution_no_progress_timeout_s = 24 * 3600
    # A pool grows by one actor at a time: a stage that is first to have work would otherwise take all free CPUs before
    # the next has any. It never shrinks while there is work: an actor that holds networks is dear to start again.
    context.autoscaling_config.actor_pool_max_upscaling_delta = 1
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def submitted() -> bool:
    """Whether this process runs on a cluster that it was submitted to."""
    return bool(os.environ.get("RAY_ADDRESS"))


def run_in_task(function: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """Calls `function` in a Ray task, so that reading all rows of a large ledger costs the driver no memory.

    Raises: the errors of `function`.
    """
    found: T = results_of([_call_task.remote(function, *arguments, **settings)])[0]
    return found


def _call(function: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    return function(*arguments, **settings)


_call_task = ray.remote(_call)


def results_of(references: list[Any]) -> list[Any]:
    """The results of Ray tasks. Raises: the error of the first that failed, as the task raised it."""
    try:
        found: list[Any] = ray.get(references)
        return found
    except RayTaskError as error:
        raise error.cause from error
