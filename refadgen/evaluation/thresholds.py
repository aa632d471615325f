"""Thresholds of the fidelity gate from labelled images: the most defects caught at a wanted precision.

An image is caught where any of its scores is below that score's threshold. Precision is the share of bad images among
the caught ones, recall the share of the bad images that are caught; both follow the mix of the labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_MOST_TRIED = 40
"""Values of one threshold that are tried."""
_DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Verdict:
    """How thresholds do on labelled images. Intervals are of 95 %, (lowest, highest)."""

    precision: float
    """NaN where nothing is caught."""
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    num_good: int
    num_bad: int
    num_products: int


def caught(scores: Floats, thresholds: Floats) -> Flags:
    """Which images have a score below its threshold. scores: images × scores; NaN is never below."""
    return np.asarray((scores < thresholds).any(axis=1))


def find_thresholds(scores: Floats, good: Flags, precision: float) -> Floats | None:
    """The thresholds that catch the most bad images at the precision; None: none do. 0: the score is not needed.

    scores: images × scores, 0 to 1. good: of each image. One false alarm more than there are counts, since a threshold
    at a good image's own score is expected to stop one more of the next such images. Pairs of thresholds are chosen
    together, in turns, until no pair catches more.
    """
    tried = [_values(scores[good, column], scores[~good, column], precision) for column in range(scores.shape[1])]
    below = [scores[:, [column]] < values for column, values in enumerate(tried)]  # images × values
    chosen = [0] * len(tried)
    best = (0, 0)
    improved = True
    while improved:
        improved = False
        for pair in _pairs(len(tried)):
            others = [below[column][:, chosen[column]] for column in range(len(tried)) if column not in pair]
            rest = np.any(others, axis=0) if others else np.zeros(len(good), bool)
            for indices in itertools.product(*(range(len(tried[column])) for column in pair)):
                stopped = rest.copy()
                for column, index in zip(pair, indices, strict=True):
                    stopped |= below[column][:, index]
                hits, alarms = int(stopped[~good].sum()), int(stopped[good].sum())
                if hits >= precision * (hits + alarms + 1) and (hits, -alarms) > best:
                    best, improved = (hits, -alarms), True
                    for column, index in zip(pair, indices, strict=True):
                        chosen[column] = index
    if not best[0]:
        return None
    return np.array([values[index] for values, index in zip(tried, chosen, strict=True)])


def _pairs(count: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(count), 2)) if count > 1 else [(0,)]


def _values(good: Floats, bad: Floats, precision: float) -> Floats:
    """Values to try for one threshold, ascending: 0, then scores of good images, each the lowest that passes."""
    # More false alarms than this are too many even if every bad image is caught.
    most = int(len(bad) * (1 - precision) / precision)
    values = np.floor(np.sort(good)[: most + 1] * 1e4) / 1e4  # as they are written down; the good image still passes
    values = np.unique(values[values > 0])
    if len(values) > _MOST_TRIED:
        values = values[np.linspace(0, len(values) - 1, _MOST_TRIED).round().astype(int)]
    return np.concatenate([[0.0], values])


def judge(scores: Floats, good: Flags, products: Sequence[str], thresholds: Floats) -> Verdict:
    """Precision and recall of thresholds. products: of each image; all of one product are drawn together."""
    stopped = caught(scores, thresholds)
    names, index = np.unique(np.array(products), return_inverse=True)
    # Of each product: bad images caught, good images caught, bad images.
    counts = np.stack([np.bincount(index, each, len(names)) for each in (stopped & ~good, stopped & good, ~good)], 1)
    draws = np.random.default_rng(0).integers(len(names), size=(_DRAWS, len(names)))
    drawn = np.stack([counts[draw].sum(0) for draw in draws])
    precision, recall = _rates(counts.sum(0, keepdims=True))
    precisions, recalls = _rates(drawn)
    return Verdict(
        float(precision[0]),
        _interval(precisions),
        float(recall[0]),
        _interval(recalls),
        int(good.sum()),
        int((~good).sum()),
        len(names),
    )


def _rates(counts: Floats) -> tuple[Floats, Floats]:
    hits, alarms, bad = counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / (hits + alarms), hits / bad


def _interval(values: Floats) -> tuple[float, float]:
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
