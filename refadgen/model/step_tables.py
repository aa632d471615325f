"""Steps of a scheduler as tables of numbers, so that rows at different steps advance together, on the device.

The solvers for inference are linear: what comes out of a step is a weighted sum of the latents, of the network's
prediction and of what the solver keeps from earlier steps. The weights are read off diffusers' own scheduler object,
by letting it step unit vectors; its configuration stays the truth.
"""

import copy
import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

TABLED = (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
"""Schedulers whose steps can be tables; others, and these where a step is not linear, step row by row."""
_CHECKED_STEPS = (2, 20)
"""Lengths at which a scheduler's tables are compared with its own steps."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class StepTable:
    """N steps of one scheduler. A row's state is its latents and K tensors that the solver keeps, at first zero.

    Float32 and on the CPU where nothing else is said.
    """

    timesteps: Tensor
    """[N], as the network takes them; of the scheduler's own number format."""
    input_scale: Tensor
    """[N]: the factor of the latents that the network sees."""
    weights: Tensor
    """[N, 1 + K + 1, 1 + K + 1]. In: latents, what is kept, prediction. Out: the next latents, what is kept then, and
    the predicted x₀ (zeros where the solver predicts none)."""
    predicts_original: bool

    @property
    def num_kept(self) -> int:
        """K."""
        return int(self.weights.shape[1]) - 2


class StepTables:
    """The tables of one scheduler, by number of steps. `step_tables` makes them where that can be."""

    def __init__(self, scheduler: Any) -> None:
        """scheduler: diffusers', one of `TABLED`; it is copied at each use, and never changed."""
        self._scheduler = scheduler
        self._tables: dict[int, StepTable] = {}

    def of(self, num_steps: int) -> StepTable:
        """The table of a run of `num_steps`."""
        if num_steps not in self._tables:
            self._tables[num_steps] = _table(self._scheduler, num_steps)
        return self._tables[num_steps]


def step_tables(scheduler: Any) -> StepTables | None:
    """The tables of a scheduler of diffusers; None where its steps are none: of another class than `TABLED`, random, or
    not linear, such as clipped ones."""
    if type(scheduler) not in TABLED:
        return None
    tables = StepTables(scheduler)
    sizes = (1.0, 100.0)  # the second is large enough to be clipped
    lengths = {min(steps, scheduler.config.num_train_timesteps) for steps in _CHECKED_STEPS}
    agrees = all(_agrees(scheduler, tables.of(steps), size) for steps in lengths for size in sizes)
    return tables if agrees else None


def check_finite(scheduler: Any) -> None:
    """Raises: ValueError where a run of a scheduler of diffusers ends in NaN, infinity or an error by its configuration
    alone."""
    name = type(scheduler).__name__
    most = scheduler.config.get("original_inference_steps") or scheduler.config.num_train_timesteps
    started = _started(scheduler, min(max(_CHECKED_STEPS), most))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 2, 2, generator=generator)
    settings = step_settings(type(scheduler), generator)
    for index, timestep in enumerate(started.timesteps, start=1):
        predicted = 0.1 * started.scale_model_input(latents, timestep)
        try:
            latents = started.step(predicted, timestep, latents, return_dict=True, **settings).prev_sample
        except Exception as error:  # whatever it meets that it was not written for, such as learned variances
            raise ValueError(
                f"scheduler: {name} cannot step with its configuration: {error}; change scheduler/scheduler_config.json"
            ) from error
        if not latents.isfinite().all():
            raise ValueError(
                f"scheduler: {name} gives NaN or infinity at step {index} of "
                f"{len(started.timesteps)} with its configuration; change scheduler/scheduler_config.json"
            )


def step_settings(scheduler: type, generator: torch.Generator) -> dict[str, Any]:
    """What diffusers' pipelines give to each step of a class of schedulers, where it takes them: a generator, and an
    eta of 0, which is not every class's default."""
    settings = {"generator": generator, "eta": 0.0}
    return {name: settings[name] for name in _step_parameters(scheduler) if name in settings}


@functools.cache
def _step_parameters(scheduler: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(scheduler.step).parameters)


