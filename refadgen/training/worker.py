"""The function that each Ray Train worker runs: loads the networks, resumes from the newest checkpoint, trains."""

import contextlib
import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.experimental import tqdm_ray
from tensorboardX import SummaryWriter
from torch import Tensor

from refadgen.config import TrainConfig, to_yaml
from refadgen.storage.store import Storage
from refadgen.training.cache import Constants
from refadgen.training.checkpoints import Checkpoint, CheckpointStore
from refadgen.training.feed import BadRowError, ray_feed
from refadgen.training.finished import HeldOut, sample_sheet
from refadgen.training.loop import BatchMaker, MetricsLog, StepMetrics, TrainingRun, run_steps
from refadgen.training.measuring import MeasuredRow, Measuring, SampleMeasures
from refadgen.training.metrics import tell_step
from refadgen.training.networks import TrainingModule, load_parts
from refadgen.training.plan import Plan
from refadgen.training.rows import CachedRows, RowSource

_SHOWN_EVERY_S = 5.0
STOPPED = "stopped.json"
"""In the output: `message` says why a training ended early on purpose; `bad_input`: whether a row is the cause."""
SETTINGS = "train.yaml"
"""In the output: the settings, written by the driver before workers start."""


@dataclass(frozen=True)
class WorkerTask:
    """Everything that the driver hands to a worker."""

    config: TrainConfig
    output: str
    source: RowSource
    plan: Plan
    constants: Constants
    facts: dict[str, Any]
    """See `Checkpoint.facts`."""
    held_out: list[HeldOut]
    measured: list[MeasuredRow] = field(default_factory=list)
    measures: SampleMeasures | None = None
    """None: `measure.every` is 0."""


def constant_tensors(constants: Constants) -> dict[str, Tensor]:
    """The empty prompt as tensors: int64 1×tokens and, where the text encoder is frozen, float32 1×tokens×channels."""
    tensors = {"empty_token_ids": torch.tensor(constants["empty_token_ids"])[None]}
    if "empty_text_states" in constants:
        states = np.frombuffer(bytes.fromhex(constants["empty_text_states"]), np.float16)
        tensors["empty_text_states"] = torch.from_numpy(
            states.reshape(1, len(constants["empty_token_ids"]), -1).astype(np.float32)
        )
    return tensors


def train_worker(settings: dict[str, Any]) -> None:
    """Runs one worker of a training. settings: `task`, a reference to a `WorkerTask`.

    A loss that is not finite ends all workers, and rank 0 writes the reason to `stopped.json`. A bad row is seen by one
    worker only: it writes the reason there and fails; Ray Train restarts all workers, and they end at the sight of the
    file.
    """
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)  # our progress bar replaces their reports
    task: WorkerTask = ray.get(settings["task"])
    config = task.config
    storage = Storage(task.output)
    if storage.exists(STOPPED):
        return  # restarted after another worker met a bad row
    require_shared(storage, config)
    torch.set_num_threads(config.run.torch_threads or max(1, int(config.run.num_cpus)))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL sends objects through the current one
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    run = TrainingRun(config, module, task.plan.num_steps, device)
    online = not isinstance(task.source, CachedRows)
    encoders = parts.encoders(config, device, run.dtype).prepared() if online else None
    timesteps = parts.scheduler.config.num_train_timesteps
    del parts  # where rows are precomputed, this frees the encoders
    store = CheckpointStore(task.output)
    resumed = resume(run, store)
    feed = ray_feed(
        task.plan,
        task.source,
        run.step,
        rank=rank,
        world_size=world_size,
        load_cpus=config.data.load_cpus,
    )
    make_batch = BatchMaker(config, constant_tensors(task.constants), timesteps, device, encoders)
    with _Log(task, run.step, device) if rank == 0 else contextlib.nullcontext() as log:
        if log and resumed is not None:
            log.make_up(resumed)
        del resumed  # gigabytes
        try:
            run_steps(
                run,
                feed,
                make_batch,
                store,
                task.facts,
                on_step=log.step if log else lambda metrics: None,
                before_checkpoint=log.flush if log else lambda step: None,
                after_checkpoint=log.checkpoint if log else lambda checkpoint: None,
                best=log.best if log else lambda step: None,
            )
        except FloatingPointError as error:
            if rank == 0:
                _stop(storage, error, bad_input=False)
        except BadRowError as error:
            _stop(storage, error, bad_input=True)
            raise  # the other workers wait for this one in a collective call; a failure makes Ray Train end them
    ray.train.report({"step": run.step, "world_size": world_size})


def require_shared(storage: Storage, config: TrainConfig) -> None:
    """Raises: RuntimeError where --output on this node is not the driver's folder: each node has a local one."""
    if not storage.exists(SETTINGS) or storage.read(SETTINGS).decode() != to_yaml(config):
        raise RuntimeError(
            f"--output {storage.uri}: on this node it is not the folder that the driver sees; with workers on several "
            "nodes, name a shared folder or s3://"
        )


