"""Two workers at half the batch against one at the whole batch, over gloo: DDP and FSDP2, and without synchronising.

Each worker is a process of its own. What is compared are changes of weights over 20 steps at a rate of 1e-3.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from refadgen.config import TrainConfig, load_config
from refadgen.training import parallel
from refadgen.training.feed import local_feed
from refadgen.training.job import TINY, Tokenize
from refadgen.training.loop import BatchMaker, TrainingRun
from refadgen.training.networks import TrainingModule, load_parts
from refadgen.training.plan import Plan
from refadgen.training.rows import Choices, OnlineRows, online_files

pytestmark = pytest.mark.slow
STEPS, BATCH = 20, 4


def _config(base: Path, strategy: str, workers: int) -> TrainConfig:
    words = [
        f"data.path={TINY}",
        "data.width_px=64",
        "data.height_px=80",
        f"model.base={base}",
        "objective.prediction_type=v_prediction",
        "optimizer.learning_rate=1.0e-3",
        "optimizer.warmup_steps=0",
        "optimizer.schedule=constant",
        "run.num_epochs=",
        f"run.num_steps={STEPS}",
        f"run.batch_size={BATCH}",
        f"run.num_workers={workers}",
        f"run.strategy={strategy}",
    ]
    return load_config(TrainConfig, None, words)


def _changes(rank: int, world_size: int, base: Path, strategy: str, place: Path, synchronise: bool) -> None:
    """Trains and saves how far each weight has moved, on the first worker."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting = (place / "meeting").as_uri()
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    config = _config(base, strategy, world_size)
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    before = {name: parameter.detach().clone() for name, parameter in module.trained().items()}
    if not synchronise:
        parallel.wrap = lambda module, *_: module
        import refadgen.training.loop as loop

        loop.wrap = parallel.wrap
    run = TrainingRun(config, module, STEPS, torch.device("cpu"))
    encoders = parts.encoders(config, torch.device("cpu"), torch.float32).prepared()
    source = OnlineRows(
        config.data.path,
        online_files(config.data.path),
        Choices(config.data, config.objective),
        Tokenize(parts.tokenizer),
        None,
    )
    plan = Plan(source.groups("train"), 0, BATCH, STEPS, config.data.shuffle_rows)
    empty = encoders.token_ids([""])
    constants = {"empty_token_ids": empty, "empty_text_states": encoders.text_states(empty)}
    make_batch = BatchMaker(config, constants, parts.scheduler.config.num_train_timesteps, run.device, encoders)
    for arrays in local_feed(plan, source, 0):
        mine = {name: values[rank::world_size] for name, values in arrays.items()}
        run.train_step(make_batch(mine), [str(row) for row in mine["row_id"]])
    after = {name: parallel.whole(parameter) for name, parameter in run.trained.items()}
    if rank == 0:
        torch.save({name: after[name] - before[name] for name in before}, place / "changes.pt")
    if world_size > 1:
        dist.destroy_process_group()


def _trained_changes(base: Path, strategy: str, workers: int, place: Path, synchronise: bool = True) -> Tensor:
    place.mkdir()
    arguments = (workers, base, strategy, place, synchronise)
    if workers == 1:
        _changes(0, *arguments)
    else:
        mp.spawn(_changes, arguments, nprocs=workers)
    changes = torch.load(place / "changes.pt", weights_only=True)
    return torch.cat([change.flatten() for change in changes.values()]).double()


def _distance(one: Tensor, two: Tensor) -> float:
    return float((two - one).norm() / one.norm())


@pytest.fixture(scope="module")
def alone(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return _trained_changes(random_model, "ddp", 1, tmp_path_factory.mktemp("alone") / "one")


TOLERANCE = 1e-2
"""Sums of gradients round differently in another order, and AdamW makes a whole step of a gradient that is almost 0."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_at_half_the_batch_are_one_at_the_whole(
    strategy: str, random_model: Path, alone: Tensor, tmp_path: Path
) -> None:
    together = _trained_changes(random_model, strategy, 2, tmp_path / strategy)
    distance = _distance(alone, together)
    print(f"{strategy}: {distance:.2e}")
    assert distance < TOLERANCE


def test_unsynchronised_gradients_are_seen(random_model: Path, alone: Tensor, tmp_path: Path) -> None:
    apart = _trained_changes(random_model, "ddp", 2, tmp_path / "apart", synchronise=False)
    distance = _distance(alone, apart)
    print(f"unsynchronised: {distance:.2e}")
    assert distance > 10 * TOLERANCE
