"""Held-out cases: a product's scenes are different pairs that no training saw."""

import pytest

from refadgen.evaluation.held_out import MAX_SCENES, held_out_products, scenes_of
from refadgen.studio.scenes import is_held_out_combination


def test_the_scenes_of_a_product_are_different_held_out_pairs() -> None:
    pairs = [[(scene.surface, scene.wall) for scene in scenes_of(index, 3)] for index in range(48)]
    assert all(len(set(each)) == 3 for each in pairs)
    assert all(is_held_out_combination(*pair) for each in pairs for pair in each)
    assert len({pair for each in pairs for pair in each}) == MAX_SCENES


@pytest.mark.parametrize("count", [0, 4, 94])
def test_a_count_that_does_not_fit_the_shapes_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"--products {count}: must be a multiple of 3, at most "):
        held_out_products(count)
