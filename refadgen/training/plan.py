"""The rows of each step, and the random numbers of each row.

The order of rows is a function of seed, epoch and row groups. The numbers of a row are a function of seed, epoch and
row id. So a resumed run needs no iterator's state, and a step is the same on any number of workers.

Where an epoch counts product images, each of them makes a row of its own out of its ad's (`with_each_image`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowGroup:
    """Some rows of a row group of a parquet file: those of one split."""

    key: str
    """The file's key in its storage."""
    index: int
    """Of the row group in the file."""
    offsets: tuple[int, ...]
    """Of the rows in the row group."""
    images: tuple[int, ...] | None = None
    """For each of `offsets`: which of the row's product images it stands for, from 0; None: one is drawn."""


def with_each_image(groups: Sequence[RowGroup], counts: Sequence[int]) -> list[RowGroup]:
    """The groups with an offset for each product image. counts: of the product images of all rows, in their order."""
    assert sum(len(group.offsets) for group in groups) == len(counts), "a count for each row"
    left = iter(counts)
    found = []
    for group in groups:
        pairs = [(offset, image) for offset in group.offsets for image in range(next(left))]
        offsets, images = zip(*pairs, strict=True)
        found.append(RowGroup(group.key, group.index, offsets, images))
    return found


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one epoch, read by one loading task."""

    epoch: int
    first_step: int
    """Counted over all epochs."""
    num_steps: int


@dataclass(frozen=True)
class PlannedRow:
    """One row of one step."""

    step: int
    position: int
    """In the step's batch, from 0."""
    epoch: int
    group: int
    """Index into `Plan.groups`."""
    offset: int
    """In the row group."""
    image: int | None = None
    """As in `RowGroup.images`."""


@dataclass(frozen=True)
class RowDraw:
    """All random numbers of a row in an epoch: in [0, 1), except for the seed."""

    variant: float
    caption: float
    dropout: float
    reference_dropout: float
    timestep: float
    crop_left: float
    crop_top: float
    noise_seed: int
    """0 to 2⁶³ − 1."""


def draw(seed: int, epoch: int, row_id: str) -> RowDraw:
    """The draws of a row: eight independent numbers from one hash.

    A hash and not a generator: a row's draws must not depend on which rows were drawn before it.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=64).digest()
    words = np.frombuffer(digest, dtype="<u8")
    # A float64 holds 53 bits exactly; a seed must fit into a signed int64.
    fractions = [float(word >> 11) / 2**53 for word in words[:7]]
    variant, caption, dropout, reference_dropout, timestep, crop_left, crop_top = fractions
    return RowDraw(
        variant=variant,
        caption=caption,
        dropout=dropout,
        reference_dropout=reference_dropout,
        timestep=timestep,
        crop_left=crop_left,
        crop_top=crop_top,
        noise_seed=int(words[7] >> 1),
    )


@dataclass(frozen=True)
class Plan:
    """The order of all rows over all steps.

    An epoch drops the rows at its end that do not fill a batch. Its order is its own, so other epochs drop other rows.
    """

    groups: Sequence[RowGroup]
    seed: int
    batch_size: int
    num_steps: int
    shuffle_rows: int
    """About the number of rows of a window. Row groups come in random order; inside a window, rows do."""

    @property
    def num_rows(self) -> int:
        """Of the training split; product images where each is a row of its own."""
        return sum(len(group.offsets) for group in self.groups)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch."""
        return self.num_rows // self.batch_size

    @property
    def steps_per_window(self) -> int:
        """Windows end where steps end, so a loading task that reads one window has all rows of its steps."""
        return max(1, self.shuffle_rows // self.batch_size)

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The group of each row and its place in the group's `offsets`, in the epoch's order; int64 [num_rows] each."""
        rng = np.random.default_rng([self.seed, epoch])
        sizes = np.array([len(group.offsets) for group in self.groups])
        permuted = rng.permutation(len(sizes))
        group_of_row = np.repeat(permuted, sizes[permuted])
        place = np.concatenate([np.arange(size) for size in sizes[permuted]])
        window_of_row = np.arange(len(group_of_row)) // (self.steps_per_window * self.batch_size)
        # The last key is the first to sort by: windows stay in order, rows inside one are shuffled.
        order = np.lexsort((rng.random(len(group_of_row)), window_of_row))
        return group_of_row[order], place[order]

    def segments(self, first_step: int) -> Iterator[Segment]:
        """All steps from `first_step` on, one segment for each window."""
        step = first_step
        while step < self.num_steps:
            epoch, inside = divmod(step, self.steps_per_epoch)
            # A window, the epoch or the training may end first; a last window of an epoch can be shorter.
            window_end = (inside // self.steps_per_window + 1) * self.steps_per_window
            end = min(epoch * self.steps_per_epoch + min(window_end, self.steps_per_epoch), self.num_steps)
            yield Segment(epoch, step, end - step)
            step = end

    def rows(self, segment: Segment, *, rank: int = 0, world_size: int = 1) -> list[PlannedRow]:
        """A worker's rows of a segment, step by step: every `world_size`-th row of each batch, from `rank` on."""
        groups, places = self.order(segment.epoch)
        rows = []
        for step in range(segment.first_step, segment.first_step + segment.num_steps):
            first = (step - segment.epoch * self.steps_per_epoch) * self.batch_size
            for position in range(rank, self.batch_size, world_size):
                group, place = int(groups[first + position]), int(places[first + position])
                of = self.groups[group]
                image = None if of.images is None else of.images[place]
                rows.append(PlannedRow(step, position, segment.epoch, group, of.offsets[place], image))
        return rows
