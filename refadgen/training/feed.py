"""Ray Data feeds a worker: loading tasks run ahead on the cluster, batches come in the plan's order."""

from collections.abc import Iterator
from typing import Any

import ray
from ray.data import TaskPoolStrategy

from refadgen.training.plan import Plan, Segment
from refadgen.training.rows import Arrays, RowSource

_BLOCK_BYTES = 32_000_000
_TASKS = 2
"""Windows of a worker being loaded at once."""


def local_feed(plan: Plan, source: RowSource, first_step: int) -> Iterator[Arrays]:
    """All rows of each step, loaded in this process, without Ray."""
    for segment in plan.segments(first_step):
        arrays = source.load(plan, segment, rank=0, world_size=1)
        for index in range(segment.num_steps):
            rows = slice(index * plan.batch_size, (index + 1) * plan.batch_size)
            yield {name: values[rows] for name, values in arrays.items()}


def ray_feed(
    plan: Plan, source: RowSource, first_step: int, *, rank: int, world_size: int, load_cpus: float
) -> Iterator[Arrays]:
    """This worker's rows of each step from `first_step` on. Each worker runs a stream of its own.

    A task reads the row groups of one window and hands on this worker's rows of it, in blocks of about 32 MB: files are
    read `world_size` times. A stream needs no state: what it yields follows from the plan.
    """
    segments = [vars(each) for each in plan.segments(first_step)]
    if not segments:
        return
    dataset = ray.data.from_items(segments, override_num_blocks=len(segments)).map_batches(
        _load,
        batch_size=1,
        fn_kwargs={"plan": plan, "source": source, "rank": rank, "world_size": world_size},
        compute=TaskPoolStrategy(size=_TASKS),
        num_cpus=load_cpus,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    yield from dataset.iter_batches(
        batch_size=plan.batch_size // world_size, batch_format="numpy", prefetch_batches=2, drop_last=False
    )


def _load(batch: dict[str, Any], plan: Plan, source: RowSource, rank: int, world_size: int) -> Iterator[Arrays]:
    """INPUT columns: epoch, first_step, num_steps: one window. OUTPUT: see `rows`; one row a planned row."""
    segment = Segment(int(batch["epoch"][0]), int(batch["first_step"][0]), int(batch["num_steps"][0]))
    arrays = source.load(plan, segment, rank=rank, world_size=world_size)
    size = max(1, _BLOCK_BYTES // source.bytes_per_row)
    for start in range(0, len(arrays["step"]), size):
        yield {name: values[start : start + size] for name, values in arrays.items()}
