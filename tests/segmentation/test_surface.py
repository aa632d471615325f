"""The smooth surface of colour through a photograph's border: what it recovers, and what does not bend it."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from refadgen.segmentation.surface import border_of, fit_surface

TOLERANCE = 12.0
SIZE = (200, 160)
Lab = npt.NDArray[np.float32]


def backdrop(*, linear: float = 0.0, curved: float = 0.0) -> Lab:
    """float32 HW3: L* 80, a bluish grey, that changes from side to side; `curved` in the middle of the image too."""
    y, x = np.mgrid[-1 : 1 : SIZE[0] * 1j, -1 : 1 : SIZE[1] * 1j]
    light = 80 + linear * (x + 0.5 * y) - curved * (x * x + y * y - 0.5 * x * y)
    return np.stack([light, 1 + 0.1 * (light - 80), -4 - 0.1 * (light - 80)], axis=-1).astype(np.float32)


def furthest(found: Lab, true: Lab) -> float:
    """The largest ΔE between two surfaces over the whole image."""
    return float(np.linalg.norm(found - true, axis=-1).max())


@pytest.mark.parametrize(
    ("shape", "most"),
    # Of a change by 18 L* over the gradient and by 25 over the vignette; the fit prefers flat surfaces a little.
    [({}, 1e-3), ({"linear": 6.0}, 0.3), ({"curved": 10.0}, 1.0), ({"linear": -8.0, "curved": 6.0}, 1.0)],
    ids=["flat", "gradient", "vignette", "both"],
)
def test_a_graded_backdrop_is_recovered_behind_the_product(shape: dict[str, float], most: float) -> None:
    true = backdrop(**shape)
    seen = true.copy()
    seen[40:160, 30:130] = (30, 50, 40)  # a product that leaves the border free
    surface = fit_surface(seen, TOLERANCE)
    assert surface.lab.dtype == np.float32
    assert surface.lab.shape == true.shape
    assert furthest(surface.lab, true) < most
    assert surface.plain == 1.0
    assert surface.center == pytest.approx(np.median(true[border_of(SIZE)], axis=0), abs=1e-4)


@pytest.mark.parametrize("linear", [0.0, 5.0], ids=["flat", "gradient"])
@pytest.mark.parametrize("color", [(30, 50, 40), (45, 1, -4), (78, 30, -30)], ids=["red", "grey", "violet"])
def test_a_product_that_touches_the_border_does_not_bend_it(color: tuple[float, float, float], linear: float) -> None:
    true = backdrop(linear=linear)
    seen = true.copy()
    seen[90:, 40:120] = color  # half of the lower side
    seen[:50, :30] = color  # and a corner
    touched = np.any(seen != true, axis=-1)[border_of(SIZE)].mean()
    surface = fit_surface(seen, TOLERANCE)
    assert 0.2 < touched < 0.25
    assert furthest(surface.lab, true) < 1.0
    assert surface.plain == pytest.approx(1 - touched, abs=0.01)


@pytest.mark.parametrize("step", [15.0, 20.0, -15.0])
def test_nor_does_one_of_a_near_colour_if_it_touches_a_side_only(step: float) -> None:
    true = backdrop(linear=2.0)
    seen = true.copy()
    seen[90:, 40:120] += np.float32([step, 0, 0])
    surface = fit_surface(seen, TOLERANCE)
    assert furthest(surface.lab, true) < 1.5
    assert surface.plain == pytest.approx(0.888, abs=0.01)


def test_noise_is_measured_without_the_product() -> None:
    true, rng = backdrop(linear=5.0), np.random.default_rng(0)
    found = []
    for sigma in (0.5, 1.0, 2.0):
        seen = true + rng.normal(0, sigma, true.shape).astype(np.float32)
        seen[90:, 40:120] = seen[:60, 40:120] = (30, 50, 40)  # half of two sides: a median over all would be 17 % off
        surface = fit_surface(seen, TOLERANCE)
        assert furthest(surface.lab, true) < TOLERANCE / 4  # in the middle, which no pixel of the border determines
        found.append(surface.noise / sigma)
    # The median length of three normal deviations is 1.54 σ; times 1.4826, as the noise is defined.
    assert found == pytest.approx([2.28] * 3, rel=0.1)


def test_a_textured_border_is_not_plain() -> None:
    rng = np.random.default_rng(0)
    texture = np.clip(rng.normal((60, 0, 0), (25, 20, 20), (*SIZE, 3)), -100, 100).astype(np.float32)
    assert fit_surface(texture, TOLERANCE).plain < 0.5
    assert fit_surface(backdrop(), TOLERANCE).plain == 1


def test_other_pixels_than_the_border_can_be_chosen() -> None:
    true = backdrop(linear=5.0)
    framed, where = np.full_like(true, 0), np.zeros(SIZE, bool)
    framed[20:-20, 20:-20] = true[20:-20, 20:-20]
    where[30:-30, 30:-30] = True
    surface = fit_surface(framed, TOLERANCE, where)
    assert surface.lab.shape == true.shape
    assert furthest(surface.lab, true) < 1.0
    assert fit_surface(framed, TOLERANCE).center == pytest.approx([0, 0, 0])


def test_many_pixels_are_thinned_and_give_the_same_surface() -> None:
    true = backdrop(linear=6.0, curved=4.0)
    large = cv2.resize(true, (960, 1200), interpolation=cv2.INTER_LINEAR)
    everywhere = np.ones(large.shape[:2], bool)
    surface = fit_surface(large, TOLERANCE, everywhere)
    assert furthest(cv2.resize(surface.lab, SIZE[::-1], interpolation=cv2.INTER_AREA), true) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (7, 3)])
def test_tiny_images_have_a_surface(size: tuple[int, int]) -> None:
    surface = fit_surface(np.full((*size, 3), 50, np.float32), TOLERANCE)
    assert surface.lab == pytest.approx(np.full((*size, 3), 50), abs=1e-3)
    assert border_of(size).all() == (min(size) <= 4)


@pytest.mark.parametrize(("size", "band"), [((100, 60), 2), ((400, 500), 6), ((2000, 1000), 15)])
def test_the_border_is_a_band(size: tuple[int, int], band: int) -> None:
    border = border_of((*size, 3))
    assert (border.shape, border.dtype) == (size, bool)
    assert border.sum() == size[0] * size[1] - (size[0] - 2 * band) * (size[1] - 2 * band)
    assert border[:band].all()
    assert border[:, -band:].all()
