"""What the figures of `mini_quality.py` and `ablations.py` rest on: they say 1 of what is right, and can say 0."""

import numpy as np
import pytest
from ablations import interval

from refadgen.evaluation.held_out import inmask_ssim, nearest, scenes_of
from refadgen.evaluation.judges import Renders
from refadgen.studio.scenes import is_held_out_combination

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


def test_ssim_is_one_of_the_truth_and_low_of_another_product() -> None:
    one, other = CANDIDATES[:2]
    outside = np.where(MASK[..., None] > 127, one, 0).astype(np.uint8)
    assert inmask_ssim(one, one, MASK) == pytest.approx(1)
    assert inmask_ssim(other, one, MASK) < 0.2
    assert 0.7 < inmask_ssim(outside, one, MASK) < 1  # its window sees a little over the edge


def test_intervals_are_over_products_and_paired_ones_are_narrow() -> None:
    assert interval(np.full((3, 10), 0.25)) == [0.25, 0.25, 0.25]
    of_products = RNG.uniform(size=48)
    values = np.stack([of_products] * 3)
    mean, low, high = interval(values)
    assert low < mean < high
    half = 1.96 * of_products.std() / np.sqrt(48)
    assert high - low == pytest.approx(2 * half, rel=0.15)
    assert interval(values + 0.1 - values) == [0.1, 0.1, 0.1]


def test_a_products_scenes_are_different_unseen_pairs() -> None:
    pairs = [[(scene.surface, scene.wall) for scene in scenes_of(index, 3)] for index in range(48)]
    assert all(len(set(each)) == 3 for each in pairs)
    assert all(is_held_out_combination(*pair) for each in pairs for pair in each)
    assert len({pair for each in pairs for pair in each}) == 9


def test_what_judges_is_split_from_what_is_learned() -> None:
    numbers = np.arange(12)
    own, learned = Renders(numbers, numbers, numbers).split(4)
    assert list(own.images) == [0, 1, 2, 3]
    assert list(learned.images) == list(range(4, 12))
