"""AdamW, its learning rate over the steps, and the moving average of the weights (EMA)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from refadgen.config.train import OptimizerConfig
from refadgen.training.parallel import local, put, whole


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of step `step`, from 0, of `num_steps`: a linear warm-up, then the schedule."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = (num_steps - step) / max(1, num_steps - config.warmup_steps)
    if config.schedule == "linear":
        fall = min(1.0, left)
    elif config.schedule == "cosine":
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left))
    elif config.schedule == "trapezoid":
        fall = min(1.0, (num_steps - step) / (config.decay_share * num_steps))
    else:
        fall = 1.0
    return config.learning_rate * warm * fall


def make_optimizer(config: OptimizerConfig, trained: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """Fused AdamW over `trained`, in the order of its names."""
    return torch.optim.AdamW(
        list(trained.values()),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


class MovingAverage:
    """The exponential moving average of the trained weights, in float32; its decay rises from 0.1 to its value.

    With FSDP2 each worker averages what lies on it.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._weights = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, nn.Parameter], step: int) -> None:
        """After step `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(tensor) for tensor in self._weights.values()]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in trained.values()], 1 - decay)

    def whole(self) -> dict[str, Tensor]:
        """The averaged weights on the CPU; with FSDP2 a collective."""
        return {name: whole(tensor) for name, tensor in self._weights.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over averaged weights."""
        for name, tensor in self._weights.items():
            put(tensor, weights[name])
