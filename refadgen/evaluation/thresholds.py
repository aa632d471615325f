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

_MOST_TRIED = 200
"""Numbers of false alarms that are tried for one set of scores."""
_LEAST_GAIN = 0.01
"""Recall that a further score must bring, for it brings false alarms of its own."""
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

    scores: images × scores, 0 to 1. good: of each image. Each score that is used stops the same number of good images;
    tried are all sets of scores and all such numbers. Thresholds of their own would catch a little more of these images
    and stop more good ones of others. One false alarm more than there are counts, since a threshold at a good image's
    own score is expected to stop one more of the next such images.
    """
    # As they are written down: the good image itself still passes.
    of_good = np.floor(np.sort(scores[good], axis=0) * 1e4) / 1e4
    best, found = (0.0, 0), None
    num_bad = int((~good).sum())
    for used in itertools.product((False, True), repeat=scores.shape[1]):
        for number in _tried(len(of_good), num_bad, precision):
            thresholds = np.where(used, of_good[number], 0.0)
            stopped = caught(scores, thresholds)
            hits, alarms = int((stopped & ~good).sum()), int((stopped & good).sum())
            worth = (hits - _LEAST_GAIN * num_bad * sum(used), -alarms)
            if hits >= precision * (hits + alarms + 1) and worth > best:
                best, found = worth, thresholds
    return found


def _tried(num_good: int, num_bad: int, precision: float) -> npt.NDArray[np.int64]:
    """Numbers of good images that a threshold may stop."""
    most = int(num_bad * (1 - precision) / precision)  # more are too many even if every bad image is caught
    return np.unique(np.linspace(0, min(most, num_good - 1), _MOST_TRIED).round().astype(np.int64))


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
