"""Measures while training: held-out rows are drawn at some checkpoints and measured; the best checkpoint stays.

    checkpoint ─► held-out rows drawn with few steps ─► measures ─► measures/step-00000500.json, TensorBoard

What measures comes from above (`jobs/train.py` hands it over): training knows no measure. A run that was killed between
a checkpoint and its measures makes them up when it resumes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch

from refadgen.config import TrainConfig
from refadgen.storage.store import Storage
from refadgen.training.checkpoints import Checkpoint, CheckpointStore
from refadgen.training.finished import HeldOut, draw_samples, held_out
from refadgen.triplets import schema as triplets

FOLDER = "measures"


@dataclass(frozen=True)
class MeasuredRow:
    """A held-out row and whose product it shows."""

    row: HeldOut
    product_id: str


@dataclass(frozen=True)
class Sample:
    """A drawn ad and what it is measured against; all uint8 of one size."""

    ad_u8: np.ndarray
    """H×W×3, as the model drew it."""
    canvas_u8: np.ndarray
    """H×W×3, the product on white, as the model saw it."""
    mask_u8: np.ndarray
    """M′, H×W."""
    prompt: str
    product_id: str


class SampleMeasures(Protocol):
    """Measures samples. It travels to the workers by pickling."""

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float | None]]:
        """By the measure's name a value of each sample; None: it has none."""


def rows_to_measure(config: TrainConfig) -> list[MeasuredRow]:
    """`measure.images` held-out rows, of as many products as possible.

    Raises: ValueError where there are too few for `measure.best_by`.
    """
    path = config.data.path
    storage, keys = triplets.dataset_files(path)
    places: dict[str, list[tuple[str, int, int]]] = {}
    for key in keys:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for group in range(file.num_row_groups):
                small = file.read_row_group(group, columns=["split", "product_id"]).to_pylist()
                for offset, row in enumerate(small):
                    if row["split"] == "test":
                        places.setdefault(row["product_id"], []).append((key, group, offset))
    turns = [
        (turn, product, place) for product, found in places.items() for turn, place in enumerate(found)
    ]  # every product comes once before any comes twice
    chosen = sorted(turns, key=lambda each: each[0])[: config.measure.images]
    if not chosen:
        raise ValueError(f"measure.every={config.measure.every}: {path} has no rows of the split test to measure on")
    if config.measure.best_by == "nearest_product" and len({product for _, product, _ in chosen}) < 2:
        raise ValueError(
            "measure.best_by=nearest_product: tells products from each other, and there is one held out; choose "
            "another measure"
        )
    return [MeasuredRow(_read(config, storage, *place), product) for _, product, place in chosen]


def _read(config: TrainConfig, storage: Storage, key: str, group: int, offset: int) -> HeldOut:
    with storage.arrow().open_input_file(storage.path(key)) as handle:
        (row,) = pq.ParquetFile(handle).read_row_group(group).slice(offset, 1).to_pylist()
    return held_out(config, triplets.decode(row))


class Measuring:
    """The measures of one training, on rank 0."""

    def __init__(
        self,
        config: TrainConfig,
        output: str,
        rows: Sequence[MeasuredRow],
        measures: SampleMeasures,
        device: torch.device,
    ) -> None:
        self._config, self._rows, self._measures, self._device = config, rows, measures, device
        self._storage, self._store = Storage(output), CheckpointStore(output)
        self._known = read_measures(output)

    def is_due(self, checkpoint: Checkpoint, num_steps: int) -> bool:
        """Whether a checkpoint is measured: every `measure.every` steps, and the last."""
        return checkpoint.step % self._config.measure.every == 0 or checkpoint.step == num_steps

    def is_measured(self, checkpoint: Checkpoint) -> bool:
        """Whether it was, with the same rows and steps."""
        return any(found["step"] == checkpoint.step for found in self._comparable())

    def measure(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Draws and measures the held-out rows, and writes the means. Raises: OSError."""
        steps = self._config.measure.num_inference_steps
        drawn = draw_samples(self._config, checkpoint, [each.row for each in self._rows], self._device, steps)
        samples = [
            Sample(ad, each.row.product_image, each.row.mask, each.row.prompt, each.product_id)
            for each, ad in zip(self._rows, drawn, strict=True)
        ]
        values = self._measures(samples)
        there = {name: [value for value in each if value is not None] for name, each in values.items()}
        found = {
            "step": checkpoint.step,
            **self._conditions(),
            "means": {name: float(np.mean(each)) if each else None for name, each in there.items()},
            "counts": {name: len(each) for name, each in there.items()},
        }
        self._storage.write(f"{FOLDER}/step-{checkpoint.step:08d}.json", json.dumps(found, indent=1).encode())
        self._known = [each for each in self._known if each["step"] != checkpoint.step] + [found]
        return found

    def _conditions(self) -> dict[str, int]:
        """Measures under other conditions do not compare."""
        return {"images": len(self._rows), "num_inference_steps": self._config.measure.num_inference_steps}

    def _comparable(self) -> list[dict[str, Any]]:
        mine = self._conditions()
        return [each for each in self._known if {name: each[name] for name in mine} == mine]

    def best(self, until: int) -> int | None:
        """The step of the best checkpoint that is still there, not after step `until`; of equal ones the latest.

        None: there is none, or `measure.best_by` is not set.
        """
        name = self._config.measure.best_by
        if name is None:
            return None
        there = {step for step in self._store.steps() if step <= until}
        values = [(each["means"].get(name), each["step"]) for each in self._comparable() if each["step"] in there]
        known = [each for each in values if each[0] is not None]
        return max(known)[1] if known else None


def read_measures(output: str) -> list[dict[str, Any]]:
    """The measures of all checkpoints, in order: `step`, `images`, `num_inference_steps`, `means`, `counts`."""
    storage = Storage(output)
    return [json.loads(storage.read(key)) for key in storage.keys(FOLDER, ".json")]
