"""The product's own pixels in a generated scene: exact inside, no white at the contour, the scene as it was."""

import cv2
import numpy as np
import pytest

from refadgen.generation.product_pixels import edge_px, with_product_pixels

HEIGHT, WIDTH = 320, 256


def product(seed: int = 0, on_border: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A dark red product with a pattern on white, its contour mixed with white, and its mask."""
    soft = np.zeros((HEIGHT, WIDTH), np.float32)
    center = (WIDTH // 2, HEIGHT - 40 if on_border else HEIGHT // 2)
    cv2.ellipse(soft, center, (80, 100), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    soft = cv2.GaussianBlur(soft, (0, 0), 0.7)
    pattern = np.random.default_rng(seed).integers(0, 60, (HEIGHT, WIDTH, 3)) + np.array([120, 10, 10])
    canvas = soft[..., None] * pattern + (1 - soft[..., None]) * 255
    return np.rint(canvas).astype(np.uint8), np.where(soft >= 0.5, 255, 0).astype(np.uint8)


def scene() -> np.ndarray:
    """A dark scene: white at a contour would show."""
    return np.random.default_rng(1).integers(20, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("on_border", [False, True])
def test_inside_every_pixel_is_the_products_and_outside_the_scenes(on_border: bool) -> None:
    canvas, mask = product(on_border=on_border)
    found = with_product_pixels(scene(), canvas, mask)
    edge = edge_px(mask.shape)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * edge + 3, 2 * edge + 3))
    core = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255) > 0
    assert core.mean() > 0.2
    assert np.array_equal(found[core], canvas[core])
    assert np.array_equal(found[mask == 0], scene()[mask == 0])


def test_no_white_shines_at_the_contour() -> None:
    canvas, mask = product()
    found = with_product_pixels(scene(), canvas, mask)
    ring = (cv2.dilate(mask, np.ones((5, 5))) > 0) & (cv2.erode(mask, np.ones((9, 9))) == 0)
    assert canvas[ring].max() > 200  # pasted as it is, it would
    assert found[ring][:, 1].max() <= 75  # of product and scene, the brightest green is 70 and 40


def test_the_tone_moves_broad_lightness_and_keeps_pattern_and_hue() -> None:
    canvas, mask = product()
    bright = np.full_like(canvas, 170)
    plain, toned = (with_product_pixels(bright, canvas, mask, tone) for tone in (0.0, 1.0))
    core = cv2.erode(mask, np.ones((15, 15))) > 0

    def lab(image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[core]

    assert 10 < (lab(toned) - lab(plain))[:, 0].mean() <= 25
    assert np.corrcoef(lab(toned)[:, 0], lab(plain)[:, 0])[0, 1] > 0.97
    assert np.abs((lab(toned) - lab(plain))[:, 1:]).mean() < 3


def test_a_product_as_thin_as_its_edge_is_blended_and_nothing_breaks() -> None:
    canvas, mask = product()
    wire = np.zeros_like(mask)
    wire[100, 50:200] = 255
    found = with_product_pixels(scene(), canvas, wire)
    assert np.array_equal(found[wire == 0], scene()[wire == 0])
    assert np.abs(found[wire > 0].astype(int) - scene()[wire > 0]).mean() > 5
    assert np.array_equal(with_product_pixels(scene(), canvas, np.zeros_like(mask)), scene())
