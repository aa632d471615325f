"""What a training tells Prometheus of its steps."""

import pytest

from refadgen.training import metrics


class Kept:
    """In the place of Ray's metrics."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def inc(self, value: float) -> None:
        assert value > 0  # Ray raises for others
        self.told.append(value)

    observe = inc

    def set(self, value: float) -> None:
        self.told.append(value)


def test_each_step_tells_loss_samples_time_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: Kept() for name in ("loss", "samples", "step_seconds", "steps_left")}
    for name, metric in kept.items():
        monkeypatch.setattr(metrics, f"_{name}", lambda metric=metric: metric)
    metrics.tell_step(loss=0.5, num_samples=16, seconds=2.0, steps_left=1)
    metrics.tell_step(loss=0.25, num_samples=16, seconds=0.0, steps_left=0)
    assert {name: metric.told for name, metric in kept.items()} == {
        "loss": [0.5, 0.25],
        "samples": [16, 16],
        "step_seconds": [2.0],
        "steps_left": [1, 0],
    }
