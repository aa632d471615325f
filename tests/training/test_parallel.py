"""Two workers at half the batch against one at the full batch, over gloo: DDP and FSDP2, and without synchronising.

Each worker is a process of its own. What is compared are changes of weights over 20 steps at a rate of 1e-3.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_training import random_batch
from torch import Tensor

from refadgen.config import TrainConfig, load_config
from refadgen.training import loop, networks, parallel
from refadgen.training.checkpoints import CheckpointStore
from refadgen.training.choices import RowChooser
from refadgen.training.feed import local_feed
from refadgen.training.job import TINY, Tokenize
from refadgen.training.loop import BatchMaker, TrainingRun
from refadgen.training.networks import TrainingModule, load_parts
from refadgen.training.plan import Plan
from refadgen.training.rows import OnlineRows, online_files
from refadgen.training.worker import resume

pytestmark = pytest.mark.slow
STEPS, BATCH = 20, 4


def _config(base: Path, strategy: str, workers: int, *words: str) -> TrainConfig:
    usual = [
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
    return load_config(TrainConfig, None, [*usual, *words])


def _join(rank: int, world_size: int, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=(place / "meeting").as_uri(), rank=rank, world_size=world_size)


def _changes(config: TrainConfig, resumed_at: Path | None = None) -> Tensor:
    """How far all weights move. resumed_at: half-way, the training resumes from a checkpoint that it writes there."""
    workers = parallel.Workers()
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    before = {name: parameter.detach().clone() for name, parameter in module.trained().items()}
    steps = config.run.num_steps
    assert steps is not None
    run = TrainingRun(config, module, steps, torch.device("cpu"))
    encoders = parts.encoders(config, torch.device("cpu"), torch.float32).prepared()
    source = OnlineRows(
        config.data.path,
        online_files(config.data.path),
        RowChooser(config.data, config.objective),
        Tokenize(parts.tokenizer),
        None,
    )
    plan = Plan(source.groups("train"), 0, BATCH, steps, config.data.shuffle_rows)
    empty = encoders.token_ids([""])
    constants = {"empty_token_ids": empty, "empty_text_states": encoders.text_states(empty)}
    make_batch = BatchMaker(config, constants, parts.scheduler.config.num_train_timesteps, run.device, encoders)
    for arrays in local_feed(plan, source, 0):
        mine = {name: values[workers.rank :: workers.world_size] for name, values in arrays.items()}
        run.train_step(make_batch(mine), [str(row) for row in mine["row_id"]])
        if resumed_at is not None and run.step == steps // 2:
            state, store = run.state({}), CheckpointStore(str(resumed_at))
            if workers.rank == 0:
                store.save(state, keep=1)
            run = TrainingRun(config, TrainingModule(load_parts(config), config), steps, torch.device("cpu"))
            resume(run, store)
    after = {name: parallel.full_tensor(parameter) for name, parameter in run.trained.items()}
    return torch.cat([(after[name] - before[name]).flatten() for name in before]).double()


def _worker(rank: int, base: Path, place: Path) -> None:
    """One of two; the first one saves the changes by strategy, and those of workers that do not synchronise."""
    _join(rank, 2, place)
    changes = {strategy: _changes(_config(base, strategy, 2)) for strategy in ("ddp", "fsdp")}
    loop.wrap = lambda module, *_: module
    changes["apart"] = _changes(_config(base, "ddp", 2))
    if rank == 0:
        torch.save(changes, place / "changes.pt")
    dist.destroy_process_group()


def _distance(one: Tensor, two: Tensor) -> float:
    return float((two - one).norm() / one.norm())


@pytest.fixture(scope="module")
def alone(random_model: Path) -> Tensor:
    torch.set_num_threads(1)
    return _changes(_config(random_model, "ddp", 1))


@pytest.fixture(scope="module")
def together(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What two workers change, see `_worker`. One start of both for all: it takes longer than their steps."""
    place = tmp_path_factory.mktemp("together")
    mp.spawn(_worker, (random_model, place), nprocs=2)
    changes: dict[str, Tensor] = torch.load(place / "changes.pt", weights_only=True)
    return changes


TOLERANCE = 1e-2
"""Sums of gradients round differently in another order, and AdamW takes a full step for a gradient that is almost 0."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_at_half_the_batch_are_one_at_the_full_batch(
    strategy: str, alone: Tensor, together: dict[str, Tensor]
) -> None:
    distance = _distance(alone, together[strategy])
    print(f"{strategy}: {distance:.2e}")
    assert distance < TOLERANCE


def _resuming_worker(rank: int, base: Path, place: Path) -> None:
    """Saves the changes without and with a checkpoint half-way, by strategy."""
    _join(rank, 2, place)
    changes = {}
    for strategy in ("ddp", "fsdp"):
        config = _config(base, strategy, 2, "run.num_steps=4", "run.micro_batch_size=1")
        changes[strategy] = [_changes(config), _changes(config, resumed_at=place / strategy)]
    if rank == 0:
        torch.save(changes, place / "changes.pt")
    dist.destroy_process_group()


def test_two_workers_resume_bit_for_bit(refadgen_base: Path, tmp_path: Path) -> None:
    mp.spawn(_resuming_worker, (refadgen_base, tmp_path), nprocs=2)
    for whole, resumed in torch.load(tmp_path / "changes.pt", weights_only=True).values():
        assert whole.norm() > 0
        assert torch.equal(resumed, whole)


def _noise_schedule(rank: int, base: Path, place: Path) -> None:
    """Saves the inputs of the losses under FSDP2 with bfloat16 arithmetic, for rows of the least noise."""
    _join(rank, 1, place)
    config = load_config(TrainConfig, None, [f"model.base={base}", "run.strategy=fsdp", "run.dtype=bfloat16"])
    run = TrainingRun(config, TrainingModule(load_parts(config), config), 1, torch.device("cpu"))
    losses, seen = networks.diffusion_losses, []

    def watched(*arguments: Any, **settings: Any) -> Tensor:
        seen.append(arguments[3])
        return losses(*arguments, **settings)

    networks.diffusion_losses = watched
    batch = random_batch(2) | {"timesteps": torch.tensor([0, 1])}
    metrics = run.train_step(batch, ["a", "b"])
    dtypes = {name: value.dtype for name, value in vars(seen[0]).items() if value.is_floating_point()}
    torch.save((dtypes, metrics.loss), place / "seen.pt")
    dist.destroy_process_group()


def test_fsdp_adds_noise_in_float32(refadgen_base: Path, tmp_path: Path) -> None:
    """At the first timesteps, σ is so small that bfloat16 would round 1 − ᾱ to 0."""
    mp.spawn(_noise_schedule, (refadgen_base, tmp_path), nprocs=1)
    dtypes, loss = torch.load(tmp_path / "seen.pt", weights_only=False)
    assert {"latents", "noise", "reference_latents"} <= dtypes.keys()
    assert set(dtypes.values()) == {torch.float32}
    assert loss > 0


def test_unsynchronised_gradients_are_seen(alone: Tensor, together: dict[str, Tensor]) -> None:
    distance = _distance(alone, together["apart"])
    print(f"unsynchronised: {distance:.2e}")
    assert distance > 10 * TOLERANCE
