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


def lit(image: np.ndarray, gain: tuple[float, float, float], slope: float) -> np.ndarray:
    """The image in another light: a gain of each channel, and brighter to the right. Linear light."""
    linear = (image / 255.0) ** 2.2 * np.array(gain) * np.linspace(1 - slope, 1 + slope, WIDTH)[:, None]
    return np.rint(255 * np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.uint8)


@pytest.mark.parametrize("light", [((0.6, 0.6, 0.6), 0.0), ((0.8, 0.7, 0.55), 0.3), ((0.55, 0.6, 0.7), 0.2)], ids=str)
def test_light_is_taken_out_and_what_changed_in_it_is_seen(
    mask: np.ndarray, light: tuple[tuple[float, float, float], float]
) -> None:
    canvas = product((200, 90, 60), 8)
    canvas[60:80, 50:70] = (230, 220, 200)
    same = score_fidelity(lit(canvas, *light), canvas, mask)
    assert same.local_similarity > 0.9
    assert same.hue_similarity > 0.93
    relabelled = canvas.copy()
    relabelled[60:80, 50:60] = (60, 90, 200)
    assert score_fidelity(lit(relabelled, *light), canvas, mask).local_similarity < same.local_similarity - 0.15
    hsv = cv2.cvtColor(canvas.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 20) % 360
    turned = np.rint(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).astype(np.uint8)
    assert score_fidelity(lit(turned, *light), canvas, mask).hue_similarity < same.hue_similarity - 0.15


def test_a_grey_product_has_no_hue_and_a_single_pixel_has_scores(mask: np.ndarray) -> None:
    canvas = product((120, 120, 120), 8)
    assert score_fidelity(lit(canvas, (0.7, 0.6, 0.5), 0.0), canvas, mask).hue_similarity > 0.95
    dot = np.zeros_like(mask)
    dot[50, 60] = 255
    scores = score_fidelity(canvas, canvas, dot)
    assert (scores.local_similarity, scores.hue_similarity) == pytest.approx((1, 1), abs=1e-4)
