"""What each process of test_parallel.py runs.

A module of its own: a process that is spawned imports it by this name, and `tests` is another package's name too.
"""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

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


def work(rank: int, base: Path, small_base: Path, place: Path) -> None:
    """All that test_parallel.py asks of two workers: they take longer to start than to train."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=(place / "meeting").as_uri(), rank=rank, world_size=2)
    found = {"resumed": resumed_half_way(small_base, place), "noise": noise_of_losses(small_base)}
    found["changes"] = changes_by_strategy(base)
    if rank == 0:
        torch.save(found, place / "found.pt")
    dist.destroy_process_group()


def changes_by_strategy(base: Path) -> dict[str, Tensor]:
    """The changes by strategy, and those of workers that do not synchronise."""
    changes = {strategy: changes_of(train_config(base, strategy, 2)) for strategy in ("ddp", "fsdp")}
    with patch.object(loop, "wrap", lambda module, *_: module):
        changes["apart"] = changes_of(train_config(base, "ddp", 2))
    return changes


def resumed_half_way(base: Path, place: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The changes without and with a checkpoint half-way, by strategy."""
    changes = {}
    for strategy in ("ddp", "fsdp"):
        config = train_config(base, strategy, 2, "run.num_steps=4", "run.micro_batch_size=1")
        changes[strategy] = (changes_of(config), changes_of(config, resumed_at=place / strategy))
    return changes


def noise_of_losses(base: Path) -> tuple[dict[str, torch.dtype], float]:
    """The types of a loss's inputs under FSDP2 with bfloat16 arithmetic, for rows of the least noise, and the loss."""
    words = [f"model.base={base}", "run.strategy=fsdp", "run.dtype=bfloat16", "run.num_workers=2"]
    config = load_config(TrainConfig, None, words)
    run = TrainingRun(config, TrainingModule(load_parts(config), config), 1, torch.device("cpu"))
    losses, seen = networks.diffusion_losses, []

    def watched(*arguments: Any, **settings: Any) -> Tensor:
        seen.append(arguments[3])
        return losses(*arguments, **settings)

    with patch.object(networks, "diffusion_losses", watched):
        metrics = run.train_step(random_batch(2) | {"timesteps": torch.tensor([0, 1])}, ["a", "b"])
    return {name: value.dtype for name, value in vars(seen[0]).items() if value.is_floating_point()}, metrics.loss
