"""Rows and batches of the denoising loop: images that are denoised together and stay independent of each other.

A `DenoisingRow` is one image on its way, with timesteps and solver state of its own. A `DenoisingBatch` may therefore
mix products, prompts, seeds, λ, guidance and steps, and rows may join and leave it between two steps.
`RefAdGenPipeline.start` makes rows and `RefAdGenPipeline.batch` makes batches.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from refadgen.model.attention_fusion import Conditioning, PromptFeatures, ReferenceFeatures, condition
from refadgen.model.passes import Pass
from refadgen.model.step_tables import StepTable, advance, original_of, step_settings

Predict = Callable[[Tensor, Tensor, Tensor, Conditioning, Tensor | None], tuple[Tensor, Tensor]]
"""`unets.predict` bound to a Generation U-Net: noisy latents, mask latents, timesteps, conditioning, deep features of
an earlier step or None → prediction, deep features."""


@dataclass(frozen=True)
class RowScheduler:
    """A scheduler whose steps are no tables, as one row's own copy: multi-step schedulers keep a history."""

    scheduler: Any
    """Its timesteps are on the CPU, as its tables are."""
    timesteps: Tensor
    """The same, on the latents' device, for the network."""
    generator: torch.Generator
    """Of the noise that the scheduler draws, if it does."""


@dataclass
class DenoisingRow:
    """One image being denoised. `step_index` counts the steps done; `finished` when none is left."""

    latents: Tensor
    """z_t, 1×4×h×w; float32 where the solver is a table."""
    mask_latents: Tensor
    """M′ at latent size, 1×1×h×w, 0 or 1, in the network's number format."""
    prompt: PromptFeatures
    reference: ReferenceFeatures
    fusion_scale: float
    guidance_scale: float
    solver: StepTable | RowScheduler
    passes: tuple[Pass, ...]
    """Of each step."""
    step_index: int = 0
    kept: Tensor | None = None
    """What a solver that is a table keeps from the steps before, 1×K×4×h×w; None before the first."""
    deep: Tensor | None = None
    """Deep features of the network for the steps that use them again, branches×C×h×w; None where the next does not."""
    predicted_original: Tensor | None = None
    """x₀ as of the last step, 1×4×h×w; None before the first step and where the solver does not predict it."""

    @property
    def num_steps(self) -> int:
        return len(self.solver.timesteps)

    @property
    def finished(self) -> bool:
        return self.step_index >= self.num_steps

    @property
    def next_pass(self) -> Pass:
        """Of the next step."""
        return self.passes[self.step_index]


@dataclass(frozen=True)
class _Constants:
    """What the passes of the same rows share, with guidance or without.

    Building it copies numbers to the device, for which the host waits, and every row's K and V. A step does neither.
    """

    rows: list[DenoisingRow]
    """Without the padding."""
    mask_latents: Tensor
    """B×1×h×w."""
    guidance_scale: Tensor
    """B×1×1×1."""
    conditioning: Conditioning


