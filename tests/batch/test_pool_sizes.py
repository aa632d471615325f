"""How many actors each stage gets: the rule, on machines of many shapes."""

from typing import Any

import pytest

from refadgen.batch.pool_sizes import NodeSize, PoolSize, say_sizes, size_pools
from refadgen.config import DatasetConfig, GenerateConfig, load_config


def sizes(nodes: list[NodeSize], *words: str, threads: int = 1) -> dict[str, PoolSize]:
    stages = load_config(GenerateConfig, None, words).stages
    return size_pools(stages, nodes, main="generate", cores_per_main=threads)


def said(nodes: list[NodeSize], *words: str, threads: int = 1) -> str:
    return say_sizes(sizes(nodes, *words, threads=threads))


GPU = "stages.generate.num_gpus=1"


@pytest.mark.parametrize(
    ("nodes", "words", "expected"),
    [
        ([NodeSize(5)], [], "fetch 1, segment 1, generate 2, publish 1"),  # a local Ray on two cores
        ([NodeSize(4)], [], "fetch 1, segment 1, generate 1, publish 1"),
        ([NodeSize(1)], [], "fetch 1, segment 1, generate 1, publish 1"),  # refused later, in words
        ([NodeSize(5)], ["stages.generate.num_actors=1"], "fetch 1 to 2, segment 1 to 2, generate 1, publish 1 to 2"),
        ([NodeSize(5)], ["stages.segment.num_actors=2"], "fetch 1, segment 2, generate 2, publish 1"),
        ([NodeSize(67)], [], "fetch 1 to 7, segment 1 to 7, generate 55, publish 1 to 7"),
        ([NodeSize(16, 1)], [GPU], "fetch 1 to 4, segment 1 to 4, generate 1, publish 1 to 4"),
        ([NodeSize(64, 8)] * 2, [GPU], "fetch 1 to 64, segment 1 to 64, generate 16, publish 1 to 64"),
        (
            [NodeSize(8, 2)],
            ["stages.generate.num_gpus=0.5"],
            "fetch 1 to 2, segment 1 to 2, generate 4, publish 1 to 2",
        ),
        (
            [NodeSize(64, 3)] * 2,
            ["stages.generate.num_gpus=2"],
            "fetch 1 to 8, segment 1 to 8, generate 2, publish 1 to 8",
        ),
        ([NodeSize(5, 8)], [GPU], "fetch 1, segment 1, generate 2, publish 1"),  # CPUs for two only
        # Each node by itself: one has the CPUs, the other the GPUs.
        ([NodeSize(64), NodeSize(2, 8)], [GPU], "fetch 1 to 8, segment 1 to 8, generate 2, publish 1 to 8"),
        ([NodeSize(0), NodeSize(5)], [], "fetch 1, segment 1, generate 2, publish 1"),  # a head that takes no work
        ([NodeSize(6)] * 4, ["stages.generate.num_cpus=4"], "fetch 1 to 4, segment 1 to 4, generate 4, publish 1 to 4"),
        ([NodeSize(16)], [GPU], "fetch 1 to 4, segment 1 to 4, generate 1, publish 1 to 4"),  # nodes may be added
    ],
)
def test_the_rule(nodes: list[NodeSize], words: list[str], expected: str) -> None:
    assert said(nodes, *words) == expected


def test_other_stages_with_gpus_keep_one_each() -> None:
    shared = [GPU, "stages.segment.num_gpus=0.5", "stages.publish.num_gpus=0.5"]
    assert said([NodeSize(64, 8)], *shared) == "fetch 1 to 28, segment 1, generate 7, publish 1"
    apart = [GPU, "stages.segment.num_gpus=1", "stages.segment.num_actors=3"]
    assert sizes([NodeSize(64, 8)], *apart)["generate"] == PoolSize(5, 5)


def test_an_actor_of_several_threads_takes_several_cores() -> None:
    assert sizes([NodeSize(11)], threads=4)["generate"] == PoolSize(2, 2)
    assert sizes([NodeSize(5)], threads=4)["generate"] == PoolSize(1, 1)


@pytest.mark.parametrize("num_cpus", [0.1, 0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("cpus", [4, 5, 17, 64])
def test_all_pools_at_their_largest_fit_at_once(cpus: int, num_cpus: float) -> None:
    config = load_config(GenerateConfig, None, [f"stages.segment.num_cpus={num_cpus}"])
    most = size_pools(config.stages, [NodeSize(cpus)], main="generate")
    used = sum(size.most * getattr(config.stages, name).num_cpus for name, size in most.items())
    assert used + 1 <= cpus + 1e-6 or all(size.most == 1 for size in most.values())


def test_stages_of_the_dataset_job_share_the_cpus() -> None:
    stages: Any = load_config(DatasetConfig).stages
    assert say_sizes(size_pools(stages, [NodeSize(5)])) == "screen 1, describe 1, extract 1, augment 1"
    assert (
        say_sizes(size_pools(stages, [NodeSize(16)]))
        == "screen 1 to 7, describe 1 to 7, extract 1 to 7, augment 1 to 4"
    )


def test_stages_that_take_no_cpu_have_a_bound_too() -> None:
    assert sizes([NodeSize(4, 1)], GPU, "stages.fetch.num_cpus=0")["fetch"] == PoolSize(1, 4)
