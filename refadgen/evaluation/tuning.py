"""The cheapest sampling settings that a model's images do not suffer from, measured against its own full run.

    full run ─► each part alone ─► parts together, cheaper and cheaper ─► the cheapest that is no worse

No worse: for each measure the mean lies in the full run's 95 % interval or above it, and the loss is not surely more
than a hundredth: the interval of the paired difference reaches −0.01. Intervals are bootstrapped over products.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch.utils.flop_counter import FlopCounterMode

from refadgen.config.sections import SchedulerName
from refadgen.evaluation.examples import Example, Images
from refadgen.evaluation.intervals import interval, product_means
from refadgen.model import RefAdGenPipeline
from refadgen.model.denoising import DenoisingRow
from refadgen.model.passes import FastMode, Pass
from refadgen.model.schedulers import other_scheduler
from refadgen.model.step_tables import check_finite

SCHEDULERS: tuple[SchedulerName, ...] = ("model", "dpm++", "unipc", "euler", "ddim")
STEPS = (16, 12, 10, 8, 7, 6, 5, 4, 3, 2)
INTERVALS = ((0.0, 0.9), (0.0, 0.7), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0), (0.25, 0.9))
REUSE = (2, 3)
_MOST_AT_ONCE = 16
_NEGLIGIBLE = 0.01
"""A loss of a measure that nobody would see; all measures lie between 0 and 1, a cosine between −1 and 1."""
_STARTS = 3
"""Pairs of solver and steps, the cheapest that are no worse, with which other parts are tried together."""


@dataclass(frozen=True, order=True)
class Candidate:
    """Settings of `sampling` that are tried together."""

    scheduler: SchedulerName
    num_inference_steps: int
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse_steps: int = 1

    @property
    def fast(self) -> FastMode:
        return FastMode(guidance_interval=self.guidance_interval, reuse_steps=self.reuse_steps)

    def __str__(self) -> str:
        parts = [f"{self.scheduler}, {self.num_inference_steps} steps"]
        if self.guidance_interval != (0.0, 1.0):
            parts.append("guidance {:g} to {:g}".format(*self.guidance_interval))
        if self.reuse_steps > 1:
            parts.append(f"features for {self.reuse_steps} steps")
        return ", ".join(parts)


@dataclass(frozen=True)
class Measured:
    """One measure of a candidate beside the full run."""

    mean: float
    full_mean: float
    full_interval: tuple[float, float]
    difference_interval: tuple[float, float]
    """Of the paired difference, candidate − full."""

    @property
    def no_worse(self) -> bool:
        return self.mean >= self.full_interval[0] and self.difference_interval[1] >= -_NEGLIGIBLE


@dataclass(frozen=True)
class Tried:
    """A candidate with its cost and its measures."""

    candidate: Candidate
    cost: float
    """Operations of an image's steps ÷ those of the full run."""
    measures: Mapping[str, Measured]

    @property
    def no_worse(self) -> bool:
        return all(measured.no_worse for measured in self.measures.values())


ScoresOf = Callable[[Candidate], Mapping[str, npt.NDArray[np.float64]]]
"""The scores of a candidate's images by measure: seeds × examples."""
CostOf = Callable[[Candidate], float]


def compare(
    scores: npt.NDArray[np.float64], full: npt.NDArray[np.float64], products: Sequence[str], seed: int = 0
) -> Measured:
    """scores, full: seeds × examples. products: of each example; all of one product are drawn together."""
    means, full_means = product_means(scores.mean(0), products), product_means(full.mean(0), products)
    return Measured(
        float(means.mean()), float(full_means.mean()), interval(full_means, seed), interval(means - full_means, seed)
    )


