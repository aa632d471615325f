"""The intervals that `ablations.py` prints."""

import numpy as np
import pytest
from ablations import interval

RNG = np.random.default_rng(0)


def test_intervals_are_over_products_and_narrow_for_paired_differences() -> None:
    assert interval(np.full((3, 10), 0.25)) == [0.25, 0.25, 0.25]
    of_products = RNG.uniform(size=48)
    values = np.stack([of_products] * 3)
    mean, low, high = interval(values)
    assert low < mean < high
    half = 1.96 * of_products.std() / np.sqrt(48)
    assert high - low == pytest.approx(2 * half, rel=0.15)
    assert interval(values + 0.1 - values) == [0.1, 0.1, 0.1]
