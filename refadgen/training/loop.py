"""The loop that one worker runs: steps, checkpoints, metrics. It does not import Ray: rows come from an iterator.

The rows, noise, timesteps, dropouts and variants of a step are functions of seed, epoch and row ids. So a resumed run
repeats an uninterrupted one on any number of workers, except for rounding in the sums of gradients.
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
from refadgen.training.parallel import Workers, full_tensor, gather_to_rank_0, put_full_tensor, synchronized, wrap
from refadgen.training.rows import Arrays


@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one finished step."""

    step: int
    """From 0."""
    loss: float
    """Mean over the batch."""
    learning_rate: float
    grad_norm: float
    seconds: float
    """Since the step before; includes waiting for rows and writing checkpoints."""
    workers: int
    rows: list[str] | None = None
    """Row ids in the batch's order; None unless `run.log_rows` is set."""


class BatchMaker:
    """Turns the arrays of a step (see `rows`) into the batch of `TrainingModule.forward`, on the device.

    Draws the noise, and encodes pictures and captions where rows are not precomputed.
    """

    def __init__(
        self,
        config: TrainConfig,
        constants: dict[str, Tensor],
        num_train_timesteps: int,
        device: torch.device,
        encoders: Encoders | None,
    ) -> None:
        """constants: `empty_token_ids` 1×tokens; `empty_text_states` 1×tokens×C where the text encoder is frozen.

        num_train_timesteps: of the scheduler. encoders: None where rows are precomputed.
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
        # Arrays from Ray are read-only views of its object store, and torch warns of those: `np.array` copies.
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
            shrink_frozen(module, self.dtype)  # not for FSDP2, whose groups must be of one dtype
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
        """Takes one step with this worker's share of the batch. rows: the ids of that share.

        Raises: FloatingPointError, on all workers alike, where the loss or the gradient's norm is not finite. Weights
        and optimizer state are unchanged then.
        """
        rate = learning_rate(self.config.optimizer, self.step, self.num_steps)
        share = len(batch["latents"])
        size = self.config.run.micro_batch_size or share
        total = torch.zeros((), device=self.device)
        for start in range(0, share, size):
            piece = {
                name: tensor[start : start + size] if len(tensor) == share else tensor for name, tensor in batch.items()
            }
            # Constants have a leading size of 1, which a share of one row has too.
            piece |= {name: batch[name] for name in batch if name.startswith("empty_")}
            with synchronized(self.wrapped, last=start + size >= share), attention_kernel(self.device.type):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss = self._call(piece).sum() / share
                loss.backward()
            total += loss.detach()
        mean = self.workers.mean(total).item()
        limit = self.config.optimizer.max_grad_norm
        norm = nn.utils.clip_grad_norm_(list(self.trained.values()), float("inf") if limit is None else limit)
        grad_norm = float(full_tensor(norm))
        if not (np.isfinite(mean) and np.isfinite(grad_norm)):
            # `mean` and `norm` are equal on all workers, so all of them come here and the gather cannot hang.
            all_rows = [row for part in self.workers.gather(rows) for row in part]
            self.optimizer.zero_grad(set_to_none=True)
            problem = f"the loss is {mean}" if not np.isfinite(mean) else f"the gradient's norm is {grad_norm}"
            if self.step == 0:
                advice = "Nothing is trained yet: the weights that it starts from are not finite, or these rows are not"
            else:
                advice = "Checkpoints of earlier steps are good: resume with a lower optimizer.learning_rate, or "
                advice += "without these rows"
            raise FloatingPointError(f"step {self.step}: {problem}; its rows: {', '.join(all_rows)}. {advice}")
        take_step(self.optimizer, rate, compiled=self.config.run.compile)
        if self.average is not None:
            self.average.update(self.trained, self.step)
        logged = None
        if self.config.run.log_rows:
            parts = self.workers.gather(rows)
            # Worker r holds positions r, r + world_size, … of the batch: interleaving restores its order.
            logged = [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]
        started, self._ended = self._ended, time.monotonic()
        metrics = StepMetrics(self.step, mean, rate, grad_norm, self._ended - started, self.workers.world_size, logged)
        self.step += 1
        return metrics

    def state(self, facts: dict[str, Any]) -> Checkpoint:
        """The full state, on rank 0. facts: for `require_same` at resume. With FSDP2 every worker must call it."""
        moments = moments_of(self.optimizer, self.trained)
        average = {} if self.average is None else self.average.gather_to_rank_0()
        weights = {name: gather_to_rank_0(parameter) for name, parameter in self.trained.items()}
        return Checkpoint(self.step, facts, weights, average, moments)

    def load(self, checkpoint: Checkpoint) -> None:
        """Resumes from a checkpoint, which must have passed `require_same`."""
        for name, parameter in self.trained.items():
            put_full_tensor(parameter, checkpoint.weights[name])
        if self.average is not None:
            self.average.load(checkpoint.average or checkpoint.weights)
        load_moments(self.optimizer, self.trained, checkpoint.optimizer, checkpoint.step)
        self.step = checkpoint.step


def require_same(step: int, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Checks that a run with the facts `current` may resume from the checkpoint at `step`, which holds `stored`.

    Raises: ValueError naming the first difference: a tensor's shape, or a setting or input that changes the steps.
    """
    theirs, mine = stored["architecture"], current["architecture"]
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            raise ValueError(
                f"--output: the checkpoint at step {step} there is of another architecture: {name} has shape "
                f"{theirs.get(name)} in it and {mine.get(name)} here; choose another --output, or the base and "
                "model.trains it was made with"
            )
    for name, before, now in differences(stored, current):  # the architectures are the same
        raise ValueError(
            f"--output: the checkpoint at step {step} there was made with {name}={before!r}, now it is {now!r}, and "
            "steps would not be the same; choose another --output, or set it back"
        )


