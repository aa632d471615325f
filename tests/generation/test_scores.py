"""Fidelity scores: the same product scores 1, other light a little less, another product much less."""

import cv2
import numpy as np
import pytest
from full_size_scores import full_size_scores

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


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Something with large and small detail in all colours."""
    coarse, fine = (rng.integers(0, 256, (height // n, width // n, 3), dtype=np.uint8) for n in (16, 3))
    large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(large, 0.7, cv2.resize(fine, (width, height)), 0.3, 0)


@pytest.mark.parametrize("size", [(64, 80), (160, 128), (320, 256), (640, 512)], ids=str)
@pytest.mark.parametrize("shape", ["ellipse", "wires", "whole"])
def test_cells_give_the_scores_of_every_pixel(size: tuple[int, int], shape: str) -> None:
    rng = np.random.default_rng(7)
    height, width = size
    mask = np.full(size, 255 if shape == "whole" else 0, np.uint8)
    if shape == "ellipse":
        cv2.ellipse(mask, (width // 3, height // 2), (width // 4, height // 3), 20, 0, 360, 255, -1)
    if shape == "wires":
        for _ in range(6):
            ends = [(int(x), int(y)) for x, y in rng.integers(0, (width, height), (2, 2))]
            cv2.line(mask, *ends, 255, max(1, width // 100))
    canvas = photograph(rng, height, width)
    shifted, darker = np.roll(canvas, 2, axis=1), (0.8 * canvas).astype(np.uint8)
    for ad in (canvas, darker, shifted, cv2.GaussianBlur(canvas, (0, 0), 2), photograph(rng, height, width)):
        scores = score_fidelity(ad, canvas, mask)
        color, structure = full_size_scores(ad, canvas, mask)
        assert scores.color_similarity == pytest.approx(color, abs=0.002)
        assert scores.structure_similarity == pytest.approx(structure, abs=0.002)
