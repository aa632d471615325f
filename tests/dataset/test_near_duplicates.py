"""Near-duplicates: hashes that survive edits, and a search that agrees with comparing every pair of rows."""

from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import pytest

from refadgen.dataset import near_duplicates
from refadgen.dataset.near_duplicates import find_near_duplicates, perceptual_hash, thumbnail

WIDTH, HEIGHT = 200, 240
COLOR = 12.0
"""Largest mean difference of thumbnails in these tests, the configuration's default."""
LIMITS = {"max_distance": 4, "max_color_difference": COLOR, "max_product_difference": 5.0}
GREY = np.full(48, 128, np.uint8)

Edit = Callable[[np.ndarray], np.ndarray]


def _picture(seed: int) -> np.ndarray:
    """Seven ellipses and boxes before a gradient, drawn by `seed`; colours from 40 to 200."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = rng.uniform(-50, 50) * (np.cos(angle) * x / WIDTH + np.sin(angle) * y / HEIGHT)
    image = np.clip(rng.uniform(80, 160, 3) + ramp[..., None], 40, 200).astype(np.uint8)
    for _ in range(7):
        color = rng.uniform(40, 200, 3).tolist()
        center, axes = (int(rng.uniform(0, WIDTH)), int(rng.uniform(0, HEIGHT))), rng.integers(10, 60, 2).tolist()
        if rng.random() < 0.5:
            cv2.ellipse(image, center, axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, center, (center[0] + axes[0], center[1] + axes[1]), color, -1)
    return image


PICTURES = [_picture(seed) for seed in range(40)]


def _jpeg(quality: int) -> Edit:
    def edit(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]

    return edit


def _resized(scale: float, interpolation: int) -> Edit:
    return lambda image: cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)


def _levels(factor: float, offset: float, gamma: float = 1.0) -> Edit:
    return lambda image: np.clip(255 * (image / 255) ** gamma * factor + offset, 0, 255).round().astype(np.uint8)


def _noise(image: np.ndarray) -> np.ndarray:
    return np.clip(image + np.random.default_rng(0).normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def _cropped(top: float, left: float, bottom: float, right: float) -> Edit:
    rows = slice(round(top * HEIGHT), HEIGHT - round(bottom * HEIGHT))
    columns = slice(round(left * WIDTH), WIDTH - round(right * WIDTH))
    return lambda image: image[rows, columns]


def _recolored(image: np.ndarray) -> np.ndarray:
    """Redder and less green by as much as the grey picture does not show."""
    return np.clip(image + np.array([50.0, -26.0, 3.0]), 0, 255).astype(np.uint8)


EDITS: dict[str, tuple[Edit, int]] = {
    "JPEG 90": (_jpeg(90), 2),
    "JPEG 50": (_jpeg(50), 5),
    "JPEG 25": (_jpeg(25), 7),
    "half": (_resized(0.5, cv2.INTER_AREA), 2),
    "0.7, bilinear": (_resized(0.7, cv2.INTER_LINEAR), 3),
    "double": (_resized(2, cv2.INTER_CUBIC), 2),
    "brighter": (_levels(1, 10), 1),
    "darker": (_levels(1, -10), 1),
    "less contrast": (_levels(0.9, 12.8), 4),
    "more contrast": (_levels(1.1, -12.8), 3),
    "gamma 0.9": (_levels(1, 0, 0.9), 4),
    "gamma 1.1": (_levels(1, 0, 1.1), 4),
    "blur": (lambda image: cv2.GaussianBlur(image, (0, 0), 1.5), 2),
    "noise": (_noise, 3),
    "crop at the right": (_cropped(0, 0, 0, 0.02), 9),
    "crop at the top": (_cropped(0.02, 0, 0, 0), 8),
    "crop all around": (_cropped(0.01, 0.01, 0.01, 0.01), 8),
}
"""With the most bits that may change: those of these pictures that do, and one or two for another OpenCV."""


def _distance(image: np.ndarray, other: np.ndarray) -> int:
    return (perceptual_hash(image) ^ perceptual_hash(other)).bit_count()


def _color_difference(image: np.ndarray, other: np.ndarray) -> float:
    fields = (np.frombuffer(thumbnail(each), np.uint8).astype(int) for each in (image, other))
    return float(np.abs(np.subtract(*fields)).mean())


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_few_bits_and_little_colour(name: str) -> None:
    edit, most = EDITS[name]
    distances = [_distance(image, edit(image)) for image in PICTURES]
    assert max(distances) <= most, distances
    assert np.mean(distances) <= 4  # the default of filter.duplicate_distance
    assert max(_color_difference(image, edit(image)) for image in PICTURES) <= COLOR


def test_other_pictures_are_far() -> None:
    hashes = [perceptual_hash(image) for image in PICTURES]
    distances = [(a ^ b).bit_count() for index, a in enumerate(hashes) for b in hashes[:index]]
    assert min(distances) > 12  # no distance that can be set reaches it
    assert 28 < np.mean(distances) < 36
    assert all(0 <= each < 2**64 for each in hashes)


def test_each_bit_is_set_in_half_of_the_pictures() -> None:
    hashes = np.array([perceptual_hash(_picture(seed)) for seed in range(100)], np.uint64)
    shares = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert shares.min() > 0.2
    assert shares.max() < 0.8


@pytest.mark.parametrize(("down", "across"), [(0, 1), (1, 0), (3, 5), (7, 7), (0, 8)])
def test_a_wave_sets_the_bit_of_its_frequency(down: int, across: int) -> None:
    y, x = (np.mgrid[:128, :128] + 0.5) / 128
    wave = np.cos(np.pi * down * y) * np.cos(np.pi * across * x)
    image = (128 + 60 * wave[..., None].repeat(3, axis=2)).astype(np.uint8)
    index = 0 if across == 8 else 8 * down + across  # the ninth frequency across has the place of the mean
    assert perceptual_hash(image) == 1 << (63 - index)


@pytest.mark.parametrize("level", [0, 10, 128, 250, 255])
def test_blank_pictures_are_one_whatever_their_noise_and_only_colour_tells_them_apart(level: int) -> None:
    blank = np.full((256, 256, 3), level, np.uint8)
    assert perceptual_hash(blank) == 0
    for quality in (90, 30):
        assert _distance(blank, _jpeg(quality)(_noise(blank))) <= 4
    assert _color_difference(blank, np.full((90, 60, 3), (level + 100) % 256, np.uint8)) > COLOR


def test_a_recoloured_copy_has_the_hash_and_another_thumbnail() -> None:
    for image in PICTURES:
        assert _distance(image, _recolored(image)) <= 4
        assert _color_difference(image, _recolored(image)) > 2 * COLOR


def test_a_thumbnail_is_the_colour_of_sixteen_fields() -> None:
    fields = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = fields.repeat(30, axis=0).repeat(50, axis=1)
    assert thumbnail(image) == fields.tobytes()
    image[:30, :25], image[:30, 25:50] = (10, 20, 30), (20, 40, 90)
    assert thumbnail(image)[:3] == bytes([15, 30, 60])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 300), (300, 2), (33, 31)])
def test_a_picture_may_be_tiny(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert 0 <= perceptual_hash(image) < 2**64
    assert len(thumbnail(image)) == 48


def test_hash_and_thumbnail_do_not_depend_on_the_layout_in_memory() -> None:
    image = PICTURES[0]
    for other in (np.asfortranarray(image), image[:, ::-1].copy()[:, ::-1], np.pad(image, 1)[1:-1, 1:-1, 1:-1]):
        assert perceptual_hash(other) == perceptual_hash(image)
        assert thumbnail(other) == thumbnail(image)
    read_only = image.copy()
    read_only.flags.writeable = False
    assert perceptual_hash(read_only) == perceptual_hash(image)


def test_hashes_in_ledgers_stay_valid() -> None:
    # Another build of OpenCV may round a bit or two to the other side.
    assert (perceptual_hash(PICTURES[0]) ^ PINNED).bit_count() <= 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    for function in (perceptual_hash, thumbnail):
        with pytest.raises(AssertionError):
            function(image)


def _find(
    ids: list[str], hashes: np.ndarray, colors: np.ndarray, max_distance: int, max_color_difference: float = COLOR
) -> np.ndarray:
    """`find_near_duplicates` from lists: colors is uint8 N×48."""
    thumbnails = pa.array([row.tobytes() for row in colors], pa.binary())
    return find_near_duplicates(
        pa.array(ids, pa.string()),
        hashes,
        thumbnails,
        pa.nulls(len(ids), pa.binary()),
        max_distance=max_distance,
        max_color_difference=max_color_difference,
        max_product_difference=0,
    )


def _brute_force(
    ids: list[str], hashes: np.ndarray, colors: np.ndarray, max_distance: int, max_color_difference: float = COLOR
) -> list[int]:
    keepers = []
    for row, own in enumerate(ids):
        near = [
            other
            for other, id_ in enumerate(ids)
            if id_ < own
            and (int(hashes[row]) ^ int(hashes[other])).bit_count() <= max_distance
            and np.abs(colors[row].astype(int) - colors[other]).mean() <= max_color_difference
        ]
        keepers.append(min(near, key=ids.__getitem__, default=-1))
    return keepers


def _flipped(hash_: np.uint64, num_bits: int, rng: np.random.Generator) -> np.uint64:
    bits = rng.choice(64, num_bits, replace=False)
    return np.bitwise_xor.reduce(np.uint64(1) << bits.astype(np.uint64), initial=hash_)


def _crowd(num: int, max_distance: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Rows around a few hashes, at distances about `max_distance`, in colours just alike, just unlike and equal."""
    centers = rng.integers(2**64, size=max(1, num // 6), dtype=np.uint64)
    hashes = np.array(
        [_flipped(rng.choice(centers), rng.integers(0, max_distance // 2 + 3), rng) for _ in range(num)], np.uint64
    )
    colors = 100 + 11 * rng.integers(0, 3, (num, 1)) + rng.integers(-2, 3, (num, 48)) * rng.integers(0, 2, (num, 1))
    return [f"ad {number}" for number in rng.permutation(num)], hashes, colors.astype(np.uint8)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows then go through all loops and both ways to compare a bucket."""
    for name, value in {"_SLICE": 7, "_TILE": 24, "_CHECKED": 5, "_LARGE": 4}.items():
        monkeypatch.setattr(near_duplicates, name, value)


@pytest.mark.parametrize("num", [2, 30, 150])
@pytest.mark.parametrize("max_distance", range(9))
def test_the_search_is_every_row_with_every_other(max_distance: int, num: int) -> None:
    rows = _crowd(num, max_distance, np.random.default_rng(max_distance))
    expected = _brute_force(*rows, max_distance)
    assert _find(*rows, max_distance).tolist() == expected
    assert num < 100 or 10 < np.count_nonzero(np.array(expected) >= 0) < num - 10


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("max_distance", range(9))
def test_the_same_in_small_steps(max_distance: int) -> None:
    rows = _crowd(120, max_distance, np.random.default_rng(100 + max_distance))
    assert _find(*rows, max_distance).tolist() == _brute_force(*rows, max_distance)


@pytest.mark.parametrize("more", [1, 2, 3, 4])
@pytest.mark.parametrize("max_distance", [1, 4, 6])
def test_the_number_of_bands_does_not_matter(monkeypatch: pytest.MonkeyPatch, max_distance: int, more: int) -> None:
    rows = _crowd(120, max_distance, np.random.default_rng(more))
    monkeypatch.setattr(near_duplicates, "_num_bands", lambda *_: max_distance + more)
    assert _find(*rows, max_distance).tolist() == _brute_force(*rows, max_distance)


def test_values_that_share_a_bucket_by_chance_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _crowd(120, 4, np.random.default_rng(0))
    expected = _brute_force(*rows, 4)
    for factor in (1, 2**50):  # the low bits of a value are lost, then all but a few
        monkeypatch.setattr(near_duplicates, "_ODD", np.uint64(factor))
        assert _find(*rows, 4).tolist() == expected


@pytest.mark.parametrize("max_distance", range(9))
def test_every_planted_pair_is_found_and_no_other(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    num = 3000
    hashes = rng.integers(2**64, size=(2, num), dtype=np.uint64)  # random ones differ in 32 bits or so, never in 9
    distances = rng.integers(max(0, max_distance - 2), max_distance + 2, num)
    hashes[1] = [_flipped(hash_, distance, rng) for hash_, distance in zip(hashes[0], distances, strict=True)]
    ids = [f"{number:05d}" for number in rng.permutation(2 * num)]
    keepers = _find(ids, hashes.ravel(), np.tile(GREY, (2 * num, 1)), max_distance).reshape(2, num)
    here, there = np.arange(num), np.arange(num, 2 * num)
    is_first_out = np.array(ids[:num]) > np.array(ids[num:])
    near = distances <= max_distance
    np.testing.assert_array_equal(keepers[0], np.where(near & is_first_out, there, -1))
    np.testing.assert_array_equal(keepers[1], np.where(near & ~is_first_out, here, -1))


@pytest.mark.parametrize("max_distance", [0, 3, 4, 8])
def test_the_order_of_the_rows_means_nothing(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    ids, hashes, colors = _crowd(200, max_distance, rng)
    mappings = set()
    for _ in range(5):
        order = rng.permutation(len(ids))
        shuffled = [ids[row] for row in order]
        keepers = _find(shuffled, hashes[order], colors[order], max_distance)
        named = [shuffled[keeper] if keeper >= 0 else None for keeper in keepers]
        mappings.add(tuple(sorted(zip(shuffled, named, strict=True))))
    assert len(mappings) == 1


@pytest.mark.parametrize(
    ("ids", "keepers"), [(["10", "9"], [-1, 0]), (["b", "B"], [1, -1]), (["a\U0001f600", "a｡"], [1, -1])]
)
def test_ids_are_compared_as_python_does(ids: list[str], keepers: list[int]) -> None:
    assert sorted(ids)[0] == ids[keepers.index(-1)]
    assert _find(ids, np.zeros(2, np.uint64), np.tile(GREY, (2, 1)), 4).tolist() == keepers


def test_colours_may_differ_by_the_limit_and_no_more() -> None:
    hashes = np.array([5, 4], np.uint64)
    for limit in (0.0, 0.5, 12.0, 255.0):
        colors = np.zeros((2, 48), np.uint8)
        colors[1] = int(limit)
        colors[1, :24] += np.uint8(2 * (limit % 1))  # half a level more in the mean
        assert _find(["a", "b"], hashes, colors, 1, limit).tolist() == [-1, 0]
        assert _find(["a", "b"], hashes, colors[::-1], 1, limit).tolist() == [-1, 0]
        if limit < 255:
            colors[1, 0] += 1
            assert _find(["a", "b"], hashes, colors, 1, limit).tolist() == [-1, -1]


def test_likeness_is_not_handed_on_along_a_chain() -> None:
    hashes = np.array([0b0, 0b1111, 0b11111111, 0b111111111111], np.uint64)
    colors = np.tile(GREY, (4, 1))
    assert _find(list("abcd"), hashes, colors, 4).tolist() == [-1, 0, 1, 2]
    assert _find(list("badc"), hashes, colors, 4).tolist() == [1, -1, 1, -1]
    assert _find(["a", "y", "b", "z"], hashes, colors, 4).tolist() == [-1, 0, -1, 2]
    assert _find(["a", "b", "c"], hashes[[0, 2, 3]], colors[:3], 4).tolist() == [-1, -1, 1]
    steps = GREY + np.arange(0, 40, 10, dtype=np.uint8)[:, None]
    assert _find(list("abcd"), np.zeros(4, np.uint64), steps, 0).tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("max_distance", [0, 4, 8])
def test_a_hundred_thousand_equal_rows(max_distance: int) -> None:
    num = 100_000
    numbers = np.random.default_rng(0).permutation(num)
    ids = [f"{number:06d}" for number in numbers]
    keepers = _find(ids, np.full(num, 12345, np.uint64), np.tile(GREY, (num, 1)), max_distance)
    first = int(np.argmin(numbers))
    assert keepers[first] == -1
    assert (np.delete(keepers, first) == first).all()


def test_equal_rows_are_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    class Counted(near_duplicates._Search):
        def run(self) -> None:
            searched.append(len(self.nearest))
            super().run()

    monkeypatch.setattr(near_duplicates, "_Search", Counted)
    colors = np.array([[10] * 48, [20] * 48], np.uint8)
    keepers = _find(
        [f"{number:03d}" for number in range(600)],
        np.repeat(np.array([7, 2**63 + 7, 7], np.uint64), 200),
        np.concatenate([colors[[0]].repeat(400, axis=0), colors[[1]].repeat(200, axis=0)]),
        0,
    )
    assert keepers.tolist() == [-1] + [0] * 199 + [-1] + [200] * 199 + [0] * 200
    assert searched == [3]


def test_many_blank_pictures_of_some_colours() -> None:
    # 3·10⁸ pairs of one hash, hardly any of one thumbnail: pairs that decide nothing must not be looked at.
    num, colors = 25_000, np.array([40, 90, 140, 190, 240], np.uint8)
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, len(colors), num)
    kinds[:5] = range(5)
    shades = colors[kinds, None] + rng.integers(0, 6, (num, 48), np.uint8)
    keepers = _find([f"{number:05d}" for number in range(num)], np.zeros(num, np.uint64), shades, 4)
    np.testing.assert_array_equal(keepers[5:], kinds[5:])
    assert (keepers[:5] == -1).all()


@pytest.mark.parametrize("max_distance", [0, 4, 8])
def test_no_row_and_one_row(max_distance: int) -> None:
    for num in (0, 1):
        keepers = _find(["a"] * num, np.zeros(num, np.uint64), np.zeros((num, 48), np.uint8), max_distance)
        assert keepers.tolist() == [-1] * num
        assert keepers.dtype == np.int64


def test_columns_come_in_any_layout_of_arrow() -> None:
    ids, hashes, colors = _crowd(100, 4, np.random.default_rng(0))
    expected = _brute_force(ids, hashes, colors, 4)
    thumbnails = [row.tobytes() for row in colors]

    def find(id_column: pa.Array, thumbnail_column: pa.Array) -> list[int]:
        products = pa.nulls(len(hashes), pa.binary())
        found = find_near_duplicates(id_column, hashes, thumbnail_column, products, **LIMITS)
        return found.tolist()

    plain = pa.table({"id": ids, "thumbnail": pa.array(thumbnails, pa.binary())})
    assert find(plain["id"], plain["thumbnail"]) == expected
    pieces = pa.concat_tables([plain.slice(0, 33), plain.slice(33, 0), plain.slice(33, 1), plain.slice(34)])
    assert pieces["id"].num_chunks > 2
    assert find(pieces["id"], pieces["thumbnail"]) == expected
    for kind in (pa.binary(), pa.large_binary(), pa.binary(48)):
        longer = pa.array([bytes(48), *thumbnails, bytes(48)], kind)
        assert find(pa.array(["-", *ids], pa.large_string())[1:], longer[1:-1]) == expected
    hashes.flags.writeable = False
    assert find(plain["id"], plain["thumbnail"]) == expected
    empty = pa.chunked_array([], pa.string()), np.zeros(0, np.uint64), pa.chunked_array([], pa.binary())
    assert find_near_duplicates(*empty, empty[-1], **LIMITS).tolist() == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"ids": pa.array(["a", "b", "c"])}, AssertionError),
        ({"ids": pa.array(["a", None])}, AssertionError),
        ({"hashes": np.zeros(2, np.int64)}, AssertionError),
        ({"hashes": np.zeros(3, np.uint64)}, AssertionError),
        ({"thumbnails": pa.array([bytes(48), None])}, AssertionError),
        ({"thumbnails": pa.array([bytes(48), bytes(47)])}, pa.ArrowInvalid),
        ({"product_colors": pa.array([bytes(68)])}, AssertionError),
        ({"product_colors": pa.array([bytes(68), bytes(67)])}, pa.ArrowInvalid),
        ({"max_product_difference": -0.1}, AssertionError),
        ({"max_distance": 9}, AssertionError),
        ({"max_distance": -1}, AssertionError),
        ({"max_color_difference": -0.1}, AssertionError),
        ({"max_color_difference": float("nan")}, AssertionError),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, object], error: type[Exception]) -> None:
    arguments = {
        "ids": pa.array(["a", "b"]),
        "hashes": np.zeros(2, np.uint64),
        "thumbnails": pa.array([bytes(48)] * 2),
        "product_colors": pa.array([bytes(68), None]),
        **LIMITS,
    }
    assert find_near_duplicates(**arguments).tolist() == [-1, 0]
    with pytest.raises(error):
        find_near_duplicates(**arguments | changes)


def test_of_edited_and_recoloured_pictures_the_edited_ones_are_out() -> None:
    images, sources = [], []
    for index, image in enumerate(PICTURES):
        for edit in (lambda image: image, _jpeg(40), _resized(0.6, cv2.INTER_AREA), _levels(1, 5), _recolored):
            images.append(edit(image))
            sources.append(len(images) - 1 if edit is _recolored else 5 * index)
    hashes = np.array([perceptual_hash(image) for image in images], np.uint64)
    colors = np.array([np.frombuffer(thumbnail(image), np.uint8) for image in images])
    keepers = _find([f"{number:03d}" for number in range(len(images))], hashes, colors, 4)
    expected = [-1 if source == number else source for number, source in enumerate(sources)]
    assert keepers.tolist() == expected


PINNED = 0x9C64C926336673CC
