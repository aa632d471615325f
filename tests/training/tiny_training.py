"""Shared by tests of training: configurations over tiny bases, random batches, and rows of the data set that ships."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refadgen.config import TrainConfig, load_config
from refadgen.training.choices import RowChooser
from refadgen.training.feed import local_feed
from refadgen.training.job import ClipPixels, Tokenize
from refadgen.training.loop import BatchMaker, TrainingRun
from refadgen.training.networks import Parts, TrainingModule, load_parts
from refadgen.training.plan import Plan
from refadgen.training.rows import Arrays, OnlineRows, RowSource, online_files
from refadgen.triplets import schema as triplets

TINY = Path(triplets.__file__).parent / "tiny" / "triplets.parquet"
"""16 training and 4 test rows of 64×80 px."""
TOKENS, TEXT_WIDTH, PATCHES, IMAGE_WIDTH = 24, 16, 17, 24
"""Of the tiny models (tests/model/tiny_models.py)."""
LATENTS = (4, 10, 8)
"""Of a picture of 64×80 px."""


def config_of(base: Path | str, *words: str) -> TrainConfig:
    """A training of four steps of four rows; words are settings over that."""
    usual = [
        f"data.path={TINY}",
        "data.width_px=64",
        "data.height_px=80",
        f"model.base={base}",
        "run.num_epochs=",
        "run.num_steps=4",
        "run.batch_size=4",
        "run.checkpoint_every=2",
        "optimizer.learning_rate=1.0e-3",
        "optimizer.warmup_steps=1",
        "optimizer.ema_decay=0.9",
    ]
    return load_config(TrainConfig, None, [*usual, *words])


def random_batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """All that a TrainingModule takes, of any kind of base."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "latents": normal(rows, *LATENTS),
        "reference_latents": normal(rows, *LATENTS),
        "mask_latents": (normal(rows, 1, *LATENTS[1:]) > 0).float(),
        "noise": normal(rows, *LATENTS),
        "timesteps": torch.randint(0, 1000, (rows,), generator=generator),
        "fusion_scale": torch.ones(rows),
        "token_ids": torch.randint(0, 80, (rows, TOKENS), generator=generator),
        "empty_token_ids": torch.full((1, TOKENS), 83),
        "text_states": normal(rows, TOKENS, TEXT_WIDTH),
        "empty_text_states": normal(1, TOKENS, TEXT_WIDTH),
        "image_states": normal(rows, PATCHES, IMAGE_WIDTH),
    }


def online_rows(config: TrainConfig, parts: Parts) -> OnlineRows:
    """The rows of `data.path`, not precomputed."""
    return OnlineRows(
        config.data.path,
        online_files(config.data.path),
        RowChooser(config.data, config.objective),
        Tokenize(parts.tokenizer),
        ClipPixels(parts.feature_extractor) if parts.image_encoder is not None else None,
    )


def plan_of(config: TrainConfig, source: RowSource, num_steps: int | None = None) -> Plan:
    """The plan of a configuration."""
    run = config.run
    steps = num_steps or run.num_steps
    assert steps is not None
    return Plan(source.groups("train"), run.seed, run.batch_size, steps, config.data.shuffle_rows)


class Training:
    """One worker's training without Ray, as `train_worker` puts it together."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.parts = load_parts(config)
        self.module = TrainingModule(self.parts, config)
        self.source = online_rows(config, self.parts)
        self.plan = plan_of(config, self.source)
        self.run = TrainingRun(config, self.module, self.plan.num_steps, torch.device("cpu"))
        encoders = self.parts.encoders(config, self.run.device, torch.float32).prepared()
        empty = encoders.token_ids([""])
        constants = {"empty_token_ids": empty}
        if encoders.text_encoder is not None:
            constants["empty_text_states"] = encoders.text_states(empty)
        timesteps = self.parts.scheduler.config.num_train_timesteps
        self.make_batch = BatchMaker(config, constants, timesteps, self.run.device, encoders)

    def feed(self) -> Iterator[Arrays]:
        """The arrays of each step, from the run's next step on."""
        return local_feed(self.plan, self.source, self.run.step)

    def step(self) -> Any:
        """Runs one step."""
        arrays = next(self.feed())
        return self.run.train_step(self.make_batch(arrays), [str(row) for row in arrays["row_id"]])

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trained weights."""
        return {name: parameter.detach().clone() for name, parameter in self.run.trained.items()}
