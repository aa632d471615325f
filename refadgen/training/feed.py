"""Feeds a worker with Ray Data: windows of rows are loaded ahead on the cluster, batches come in the plan's order."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray

from refadgen.training.plan import Plan, Segment
from refadgen.training.rows import Arrays, RowSource

_BLOCK_BYTES = 32_000_000
"""Upper bound of a block that a loading task yields: the task's memory stays small, whatever the window's size."""


class BadRowError(ValueError):
    """A row that cannot be trained on. The message names the row."""


def local_feed(plan: Plan, source: RowSource, first_step: int) -> Iterator[Arrays]:
    """Yields all rows of each step from `first_step` on, loaded in this process without Ray."""
    for segment in plan.segments(first_step):
        arrays = source.load(plan, segment, rank=0, world_size=1)
        for index in range(segment.num_steps):
            rows = slice(index * plan.batch_size, (index + 1) * plan.batch_size)
            yield {name: values[rows] for name, values in arrays.items()}


def ray_feed(
    plan: Plan, source: RowSource, first_step: int, *, rank: int, world_size: int, load_cpus: float
) -> Iterator[Arrays]:
    """Yields this worker's rows of each step from `first_step` on. Each worker loads its own, one window ahead.

    The task of a window reads the row groups of all its rows and returns this worker's. So files are read `world_size`
    times. A feed has no state to save: the plan decides all that it yields.

    load_cpus: of one task. Raises: BadRowError.
    """
    share = plan.batch_size // world_size

    # Each window is a Dataset of its own, read to its end at once. One long Dataset would be less code, but while it
    # waits for training its executor spins and takes the interpreter lock: steps took three times as long.
    def load(segment: Segment) -> list[Arrays]:
        dataset = ray.data.from_items([vars(segment)]).map_batches(
            _load,
            batch_size=1,
            fn_kwargs={"plan": plan, "source": source, "rank": rank, "world_size": world_size},
            num_cpus=load_cpus,
        )
        dataset.context.execution_options.preserve_order = True  # blocks of a task may otherwise overtake each other
        dataset.context.enable_progress_bars = False
        # A batch is one step: each step has the same number of rows.
        batches = list(dataset.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=1))
        if "bad_row" in batches[0]:
            raise BadRowError(str(batches[0]["bad_row"][0]))
        return batches

    segments = plan.segments(first_step)
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as ahead:
        loading = [ahead.submit(load, segment) for segment in itertools.islice(segments, 1)]
        while loading:
            batches = loading.pop().result()
            loading = [ahead.submit(load, segment) for segment in itertools.islice(segments, 1)]
            yield from batches


def _load(batch: dict[str, Any], plan: Plan, source: RowSource, rank: int, world_size: int) -> Iterator[Arrays]:
    """Loads one window.

    INPUT columns: epoch, first_step, num_steps. OUTPUT columns: see `rows`; one row per planned row of this worker.
    Where a row is bad: one row with the single column `bad_row`, the message. A retry repeats reading only.
    """
    segment = Segment(int(batch["epoch"][0]), int(batch["first_step"][0]), int(batch["num_steps"][0]))
    try:
        arrays = source.load(plan, segment, rank=rank, world_size=world_size)
    except ValueError as error:  # yielded, not raised: Ray would bury the message in a traceback of its own
        yield {"bad_row": np.array([str(error)], dtype=object)}
        return
    size = max(1, _BLOCK_BYTES // source.bytes_per_row)
    for start in range(0, len(arrays["step"]), size):
        yield {name: values[start : start + size] for name, values in arrays.items()}