@dataclass
class DenoisingBatch:
    """Rows that are denoised together; they may join (`add`) and leave (`remove`) between two steps.

    Only a step after a change of rows makes the host wait for the device, and so do schedulers that are no tables and
    copy at each step.
    """

    predict: Predict
    reference_in_uncond: bool
    """Whether the unconditional branch sees the product."""
    batch_size: int | None = None
    """Each pass of the network runs this many rows, padded; None: as many as there are."""
    rows: list[DenoisingRow] = field(default_factory=list)
    _constants: dict[bool, _Constants] = field(default_factory=dict)
    """Those of the last pass with guidance, and of the last without."""
    _steppers: "dict[bool, _Stepper]" = field(default_factory=dict)
    """Those that were made last for a pass with guidance and for one without; each can do both."""
    _predicted: Tensor | None = None
    """Of the last pass, padding included, B×4×h×w."""

    def add(self, row: DenoisingRow) -> None:
        """Takes `row` in from the next step on.

        Raises: ValueError when it has another size or kind of scheduler, or the batch is full.
        """
        if self.rows and row.latents.shape != self.rows[0].latents.shape:
            raise ValueError(f"latents of {tuple(row.latents.shape)} in a batch of {tuple(self.rows[0].latents.shape)}")
        if self.batch_size is not None and len(self.rows) >= self.batch_size:
            raise ValueError(f"the batch is full: {self.batch_size} rows")
        if self.rows and _steps_of(row) != _steps_of(self.rows[0]):
            raise ValueError("rows of different schedulers in a batch")
        self.rows.append(row)

    def remove(self, row: DenoisingRow) -> None:
        """Drops `row`, finished or not."""
        self.rows = [other for other in self.rows if other is not row]  # by identity: == would compare tensors
        # Their K and V would take memory until the next change.
        self._constants = {guided: each for guided, each in self._constants.items() if not _holds(each.rows, row)}
        self._steppers = {guided: each for guided, each in self._steppers.items() if not _holds(each.rows, row)}

    def replace(self, rows: Sequence[DenoisingRow]) -> None:
        """Makes these the batch's rows, in this order. The rows of an earlier step again: nothing is built anew.

        Raises: as `add`.
        """
        self.rows = []
        for row in rows:
            self.add(row)

    @torch.no_grad()
    def step(self) -> list[DenoisingRow]:
        """Advances each row by its own next timestep, those of one pass together. Returns the rows that this step
        finished, and drops them."""
        of_pass: dict[Pass, list[DenoisingRow]] = {}
        for row in self.rows:
            of_pass.setdefault(row.next_pass, []).append(row)
        for next_pass, rows in of_pass.items():
            self._advance(next_pass, rows)
        done = [row for row in self.rows if row.finished]
        for row in done:
            self.remove(row)
        return done

    def _advance(self, next_pass: Pass, rows: list[DenoisingRow]) -> None:
        """One step of rows of one pass."""
        constants = self._constants.get(next_pass.guided)
        if constants is None or not _same(constants.rows, rows):
            self._constants.pop(next_pass.guided, None)  # not beside its successor in memory
            constants = self._constants[next_pass.guided] = self._build(rows, guidance=next_pass.guided)
        stepper = self._stepper(next_pass, rows)
        latents, timesteps = stepper.inputs()
        kept = None if next_pass.full else self._deep(rows, guided=next_pass.guided)
        predicted, deep = self.predict(
            latents.to(constants.mask_latents.dtype), constants.mask_latents, timesteps, constants.conditioning, kept
        )
        if next_pass.guided:
            unconditional, conditional = predicted.chunk(2)
            predicted = unconditional + constants.guidance_scale * (conditional - unconditional)
        self._predicted = predicted
        stepper.advance(predicted)
        for index, row in enumerate(rows):
            if row.finished or row.next_pass.full:
                row.deep = None
            elif next_pass.full:
                # Of all branches, and a copy: a captured graph writes its results to the same place at each run.
                row.deep = deep[index :: len(deep) // constants.conditioning.num_branches].clone()

    def _stepper(self, next_pass: Pass, rows: list[DenoisingRow]) -> "_Stepper":
        """The one that these rows were advanced by last, or a new one."""
        for each in self._steppers.values():
            if _same(each.rows, rows) and each.follows():
                return each
        make = _Tabled if isinstance(rows[0].solver, StepTable) else _RowByRow
        made: _Stepper = make(rows, _padded(rows, self.batch_size))
        self._steppers[next_pass.guided] = made
        return made

    def uneven_places(self, num_rows: int) -> list[int]:
        """Places of the padding, from 0, where the last pass, of `num_rows` rows, has given other numbers than at the
        first place, whose row the padding repeats: the device rounds by place. Waits for the device."""
        if self._predicted is None:
            return []
        first, *others = self._predicted.cpu()
        return [place for place, one in enumerate(others, start=1) if place >= num_rows and not torch.equal(one, first)]

    def _deep(self, rows: list[DenoisingRow], *, guided: bool) -> Tensor:
        """The rows' deep features as the network takes them, unconditional ones first: N×C×h×w."""
        kept = [row.deep for row in _padded(rows, self.batch_size) if row.deep is not None]
        conditional = [deep[-1:] for deep in kept]
        return torch.cat([*(deep[:1] for deep in kept), *conditional] if guided else conditional)

    def _build(self, unpadded: list[DenoisingRow], *, guidance: bool) -> _Constants:
        rows = _padded(unpadded, self.batch_size)
        guidance_scale = torch.tensor([row.guidance_scale for row in rows]).to(rows[0].mask_latents)
        conditioning = condition(
            [row.prompt for row in rows],
            [row.reference for row in rows],
            torch.tensor([row.fusion_scale for row in rows]).to(rows[0].mask_latents),
            guidance=guidance,
            reference_in_uncond=self.reference_in_uncond,
        )
        mask_latents = torch.cat([row.mask_latents for row in rows])
        return _Constants(list(unpadded), mask_latents, guidance_scale.view(-1, 1, 1, 1), conditioning)


def _same(rows: Sequence[DenoisingRow], others: Sequence[DenoisingRow]) -> bool:
    """Whether they are the same objects in the same order: == would compare tensors."""
    return [id(row) for row in rows] == [id(row) for row in others]


def _holds(rows: Sequence[DenoisingRow], row: DenoisingRow) -> bool:
    return any(other is row for other in rows)


def _steps_of(row: DenoisingRow) -> int | None:
    """How many tensors the row's table keeps; None: no table."""
    return row.solver.num_kept if isinstance(row.solver, StepTable) else None


def _padded(rows: Sequence[DenoisingRow], batch_size: int | None) -> list[DenoisingRow]:
    """The rows, with the first repeated up to `batch_size`."""
    # A step of one fixed shape: kernels are chosen by shape and round differently, so without padding a row's pixels
    # would depend on how many others share its batch. The compiled step also stays one graph.
    if batch_size is not None and len(rows) > batch_size:
        raise ValueError(f"{len(rows)} rows in a batch of {batch_size}")
    return [*rows, *[rows[0]] * ((batch_size or 0) - len(rows))]


class _Stepper(Protocol):
    """How the rows of a batch advance. The padding repeats the first row, which must advance once."""

    rows: Sequence[DenoisingRow]
    """Without the padding."""

    def follows(self) -> bool:
        """Whether the rows are where its last step left them, and nobody else has moved them."""

    def inputs(self) -> tuple[Tensor, Tensor]:
        """What the network takes at this step: latents B×4×h×w and timesteps, B."""

    def advance(self, predicted: Tensor) -> None:
        """Advances the rows. predicted: of the network, guided, B×4×h×w."""


class _Tabled:
    """All rows at once, each by its own table at its own step. Nothing is read back from the device."""

    def __init__(self, unpadded: Sequence[DenoisingRow], rows: Sequence[DenoisingRow]) -> None:
        self.rows: Sequence[DenoisingRow] = list(unpadded)
        tables = {id(row.solver): row.solver for row in rows if isinstance(row.solver, StepTable)}
        firsts = dict(zip(tables, itertools.accumulate(map(_num_steps, tables.values()), initial=0), strict=False))
        device = rows[0].latents.device
        self._timesteps = torch.cat([table.timesteps for table in tables.values()]).to(device)
        self._input_scale = torch.cat([table.input_scale for table in tables.values()]).to(device)
        self._weights = torch.cat([table.weights for table in tables.values()]).to(device)
        self._at = torch.tensor([firsts[id(row.solver)] + row.step_index for row in rows]).to(device)
        """Where in these tables each row is."""
        self._num_kept = self._weights.shape[1] - 2
        self._predicts_original = all(table.predicts_original for table in tables.values())
        self._state = torch.cat([torch.cat([row.latents[:, None], self._kept(row)], dim=1) for row in rows])
        self._latents = [row.latents for row in rows]

    def follows(self) -> bool:
        return all(row.latents is own for row, own in zip(self.rows, self._latents, strict=False))

    def _kept(self, row: DenoisingRow) -> Tensor:
        return row.latents.new_zeros(1, self._num_kept, *row.latents.shape[1:]) if row.kept is None else row.kept

    def inputs(self) -> tuple[Tensor, Tensor]:
        return self._state[:, 0] * self._input_scale[self._at].view(-1, 1, 1, 1), self._timesteps[self._at]

    def advance(self, predicted: Tensor) -> None:
        result = advance(self._state, predicted.to(self._state.dtype), self._weights[self._at])
        self._state = result[:, : 1 + self._num_kept]
        self._at += 1
        self._latents, kept = list(result[:, 0].split(1)), result[:, 1 : 1 + self._num_kept].split(1)
        for row, own, own_kept, original in zip(self.rows, self._latents, kept, result[:, -1].split(1), strict=False):
            row.latents, row.kept = own, own_kept
            row.predicted_original = original if self._predicts_original else None
            row.step_index += 1


def _num_steps(table: StepTable) -> int:
    return len(table.timesteps)


class _RowByRow:
    """One row after the other, by diffusers' own step."""

    def __init__(self, unpadded: Sequence[DenoisingRow], rows: Sequence[DenoisingRow]) -> None:
        self.rows: Sequence[DenoisingRow] = list(unpadded)
        self._solvers = [(row, row.solver) for row in rows if isinstance(row.solver, RowScheduler)]
        self._inputs: list[Tensor] = []

    def follows(self) -> bool:
        return True  # the rows hold all there is

    def inputs(self) -> tuple[Tensor, Tensor]:
        self._inputs = [
            solver.scheduler.scale_model_input(row.latents, solver.scheduler.timesteps[row.step_index])
            for row, solver in self._solvers
        ]
        return torch.cat(self._inputs), torch.stack([solver.timesteps[row.step_index] for row, solver in self._solvers])

    def advance(self, predicted: Tensor) -> None:
        for index, (row, solver) in enumerate(self._solvers[: len(self.rows)]):
            scheduler = solver.scheduler
            kwargs = step_settings(type(scheduler), solver.generator)
            timestep = scheduler.timesteps[row.step_index]
            own = predicted[index : index + 1]
            stepped = scheduler.step(own, timestep, row.latents, return_dict=True, **kwargs)
            row.latents = stepped.prev_sample
            row.predicted_original = original_of(scheduler, stepped, self._inputs[index], own, timestep)
            row.step_index += 1
