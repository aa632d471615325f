"""From rows of scores to the table: each measure of each run with interval, network and number of images."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.evaluation.intervals import Mean, mean_of
from refadgen.evaluation.measures.table import MEASURES, Measure
from refadgen.evaluation.runs import Run

Floats = npt.NDArray[np.float64]
_FROM_LEDGER = "no network; as the run's ledger has it"
_NO_NETWORK = "no network"


@dataclass(frozen=True)
class Cell:
    """One number of the table. low, high: its 95 % interval; None: it has none."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Images that it is of."""

    @classmethod
    def of(cls, mean: Mean | None) -> "Cell | None":
        return None if mean is None else cls(mean.mean, mean.low, mean.high, mean.count)


@dataclass(frozen=True)
class Line:
    """One measure over all runs."""

    measure: Measure
    network: str
    skipped: str
    """Why it has no numbers; empty: it has."""
    cells: Sequence[Cell | None]
    """Of each run; None: no image has a value."""
    differences: Sequence[Cell | None]
    """Of each run the paired difference to the first; None: there is no pair, or the run is the first."""

    def facts(self) -> dict[str, Any]:
        """The line for JSON."""
        measure = dataclasses.asdict(self.measure)
        cells, differences = (
            [None if cell is None else dataclasses.asdict(cell) for cell in cells]
            for cells in (self.cells, self.differences)
        )
        return measure | {
            "network": self.network,
            "skipped": self.skipped,
            "cells": cells,
            "differences": differences,
        }


@dataclass(frozen=True)
class Summary:
    """All numbers of an evaluation."""

    runs: Sequence[Run]
    lines: Sequence[Line]
    images: int
    """Of each run."""
    notes: Sequence[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "images": self.images,
            "notes": list(self.notes),
            "measures": [line.facts() for line in self.lines],
        }

    def markdown(self) -> str:
        """The table, the paired differences, and what is left out."""
        names = [run.name.replace("|", "\\|") for run in self.runs]
        measured = [line for line in self.lines if not line.skipped]
        text = [
            f"{self.images} images of each run. In brackets: the 95 % interval over products, and the images that the "
            "number is of.",
            "",
            f"| measure | {' | '.join(names)} | network | does not see |",
            "|---" * (len(names) + 3) + "|",
        ]
        for line in measured:
            arrow = "↑" if line.measure.better == "more" else "↓"
            cells = " | ".join(_shown(cell, line.measure.digits) for cell in line.cells)
            text.append(f"| {line.measure.title} {arrow} | {cells} | {line.network} | {line.measure.blind} |")
        if len(names) > 1:
            text += ["", f"Paired differences to {names[0]}:", "", f"| measure | {' | '.join(names[1:])} |"]
            text.append("|---" * len(names) + "|")
            for line in measured:
                if any(line.differences):
                    cells = " | ".join(_shown(cell, line.measure.digits, "+") for cell in line.differences[1:])
                    text.append(f"| {line.measure.title} | {cells} |")
        text += ["", "Not measured:", ""]
        text += [f"* {line.measure.title}: {line.skipped}." for line in self.lines if line.skipped]
        text += ["", *(f"* {note}." for note in self.notes)] if self.notes else []
        return "\n".join(text) + "\n"


def _shown(cell: Cell | None, digits: int, sign: str = "") -> str:
    if cell is None:
        return "no value (0 images)"
    value, count = f"{cell.value:{sign}.{digits}f}", f"{cell.count} image{'s' * (cell.count != 1)}"
    if cell.low is None or cell.high is None:
        return f"{value} ({count})"
    return f"{value} [{cell.low:{sign}.{digits}f}, {cell.high:{sign}.{digits}f}] ({count})"


def values_of(table: pa.Table, name: str) -> Floats:
    """A measure's column as numbers, NaN where there is none."""
    return np.asarray(pc.fill_null(table[name].cast(pa.float64()), float("nan")).to_numpy(), np.float64)


def summarize(
    runs: Sequence[Run],
    tables: Sequence[pa.Table],
    networks: Mapping[str, str],
    skipped: Mapping[str, str],
    distances: Sequence[Cell | None],
    notes: Sequence[str],
) -> Summary:
    """The summary of rows of ImageScores, one table a run, all with the same images in one order.

    networks: of each measure that asks one. skipped: measures without numbers, with the reason. distances: the FID of
    each run; empty: there is none.
    """
    lines = []
    # Numbers in place of names: they are sorted for every cell of the table.
    products = tables[0]["sku"].combine_chunks().dictionary_encode().indices.to_numpy()
    for measure in MEASURES:
        network = networks.get(measure.name) or _NO_NETWORK
        if measure.name in ("color_similarity", "structure_similarity"):
            network = _FROM_LEDGER
        cells: list[Cell | None] = [None] * len(runs)
        differences = cells.copy()
        if measure.name not in skipped and measure.per_image:
            values = [values_of(table, measure.name) for table in tables]
            cells = [Cell.of(mean_of(each, products)) for each in values]
            differences = [None, *(Cell.of(mean_of(each - values[0], products)) for each in values[1:])]
        elif measure.name not in skipped:
            cells = list(distances)
        lines.append(Line(measure, network, skipped.get(measure.name, ""), cells, differences))
    return Summary(runs, lines, len(tables[0]), list(notes))
