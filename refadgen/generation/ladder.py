"""The fidelity gate's ladder: what is tried, one rung after another, until an image passes.

    first ─► seed ─► fusion_scale ─► product_pixels

Another seed, then a stronger λ, and at last the product's own pixels in the best scene that was drawn. A rung that the
settings of `quality` do not allow is left out. Job and endpoint climb the same ladder.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from refadgen.config import QualityConfig
from refadgen.generation.product_pixels import with_product_pixels
from refadgen.generation.scores import FidelityScores, below_gate, margin, score_fidelity
from refadgen.generation.wanted import attempt_seed

ImageU8 = npt.NDArray[np.uint8]
Rung: TypeAlias = Literal["first", "seed", "fusion_scale", "product_pixels"]


@dataclass(frozen=True)
class Attempt:
    """One image to draw."""

    rung: Rung
    seed: int
    fusion_scale: float


@dataclass(frozen=True)
class Judged:
    """What the ladder makes of a drawn image."""

    attempt: Attempt
    """The attempt that is kept; its rung is where the image passed."""
    scores: FidelityScores
    problem: str
    """Why the image must not be published, for a person; empty: it passed."""
    image: ImageU8 | None
    """None where it must not be published."""


@dataclass(frozen=True)
class _Scene:
    image: ImageU8
    attempt: Attempt
    scores: FidelityScores


class Ladder:
    """The attempts at one wanted image. Not for two threads at once."""

    def __init__(self, quality: QualityConfig, *, seed: int, fusion_scale: float) -> None:
        """seed, fusion_scale: of the first attempt."""
        self._quality = quality
        self._seed = seed
        self._fusion_scale = fusion_scale
        self._best: _Scene | None = None
        self.attempt = self._attempt(0)
        """The attempt to draw now."""
        self.attempts = 0
        """Attempts that were begun; the caller counts them with `begin`."""

    def begin(self) -> Attempt:
        """The next attempt, counted as drawn."""
        self.attempt = self._attempt(self.attempts)
        self.attempts += 1
        return self.attempt

    def judge(self, image_u8: ImageU8, canvas_u8: ImageU8, mask_u8: ImageU8) -> Judged | None:
        """The verdict on the image of the current attempt; None: begin another. Shapes as in `score_fidelity`."""
        drawn = _Scene(image_u8, self.attempt, score_fidelity(image_u8, canvas_u8, mask_u8))
        problem = below_gate(drawn.scores, self._quality)
        if not problem:
            return Judged(drawn.attempt, drawn.scores, "", image_u8)
        if self._quality.product_pixels:
            scenes = [drawn] if self._best is None else [self._best, drawn]
            self._best = max(scenes, key=lambda scene: margin(scene.scores, self._quality))  # the first of equals
        if self.attempts < self._quality.max_attempts + self._quality.fusion_attempts:
            return None
        if self._best is not None:
            pasted = with_product_pixels(self._best.image, canvas_u8, mask_u8, self._quality.product_tone)
            scores = score_fidelity(pasted, canvas_u8, mask_u8)
            kept = self._best.attempt
            problem = below_gate(scores, self._quality)
            attempt = Attempt("product_pixels", kept.seed, kept.fusion_scale)
            return Judged(attempt, scores, self._after(problem), None if problem else pasted)
        return Judged(drawn.attempt, drawn.scores, self._after(problem), None)

    def _attempt(self, number: int) -> Attempt:
        """The attempt of that number, from 0."""
        seed = attempt_seed(self._seed, number)
        if number >= self._quality.max_attempts:
            return Attempt("fusion_scale", seed, self._quality.stronger_fusion_scale)
        return Attempt("seed" if number else "first", seed, self._fusion_scale)

    def _after(self, problem: str) -> str:
        return f"{problem} after {self.attempts} attempts" if problem else ""
