"""Checkpoints of a training in a folder, local or `s3://`.

    checkpoints/step-00000500/weights.safetensors     trained weights, float32, full tensors (not sharded)
                              average.safetensors     their moving average
                              optimizer.safetensors   first and second moments by name
                              checkpoint.json         written last: step, facts, and the hash of each file

A folder without `checkpoint.json`, or with a file that does not match its hash, is never loaded.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refadgen.storage.modes import follow_umask
from refadgen.storage.store import Storage

_log = logging.getLogger("refadgen.training")
FOLDER = "checkpoints"
MANIFEST = "checkpoint.json"
_FILES = ("weights", "average", "optimizer")
_FILE = re.compile(rf"{FOLDER}/step-(\d{{8,}})/[^/]+")
"""A key below a checkpoint's folder. Other folders beside them are the user's and never touched."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some step, in memory. Tensors are full and on the CPU."""

    step: int
    """Number of steps done."""
    facts: dict[str, Any]
    """Must be equal in a run that resumes: see `loop.require_same`."""
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Empty without a moving average."""
    optimizer: dict[str, Tensor]
    """`NAME/exp_avg` and `NAME/exp_avg_sq`; for 8-bit moments `…/codes` and `…/scale` of each."""


class CheckpointStore:
    """The checkpoints of one output folder."""

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, ascending. Their files may still be damaged."""
        keys = self._storage.keys(FOLDER, suffix=f"/{MANIFEST}")
        return sorted(int(found[1]) for key in keys if (found := _FILE.fullmatch(key)))

    def save(self, checkpoint: Checkpoint, *, keep: int, besides: int | None = None) -> None:
        """Writes a checkpoint, then removes older ones beyond the newest `keep` and the remains of killed runs.

        besides: the step of one that stays too, however old it is.

        Checkpoints of later steps are removed too: a run that gets here has found them damaged and resumed from an
        earlier one. Raises: OSError.
        """
        folder = self.folder(checkpoint.step)
        hashes = {}
        for name in _FILES:
            key = f"{folder}/{name}.safetensors"
            # safetensors refuses tensors that are not contiguous.
            tensors = {each: tensor.contiguous() for each, tensor in getattr(checkpoint, name).items()}
            with self._storage.new_file(key) as file:
                try:
                    save_file(tensors, file)
                except SafetensorError as error:  # a full disk
                    raise OSError(f"{self._storage.uri_of(key)}: cannot be written: {error}") from error
                follow_umask(file)
                hashes[f"{name}.safetensors"] = _digest(file)
        # The manifest last: until it is there, the files above are not a checkpoint.
        manifest = {"step": checkpoint.step, "facts": checkpoint.facts, "sha256": hashes}
        self._storage.write(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        steps = self.steps()
        kept = [step for step in steps if step <= checkpoint.step][-keep:]
        for folder in {key.rpartition("/")[0] for key in self._storage.keys(FOLDER) if _FILE.fullmatch(key)}:
            if (step := int(folder.rpartition("-")[2])) not in kept and (step != besides or step > checkpoint.step):
                self._remove(folder)
        # A run that was killed while it wrote this same step has left partial writes beside the new files.
        for key in self._storage.keys(self.folder(checkpoint.step)):
            if key.endswith(".tmp"):
                self._storage.delete([key])

    def facts(self, step: int) -> dict[str, Any]:
        """The facts of a checkpoint; its tensors are not read. Raises: ValueError for a damaged manifest, OSError."""
        return self._manifest(step)[0]

    def _manifest(self, step: int) -> tuple[dict[str, Any], dict[str, str]]:
        """The facts, and the hash of each file by its name without suffix."""
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
        # The manifest first: files that a crash in between leaves are not taken for a checkpoint.
        keys = sorted(self._storage.keys(folder), key=lambda key: not key.endswith(f"/{MANIFEST}"))
        self._storage.delete(keys)
        if not self._storage.remote:
            with contextlib.suppress(OSError):
                os.rmdir(self._storage.path(folder))

    def load(self, step: int) -> Checkpoint:
        """Reads a checkpoint. Raises: ValueError for a file that is missing or does not match its hash, OSError."""
        folder = self.folder(step)
        facts, hashes = self._manifest(step)
        tensors = {}
        # A local copy: hash and tensors come from the same bytes, and s3:// is read once.
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
                os.unlink(file)  # now, not at the end: three files of a large model need not fit there at once
        return Checkpoint(step, facts, **tensors)

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None where there is none. Each damaged one that is skipped is logged.

        Raises: OSError, since a disk that cannot be read is no damage: an older checkpoint would lose steps.
        """
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ValueError as error:
                _log.warning("%s; trying the checkpoint before it", error)
        return None


def _digest(file: str | Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
