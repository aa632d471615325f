"""How every job finds its Ray: the cluster it was submitted to, or a local one that ends with the process."""

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from refadgen.config.devices import num_cores
from refadgen.storage.store import Storage

_PACKAGE = "_ray_pkg_"
"""How the name of a runtime environment's folder begins."""

P = ParamSpec("P")
T = TypeVar("T")


def connect(num_cpus: int, *, dashboard: bool = False, log_format: str = "text") -> None:
    """Joins the cluster of RAY_ADDRESS, which `ray job submit` sets, or starts a local Ray.

    num_cpus: logical CPUs that the job needs; a local Ray gets at least four. dashboard: whether a local Ray serves
    its State API, where Ray Train looks up which of its actors are alive. log_format: see `LogConfig`.
    """
    logs: dict[str, Any] = {"logging_level": logging.WARNING}
    if log_format == "json":
        # Not to the driver: Ray would put each line behind the actor's name, and it would be JSON no more.
        logs = {"logging_config": ray.LoggingConfig(encoding="JSON"), "log_to_driver": False}
    if not ray.is_initialized():
        if submitted():
            ray.init(**logs)
        else:
            # Ray listens on all addresses of the machine: who connects must know a token. Without one in the
            # environment, ray.init would write one into the user's home.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it says so at every start
            ray.init(
                address="local",
                num_cpus=max(4, num_cpus, num_cores()),  # pools of one-CPU actors deadlock on two
                include_dashboard=dashboard,
                **logs,
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


def require_lasting(output: Storage) -> None:
    """Raises: ValueError for an output in a folder that Ray made of `ray job submit --working-dir`.

    Ray deletes that folder, and gives another one as soon as a file of the package is edited.
    """
    if not output.remote and any(part.startswith(_PACKAGE) for part in Path(os.path.realpath(output.root)).parts):
        raise ValueError(
            f"--output {output.uri}: lies in the package that Ray made of --working-dir and will delete; give a folder "
            "that all nodes share or an s3:// address: --output s3://BUCKET/PREFIX"
        )


def run_in_task(function: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """Calls `function` in a Ray task, so that reading all rows of a large ledger costs the driver no memory.

    Without a Ray, in a dry run, it is called here. Raises: the errors of `function`.
    """
    if not ray.is_initialized():
        return function(*arguments, **settings)
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