def advance(state: Tensor, predicted: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of a step: B×(1 + K + 1)×C×h×w.

    state: latents and what is kept, B×(1 + K)×C×h×w. predicted: B×C×h×w. weights: of each row's step, as `StepTable`
    has them.
    """
    # Products and sums in kernels of their own, in one order: a fused or reordered sum may round a row's numbers by its
    # place in the batch.
    terms = [*state.unbind(1), predicted]
    result = terms[0][:, None] * weights[:, :, 0, None, None, None]
    for index, term in enumerate(terms[1:], start=1):
        result = result + term[:, None] * weights[:, :, index, None, None, None]
    return result


def original_of(
    scheduler: Any, stepped: Any, network_input: Tensor, predicted: Tensor, timestep: Tensor
) -> Tensor | None:
    """The predicted x₀ of a step, B×C×h×w: as the scheduler tells it, else computed; None where neither can be.

    stepped: what the scheduler's step gave. network_input: scaled latents. predicted: what the network made of them.
    timestep: that it took, a scalar.
    """
    told: Tensor | None = getattr(stepped, "pred_original_sample", None)
    alphas, kind = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler.config, "prediction_type", None)
    if told is not None or alphas is None:
        return told
    # σ of a timestep between two trained ones: log σ is linear there, as in the solvers that use such timesteps.
    log_sigmas = (((1 - alphas) / alphas.clamp(min=1e-6)) ** 0.5).log()  # the last ᾱ may be 0
    log_sigma = np.interp(float(timestep), np.arange(len(alphas)), log_sigmas.double().numpy())
    sigma = math.exp(log_sigma)
    signal = 1 / math.sqrt(sigma * sigma + 1)
    noise = sigma * signal
    # The network's input is √ᾱ x₀ + √(1−ᾱ) ε, whatever scale the solver keeps its latents in.
    x, y = network_input.float(), predicted.float()
    if kind == "epsilon":
        return (x - noise * y) / signal
    return signal * x - noise * y if kind == "v_prediction" else y if kind == "sample" else None


def _started(scheduler: Any, num_steps: int) -> Any:
    started = copy.deepcopy(scheduler)
    started.set_timesteps(num_steps, device="cpu")
    return started


def _kept(scheduler: Any) -> list[Tensor | None]:
    """What a multistep solver keeps, in order; None: not yet."""
    last = [scheduler.last_sample] if hasattr(scheduler, "last_sample") else []
    return [*last, *getattr(scheduler, "model_outputs", [])]


def _keep(scheduler: Any, kept: Sequence[Tensor | None]) -> None:
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample, *kept = kept
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs = list(kept)


def _table(scheduler: Any, num_steps: int) -> StepTable:
    scheduler = _started(scheduler, num_steps)
    num_kept = len(_kept(scheduler))
    # Unit vectors in place of pictures, in the place of the channels: 1×(1 + K + 1)×1×1.
    latents, *units, prediction = torch.eye(num_kept + 2)[:, None, :, None, None]
    scales, weights, predicts_original = [], [], False
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        scales.append(scaled[0, 0, 0, 0])
        _keep(scheduler, [None if old is None else unit for old, unit in zip(_kept(scheduler), units, strict=True)])
        stepped = scheduler.step(prediction, timestep, latents, return_dict=True)
        nothing = torch.zeros_like(latents)
        kept = [nothing if tensor is None else tensor for tensor in _kept(scheduler)]
        original = original_of(scheduler, stepped, scaled, prediction, timestep)
        predicts_original = original is not None
        outputs = [stepped.prev_sample, *kept, nothing if original is None else original]
        weights.append(torch.stack([output[0, :, 0, 0] for output in outputs]))
    return StepTable(scheduler.timesteps, torch.stack(scales), torch.stack(weights), predicts_original)


def _agrees(scheduler: Any, table: StepTable, size: float) -> bool:
    """Whether the table makes of random numbers, of about `size`, what the scheduler itself makes of them."""
    scheduler = _started(scheduler, len(table.timesteps))
    generator = torch.Generator().manual_seed(0)
    latents = size * torch.randn(1, 4, 2, 2, generator=generator)
    state = torch.cat([latents[:, None], torch.zeros(1, table.num_kept, *latents.shape[1:])], dim=1)
    for index, timestep in enumerate(scheduler.timesteps):
        predicted = size * torch.randn(latents.shape, generator=generator)
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(predicted, timestep, latents, return_dict=True).prev_sample
        state = advance(state, predicted, table.weights[index : index + 1])[:, : 1 + table.num_kept]
        if not (state[:, 0] - latents).norm() <= _TOLERANCE * latents.norm():  # NaN agrees with nothing
            return False
    return True
