"""The job `jobs/calibrate_gate.py`: a run's scores and a person's labels in, thresholds of the fidelity gate out.

Half of the labelled products choose the thresholds, the other half say how good they are. A product's half follows from
its sku alone (the parity of its SHA-256), so that images of one product never stand on both sides.
"""

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from refadgen.evaluation.thresholds import Flags, Floats, Verdict, find_thresholds, judge
from refadgen.generation.ledger import AdLedger
from refadgen.generation.scores import FidelityScores
from refadgen.storage.store import STORE_ERRORS, Storage, split_uri

SCORES = tuple(field.name for field in fields(FidelityScores))
_NAMED = 3
"""Ids that an error names."""


def run(arguments: argparse.Namespace) -> None:
    """Raises: ValueError naming an option or image ids."""
    if not 0 < arguments.precision < 1:
        raise ValueError(f"--precision {arguments.precision}: must lie between 0 and 1")
    file: Path = arguments.write
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(f"--write {file}: must be a file in a folder that exists")
    labels = read_labels(arguments.labels)
    labelled = scores_of(Storage(arguments.output), labels)
    chosen_on = np.array([_chooses(sku) for sku in labelled.skus])
    for half, flags in (("choose", chosen_on), ("test", ~chosen_on)):
        _check_classes(labelled.good[flags], f"among the images of the products that {half} the thresholds")
    thresholds = find_thresholds(labelled.scores[chosen_on], labelled.good[chosen_on], arguments.precision)
    if thresholds is None:
        raise ValueError(
            f"--labels {arguments.labels}: no thresholds reach a precision of {arguments.precision} on the "
            f"{int(chosen_on.sum())} images that choose them: label more, or ask for less by --precision"
        )
    verdicts = [
        judge(
            labelled.scores[half],
            labelled.good[half],
            [sku for sku, own in zip(labelled.skus, half, strict=True) if own],
            thresholds,
        )
        for half in (chosen_on, ~chosen_on)
    ]
    for line in [*labelled.notes, *_table(verdicts), *_lines(labelled.names, thresholds)]:
        print(line)
    file.write_text(_settings(arguments, labelled.names, thresholds, verdicts), encoding="utf-8")
    print(f"use --config {file}")


class Labelled:
    """Labelled images with their scores."""

    def __init__(self, names: Sequence[str], scores: Floats, good: Flags, skus: list[str], notes: list[str]) -> None:
        """names: of the scores, in the columns of `scores`. notes: for the user."""
        self.names, self.scores, self.good, self.skus, self.notes = names, scores, good, skus, notes


def read_labels(uri: str) -> dict[str, bool]:
    """Whether each image is good, by its id, from a parquet or CSV file. Raises: ValueError naming the file and row."""
    subject = f"--labels {uri}"
    storage, name = split_uri(uri)
    try:
        data = pa.BufferReader(storage.read(name))
        if name.lower().endswith(".csv"):
            options = pa.csv.ConvertOptions(column_types={"image_id": pa.string()})  # digits alone are an id too
            table = pa.csv.read_csv(data, convert_options=options)
        else:
            table = pq.read_table(data)
    except FileNotFoundError:
        raise ValueError(f"{subject}: there is no such file") from None
    except STORE_ERRORS as error:
        raise ValueError(f"{subject}: cannot be read: {error}") from error
    except pa.ArrowInvalid as error:
        raise ValueError(f"{subject}: neither parquet nor .csv: {error}") from error
    if missing := [column for column in ("image_id", "good") if column not in table.column_names]:
        raise ValueError(f"{subject}: has no column {' and '.join(missing)}; it has {', '.join(table.column_names)}")
    if table["good"].type != pa.bool_():
        raise ValueError(f"{subject}: good must be true or false, is {table['good'].type}")
    labels: dict[str, bool] = {}
    rows = zip(table["image_id"].to_pylist(), table["good"].to_pylist(), strict=True)
    for number, (image_id, good) in enumerate(rows, start=1):
        if not isinstance(image_id, str) or not image_id or good is None:
            raise ValueError(f"{subject}: row {number}: image_id {image_id!r}, good {good}: both must be given")
        if labels.setdefault(image_id, good) != good:
            raise ValueError(f"{subject}: row {number}: image_id {image_id} is both good and not")
    return labels


