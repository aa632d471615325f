"""The gate's ladder: which rung follows, which scene is kept, what is said."""

import numpy as np
import pytest

from refadgen.config import QualityConfig
from refadgen.generation.ladder import Attempt, Judged, Ladder
from refadgen.generation.wanted import attempt_seed

CANVAS = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
MASK = np.zeros((64, 48), np.uint8)
MASK[10:50, 10:40] = 255
SEED = 7


def tinted(share: float) -> np.ndarray:
    """The canvas, more and more grey."""
    return np.rint((1 - share) * CANVAS + share * 128).astype(np.uint8)


def climb(quality: QualityConfig, *images: np.ndarray) -> tuple[list[Attempt], Judged | None]:
    """Draws the images one after another. Returns: the attempts, and the verdict on the last one."""
    ladder, attempts, judged = Ladder(quality, seed=SEED, fusion_scale=1.0), [], None
    for image in images:
        assert judged is None
        attempts.append(ladder.begin())
        judged = ladder.judge(image, CANVAS, MASK)
    assert ladder.attempts == len(images)
    return attempts, judged


def test_an_image_that_passes_at_once_is_the_first() -> None:
    attempts, judged = climb(QualityConfig(min_color_similarity=0.9), CANVAS)
    assert attempts == [Attempt("first", SEED, 1.0)]
    assert judged is not None
    assert judged.image is CANVAS
    assert (judged.attempt.rung, judged.problem) == ("first", "")


def test_other_seeds_come_before_a_stronger_fusion() -> None:
    quality = QualityConfig(min_structure_similarity=0.9, max_attempts=2, fusion_attempts=2, stronger_fusion_scale=1.5)
    attempts, judged = climb(quality, *[255 - CANVAS] * 3, CANVAS)
    assert attempts == [
        Attempt("first", SEED, 1.0),
        Attempt("seed", attempt_seed(SEED, 1), 1.0),
        Attempt("fusion_scale", attempt_seed(SEED, 2), 1.5),
        Attempt("fusion_scale", attempt_seed(SEED, 3), 1.5),
    ]
    assert judged is not None
    assert (judged.attempt, judged.problem) == (attempts[-1], "")


def test_without_the_last_rung_the_image_is_given_up_with_its_scores() -> None:
    _, judged = climb(QualityConfig(min_structure_similarity=0.9, max_attempts=2), 255 - CANVAS, 255 - CANVAS)
    assert judged is not None
    assert judged.image is None
    assert judged.problem.endswith("is below quality.min_structure_similarity 0.9 after 2 attempts")
    assert judged.scores.structure_similarity < 0.9


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_last_rung_takes_the_scene_that_was_nearest_to_passing(best: int) -> None:
    quality = QualityConfig(min_structure_similarity=0.9, max_attempts=2, fusion_attempts=1, product_pixels=True)
    images = [tinted(0.7), tinted(0.7), tinted(0.7)]
    images[best] = tinted(0.5)
    attempts, judged = climb(quality, *images)
    assert judged is not None
    assert judged.problem == ""
    assert judged.image is not None
    assert judged.attempt == Attempt("product_pixels", attempts[best].seed, attempts[best].fusion_scale)
    assert np.array_equal(judged.image[MASK == 0], images[best][MASK == 0])
    core = (slice(14, 46), slice(14, 36))
    assert np.array_equal(judged.image[core], CANVAS[core])
    assert judged.scores.structure_similarity >= 0.9


def test_pixels_that_took_on_too_much_of_the_scenes_light_are_given_up_too() -> None:
    quality = QualityConfig(min_color_similarity=0.99, product_pixels=True, product_tone=1.0)
    _, judged = climb(quality, np.zeros_like(CANVAS))
    assert judged is not None
    assert judged.image is None
    assert "min_color_similarity" in judged.problem
    assert judged.attempt.rung == "product_pixels"
