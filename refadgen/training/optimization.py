"""AdamW, its learning rate over the steps, and the moving average of the weights (EMA)."""

import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from refadgen.config.train import OptimizerConfig
from refadgen.training.parallel import gather_to_rank_0, local_shard, put_full_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale")
"""Tensors of an 8-bit moment: 8-bit codes, and one scale for each block of them."""


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`: a linear warm-up, then the schedule."""
    # step + 1: at a rate of 0 the first step would be lost.
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


def make_optimizer(config: OptimizerConfig, trained: Mapping[str, nn.Parameter]) -> Optimizer:
    """AdamW over `trained`, in its order. Raises: ValueError where `adamw_8bit` is set and torchao not installed."""
    parameters = list(trained.values())
    betas = (config.beta1, config.beta2)
    rate, decay, epsilon = config.learning_rate, config.weight_decay, config.epsilon
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, rate, betas, epsilon, decay, fused=True)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "optimizer.name=adamw_8bit needs torchao: install refadgen with the extra `quantized`"
        ) from error
    optimizer: Optimizer = AdamW8bit(parameters, rate, betas, epsilon, decay)
    return optimizer


def take_step(optimizer: Optimizer, learning_rate: float, *, compiled: bool) -> None:
    """Takes one optimizer step and frees the gradients.

    compiled: whether torchao's optimizer may compile its step, which takes a minute or more before the first one.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's optimizer refuses a float in its place
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
    eagerly = not compiled and not isinstance(optimizer, torch.optim.AdamW)
    with torch.compiler.set_stance("force_eager") if eagerly else nullcontext():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def moments_of(optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Both moments by name, gathered to rank 0: float32, or codes and scales of 8-bit moments. See `Checkpoint`."""
    found: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        for kind in _MOMENTS if parameter in optimizer.state else ():
            moment = optimizer.state[parameter][kind]
            if hasattr(moment, "codes"):
                found |= {f"{name}/{kind}/{part}": getattr(moment, part).cpu() for part in _PARTS}
            else:
                found[f"{name}/{kind}"] = gather_to_rank_0(moment)
    return found


def load_moments(
    optimizer: Optimizer, trained: Mapping[str, nn.Parameter], moments: Mapping[str, Tensor], step: int
) -> None:
    """Restores the result of `moments_of` after `step` steps. A parameter without moments starts anew."""
    # Fused AdamW keeps its step counter on the parameter's device, torchao on the CPU.
    fused = isinstance(optimizer, torch.optim.AdamW)
    for name, parameter in trained.items():
        state = {}
        for kind in _MOMENTS:
            key = f"{name}/{kind}"
            if f"{key}/codes" in moments:
                state[kind] = _moment_8bit(parameter, kind, moments, key)
            elif key in moments:
                state[kind] = torch.zeros_like(parameter)
                put_full_tensor(state[kind], moments[key])
        if state:
            counted = torch.tensor(float(step), device=parameter.device if fused else "cpu")
            optimizer.state[parameter] = {"step": counted, **state}


def _moment_8bit(parameter: Tensor, kind: str, moments: Mapping[str, Tensor], key: str) -> Tensor:
    """An 8-bit moment as torchao holds it, from its codes and scales. Only the first moment has a sign."""
    from torchao.optim.subclass_8bit import OptimState8bit

    codes, scale = (moments[f"{key}/{part}"] for part in _PARTS)
    block_size = codes.numel() // scale.numel()
    moment = OptimState8bit.zeros(codes.shape, kind == "exp_avg", block_size, parameter.device, parameter.dtype)
    # Copied into buffers of its own: the loaded tensors are the checkpoint's.
    moment.codes.copy_(codes)
    moment.scale.copy_(scale)
    return moment


class MovingAverage:
    """The exponential moving average (EMA) of the trained weights, in float32. Its decay rises from 0.1 to `decay`.

    With FSDP2 each worker averages its own shards.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._weights = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, nn.Parameter], step: int) -> None:
        """Adds the weights after step `step` (from 0)."""
        # Without the ramp, the initial weights would dominate the average for the first 1 / (1 − decay) steps.
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local_shard(tensor) for tensor in self._weights.values()]
        torch._foreach_lerp_(averages, [local_shard(p.detach()) for p in trained.values()], 1 - decay)

    def gather_to_rank_0(self) -> dict[str, Tensor]:
        """The averaged weights by name, see `parallel.gather_to_rank_0`."""
        return {name: gather_to_rank_0(tensor) for name, tensor in self._weights.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the average by `weights`, full tensors."""
        for name, tensor in self._weights.items():
            put_full_tensor(tensor, weights[name])
