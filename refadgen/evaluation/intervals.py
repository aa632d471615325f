"""Means with 95 % intervals over products: images of one product are not independent of each other."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DRAWS = 2000
"""Of the bootstrap."""
_MANY = 1000
"""Products from which on the mean is normal for all that matters, and a bootstrap only slower."""


@dataclass(frozen=True)
class Mean:
    """A mean over products."""

    mean: float
    low: float | None
    """Of its 95 % interval; None: of one product there is none."""
    high: float | None
    count: int
    """Images that it is of."""


def product_means(values: Floats, products: npt.ArrayLike) -> Floats:
    """The mean of each product's values, in the order of the products' names. values, products: n."""
    _, numbers = np.unique(np.asarray(products), return_inverse=True)
    return np.asarray(np.bincount(numbers, values) / np.bincount(numbers), np.float64)


def interval(means: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of n products' means: bootstrapped, of many by their deviation."""
    if len(means) >= _MANY:
        half = 1.96 * float(means.std(ddof=1)) / len(means) ** 0.5
        return float(means.mean()) - half, float(means.mean()) + half
    draws = np.random.default_rng(seed).integers(len(means), size=(_DRAWS, len(means)))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def mean_of(values: Floats, products: npt.ArrayLike) -> Mean | None:
    """The mean over products of values n, NaN left out; None: there is none."""
    there = np.isfinite(values)
    if not there.any():
        return None
    means = product_means(values[there], np.asarray(products)[there])
    low, high = interval(means) if len(means) > 1 else (None, None)
    return Mean(float(means.mean()), low, high, int(there.sum()))
