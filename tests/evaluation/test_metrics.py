"""Metrics: 1 or the right index for the truth, low for another product; only the inside of the mask counts."""

import numpy as np
import pytest

from refadgen.evaluation.metrics import inmask_ssim, nearest

RNG = np.random.default_rng(0)
CANDIDATES = RNG.integers(0, 256, (5, 40, 32, 3), np.uint8).repeat(2, 1).repeat(2, 2)
MASK = np.zeros((80, 64), np.uint8)
MASK[20:60, 16:48] = 255


@pytest.mark.parametrize("index", range(5))
def test_the_nearest_candidate_is_the_one_shown_and_only_the_mask_counts(index: int) -> None:
    output = CANDIDATES[index].copy()
    output[MASK == 0] = CANDIDATES[(index + 1) % 5][MASK == 0]
    assert nearest(output, CANDIDATES, MASK) == index
    noisy = np.clip(output + RNG.normal(0, 20, output.shape), 0, 255).astype(np.uint8)
    assert nearest(noisy, CANDIDATES, MASK) == index


def test_ssim_is_one_for_the_truth_and_low_for_another_product() -> None:
    one, other = CANDIDATES[:2]
    outside = np.where(MASK[..., None] > 127, one, 0).astype(np.uint8)
    assert inmask_ssim(one, one, MASK) == pytest.approx(1)
    assert inmask_ssim(other, one, MASK) < 0.2
    assert 0.7 < inmask_ssim(outside, one, MASK) < 1  # the window sees a little over the edge
