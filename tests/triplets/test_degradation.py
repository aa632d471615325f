"""Degradations: the same again from the same seed, white outside, as strong as they say, and nothing at strength 0."""

import itertools

import numpy as np
import pytest

from refadgen.config import DegradationConfig
from refadgen.config.dataset import DEGRADATION_LIMITS
from refadgen.triplets import degradation
from refadgen.triplets.degradation import degrade, row_rng

HEIGHT, WIDTH = 80, 64
OFF = {"noise": (0, 0), "shadow": (0, 0), "warp": (0, 0)}
STRENGTHS = {
    "noise": (0, 2, 8, 24),
    "shadow": (0, 0.1, 0.4, 0.8),
    "warp": (0, 0.01, 0.04, 0.12),
    "blur": (0, 0.005, 0.02, 0.05),
    "color_cast": (0, 0.05, 0.15, 0.4),
    "jpeg": (0, 20, 60, 90),
}


def _product() -> tuple[np.ndarray, np.ndarray]:
    """A checked block of two greyish colours with a hole in it, on white."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[15:65, 14:50] = 255
    mask[30:36, 28:34] = 0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.where(((x // 9 + y // 9) % 2)[..., None], (150, 90, 60), (60, 100, 140)).astype(np.uint8)
    return np.where(mask[..., None] > 0, image, 255).astype(np.uint8), mask


def _flat(value: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = _product()
    return np.where(mask[..., None] > 0, np.full_like(image, value), 255).astype(np.uint8), mask


def _one(name: str, strength: float, image: np.ndarray, mask: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """One degradation by its name: image and mask."""
    rng = np.random.default_rng(seed)
    if name == "warp":
        return degradation.warp(image, mask, rng, strength)
    if name == "blur":
        return degradation.blur(image, mask, strength), mask
    if name == "jpeg":
        return degradation.jpeg(image, mask, int(strength)), mask
    function = {
        "noise": degradation.add_noise,
        "shadow": degradation.vary_shadow,
        "color_cast": degradation.cast_color,
    }[name]
    return function(image, mask, rng, strength), mask


def _check_pair(image: np.ndarray, mask: np.ndarray, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    assert image.shape == (*shape, 3)
    assert mask.shape == shape
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert mask.any()
    assert (image[mask == 0] == 255).all()


def _far(image: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(image.astype(float) - other).mean())


@pytest.mark.parametrize("name", STRENGTHS)
def test_strength_zero_is_the_same_picture(name: str) -> None:
    image, mask = _product()
    new_image, new_mask = _one(name, 0, image, mask)
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_mask, mask)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", STRENGTHS)
def test_stronger_is_farther_from_the_picture(name: str, seed: int) -> None:
    image, mask = _product()
    made = [_one(name, strength, image, mask, seed) for strength in STRENGTHS[name]]
    for pair in made:
        _check_pair(*pair)
    distances = [_far(image, new_image) for new_image, _ in made]
    assert all(a < b for a, b in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("name", STRENGTHS)
def test_the_input_stays_as_it_was(name: str) -> None:
    image, mask = _product()
    for strength in (0, STRENGTHS[name][-1]):
        new_image, new_mask = _one(name, strength, image, mask)
        new_image[:] = new_image // 2
        if name == "warp":
            new_mask[:] = 7
    np.testing.assert_array_equal(image, _product()[0])
    np.testing.assert_array_equal(mask, _product()[1])


def test_sigma_of_the_noise_is_its_deviation_at_mid_grey() -> None:
    deviations = {}
    for value in (30, 127, 220):
        image, mask = _flat(value)
        noise = degradation.add_noise(image, mask, np.random.default_rng(0), 6.0)[mask > 0].astype(float) - value
        assert abs(noise.mean()) < 0.4  # 5000 values of deviation 6: 0.085
        deviations[value] = noise.std()
    assert deviations[127] == pytest.approx(6, rel=0.05)
    assert deviations[30] < 0.8 * deviations[127] < 0.8 * deviations[220]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [0.2, 0.6, 0.9])
def test_the_darkest_place_loses_the_share_of_light_that_strength_says(strength: float, seed: int) -> None:
    image, mask = _flat(200)
    shaded = degradation.vary_shadow(image, mask, np.random.default_rng(seed), strength)[mask > 0]
    light = (shaded / 200.0) ** 2.2
    assert light.max() == pytest.approx(1, abs=0.01)
    assert light.min() == pytest.approx(1 - strength, abs=0.01)
    assert (shaded == shaded[:, :1]).all()  # a shadow has no colour


def test_a_shadow_is_soft_and_falls_from_all_sides() -> None:
    image, mask = _flat(200)
    darkest = set()
    for seed in range(40):
        shaded = degradation.vary_shadow(image, mask, np.random.default_rng(seed), 0.6)[..., 0].astype(float)
        shaded[mask == 0] = np.nan
        steps = np.nanmax(np.abs(np.diff(shaded, axis=0))), np.nanmax(np.abs(np.diff(shaded, axis=1)))
        assert max(steps) < 20  # of the 70 between light and dark
        y, x = np.unravel_index(np.nanargmin(shaded), mask.shape)
        darkest.add((y > HEIGHT / 2, x > WIDTH / 2))
    assert len(darkest) == 4


@pytest.mark.parametrize("seed", range(10))
def test_a_warp_moves_image_and_mask_together(seed: int) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[15:65, 14:50] = 255
    # A dark frame on a lighter product: after the warp the frame still lies along the new mask's edge.
    inner = np.zeros_like(mask)
    inner[23:57, 22:42] = 255
    image = np.where(inner[..., None] > 0, 160, 40).astype(np.uint8).repeat(3, axis=2)
    image[mask == 0] = 255
    new_image, new_mask = degradation.warp(image, mask, np.random.default_rng(seed), 0.08)
    _check_pair(new_image, new_mask)
    assert np.count_nonzero(new_mask != mask) > 50
    outline = np.zeros_like(new_mask, bool)
    outline[1:-1, 1:-1] = (new_mask[1:-1, 1:-1] > 0) & (
        (new_mask[:-2, 1:-1] == 0) | (new_mask[2:, 1:-1] == 0) | (new_mask[1:-1, :-2] == 0) | (new_mask[1:-1, 2:] == 0)
    )
    assert outline.sum() > 100
    assert (new_image[outline] == 40).all()  # nothing of the white came in, nothing of the inside out


@pytest.mark.parametrize("seed", range(10))
def test_extent_is_the_farthest_way_of_a_corner(seed: int) -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 60:140] = 255
    image = np.where(mask[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=2)
    _, new_mask = degradation.warp(image, mask, np.random.default_rng(seed), 0.1)
    before, after = (
        np.array([points[np.argmax(points @ way)] for way in ((-1, -1), (-1, 1), (1, 1), (1, -1))])
        for points in (np.argwhere(mask), np.argwhere(new_mask))
    )
    farthest = np.linalg.norm(after - before, axis=1).max()
    assert farthest == pytest.approx(0.1 * 100, abs=3)  # a corner of less than 90° loses its tip to the threshold


@pytest.mark.parametrize("side", ["top", "left", "bottom", "right"])
def test_a_product_at_the_edge_stays_inside(side: str) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    rows = {"top": slice(0, 30), "bottom": slice(50, 80)}.get(side, slice(20, 60))
    columns = {"left": slice(0, 30), "right": slice(34, 64)}.get(side, slice(20, 44))
    mask[rows, columns] = 255
    image = np.where(mask[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=2)
    for seed in range(20):
        _, new_mask = degradation.warp(image, mask, np.random.default_rng(seed), 0.1)
        # A cut at the border would take a share of the area that no map of this extent takes.
        padded = [np.pad(array, 40, constant_values=white) for array, white in ((mask, 0), (image[..., 0], 255))]
        free = degradation.warp(padded[1][..., None].repeat(3, axis=2), padded[0], np.random.default_rng(seed), 0.1)[1]
        assert np.count_nonzero(new_mask) >= 0.97 * np.count_nonzero(free)


@pytest.mark.parametrize("points", [[(0, 0)], [(40, 30)], [(79, 63)], [(0, 0), (79, 63)], [(3, x) for x in range(64)]])
def test_a_mask_is_never_empty(points: list[tuple[int, int]]) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[tuple(np.transpose(points))] = 255
    image = np.where(mask[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=2)
    strongest = DegradationConfig(**{name: (limit, limit) for name, limit in DEGRADATION_LIMITS.items()})
    for seed in range(30):
        _check_pair(*degrade(image, mask, np.random.default_rng(seed), strongest))


def test_a_product_that_fills_the_picture() -> None:
    image, mask = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    for seed in range(10):
        new_image, new_mask = degrade(image, mask, np.random.default_rng(seed))
        _check_pair(new_image, new_mask)
        assert np.count_nonzero(new_mask) > 0.85 * mask.size


def test_blur_takes_in_nothing_of_the_white() -> None:
    image, mask = _flat(60)
    np.testing.assert_array_equal(degradation.blur(image, mask, 0.05), image)


def test_a_cast_turns_grey_warm_or_cold_by_its_strength() -> None:
    image, mask = _flat(150)
    seen = set()
    for seed in range(20):
        red, green, blue = degradation.cast_color(image, mask, np.random.default_rng(seed), 0.2)[mask > 0][0] / 150
        assert max(abs(red - 1), abs(green - 1), abs(blue - 1)) == pytest.approx(0.2, abs=0.005)
        assert red + blue == pytest.approx(2, abs=0.01)
        seen.add(red > blue)
    assert seen == {True, False}


def test_the_same_seed_gives_the_same_bytes() -> None:
    image, mask = _product()
    config = DegradationConfig(blur=(0.001, 0.004), color_cast=(0, 0.1), jpeg=(10, 60))
    first, second, other = (degrade(image, mask, np.random.default_rng(seed), config) for seed in (5, 5, 6))
    assert [array.tobytes() for array in first] == [array.tobytes() for array in second]
    assert first[0].tobytes() != other[0].tobytes()
    assert first[1].tobytes() != other[1].tobytes()


def test_the_next_call_with_one_generator_is_another_degradation() -> None:
    image, mask = _product()
    rng = np.random.default_rng(5)
    assert degrade(image, mask, rng)[0].tobytes() != degrade(image, mask, rng)[0].tobytes()


def test_by_default_noise_shadow_and_warp_are_on_and_the_options_off(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = _product()
    config = DegradationConfig()
    assert config.blur == config.color_cast == config.jpeg == (0, 0)
    default = degrade(image, mask, np.random.default_rng(0))
    assert (default[1] != mask).any()
    for name in OFF:
        without = degrade(image, mask, np.random.default_rng(0), DegradationConfig(**{name: (0, 0)}))
        assert (without[0] != default[0]).any(), name
    calls: list[tuple[str, float]] = []
    for name in ("blur", "cast_color", "jpeg"):
        monkeypatch.setattr(degradation, name, lambda image, *rest, name=name: calls.append((name, rest[-1])) or image)
    again = degrade(image, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(again[0], default[0])
    assert dict(calls) == {"blur": 0, "cast_color": 0, "jpeg": 0}


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_range_reaches_its_degradation(name: str) -> None:
    image, mask = _product()
    strength = STRENGTHS[name][2]
    off = degrade(image, mask, np.random.default_rng(0), DegradationConfig(**OFF))
    np.testing.assert_array_equal(off[0], image)
    np.testing.assert_array_equal(off[1], mask)
    on = degrade(image, mask, np.random.default_rng(0), DegradationConfig(**{**OFF, name: (strength, strength)}))
    assert (on[0] != image).any()
    assert (on[1] != mask).any() == (name == "warp")


def test_an_option_leaves_the_other_degradations_as_they_were() -> None:
    image, mask = _product()
    plain = degrade(image, mask, np.random.default_rng(3))
    cast = degrade(image, mask, np.random.default_rng(3), DegradationConfig(color_cast=(0.001, 0.001)))
    np.testing.assert_array_equal(plain[1], cast[1])
    assert np.abs(plain[0].astype(int) - cast[0]).max() <= 1


def test_a_product_stays_recognisable_under_the_defaults() -> None:
    image, mask = _product()
    for seed in range(30):
        new_image, new_mask = degrade(image, mask, np.random.default_rng(seed))
        both, either = np.count_nonzero(mask & new_mask), np.count_nonzero(mask | new_mask)
        assert both / either > 0.85
        inside = (mask > 0) & (new_mask > 0)
        assert np.corrcoef(image[inside].ravel(), new_image[inside].ravel())[0, 1] > 0.6
        assert new_image[new_mask > 0].mean() > 0.6 * image[mask > 0].mean()


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize(
    "value",
    [(-1, 0), (5, 1), (0, 1000), (float("nan"), 1), (0, float("nan")), (1,), (1, 1, 1), 1, "01", None, (True, True)],
)
def test_a_bad_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^degradation\.{name}=.*: must be two .*numbers, 0 ≤ lowest ≤ highest"):
        DegradationConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "limit"),
    [("noise", 64), ("shadow", 0.95), ("warp", 0.2), ("blur", 0.05), ("color_cast", 0.5), ("jpeg", 95)],
)
def test_the_limits_are_those_in_the_documentation(name: str, limit: float) -> None:
    assert getattr(DegradationConfig(**{name: (limit, limit)}), name) == (limit, limit)
    more = limit + 1 if name == "jpeg" else limit * 1.001
    with pytest.raises(ValueError, match=rf"degradation\.{name}=.* ≤ {limit}$"):
        DegradationConfig(**{name: (0, more)})


def test_jpeg_takes_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"degradation\.jpeg=\(0\.5, 2\.5\): must be two whole numbers"):
        DegradationConfig(jpeg=(0.5, 2.5))


def test_a_row_has_a_generator_of_its_own() -> None:
    def draw(*arguments: object) -> int:
        return int(row_rng(*arguments).integers(2**63))

    assert draw(1, "row", "degraded") == draw(1, "row", "degraded")
    others = [(2, "row", "degraded"), (1, "row"), (1, "rowdegraded"), (1, "ro", "wdegraded"), (1, "degraded", "row")]
    assert len({draw(1, "row", "degraded"), *(draw(*other) for other in others)}) == 6
    # Rows keep their degradation from one version to the next.
    assert draw(7, "a row") == PINNED


PINNED = 25872443802213018
