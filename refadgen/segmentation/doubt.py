"""A refusal that carries the mask it refuses, so that a person can look at it and decide."""

import numpy as np
import numpy.typing as npt

from refadgen.errors import DOUBTS, RowError


class DoubtfulMask(RowError):
    """A row whose mask is doubted, with the mask.

    alpha: the proposed mask, uint8 HW of the photograph's size, 255 is product. source: the link of the chain that
    proposed it. score: as in `Segmentation`. Between processes it becomes a plain `RowError`, without the mask.
    """

    def __init__(
        self,
        reason: str,
        problem: str,
        *,
        alpha: npt.NDArray[np.uint8],
        source: str,
        score: float,
        field: str | None = None,
    ) -> None:
        """reason: one of `errors.DOUBTS`. problem, field: see RowError."""
        assert reason in DOUBTS, reason
        super().__init__(reason, problem, field=field)
        self.alpha, self.source, self.score = alpha, source, score

    def advised(self, advice: str) -> "DoubtfulMask":
        """The same refusal, its problem followed by `advice`: what would help."""
        problem = f"{self.problem}; {advice}"
        return DoubtfulMask(
            self.reason, problem, alpha=self.alpha, source=self.source, score=self.score, field=self.field
        )