def shrink_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts frozen linear layers and convolutions to the dtype of the arithmetic, in place. Norms stay float32.

    Autocast would cast them at every step; this way they also take half the memory in bfloat16.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in layer.parameters(False)):
            layer.to(dtype)


def attention_kernel(device: str) -> AbstractContextManager[None]:
    """The attention kernel of a step. On CPU, plain products are faster than the fused kernel at few channels.

    Keep it open during the backward pass: gradient checkpointing repeats the forward there with the same kernel.
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
    best: Callable[[int], int | None] = lambda step: None,
) -> None:
    """Runs the remaining steps on every worker; rank 0 writes checkpoints and calls back.

    feed: this worker's rows of each step, from `run.step` on. best: the best checkpoint up to a step, which stays
    besides the newest. Raises: FloatingPointError (see `train_step`), OSError, RuntimeError where the feed ends early.
    """
    for arrays in feed:
        assert set(arrays["step"]) == {run.step}, f"rows of step {set(arrays['step'])} in step {run.step}"
        metrics = run.train_step(make_batch(arrays), [str(row) for row in arrays["row_id"]])
        if run.workers.rank == 0:
            on_step(metrics)
        if run.step % run.config.run.checkpoint_every == 0 or run.step == run.num_steps:
            rank_0 = run.workers.rank == 0
            # Under FSDP2 gathering is collective: without the other workers rank 0 would wait for ever.
            checkpoint = run.state(facts) if rank_0 or run.config.run.strategy == "fsdp" else None
            if rank_0:
                assert checkpoint is not None
                before_checkpoint(run.step)  # writes the metrics: a checkpoint without them would leave a gap
                store.save(checkpoint, keep=run.config.run.keep_checkpoints, besides=best(run.step))
                after_checkpoint(checkpoint)
            del checkpoint  # gigabytes
    if run.step < run.num_steps:
        raise RuntimeError(f"the rows ended after step {run.step} of {run.num_steps}")


class MetricsLog:
    """Metrics of steps as JSON lines. One file per checkpoint: `metrics/step-00000500.jsonl` holds the steps up to it.

    Steps that are repeated after a crash overwrite the same file.
    """

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)
        self._lines: list[str] = []

    def add(self, metrics: StepMetrics) -> None:
        """Keeps the metrics of a step until `flush`."""
        values = {name: value for name, value in vars(metrics).items() if value is not None}
        self._lines.append(json.dumps(values))

    def flush(self, step: int) -> None:
        """Writes the metrics added since the last flush as the file of the checkpoint at `step`."""
        self._storage.write(f"metrics/step-{step:08d}.jsonl", ("\n".join(self._lines) + "\n").encode())
        self._lines = []


def read_metrics(output: str) -> list[dict[str, Any]]:
    """The metrics of all steps, in order, each step once."""
    storage = Storage(output)
    found: dict[int, dict[str, Any]] = {}
    # Files overlap where a run resumed from an older checkpoint with another run.checkpoint_every: the later counts.
    for key in storage.keys("metrics"):
        for line in storage.read(key).decode().splitlines():
            metrics = json.loads(line)
            found[metrics["step"]] = metrics
    return [found[step] for step in sorted(found)]
