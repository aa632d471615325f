"""Fidelity scores: the same product scores 1, other light a little less, another product much less."""

import numpy as np
import pytest

from refadgen.generation.scores import score_fidelity

HEIGHT, WIDTH = 160, 128


def product(color: tuple[int, int, int], stripes: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[40:120, 30:100] = color
    image[40:120:stripes, 30:100] = (20, 20, 20)
    return image


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:120, 30:100] = 255
    return mask


def test_the_same_product_scores_one_whatever_is_around_it(mask: np.ndarray) -> None:
    canvas = product((200, 40, 40), 8)
    ad = canvas.copy()
    ad[mask == 0] = (10, 120, 10)
    scores = score_fidelity(ad, canvas, mask)
    assert scores.color_similarity == pytest.approx(1, abs=1e-4)
    assert scores.structure_similarity == pytest.approx(1, abs=1e-4)


def test_other_light_costs_less_than_another_product(mask: np.ndarray) -> None:
    canvas = product((200, 40, 40), 8)
    darker = score_fidelity((canvas * 0.85).astype(np.uint8), canvas, mask)
    recoloured = score_fidelity(product((40, 60, 200), 8), canvas, mask)
    other_pattern = score_fidelity(product((200, 40, 40), 3), canvas, mask)
    assert darker.color_similarity > 0.8 > recoloured.color_similarity + 0.2
    assert darker.structure_similarity > 0.9 > other_pattern.structure_similarity


def test_an_empty_mask_scores_nothing(mask: np.ndarray) -> None:
    canvas = product((200, 40, 40), 8)
    assert score_fidelity(canvas, canvas, np.zeros_like(mask)).color_similarity == 0
