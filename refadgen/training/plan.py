"""Which rows each step sees: a function of seed, epoch and row groups; all that is random about a row: of (seed, epoch,
row id).

So a resumed run needs no iterator's state, and a step is the same step on any number of workers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowGroup:
    """A row group of a parquet file, and which of its rows are meant."""

    key: str
    index: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one epoch: what one loading task reads."""

    epoch: int
    first_step: int
    """Counted over all epochs."""
    num_steps: int


@dataclass(frozen=True)
class PlannedRow:
    """One row of one step."""

    step: int
    position: int
    """Place in the step's batch."""
    epoch: int
    group: int
    offset: int


@dataclass(frozen=True)
class RowDraw:
    """What is random about a row in an epoch. All numbers in [0, 1) but the seed."""

    variant: float
    caption: float
    dropout: float
    reference_dropout: float
    timestep: float
    crop_left: float
    crop_top: float
    noise_seed: int


def draw(seed: int, epoch: int, row_id: str) -> RowDraw:
    """The draws of a row: eight independent numbers from one hash."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=64).digest()
    words = np.frombuffer(digest, dtype="<u8")
    return RowDraw(*(float(word >> 11) / 2**53 for word in words[:7]), noise_seed=int(words[7] >> 1))


@dataclass(frozen=True)
class Plan:
    """The order of all rows over all steps. Each epoch leaves out what does not fill a batch, other rows every time."""

    groups: Sequence[RowGroup]
    seed: int
    batch_size: int
    num_steps: int
    shuffle_rows: int
    """About how many rows a window has: row groups come in random order, and inside a window rows do."""

    @property
    def num_rows(self) -> int:
        return sum(len(group.offsets) for group in self.groups)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_rows // self.batch_size

    @property
    def steps_per_window(self) -> int:
        """Windows end with steps, so that whoever reads a window reads whole steps."""
        return max(1, self.shuffle_rows // self.batch_size)

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Group and place inside the group of each row, in the epoch's order; int64 [num_rows] each."""
        rng = np.random.default_rng([self.seed, epoch])
        sizes = np.array([len(group.offsets) for group in self.groups])
        permuted = rng.permutation(len(sizes))
        group_of_row = np.repeat(permuted, sizes[permuted])
        place = np.concatenate([np.arange(size) for size in sizes[permuted]])
        window_of_row = np.arange(len(group_of_row)) // (self.steps_per_window * self.batch_size)
        order = np.lexsort((rng.random(len(group_of_row)), window_of_row))
        return group_of_row[order], place[order]

    def segments(self, first_step: int) -> Iterator[Segment]:
        """All steps from `first_step` on, window by window."""
        step = first_step
        while step < self.num_steps:
            epoch, inside = divmod(step, self.steps_per_epoch)
            window_end = (inside // self.steps_per_window + 1) * self.steps_per_window
            end = min(epoch * self.steps_per_epoch + min(window_end, self.steps_per_epoch), self.num_steps)
            yield Segment(epoch, step, end - step)
            step = end

    def rows(self, segment: Segment, *, rank: int = 0, world_size: int = 1) -> list[PlannedRow]:
        """A worker's rows of a segment, step by step: of each batch every `world_size`-th."""
        groups, places = self.order(segment.epoch)
        rows = []
        for step in range(segment.first_step, segment.first_step + segment.num_steps):
            first = (step - segment.epoch * self.steps_per_epoch) * self.batch_size
            for position in range(rank, self.batch_size, world_size):
                group = int(groups[first + position])
                offset = self.groups[group].offsets[int(places[first + position])]
                rows.append(PlannedRow(step, position, segment.epoch, group, offset))
        return rows
