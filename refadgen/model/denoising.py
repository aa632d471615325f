"""Rows and batches of the denoising loop: images that are denoised together and stay independent of each other.

A `DenoisingRow` is one image on its way, with timesteps and scheduler state of its own. A `DenoisingBatch` may
therefore mix products, prompts, seeds, λ, guidance and steps, and rows may join and leave it between two steps.
`RefAdGenPipeline.start` makes rows and `RefAdGenPipeline.batch` makes batches.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refadgen.model.attention_fusion import Conditioning, PromptFeatures, ReferenceFeatures, condition

Predict = Callable[[Tensor, Tensor, Tensor, Conditioning], Tensor]
"""`unets.predict` bound to a Generation U-Net: noisy latents, mask latents, timesteps, conditioning → prediction."""


@dataclass
class DenoisingRow:
    """One image being denoised. `step_index` counts the steps done; `finished` when none is left."""

    latents: Tensor
    """z_t, 1×4×h×w."""
    mask_latents: Tensor
    """M′ at latent size, 1×1×h×w, 0 or 1."""
    prompt: PromptFeatures
    reference: ReferenceFeatures
    fusion_scale: float
    guidance_scale: float
    scheduler: Any
    """The row's own copy: multi-step schedulers keep a history. Its timesteps are on the CPU, as its tables are."""
    timesteps: Tensor
    """The scheduler's timesteps again, on the latents' device, for the network."""
    generator: torch.Generator
    step_index: int = 0
    predicted_original: Tensor | None = None
    """x₀ as of the last step, 1×4×h×w; None before the first step and where the scheduler does not predict it."""

    @property
    def finished(self) -> bool:
        return self.step_index >= len(self.timesteps)


@dataclass(frozen=True)
class _Constants:
    """What a batch's steps share while its rows stay the same.

    Building it copies numbers to the device, for which the host waits, and every row's K and V. A step does neither.
    """

    rows: list[DenoisingRow]
    """With padding."""
    mask_latents: Tensor
    """B×1×h×w."""
    guidance_scale: Tensor
    """B×1×1×1."""
    conditioning: Conditioning


@dataclass
class DenoisingBatch:
    """Rows that are denoised together; they may join (`add`) and leave (`remove`) between two steps.

    Only a step after a change of rows makes the host wait for the device, and schedulers that copy at each step do.
    """

    predict: Predict
    reference_in_uncond: bool
    """Whether the unconditional branch sees the product."""
    batch_size: int | None = None
    """Each step runs this many rows, padded; None: as many as there are."""
    rows: list[DenoisingRow] = field(default_factory=list)
    _constants: _Constants | None = None
    """Those of the present rows; None after a change."""

    def add(self, row: DenoisingRow) -> None:
        """Takes `row` in from the next step on. Raises: ValueError when it has another size or the batch is full."""
        if self.rows and row.latents.shape != self.rows[0].latents.shape:
            raise ValueError(f"latents of {tuple(row.latents.shape)} in a batch of {tuple(self.rows[0].latents.shape)}")
        if self.batch_size is not None and len(self.rows) >= self.batch_size:
            raise ValueError(f"the batch is full: {self.batch_size} rows")
        self.rows.append(row)
        self._constants = None

    def remove(self, row: DenoisingRow) -> None:
        """Drops `row`, finished or not."""
        self.rows = [other for other in self.rows if other is not row]  # by identity: == would compare tensors
        self._constants = None

    def replace(self, rows: Sequence[DenoisingRow]) -> None:
        """Makes these the batch's rows, in this order. The present rows again: nothing is built anew.

        Raises: as `add`.
        """
        if [id(row) for row in rows] == [id(row) for row in self.rows]:
            return
        self.rows, self._constants = [], None
        for row in rows:
            self.add(row)

    @torch.no_grad()
    def step(self) -> list[DenoisingRow]:
        """Advances each row by its own next timestep. Returns the rows that this step finished, and drops them."""
        if self._constants is None:
            self._constants = self._build()
        constants = self._constants
        predicted = self.predict(
            torch.cat([row.scheduler.scale_model_input(row.latents, _timestep(row)) for row in constants.rows]),
            constants.mask_latents,
            torch.stack([row.timesteps[row.step_index] for row in constants.rows]),
            constants.conditioning,
        )
        if constants.conditioning.num_branches == 2:
            unconditional, conditional = predicted.chunk(2)
            predicted = unconditional + constants.guidance_scale * (conditional - unconditional)
        # self.rows, without the padding, which repeats the first row: it must advance once.
        for index, row in enumerate(self.rows):
            _scheduler_step(row, predicted[index : index + 1])
        done = [row for row in self.rows if row.finished]
        for row in done:
            self.remove(row)
        return done

    def _build(self) -> _Constants:
        rows = _padded(self.rows, self.batch_size)
        guidance_scale = torch.tensor([row.guidance_scale for row in rows]).to(rows[0].latents)
        conditioning = condition(
            [row.prompt for row in rows],
            [row.reference for row in rows],
            torch.tensor([row.fusion_scale for row in rows]).to(rows[0].latents),
            # One guided row makes two branches for all: at guidance_scale 1 the formula gives the conditional one.
            guidance=any(row.guidance_scale > 1 for row in rows),
            reference_in_uncond=self.reference_in_uncond,
        )
        mask_latents = torch.cat([row.mask_latents for row in rows])
        return _Constants(rows, mask_latents, guidance_scale.view(-1, 1, 1, 1), conditioning)


def _padded(rows: Sequence[DenoisingRow], batch_size: int | None) -> list[DenoisingRow]:
    """The rows, with the first repeated up to `batch_size`."""
    # A step of one fixed shape: kernels are chosen by shape and round differently, so without padding a row's pixels
    # would depend on how many others share its batch. The compiled step also stays one graph.
    if batch_size is not None and len(rows) > batch_size:
        raise ValueError(f"{len(rows)} rows in a batch of {batch_size}")
    return [*rows, *[rows[0]] * ((batch_size or 0) - len(rows))]


def _timestep(row: DenoisingRow) -> Tensor:
    """The row's next timestep as its scheduler takes it, on the CPU."""
    timestep: Tensor = row.scheduler.timesteps[row.step_index]
    return timestep


def _scheduler_step(row: DenoisingRow, predicted: Tensor) -> None:
    """Advances `row` by one step of its own scheduler, with the row's generator where the scheduler draws noise."""
    kwargs = {"generator": row.generator} if _takes_generator(type(row.scheduler).step) else {}
    stepped = row.scheduler.step(predicted, _timestep(row), row.latents, return_dict=True, **kwargs)
    row.latents, row.predicted_original = stepped.prev_sample, getattr(stepped, "pred_original_sample", None)
    row.step_index += 1


@functools.cache
def _takes_generator(step: Any) -> bool:
    """Whether this `step` of a class of schedulers takes a generator: not every one does."""
    return "generator" in inspect.signature(step).parameters
