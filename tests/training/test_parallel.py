"""Two workers at half the batch against one at the full batch, over gloo: DDP and FSDP2, and without synchronising.

Each worker is a process of its own. What is compared are changes of weights over 20 steps at a rate of 1e-3.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from parallel_workers import changes_of, train_config, work
from torch import Tensor

pytestmark = pytest.mark.slow


def _distance(one: Tensor, two: Tensor) -> float:
    return float((two - one).norm() / one.norm())


@pytest.fixture(scope="module")
def alone(random_model: Path) -> Tensor:
    torch.set_num_threads(1)
    return changes_of(train_config(random_model, "ddp", 1))


@pytest.fixture(scope="module")
def found(random_model: Path, refadgen_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two workers find, see `work`."""
    place = tmp_path_factory.mktemp("together")
    mp.spawn(work, (random_model, refadgen_base, place), nprocs=2)
    results: dict[str, Any] = torch.load(place / "found.pt", weights_only=False)
    return results


TOLERANCE = 1e-2
"""Sums of gradients round differently in another order, and AdamW takes a full step for a gradient that is almost 0."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_at_half_the_batch_are_one_at_the_full_batch(
    strategy: str, alone: Tensor, found: dict[str, Any]
) -> None:
    distance = _distance(alone, found["changes"][strategy])
    print(f"{strategy}: {distance:.2e}")
    assert distance < TOLERANCE


def test_two_workers_resume_bit_for_bit(found: dict[str, Any]) -> None:
    for whole, resumed in found["resumed"].values():
        assert whole.norm() > 0
        assert torch.equal(resumed, whole)


def test_fsdp_adds_noise_in_float32(found: dict[str, Any]) -> None:
    """At the first timesteps, σ is so small that bfloat16 would round 1 − ᾱ to 0."""
    dtypes, loss = found["noise"]
    assert {"latents", "noise", "reference_latents"} <= dtypes.keys()
    assert set(dtypes.values()) == {torch.float32}
    assert loss > 0


def test_unsynchronised_gradients_are_seen(alone: Tensor, found: dict[str, Any]) -> None:
    distance = _distance(alone, found["changes"]["apart"])
    print(f"unsynchronised: {distance:.2e}")
    assert distance > 10 * TOLERANCE
