"""The training job: checks, precomputes, trains on Ray Train, exports. Everything lies in one output folder.

    cache/         precomputed rows (unless data.cache names another place)
    checkpoints/   the newest few, see `checkpoints`        metrics/   loss and rate of each step
    samples/       sheets of held-out samples               tensorboard/
    measures/      of held-out samples, see `measuring`     train.yaml  the settings
    model/         the finished model with its card         model-best/ that of the best checkpoint, if not the last

The same command again resumes from the newest checkpoint.
"""

import copy
import dataclasses
import hashlib
import json
import re
import subprocess
import tempfile
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from refadgen.batch import ray_connection
from refadgen.config import TrainConfig, to_yaml
from refadgen.config.identity import training_identity
from refadgen.config.paths import absolute_paths
from refadgen.config.train import RANDOM
from refadgen.model.folder import find_model, fingerprint
from refadgen.storage.locations import is_remote, local_path
from refadgen.storage.store import Storage
from refadgen.training.cache import Constants
from refadgen.training.checkpoints import Checkpoint, CheckpointStore
from refadgen.training.choices import RowChooser
from refadgen.training.finished import HeldOut, export, held_out, model_card, put_trained
from refadgen.training.loop import read_metrics, require_same
from refadgen.training.measuring import MeasuredRow, Measuring, SampleMeasures, rows_to_measure
from refadgen.training.networks import Parts, TrainingModule, find_image_encoder, load_parts
from refadgen.training.optimization import make_optimizer
from refadgen.training.plan import Plan, with_each_image
from refadgen.training.precompute import constants_of, precompute
from refadgen.training.rows import CachedRows, OnlineRows, RowSource, online_files
from refadgen.training.worker import SETTINGS, STOPPED, WorkerTask, train_worker
from refadgen.triplets import schema as triplets
from refadgen.triplets.schema import DatasetScan

TINY = Path(triplets.__file__).parent / "tiny" / "triplets.parquet"
"""The data set `tiny`."""


class TrainingStopped(RuntimeError):
    """A training that ended early; the message says why. Its checkpoints are good."""


