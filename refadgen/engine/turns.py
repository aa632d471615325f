"""Who steps next: of the rows of a shape, those of one kind that share the next batch."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

_PATIENCE = 16
"""Steps of its shape that a row waits for a full batch of its own kind."""


@dataclass(eq=False, kw_only=True)
class Turns:
    """What a row has had of the steps of its shape."""

    steps: int = 0
    """Its own."""
    passed_over: int = 0
    """Those that others were in, since its own last one."""

    @property
    def goes_on(self) -> bool:
        """Whether it was in the last step of its shape."""
        return self.steps > 0 and self.passed_over == 0


T = TypeVar("T", bound=Turns)


def next_batch(rows: Sequence[T], kind: Callable[[T], Hashable], size: int) -> list[T]:
    """Those of `rows`, all of one shape, that step now: all of one kind, `size` at most.

    First who waited for too long; then a full batch, best one of the rows of the step before, since what they share is
    on the device already; else who waited longest.
    """
    of_kind: dict[Hashable, list[T]] = {}
    for row in rows:
        of_kind.setdefault(kind(row), []).append(row)

    def urgency(alike: list[T]) -> tuple[bool, bool, int, int]:
        waited, full = max(row.passed_over for row in alike), len(alike) >= size
        return waited >= _PATIENCE, full, full * sum(row.goes_on for row in alike), waited

    chosen = max(of_kind.values(), key=urgency)
    late = urgency(chosen)[0]
    return sorted(chosen, key=lambda row: (not late and not row.goes_on, -row.passed_over))[:size]
