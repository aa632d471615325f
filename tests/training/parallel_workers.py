"""What each process of test_parallel.py runs.

A module of its own: a process that is spawned imports it by this name, and `tests` is another package's name too.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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

STEPS, BATCH = 20, 4


def train_config(base: Path, strategy: str, workers: int, *words: str) -> TrainConfig:
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


def changes_of(config: TrainConfig, resumed_at: Path | None = None) -> Tensor:
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


def compare_strategies(rank: int, base: Path, place: Path) -> None:
    """One of two; the first one saves the changes by strategy, and those of workers that do not synchronise."""
    _join(rank, 2, place)
    changes = {strategy: changes_of(train_config(base, strategy, 2)) for strategy in ("ddp", "fsdp")}
    loop.wrap = lambda module, *_: module
    changes["apart"] = changes_of(train_config(base, "ddp", 2))
    if rank == 0:
        torch.save(changes, place / "changes.pt")
    dist.destroy_process_group()


def resume_half_way(rank: int, base: Path, place: Path) -> None:
    """Saves the changes without and with a checkpoint half-way, by strategy."""
    _join(rank, 2, place)
    changes = {}
    for strategy in ("ddp", "fsdp"):
        config = train_config(base, strategy, 2, "run.num_steps=4", "run.micro_batch_size=1")
        changes[strategy] = [changes_of(config), changes_of(config, resumed_at=place / strategy)]
    if rank == 0:
        torch.save(changes, place / "changes.pt")
    dist.destroy_process_group()


def record_noise(rank: int, base: Path, place: Path) -> None:
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