class TrainingJob:
    """One training: all checks that need no Ray, and the run itself."""

    def __init__(self, config: TrainConfig, output: str, measures: SampleMeasures | None = None) -> None:
        """measures: what measures held-out samples; needed where `measure.every` is not 0.

        Raises: ValueError for a wrong setting, data set or base.
        """
        assert measures is not None or not config.measure.every, "measure.every without what measures"
        self._measures = measures if config.measure.every else None
        if not config.data.path:
            raise ValueError("data.path: name a folder of triplets (--data)")
        data = dataclasses.replace(config.data, path=str(TINY)) if config.data.path == "tiny" else config.data
        self.config = absolute_paths(dataclasses.replace(config, data=data))
        self.output = output if is_remote(output) else local_path(output)
        self._storage = Storage(self.output)
        ray_connection.require_lasting(self._storage)
        self._storage.check_writable("--output")
        self.scan: DatasetScan = triplets.scan(self.config.data.path, config.data.variants)
        if self._samples_per_epoch < config.run.batch_size:
            raise ValueError(
                f"data.path={config.data.path!r}: {self._samples_per_epoch} {self._counted} of split train; a step "
                f"takes run.batch_size={config.run.batch_size}, on {config.run.num_workers} workers"
            )
        self._measured: list[MeasuredRow] = [] if self._measures is None else rows_to_measure(self.config)
        self._parts: Parts = load_parts(self.config)
        self._module = TrainingModule(self._parts, self.config)
        make_optimizer(config.optimizer, self._module.trained())  # a missing package is an error before Ray starts
        self._store = CheckpointStore(self.output)
        encoder = self.config.model.image_encoder
        self._facts: dict[str, Any] = {
            "architecture": self._module.architecture(),
            "data.path (its rows)": self.scan.fingerprint,
            "model.base (its files)": fingerprint(find_model(self.config.model.base)),
            "model.image_encoder (its files)": encoder and fingerprint(find_image_encoder(encoder)),
            **training_identity(config),
        }
        start = self.config.model.image_projection
        if start not in (None, RANDOM):
            with open(start, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            self._facts["model.image_projection (its file)"] = digest[:16]
        if self._counts_images:
            counts = hashlib.sha256(repr(self.scan.training_images).encode())
            self._facts["data.path (its product images)"] = counts.hexdigest()[:16]
        self._done = self._steps_done()
        if self._done > self.num_steps:
            raise ValueError(
                f"run.num_steps, run.num_epochs: {self.num_steps} steps, but --output has a checkpoint at step "
                f"{self._done}; ask for as many, or choose another --output"
            )

    def _steps_done(self) -> int:
        """Steps of the newest checkpoint. Raises: ValueError when this training cannot resume from it."""
        for step in reversed(self._store.steps()):
            try:
                facts = self._store.facts(step)
            except ValueError:
                continue  # damaged: the checkpoint before it counts, as in CheckpointStore.latest
            require_same(step, facts, self._facts)
            return step
        return 0

    @property
    def _counts_images(self) -> bool:
        return self.config.data.epoch_counts == "product_images"

    @property
    def _counted(self) -> str:
        """What an epoch counts, in words."""
        return "product images" if self._counts_images else "rows"

    @property
    def _samples_per_epoch(self) -> int:
        return sum(self.scan.training_images) if self._counts_images else self.scan.rows_of_split["train"]

    @property
    def num_steps(self) -> int:
        """Of the training from its start, including those done before."""
        run = self.config.run
        if run.num_steps is not None:
            return run.num_steps
        assert run.num_epochs is not None
        return run.num_epochs * (self._samples_per_epoch // run.batch_size)

    def _arithmetic(self) -> list[str]:
        """How long the training is, and why, as lines of text."""
        run, of_epoch = self.config.run, self._samples_per_epoch
        size, steps = run.batch_size, of_epoch // run.batch_size
        epochs = "" if run.num_epochs is None else f"{run.num_epochs} epochs × {steps:,} = "
        return [
            f"epoch: {of_epoch:,} {self._counted} // {size} a step = {steps:,} steps "
            f"(data.epoch_counts={self.config.data.epoch_counts})",
            f"steps: {epochs}{self.num_steps:,} of {size} {self._counted} on {run.num_workers} workers, "
            f"{self.num_steps * size:,} samples; {self._done:,} done before",
        ]

    def describe(self) -> str:
        """The networks, data and steps of this training as text, for the start and for `--dry-run`."""
        before, after = self._parts.base_prediction_type, self.config.objective.prediction_type
        notes = [] if before in (None, after) else [f"note: the base predicts {before}; this training teaches {after}"]
        if missing := _missing_gpu(self.config):  # a dry run is made on any machine
            notes.append(f"note: {missing}")
        if self.config.objective.authors_noise:
            notes.append(
                "warning: objective.authors_noise trains on other noise levels than the finished model samples with, "
                "and at the last timestep, pure noise, ε is the input itself; it is there to reproduce the authors"
            )
        rows, images = self.scan.rows_of_split, sum(self.scan.training_images)
        return "\n".join(
            [
                self._module.describe(),
                f"data: {self.config.data.path}, {rows['train']:,} training rows (ads) with {images:,} product images, "
                f"{rows['test']:,} held out",
                *self._arithmetic(),
                f"output: {self.output}",
                *notes,
            ]
        )

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster cannot hold all workers at once; Ray would wait for ever, silently."""
        run, have = self.config.run, ray.cluster_resources()
        workers = run.min_workers or run.num_workers
        # Workers hold their CPUs until the end, so loading tasks need some of their own. Two are enough for any number
        # of workers: further tasks take turns.
        cpus = workers * run.num_cpus + max(0.0, 2 * self.config.data.load_cpus)
        if cpus > have.get("CPU", 0):
            raise ValueError(
                f"run.num_cpus: {workers} workers and their loading tasks (data.load_cpus) ask for {cpus:g} CPUs, Ray "
                f"has {have.get('CPU', 0):g}; ask for less, or start Ray with more (--num-cpus)"
            )
        if workers * run.num_gpus > have.get("GPU", 0):
            raise ValueError(
                f"run.num_gpus: {workers} workers ask for {workers * run.num_gpus:g} GPUs, Ray has "
                f"{have.get('GPU', 0):g}"
            )

    def run(self) -> str:
        """Trains to the end and exports the model. Needs Ray. Returns: a summary.

        Raises: ValueError for bad rows; TrainingStopped for a loss that is not finite, or when workers failed more than
        `run.max_failures` times.
        """
        started = time.monotonic()
        self._storage.write(SETTINGS, to_yaml(self.config).encode())
        if self._storage.exists(STOPPED):  # of an earlier run, whose cause may be corrected by now
            self._storage.delete([STOPPED])
        source, constants = self._source()
        groups = source.groups("train")
        plan = Plan(
            with_each_image(groups, self.scan.training_images) if self._counts_images else groups,
            self.config.run.seed,
            self.config.run.batch_size,
            self.num_steps,
            self.config.data.shuffle_rows,
        )
        checkpoint = self._store.latest()
        if checkpoint is None or checkpoint.step < self.num_steps:
            checkpoint = None  # gigabytes, which the driver does not need while the workers train
            self._fit(
                WorkerTask(
                    self.config,
                    self.output,
                    source,
                    plan,
                    constants,
                    self._facts,
                    self._held_out(),
                    self._measured,
                    self._measures,
                )
            )
            checkpoint = self._store.latest()
        assert checkpoint is not None
        model = self._export(checkpoint) + self._export_best(checkpoint)
        return f"{self.num_steps} steps in {time.monotonic() - started:.0f} s\n{model}"

    def _source(self) -> tuple[RowSource, Constants]:
        """Where the workers' rows come from, and what replaces a dropped caption or image. May encode the data set."""
        config = self.config
        chooser = RowChooser(config.data, config.objective)
        # Not `prepared()`: these parts are exported later, and they are float32 on the CPU already. The tokenizer is a
        # copy, because a call leaves its padding and truncation in it, and both would be saved with the model.
        encoders = self._parts.encoders(config, torch.device("cpu"), torch.float32)
        encoders = dataclasses.replace(encoders, tokenizer=copy.deepcopy(encoders.tokenizer))
        if config.data.precompute:
            cache_uri = config.data.cache or f"{self.output}/cache"
            cache = precompute(config, config.data.path, cache_uri, self.scan, encoders)
            return CachedRows(cache, chooser), cache.constants
        source = OnlineRows(
            config.data.path,
            online_files(config.data.path),
            chooser,
            Tokenize(encoders.tokenizer),
            None if encoders.image_encoder is None else ClipPixels(encoders.feature_extractor),
        )
        return source, constants_of(encoders)

    def _held_out(self) -> list[HeldOut]:
        """The first `run.num_samples` held-out rows for the sample sheets; none where no sheet is asked for."""
        count = min(self.config.run.num_samples, self.scan.rows_of_split["test"])
        if not self.config.run.sample_every or not count:
            return []
        found: list[HeldOut] = []
        storage, _ = triplets.dataset_files(self.config.data.path)
        for key, groups in online_files(self.config.data.path).items():
            with storage.arrow().open_input_file(storage.path(key)) as handle:
                file = pq.ParquetFile(handle)
                for index, offsets in groups:
                    if not offsets["test"]:
                        continue  # reading a row group means reading its pictures
                    for row in file.read_row_group(index).take(offsets["test"]).to_pylist():
                        found.append(held_out(self.config, triplets.decode(row)))
                        if len(found) == count:
                            return found
        return found

    def _fit(self, task: WorkerTask) -> None:
        """Runs Ray Train until the workers end. Raises: see `run`."""
        run = self.config.run
        resources = {"CPU": run.num_cpus} | ({"GPU": run.num_gpus} if run.num_gpus else {})
        workers = run.num_workers if run.min_workers is None else (run.min_workers, run.num_workers)
        trainer = TorchTrainer(
            train_worker,
            # By reference: plan and held-out pictures are megabytes, and every restart hands this out again.
            train_loop_config={"task": ray.put(task)},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=run.num_gpus > 0, resources_per_worker=resources),
            run_config=RunConfig(
                # A new name for each launch: Ray Train would resume from its own records of an earlier one.
                name=uuid.uuid4().hex[:12],
                storage_path=self._storage.path("ray"),
                storage_filesystem=self._storage.arrow() if self._storage.remote else None,
                failure_config=FailureConfig(max_failures=run.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            self._require_not_stopped()  # a bad row ends as a failed worker too, and its own message is the better one
            failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
            raise TrainingStopped(
                f"workers failed more than run.max_failures={run.max_failures} times: "
                f"{_last_line(failures[0] if failures else error)}. "
                "The same command resumes from the last checkpoint"
            ) from error
        self._require_not_stopped()

    def _require_not_stopped(self) -> None:
        """Raises: ValueError for a bad row that a worker has met, TrainingStopped for another reason in the file."""
        if self._storage.exists(STOPPED):
            found = json.loads(self._storage.read(STOPPED))
            raise (ValueError if found["bad_input"] else TrainingStopped)(found["message"])

    def _export(self, checkpoint: Checkpoint) -> str:
        """Writes `model/` from the last checkpoint. Returns: a summary for the user.

        The checkpoint's weights replace those of the base in this process: nothing needs them after this.
        """
        assert checkpoint.step == self.num_steps
        loss = float(np.mean([metrics["loss"] for metrics in read_metrics(self.output)[-100:]]))
        rows = self.scan.rows_of_split
        card = model_card(
            self.config,
            checkpoint,
            data=f"{Path(self.config.data.path).name}: {rows['train']:,} training rows, {rows['test']:,} held out",
            trained=self._module.describe(),
            commit=_commit(),
            loss=loss,
        )
        put_trained(self._module, checkpoint)
        self._write_model("model", self._parts, card)
        return f"mean loss of the last steps {loss:.4f}\nmodel: {self._storage.uri_of('model')}"

    def _export_best(self, last: Checkpoint) -> str:
        """Writes `model-best/` where an earlier checkpoint was measured as better than the last. Returns: a summary."""
        if self._measures is None:
            return ""
        measuring = Measuring(self.config, self.output, self._measured, self._measures, torch.device("cpu"))
        if not measuring.is_measured(last):  # the worker was killed after its last checkpoint
            measuring.measure(last)
        best = measuring.best(self.num_steps)
        if best is None:
            return ""
        name = self.config.measure.best_by
        if best == self.num_steps:
            return f"\nbest by {name}: the last checkpoint"
        parts = load_parts(self.config)  # those of the export are cast and frozen
        module, checkpoint = TrainingModule(parts, self.config), self._store.load(best)
        put_trained(module, checkpoint)
        metrics = [each["loss"] for each in read_metrics(self.output) if each["step"] < best]
        card = model_card(
            self.config,
            checkpoint,
            data=f"{Path(self.config.data.path).name}; this checkpoint was the best by {name}",
            trained=module.describe(),
            commit=_commit(),
            loss=float(np.mean(metrics[-100:])),
        )
        self._write_model("model-best", parts, card)
        return f"\nbest by {name}: step {best}, {self._storage.uri_of('model-best')}"

    def _write_model(self, name: str, parts: Parts, card: str) -> None:
        with tempfile.TemporaryDirectory(prefix="refadgen-model-") as folder:
            export(self.config, parts, Path(folder), card)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    self._storage.put_file(f"{name}/{file.relative_to(folder).as_posix()}", file)


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Captions to padded token ids, int32 n×tokens. A class, so that loading tasks can unpickle it."""

    tokenizer: Any

    def __call__(self, texts: list[str]) -> np.ndarray:
        length = self.tokenizer.model_max_length
        padded = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True)
        return np.array(padded.input_ids, np.int32)


@dataclasses.dataclass(frozen=True)
class ClipPixels:
    """Product images uint8 n×H×W×3 to the image encoder's input, float32 n×3×s×s, for loading tasks."""

    feature_extractor: Any

    def __call__(self, images_u8: np.ndarray) -> np.ndarray:
        return np.stack(self.feature_extractor(images=list(images_u8), return_tensors="np")["pixel_values"])


def _last_line(error: BaseException) -> str:
    """The cause of a failure without its traceback: the last line that names an exception, else the last line."""
    # The text is all there is. Ray Train wraps the worker's exception in a class of its own whose text is the remote
    # traceback and whose original lies in a private attribute; for a killed process there is only Ray's account of it.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b.*: ", line)]
    return (named or lines or [type(error).__name__])[-1]


def _commit() -> str:
    """The code's commit for the model card, or the package's version where there is no git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return f"commit {found.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        return f"refadgen {version('refadgen')}"


def _missing_gpu(config: TrainConfig) -> str | None:
    """What is wrong where workers on this machine ask for a GPU that it has not; None: nothing."""
    # The driver of a submitted job may run on a node without a GPU while its workers have them.
    if config.run.num_gpus and not torch.cuda.is_available() and not ray_connection.submitted():
        return f"run.num_gpus={config.run.num_gpus:g}: PyTorch sees no GPU here"
    return None


def connect_ray(config: TrainConfig) -> None:
    """Joins a running Ray, or starts one with room for all workers and their loading tasks.

    Raises: ValueError where workers on this machine ask for a GPU that it has not.
    """
    run = config.run
    if missing := _missing_gpu(config):
        raise ValueError(missing)
    # Ray Train asks the dashboard which actors are alive.
    ray_connection.connect(int(np.ceil(run.num_workers * run.num_cpus + 2 * config.data.load_cpus)), dashboard=True)
