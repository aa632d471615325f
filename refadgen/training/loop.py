"""The loop that one worker runs: steps, checkpoints, metrics. It knows no Ray: rows come from an iterator.

Step k's rows, noise, timesteps, dropouts and variants are functions of (seed, epoch, row id): a resumed run repeats an
uninterrupted one, on any number of workers, but for the rounding of sums.
"""

import json
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from refadgen.config import TrainConfig
from refadgen.config.devices import resolve_dtype
from refadgen.config.identity import differences
from refadgen.model.encoders import Encoders
from refadgen.storage.store import Storage
from refadgen.training.checkpoints import Checkpoint, CheckpointStore
from refadgen.training.networks import TrainingModule
from refadgen.training.objective import draw_noise
from refadgen.training.optimization import (
    MovingAverage,
    learning_rate,
    load_moments,
    make_optimizer,
    moments_of,
    take_step,
)
from refadgen.training.parallel import Workers, collected, put, synchronized, whole, wrap
from refadgen.training.rows import Arrays


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a step after it."""

    step: int
    """From 0."""
    loss: float
    """Mean over the batch."""
    learning_rate: float
    grad_norm: float
    seconds: float
    """Since the step before, waiting for rows and writing checkpoints included."""
    workers: int
    rows: list[str] | None = None
    """Row ids in the batch's order, where `run.log_rows` asks for them."""


class BatchMaker:
    """Turns the arrays of a step into what `TrainingModule` takes: on the device, noise drawn, encoded where needed."""

    def __init__(
        self,
        config: TrainConfig,
        constants: dict[str, Tensor],
        num_train_timesteps: int,
        device: torch.device,
        encoders: Encoders | None,
    ) -> None:
        """constants: `empty_token_ids` 1×tokens; `empty_text_states` 1×tokens×C where the text encoder is frozen.

        encoders: None where rows are precomputed.
        """
        self._config = config
        self._constants = {name: tensor.to(device) for name, tensor in constants.items()}
        self._num_train_timesteps = num_train_timesteps
        self._device = device
        self._encoders = encoders

    def __call__(self, arrays: Arrays) -> dict[str, Tensor]:
        batch = self._stored(arrays) if self._encoders is None else self._encoded(arrays, self._encoders)
        seeds = [int(seed) for seed in arrays["noise_seed"]]
        noise = draw_noise(seeds, tuple(batch["latents"].shape[1:]), self._config.objective.noise_offset)
        batch |= {
            "noise": noise.to(self._device),
            "timesteps": torch.from_numpy((arrays["timestep"] * self._num_train_timesteps).astype(np.int64)),
            "fusion_scale": torch.from_numpy(np.array(arrays["fusion_scale"])),
            "token_ids": torch.from_numpy(np.array(arrays["token_ids"])),
        }
        return {name: tensor.to(self._device) for name, tensor in batch.items()} | self._constants

    def _stored(self, arrays: Arrays) -> dict[str, Tensor]:
        names = ("latents", "reference_latents", "mask_latents", "text_states", "image_states")
        return {name: torch.from_numpy(np.array(arrays[name])).float() for name in names if name in arrays}

    def _encoded(self, arrays: Arrays, encoders: Encoders) -> dict[str, Tensor]:
        count, size = len(arrays["row_id"]), self._config.data.encode_batch_size
        pieces = []
        for start in range(0, count, size):
            part = {name: values[start : start + size] for name, values in arrays.items()}
            piece = {
                "latents": encoders.latents(part["ad_images"]),
                "reference_latents": encoders.latents(part["product_images"]),
                "mask_latents": encoders.mask_latents(part["masks"]),
            }
            if encoders.text_encoder is not None:
                piece["text_states"] = encoders.text_states(torch.from_numpy(np.array(part["token_ids"])))
            if encoders.image_encoder is not None:
                piece["image_states"] = encoders.image_states(torch.from_numpy(np.array(part["clip_pixels"])))
            pieces.append(piece)
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


