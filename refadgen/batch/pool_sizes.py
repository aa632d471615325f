"""How many actors each stage of a job gets where its `num_actors` is `auto`.

The rule, given the nodes of a Ray:

1. A number is kept. Every pool has one actor at least.
2. The main stage, which makes the job's results, gets all that is left: an actor for each place on the GPUs where it
   takes GPUs, else one for each core, with one actor of each other stage for eight of them.
3. Another stage with GPUs gets one actor: its network is loaded once.
4. The other stages share the CPUs that are left evenly. Ray Data adds actors to them, one after the other, while their
   blocks pile up: so the rates of the blocks decide. It takes none away, since an actor may hold networks.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from refadgen.batch.node_labels import may_hold
from refadgen.config import StageConfig

_MAIN_PER_HELPER = 8
"""Main actors on a core each that one actor of each other stage keeps busy: an image on a CPU takes a second or more,
the other stages a tenth of that."""
_HELPERS_PER_MAIN = 4
"""Actors of another stage at most for each main actor."""
RULE = (
    "  num_actors=auto: one generating actor a GPU (num_gpus), or one a core; another stage with GPUs: one; the others "
    "grow\n  by one actor while their blocks pile up, within the CPUs that are left"
)
"""The rule as a dry run says it."""
PLANNING_CPUS = 1
"""For the tasks that plan and cut blocks."""


@dataclass(frozen=True)
class NodeSize:
    """The logical resources of one node."""

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] | None = field(default=None, compare=False)
    """None: not known."""

    def num_of(self, actor: "NodeSize") -> int:
        """Actors of this size that the node holds by itself; 1 where they ask for nothing."""
        asked = [(self.cpus, actor.cpus), (self.gpus, actor.gpus)]
        return min((_floor(has / each) for has, each in asked if each > 0), default=1)


@dataclass(frozen=True)
class PoolSize:
    """Actors of a pool: `least` from the start, up to `most` where blocks pile up."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


def pools_of(stages: Any) -> dict[str, StageConfig]:
    """The pools of a job's `stages` section by name."""
    return {each.name: getattr(stages, each.name) for each in dataclasses.fields(stages)}


def fewest(pool: StageConfig) -> int:
    """Actors that the pool needs in any case."""
    return 1 if pool.num_actors == "auto" else pool.num_actors


def say_sizes(sizes: Mapping[str, PoolSize]) -> str:
    """The sizes of all pools in a line."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def size_pools(
    stages: Any, nodes: Sequence[NodeSize], *, main: str | None = None, cores_per_main: float = 1.0
) -> dict[str, PoolSize]:
    """The size of each pool of a job's `stages` section.

    nodes: that the Ray has, or may come to have. main: the stage that makes the results; None: there is none that the
    others serve. cores_per_main: that one of its actors uses.
    """
    pools = pools_of(stages)
    counts = {name: fewest(pool) for name, pool in pools.items()}
    helpers = [name for name, pool in pools.items() if _is_auto(pool) and name != main and not pool.num_gpus]
    cpus = sum(node.cpus for node in nodes) - PLANNING_CPUS
    at_most = int(max(cpus, 1))
    if main is not None:
        if _is_auto(pools[main]):
            counts[main] = _main_actors(pools, main, helpers, nodes, cores_per_main)
        at_most = _HELPERS_PER_MAIN * counts[main]
    left = cpus - sum(counts[name] * pool.num_cpus for name, pool in pools.items())
    sizes = {name: PoolSize(count, count) for name, count in counts.items()}
    for name in helpers:
        share = left / len(helpers)
        further = _floor(share / pools[name].num_cpus) if pools[name].num_cpus else at_most
        sizes[name] = PoolSize(1, max(1, min(at_most, 1 + further)))
    return sizes


def _main_actors(
    pools: Mapping[str, StageConfig],
    main: str,
    helpers: Sequence[str],
    nodes: Sequence[NodeSize],
    cores_per_main: float,
) -> int:
    """Actors of the main stage; one at least, for a Ray may add nodes."""
    pool = pools[main]
    others = {name: other for name, other in pools.items() if name != main}
    cpus = sum(node.cpus for node in nodes) - PLANNING_CPUS
    cpus -= sum(fewest(other) * other.num_cpus for name, other in others.items() if name not in helpers)
    set_cpus = sum(pools[name].num_cpus for name in helpers)
    each = pool.num_cpus if pool.num_gpus else max(pool.num_cpus, cores_per_main)
    fitting = [node for node in nodes if may_hold(node.labels, pool.label_selector)]
    places = _places(NodeSize(each, pool.num_gpus), others.values(), fitting)
    count = 1
    while count < places:
        sets = 1 if pool.num_gpus else math.ceil((count + 1) / _MAIN_PER_HELPER)
        if (count + 1) * each + sets * set_cpus > cpus + 1e-9:
            break
        count += 1
    return count


def _places(actor: NodeSize, others: Iterable[StageConfig], nodes: Sequence[NodeSize]) -> int:
    """Actors of the size `actor` that the nodes hold beside the other pools' actors with GPUs."""
    free = list(nodes)
    for other in sorted(others, key=lambda pool: -pool.num_gpus):
        asked = NodeSize(other.num_cpus, other.num_gpus)
        for _ in range(fewest(other) if other.num_gpus else 0):
            fits = [index for index, node in enumerate(free) if node.num_of(asked)]
            if fits:  # the fullest of them, so that whole GPUs stay free
                index = min(fits, key=lambda index: free[index].gpus)
                free[index] = replace(
                    free[index], cpus=free[index].cpus - asked.cpus, gpus=free[index].gpus - asked.gpus
                )
    return sum(node.num_of(actor) for node in free)


def _is_auto(pool: StageConfig) -> bool:
    return pool.num_actors == "auto"


def _floor(value: float) -> int:
    return max(0, math.floor(value + 1e-9))  # 0.3 / 0.1 is 2.9999999999999996