def resume(run: TrainingRun, store: CheckpointStore) -> Checkpoint | None:
    """Resumes all workers from the newest undamaged checkpoint that rank 0 finds, and returns it there; else None."""
    # Rank 0 decides for all: on a slow file system, another worker might see one checkpoint more or less.
    checkpoint = store.latest() if run.workers.rank == 0 else None
    step = run.workers.broadcast_from_rank_0(checkpoint.step if checkpoint is not None else 0)
    if step:
        run.load(checkpoint or store.load(step))
    return checkpoint


def _stop(storage: Storage, error: Exception, *, bad_input: bool) -> None:
    storage.write(STOPPED, json.dumps({"message": str(error), "bad_input": bad_input}).encode())


class _Log:
    """Rank 0's reports: progress bar, metrics, TensorBoard, sample sheets."""

    def __init__(self, task: WorkerTask, first_step: int, device: torch.device) -> None:
        self._task, self._device = task, device
        self._storage = Storage(task.output)
        self._metrics = MetricsLog(task.output)
        self._first_step = first_step
        self._loss = 0.0
        self._measuring = None
        if task.measures is not None:
            self._measuring = Measuring(task.config, task.output, task.measured, task.measures, device)

    def __enter__(self) -> "_Log":
        self._scratch = tempfile.TemporaryDirectory(prefix="refadgen-tensorboard-")
        folder = self._scratch.name if self._storage.remote else self._storage.path("tensorboard")
        # purge_step: steps after the checkpoint are repeated, and their points would be drawn twice.
        self._board = SummaryWriter(folder, purge_step=self._first_step)
        self._bar = tqdm_ray.tqdm(total=self._task.plan.num_steps, unit="step", flush_interval_s=_SHOWN_EVERY_S)
        self._bar.update(self._first_step)
        self._started = self._shown = self._stepped = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        self._bar.close()
        self._scratch.cleanup()

    def step(self, metrics: StepMetrics) -> None:
        """Reports a finished step."""
        self._metrics.add(metrics)
        done = metrics.step + 1 - self._first_step
        # The plain mean of the first 100 steps, then an exponential one.
        self._loss += (metrics.loss - self._loss) / min(done, 100)
        now = time.monotonic()
        batch_size = self._task.config.run.batch_size
        steps_left = self._task.plan.num_steps - metrics.step - 1
        tell_step(loss=self._loss, num_samples=batch_size, seconds=now - self._stepped, steps_left=steps_left)
        self._stepped = now
        rate = done / max(1e-9, now - self._started)
        left = steps_left / rate
        images = rate * batch_size
        self._bar.update(1)
        if time.monotonic() > self._shown + _SHOWN_EVERY_S or left == 0:
            clock = f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}"
            self._bar.set_description(f"loss {self._loss:.4f}, {images:.1f} images/s, {clock} left")
            self._shown = time.monotonic()
        for name in ("loss", "learning_rate", "grad_norm"):
            self._board.add_scalar(name, getattr(metrics, name), metrics.step)
        self._board.add_scalar("images_per_s", images, metrics.step)

    def flush(self, step: int) -> None:
        """Writes everything reported so far; called before each checkpoint."""
        self._metrics.flush(step)
        self._flush_board()

    def _flush_board(self) -> None:
        self._board.flush()
        if self._storage.remote:  # the board writes to a scratch folder, see __enter__
            for file in Path(self._scratch.name).iterdir():
                self._storage.put_file(f"tensorboard/{file.name}", file)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Draws what is due; called after each checkpoint."""
        self._sheet(checkpoint)
        if self._measuring is not None and self._measuring.is_due(checkpoint, self._task.plan.num_steps):
            self._measure(self._measuring, checkpoint)

    def make_up(self, checkpoint: Checkpoint) -> None:
        """Measures the checkpoint that a run resumes from, where an earlier one was killed before it did."""
        due = self._measuring is not None and self._measuring.is_due(checkpoint, self._task.plan.num_steps)
        if self._measuring is not None and due and not self._measuring.is_measured(checkpoint):
            self._measure(self._measuring, checkpoint)

    def best(self, step: int) -> int | None:
        """The best checkpoint up to a step; None: none is asked for."""
        return None if self._measuring is None else self._measuring.best(step)

    def _measure(self, measuring: Measuring, checkpoint: Checkpoint) -> None:
        for name, mean in measuring.measure(checkpoint)["means"].items():
            if mean is not None:
                self._board.add_scalar(f"measures/{name}", mean, checkpoint.step - 1)  # steps there are from 0
        self._flush_board()

    def _sheet(self, checkpoint: Checkpoint) -> None:
        """Writes a sheet of held-out samples where one is due."""
        config = self._task.config
        every = config.run.sample_every
        if (
            every
            and self._task.held_out
            and (checkpoint.step % every == 0 or checkpoint.step == self._task.plan.num_steps)
        ):
            sheet = sample_sheet(config, checkpoint, self._task.held_out, self._device)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "samples.png"
                sheet.save(file)
                self._storage.put_file(f"samples/step-{checkpoint.step:08d}.png", file)
