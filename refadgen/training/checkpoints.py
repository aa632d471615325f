"""Checkpoints of a training in a folder, local or `s3://`.

    checkpoints/step-00000500/weights.safetensors     what trains, float32, whole (not sharded)
                              average.safetensors     its moving average
                              optimizer.safetensors   first and second moments by name
                              checkpoint.json         written last: step, facts, and the hash of each file

A folder without `checkpoint.json`, or with a file that its hash does not fit, is no checkpoint and never loaded.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refadgen.storage.store import Storage

FOLDER = "checkpoints"
MANIFEST = "checkpoint.json"
_FILES = ("weights", "average", "optimizer")
_FILE = re.compile(rf"{FOLDER}/step-(\d{{8,}})/[^/]+")
"""A key below a checkpoint's folder; other folders beside them are the user's."""


@dataclass(frozen=True)
class Checkpoint:
    """One state of a training, in memory."""

    step: int
    """Steps done."""
    facts: dict[str, Any]
    """What must be equal for going on: see `loop.require_same`."""
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Empty without a moving average."""
    optimizer: dict[str, Tensor]
    """`NAME/exp_avg`, `NAME/exp_avg_sq`; in 8 bits `…/codes` and `…/scale` of each."""


class CheckpointStore:
    """The checkpoints of one output folder."""

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have their manifest, ascending."""
        keys = self._storage.keys(FOLDER, suffix=f"/{MANIFEST}")
        return sorted(int(found[1]) for key in keys if (found := _FILE.fullmatch(key)))

    def save(self, checkpoint: Checkpoint, *, keep: int) -> None:
        """Writes a checkpoint, then removes all but the newest `keep`, and what runs that were killed have left.

        Those of later steps go as well: a run that comes by here has found them damaged. Raises: OSError.
        """
        folder = self.folder(checkpoint.step)
        hashes = {}
        for name in _FILES:
            key = f"{folder}/{name}.safetensors"
            tensors = {each: tensor.contiguous() for each, tensor in getattr(checkpoint, name).items()}
            with self._storage.new_file(key) as file:
                try:
                    save_file(tensors, file)
                except SafetensorError as error:  # a full disk
                    raise OSError(f"{self._storage.uri_of(key)}: cannot be written: {error}") from error
                hashes[f"{name}.safetensors"] = _digest(file)
        manifest = {"step": checkpoint.step, "facts": checkpoint.facts, "sha256": hashes}
        self._storage.write(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        steps = self.steps()
        kept = [step for step in steps if step <= checkpoint.step][-keep:]
        for folder in {key.rpartition("/")[0] for key in self._storage.keys(FOLDER) if _FILE.fullmatch(key)}:
            if int(folder.rpartition("-")[2]) not in kept:
                self._remove(folder)
        for key in self._storage.keys(self.folder(checkpoint.step)):
            if key.endswith(".tmp"):
                self._storage.delete([key])

    def facts(self, step: int) -> dict[str, Any]:
        """The facts of a checkpoint, without its weights. Raises: ValueError for a damaged manifest, OSError."""
        return self._manifest(step)[0]

    def _manifest(self, step: int) -> tuple[dict[str, Any], dict[str, str]]:
        """The facts and the hash of each file."""
        key = f"{self.folder(step)}/{MANIFEST}"
        try:
            content = json.loads(self._storage.read(key))
            return dict(content["facts"]), {name: content["sha256"][f"{name}.safetensors"] for name in _FILES}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._storage.uri_of(key)}: damaged ({error!r})") from error

    def folder(self, step: int) -> str:
        """The key of a checkpoint's folder."""
        return f"{FOLDER}/step-{step:08d}"

    def _remove(self, folder: str) -> None:
        # First the manifest: what is left by a crash in between is no checkpoint.
        keys = sorted(self._storage.keys(folder), key=lambda key: not key.endswith(f"/{MANIFEST}"))
        self._storage.delete(keys)
        if not self._storage.remote:
            with contextlib.suppress(OSError):
                os.rmdir(self._storage.path(folder))

    def load(self, step: int) -> Checkpoint:
        """Raises: ValueError for a file that is missing or does not fit its hash, OSError."""
        folder = self.folder(step)
        facts, hashes = self._manifest(step)
        tensors = {}
        with tempfile.TemporaryDirectory(prefix="refadgen-checkpoint-") as place:
            for name in _FILES:
                file = Path(place) / f"{name}.safetensors"
                try:
                    self._storage.get_file(f"{folder}/{file.name}", file)
                except FileNotFoundError as error:
                    raise ValueError(f"{self._storage.uri_of(folder)}: {file.name} is missing") from error
                if _digest(file) != hashes[name]:
                    raise ValueError(f"{self._storage.uri_of(folder)}: {file.name} is damaged (its hash differs)")
                tensors[name] = load_file(file)
                os.unlink(file)
        return Checkpoint(step, facts, **tensors)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are passed over with a warning. None where there is none."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ValueError as error:
                print(f"warning: {error}; taking the one before", flush=True)
        return None


def _digest(file: str | Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