@dataclass
class Search:
    """Tries candidates, each once."""

    full: Candidate
    scores_of: ScoresOf
    cost_of: CostOf
    products: Sequence[str]
    schedulers: Sequence[SchedulerName] = SCHEDULERS
    steps: Sequence[int] = STEPS
    heard: Callable[[Tried], None] = lambda _: None
    """Told of each candidate."""
    tried: dict[Candidate, Tried] = field(default_factory=dict)

    def run(self) -> Tried | None:
        """Tries parts alone and together. Returns the cheapest that is no worse than the full run; None: none is.

        Raises: ValueError where the full run's own scores are NaN.
        """
        full_scores = self.scores_of(self.full)
        for name, values in full_scores.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{self.full}: {name} is NaN, and nothing can be compared with that")
        for scheduler in self.schedulers:
            for steps in sorted((each for each in self.steps if each < self.full.num_inference_steps), reverse=True):
                if not self._try(Candidate(scheduler, steps), full_scores).no_worse:
                    break  # fewer are hardly better
        for part in self._parts():
            self._try(part, full_scores)
        for candidate in self._together():
            best = self.best
            if (best is None or self.cost_of(candidate) < best.cost) and not self._hopeless(candidate):
                self._try(candidate, full_scores)
        return self.best

    @property
    def best(self) -> Tried | None:
        fits = [tried for tried in self.tried.values() if tried.no_worse and tried.cost < 1]
        return min(fits, key=lambda tried: (tried.cost, tried.candidate), default=None)

    def _parts(self) -> list[Candidate]:
        """The full run with one other part each."""
        return [
            *(dataclasses.replace(self.full, guidance_interval=interval) for interval in INTERVALS),
            *(dataclasses.replace(self.full, reuse_steps=reuse) for reuse in REUSE),
        ]

    def _together(self) -> Iterator[Candidate]:
        """Solver, steps and parts that are no worse alone, from dear to cheap."""
        alone = [self.tried[part] for part in self._parts() if self.tried[part].no_worse]
        intervals = [(0.0, 1.0), *(one.candidate.guidance_interval for one in alone if one.candidate.reuse_steps == 1)]
        reuse = [1, *(one.candidate.reuse_steps for one in alone if one.candidate.reuse_steps > 1)]
        solvers = sorted(
            (one for one in self.tried.values() if one.no_worse and one.candidate not in self._parts()),
            key=lambda one: one.cost,
        )
        starts = [(one.candidate.scheduler, one.candidate.num_inference_steps) for one in solvers[:_STARTS]]
        starts = starts or [(self.full.scheduler, self.full.num_inference_steps)]
        candidates = [
            Candidate(scheduler, steps, interval, each)
            for (scheduler, steps), interval, each in itertools.product(starts, intervals, reuse)
        ]
        yield from sorted((each for each in candidates if each != self.full), key=self.cost_of, reverse=True)

    def _hopeless(self, candidate: Candidate) -> bool:
        """Whether the same with more steps, or with one part less, was worse already."""
        return any(
            not tried.no_worse
            and other.scheduler == candidate.scheduler
            and other.num_inference_steps >= candidate.num_inference_steps
            and other.guidance_interval in ((0.0, 1.0), candidate.guidance_interval)
            and other.reuse_steps in (1, candidate.reuse_steps)
            for other, tried in self.tried.items()
        )

    def _try(self, candidate: Candidate, full_scores: Mapping[str, npt.NDArray[np.float64]]) -> Tried:
        if candidate not in self.tried:
            scores = self.scores_of(candidate)
            measures = {name: compare(scores[name], full, self.products) for name, full in full_scores.items()}
            self.tried[candidate] = Tried(candidate, self.cost_of(candidate), measures)
            self.heard(self.tried[candidate])
        return self.tried[candidate]


class Drawer:
    """Makes the images of examples with a candidate's settings."""

    def __init__(self, pipeline: RefAdGenPipeline, examples: Sequence[Example], full: Candidate) -> None:
        """full: what costs are shares of."""
        self._pipeline = pipeline
        self._own = pipeline.scheduler
        self._examples = examples
        self._features = [
            (pipeline.encode_reference([example.canvas]), pipeline.encode_prompt(example.prompt))
            for example in examples
        ]
        self._operations: dict[Pass, int] = {}
        self._full = self._operations_of(full)

    def usable(self, schedulers: Iterable[SchedulerName]) -> list[SchedulerName]:
        """Those that work with the model's noise schedule, without the model's own under its name."""
        found = []
        for name in schedulers:
            try:
                scheduler = other_scheduler(self._own, name)
                if name != "model" and type(scheduler) is type(self._own):
                    continue
                check_finite(scheduler)
            except ValueError:
                continue
            found.append(name)
        return found

    def draw(self, candidate: Candidate, seed: int) -> Images:
        """One image of each example, N×H×W×3. seed: of all noise. Raises: ArithmeticError where NaN comes out."""
        images, count = [], len(self._examples)
        batch_size = min(_MOST_AT_ONCE, count)
        for start in range(0, count, batch_size):
            chosen = range(start, min(start + batch_size, count))
            rows = [self._row(candidate, index, 10_000 * seed + index) for index in chosen]
            for _ in self._pipeline.denoise(rows, batch_size=batch_size):
                pass
            if not all(row.latents.isfinite().all() for row in rows):  # decoded, they would be black, and alike
                raise ArithmeticError("denoising gives NaN or infinity: try another model.dtype")
            images.append(self._pipeline.decode(rows))
        return np.concatenate(images)

    def cost(self, candidate: Candidate) -> float:
        """Operations of an image's steps ÷ those of the full run."""
        return self._operations_of(candidate) / self._full

    def _operations_of(self, candidate: Candidate) -> int:
        row = self._row(candidate, 0, 0)
        passes = row.passes
        batch = self._pipeline.batch()
        batch.add(row)
        while not set(passes) <= self._operations.keys():
            now = row.next_pass
            with FlopCounterMode(display=False) as counter:
                batch.step()
            self._operations.setdefault(now, counter.get_total_flops())
        return sum(self._operations[each] for each in passes)

    def _row(self, candidate: Candidate, index: int, seed: int) -> DenoisingRow:
        pipeline, (reference, prompt) = self._pipeline, self._features[index]
        pipeline.scheduler = other_scheduler(self._own, candidate.scheduler)
        row: DenoisingRow = pipeline.start(
            reference,
            self._examples[index].mask,
            prompt,
            seed=seed,
            num_inference_steps=candidate.num_inference_steps,
            fast=candidate.fast,
        )
        return row