class TrainingRun:
    """The state of a training on one worker."""

    def __init__(self, config: TrainConfig, module: TrainingModule, num_steps: int, device: torch.device) -> None:
        self.config = config
        self.num_steps = num_steps
        self.workers = Workers()
        self.device = device
        self.dtype = resolve_dtype(config.run.dtype, device, for_training=True)
        if config.run.strategy == "ddp":
            shrink_frozen(module, self.dtype)  # FSDP2 shares out a group of one dtype only
        module.to(device).train()
        self.wrapped = wrap(module, config.run.strategy, device, self.dtype)
        self.trained = module.trained()  # after wrapping: FSDP2 replaces parameters
        self.optimizer = make_optimizer(config.optimizer, self.trained)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else MovingAverage(self.trained, decay)
        self.step = 0
        self._ended = time.monotonic()
        self._call: Callable[[dict[str, Tensor]], Tensor] = self.wrapped
        if config.run.compile:
            self._call = torch.compile(self.wrapped)

    def train_step(self, batch: dict[str, Tensor], rows: list[str]) -> StepMetrics:
        """One step over this worker's share of the batch.

        Raises: FloatingPointError, on all workers alike, for a loss or gradient that is no number; nothing has changed
        then.
        """
        rate = learning_rate(self.config.optimizer, self.step, self.num_steps)
        share = len(batch["latents"])
        size = self.config.run.micro_batch_size or share
        total = torch.zeros((), device=self.device)
        for start in range(0, share, size):
            piece = {
                name: tensor[start : start + size] if len(tensor) == share else tensor for name, tensor in batch.items()
            }
            piece |= {name: batch[name] for name in batch if name.startswith("empty_")}
            with synchronized(self.wrapped, last=start + size >= share), attention_kernel(self.device.type):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss = self._call(piece).sum() / share
                loss.backward()
            total += loss.detach()
        mean = self.workers.mean(total).item()
        norm = nn.utils.clip_grad_norm_(list(self.trained.values()), self.config.optimizer.max_grad_norm)
        grad_norm = float(whole(norm))
        if not (np.isfinite(mean) and np.isfinite(grad_norm)):
            everyone = [row for part in self.workers.gather(rows) for row in part]
            self.optimizer.zero_grad(set_to_none=True)
            what = f"the loss is {mean}" if not np.isfinite(mean) else f"the gradient's norm is {grad_norm}"
            raise FloatingPointError(
                f"step {self.step}: {what}; its rows: {', '.join(everyone)}. Checkpoints of earlier steps are good: go "
                "on with a lower optimizer.learning_rate, or without these rows"
            )
        take_step(self.optimizer, rate, compiled=self.config.run.compile)
        if self.average is not None:
            self.average.update(self.trained, self.step)
        logged = None
        if self.config.run.log_rows:
            parts = self.workers.gather(rows)
            logged = [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]
        started, self._ended = self._ended, time.monotonic()
        metrics = StepMetrics(self.step, mean, rate, grad_norm, self._ended - started, self.workers.world_size, logged)
        self.step += 1
        return metrics

    def state(self, facts: dict[str, Any]) -> Checkpoint:
        """The whole state, on the first worker; `facts` for `require_same`. With FSDP2 every worker calls it."""
        moments = moments_of(self.optimizer, self.trained)
        average = {} if self.average is None else self.average.whole()
        weights = {name: collected(parameter) for name, parameter in self.trained.items()}
        return Checkpoint(self.step, facts, weights, average, moments)

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint that `require_same` has let pass."""
        for name, parameter in self.trained.items():
            put(parameter, checkpoint.weights[name])
        if self.average is not None:
            self.average.load(checkpoint.average or checkpoint.weights)
        load_moments(self.optimizer, self.trained, checkpoint.optimizer, checkpoint.step)
        self.step = checkpoint.step


def require_same(step: int, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Whether a run may go on from the checkpoint at `step`, by the facts of both.

    Raises: ValueError for one of another architecture, or whose seed, rows or batch size are others.
    """
    theirs, mine = given["architecture"], wanted["architecture"]
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            raise ValueError(
                f"--output: the checkpoint at step {step} there is of another architecture: {name} has shape "
                f"{theirs.get(name)} in it and {mine.get(name)} here; choose another --output, or the base and "
                "model.trains it was made with"
            )
    for name, before, now in differences(given, wanted):  # the architectures are the same
        raise ValueError(
            f"--output: the checkpoint at step {step} there was made with {name}={before!r}, now it is {now!r}, and "
            "steps would not be the same; choose another --output, or set it back"
        )


def shrink_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Frozen matrices and convolutions take the dtype of the arithmetic; norms stay as they are."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in layer.parameters(False)):
            layer.to(dtype)


def attention_kernel(device: str) -> AbstractContextManager[None]:
    """On CPU, attention of few channels is faster as plain products than by the fused kernel.

    For the backward pass too: gradient checkpointing repeats the forward in it, and must meet the same kernel.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


def run_steps(
    run: TrainingRun,
    feed: Iterable[Arrays],
    make_batch: BatchMaker,
    store: CheckpointStore,
    facts: dict[str, Any],
    *,
    on_step: Callable[[StepMetrics], None],
    before_checkpoint: Callable[[int], None],
    after_checkpoint: Callable[[Checkpoint], None],
) -> None:
    """Runs all steps that are left, on every worker; the first one writes checkpoints and calls back.

    feed: this worker's rows of each step, from `run.step` on. Raises: FloatingPointError (see `train_step`), OSError.
    """
    for arrays in feed:
        assert set(arrays["step"]) == {run.step}, f"rows of step {set(arrays['step'])} in step {run.step}"
        metrics = run.train_step(make_batch(arrays), [str(row) for row in arrays["row_id"]])
        if run.workers.rank == 0:
            on_step(metrics)
        if run.step % run.config.run.checkpoint_every == 0 or run.step == run.num_steps:
            first = run.workers.rank == 0
            checkpoint = run.state(facts) if first or run.config.run.strategy == "fsdp" else None
            if first:
                assert checkpoint is not None
                before_checkpoint(run.step)  # the metrics: a checkpoint without them would leave a hole
                store.save(checkpoint, keep=run.config.run.keep_checkpoints)
                after_checkpoint(checkpoint)
            del checkpoint  # gigabytes
    if run.step < run.num_steps:
        raise RuntimeError(f"the rows ended after step {run.step} of {run.num_steps}")


class MetricsLog:
    """Metrics of steps as JSON lines, one file a checkpoint: `metrics/step-00000500.jsonl` holds those up to it.

    Steps repeated after a crash write the same file again, so each step is in it once.
    """

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)
        self._lines: list[str] = []

    def add(self, metrics: StepMetrics) -> None:
        values = {name: value for name, value in vars(metrics).items() if value is not None}
        self._lines.append(json.dumps(values))

    def flush(self, step: int) -> None:
        """Writes what was added since the last time, as the part of the checkpoint at `step`."""
        self._storage.write(f"metrics/step-{step:08d}.jsonl", ("\n".join(self._lines) + "\n").encode())
        self._lines = []


def read_metrics(output: str) -> list[dict[str, Any]]:
    """The metrics of all steps, each once, in order."""
    storage = Storage(output)
    found: dict[int, dict[str, Any]] = {}
    # Files overlap where a run went on from an older checkpoint with another run.checkpoint_every.
    for key in storage.keys("metrics"):
        for line in storage.read(key).decode().splitlines():
            metrics = json.loads(line)
            found[metrics["step"]] = metrics
    return [found[step] for step in sorted(found)]