def scores_of(storage: Storage, labels: dict[str, bool]) -> Labelled:
    """The scores of the labelled images, from the ledger of a run. Raises: ValueError naming the output or ids."""
    ledger = AdLedger(storage)
    try:
        parts = ledger.parts()
    except STORE_ERRORS as error:
        raise ValueError(f"OUTPUT {storage.uri}: cannot be read: {error}") from error
    if not parts:
        raise ValueError(f"OUTPUT {storage.uri}: has no ledger; name the --output of a run of generate_catalog")
    table = ledger.latest(["sku", *SCORES], ids=pa.array(sorted(labels), pa.string()))
    found = set(table["image_id"].to_pylist())
    unknown = sorted(labels.keys() - found)
    if not found:
        raise ValueError(f"--labels: none of the {len(labels)} images are in the ledger of {storage.uri}")
    if unknown:
        raise ValueError(f"--labels: not in the ledger of {storage.uri}: {_listed(unknown)}; take these rows out")
    # An earlier version, or a generator that is not scored so, has nulls in a whole column.
    names = [name for name in SCORES if table[name].null_count < len(table)]
    notes = [f"not in this ledger, and left out: {name}" for name in SCORES if name not in names]
    scores = np.stack([table[name].to_numpy().astype(np.float64) for name in names], 1) if names else np.empty((0, 0))
    ids = table["image_id"].to_pylist()
    if without := [ids[row] for row in np.flatnonzero(np.isnan(scores).any(axis=1))] if names else ids:
        raise ValueError(
            f"--labels: images without scores, for none was drawn or an older version made them: {_listed(without)}"
        )
    good = np.array([labels[image_id] for image_id in ids])
    _check_classes(good, "among the labelled images")
    return Labelled(names, scores, good, table["sku"].to_pylist(), notes)


def _check_classes(good: Flags, where: str) -> None:
    """Raises: ValueError where one class is missing."""
    for name, count in (("good", int(good.sum())), ("bad", int((~good).sum()))):
        if not count:
            raise ValueError(f"--labels: {name} images: there are none {where} ({len(good)}): label more products")


def _chooses(sku: str) -> bool:
    return hashlib.sha256(sku.encode()).digest()[0] % 2 == 0


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    """As Markdown."""
    lines = [
        "| products that | products | good, bad images | precision (95 %) | recall (95 %) |",
        "|---|---|---|---|---|",
    ]
    for name, each in zip(("choose the thresholds", "were held out"), verdicts, strict=True):
        cells = [_rate(each.precision, each.precision_interval), _rate(each.recall, each.recall_interval)]
        lines.append(f"| {name} | {each.num_products} | {each.num_good}, {each.num_bad} | " + " | ".join(cells) + " |")
    return lines


def _rate(value: float, interval: tuple[float, float]) -> str:
    return "–" if math.isnan(value) else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _lines(names: Sequence[str], thresholds: Floats) -> list[str]:
    return [f"quality.min_{name}={value:g}" for name, value in zip(names, thresholds, strict=True)]


def _settings(
    arguments: argparse.Namespace, names: Sequence[str], thresholds: Floats, verdicts: Sequence[Verdict]
) -> str:
    """The YAML for --config."""
    quality = {f"min_{name}": float(value) for name, value in zip(names, thresholds, strict=True)}
    return "\n".join(
        [
            f"# Found by jobs/calibrate_gate.py for a precision of {arguments.precision}; halves by the skus' SHA-256.",
            *(f"# {line}" for line in _table(verdicts)),
            yaml.safe_dump({"quality": quality}, sort_keys=False),
        ]
    )
