"""Prometheus metrics of a training, through Ray's own: rank 0's node exports them.

Ray puts `ray_` before the names. Metrics are made on first use, so that importing this module registers nothing.
"""

import functools

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]


@functools.cache
def _loss() -> Gauge:
    return Gauge("refadgen_train_loss", "Loss of a training, as a mean of its last hundred steps.")


@functools.cache
def _samples() -> Counter:
    return Counter("refadgen_train_samples", "Triplets that a training has seen, of all workers.")


@functools.cache
def _step_seconds() -> Histogram:
    return Histogram(
        "refadgen_train_step_seconds", "Time from step to step, checkpoints included.", boundaries=_SECONDS
    )


@functools.cache
def _steps_left() -> Gauge:
    return Gauge("refadgen_train_steps_left", "Steps until a training ends.")


def tell_step(*, loss: float, num_samples: int, seconds: float, steps_left: int) -> None:
    """Tells of a finished step. loss: the mean of the last ones. num_samples: of all workers."""
    _loss().set(loss)
    _samples().inc(num_samples)
    if seconds > 0:
        _step_seconds().observe(seconds)
    _steps_left().set(steps_left)
