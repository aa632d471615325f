"""Near-duplicates: the hash and the thumbnail of an ad, and an exact search among those of all ads.

`perceptual_hash` tells shapes apart, `thumbnail` the picture's colours, and `product_colors` (in a module of its own)
those of the product: the same bottle in another colour is another product. Each takes an image. `find_near_duplicates`
takes the columns of all ads and returns for each ad the one that it duplicates.

The search is multi-index hashing. The 64 bits of a hash are divided into k bands. Two hashes that differ in at most d
bits differ in at most d bands, so they agree in k − d others. With one table for each choice of k − d bands, every near
pair shares a bucket of some table. Nothing is missed, and only members of one bucket are compared. k is chosen so that
buckets are small.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.dataset.product_colors import NUM_BYTES, product_color_differences

Hashes = npt.NDArray[np.uint64]
Colors = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
CompactIndices = npt.NDArray[np.int32]

_HASH_BITS = 64
_SMALL_SIDE = 32
_FLAT = 2.0
"""A frequency sets its bit only this far above the median: three times the deviation that noise of 5 grey levels in a
picture of 256×256 has in the 32×32 orthonormal DCT."""
_THUMBNAIL_SIDE = 4
_THUMBNAIL_BYTES = 3 * _THUMBNAIL_SIDE**2
_COLOR_BYTES = -(-(_THUMBNAIL_BYTES + NUM_BYTES) // 8) * 8
"""Bytes of an ad's colours in the search: thumbnail, product colours, and zeros up to whole 64-bit words."""
_OF_PRODUCT = slice(_THUMBNAIL_BYTES, _THUMBNAIL_BYTES + NUM_BYTES)

_SLICE = 2**16
"""Rows per step, so that a step's arrays stay in the processor's cache."""
_TILE = 2**17
"""Pairs of a large bucket per step."""
_CHECKED = 2**14
"""Pairs whose colours are compared per step."""
_LARGE = 512
"""Buckets with at least so many members are compared in tiles of their own."""
_ROW_COST = 8.0
"""Cost of one row in one table, in comparisons of one pair; measured with random hashes."""
_SAMPLE = 2**17
"""Hashes from which the number of bands is estimated."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ over the golden ratio. As a factor it carries differences in low bits into the high bits."""


def perceptual_hash(image_u8: np.ndarray) -> int:
    """Returns 64 bits as an unsigned number. Encoding, resizing or brightening the picture again changes few of them.

    image_u8: uint8 H×W×3, RGB. A bit is set where one of the 8×8 lowest frequencies of the grey picture is above their
    median, row by row. The bit of the mean would always be set: the next frequency across takes its place.
    """
    _check_image(image_u8)
    grey = cv2.cvtColor(image_u8, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # No blur: on the small picture it is a positive factor per frequency, which moves next to no bit.
    small = cv2.resize(grey, (_SMALL_SIDE, _SMALL_SIDE), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(small - small.mean())
    lowest = frequencies[:8, :8].copy()
    lowest[0, 0] = frequencies[0, 8]
    # Without the margin the bits of a blank picture would be its noise.
    return int.from_bytes(np.packbits(lowest > np.median(lowest) + _FLAT).tobytes(), "big")


def thumbnail(image_u8: np.ndarray) -> bytes:
    """Returns the mean colours of 4×4 fields: 48 bytes, RGB, field by field in rows. image_u8: uint8 H×W×3, RGB."""
    _check_image(image_u8)
    return cv2.resize(image_u8, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).tobytes()


def _check_image(image_u8: np.ndarray) -> None:
    assert image_u8.dtype == np.uint8, image_u8.dtype
    assert image_u8.shape[2:] == (3,), image_u8.shape
    assert image_u8.size, image_u8.shape


def find_near_duplicates(
    ids: pa.Array | pa.ChunkedArray,
    hashes: Hashes,
    thumbnails: pa.Array | pa.ChunkedArray,
    product_colors: pa.Array | pa.ChunkedArray,
    *,
    max_distance: int,
    max_color_difference: float,
    max_product_difference: float,
) -> Indices:
    """Returns int64 [N]: for each row the index of the row that it duplicates, or −1 where it is kept.

    A row is a duplicate if a row of smaller id is near. Two rows are near if their hashes differ in at most
    `max_distance` bits (0 to 8), their thumbnails by at most `max_color_difference` on average (grey levels, 0 to 255),
    and their product colours by at most `max_product_difference` (ΔE, see `product_color_differences`). Of several near
    rows the one of the smallest id is returned. The order of the rows has no influence.

    Nearness is not transitive here. In a chain a–b–c whose ends are not near, b duplicates a and c duplicates b;
    without b, c is kept. So a returned row is always near. Groups grown along chains would end with unlike pictures.

    ids: strings, unique, compared by code points; hashes: uint64; thumbnails: binary, 48 bytes each; product_colors:
    binary, 68 bytes each, null where they were never measured, which is near to all. All are of one length, the others
    without nulls. Arrow columns, because ten million Python strings would take a gigabyte.
    """
    num = len(ids)
    lengths = (num, len(hashes), len(thumbnails), len(product_colors))
    assert set(lengths) == {num}, lengths
    assert num < 2**31, num
    assert hashes.dtype == np.uint64, hashes.dtype
    assert ids.null_count == thumbnails.null_count == 0, (ids.null_count, thumbnails.null_count)
    assert 0 <= max_distance <= 8, max_distance
    assert max_color_difference >= 0, max_color_difference
    assert max_product_difference >= 0, max_product_difference
    colors = _colors(thumbnails, product_colors)
    # From here on a row's number is its rank among the sorted ids: a smaller number is a smaller id.
    order = pc.sort_indices(ids).to_numpy().astype(np.int32)
    first = _first_equals(hashes, colors, order)
    is_first = first == np.arange(num, dtype=np.int32)
    searched = np.flatnonzero(is_first).astype(np.int32)
    limits = _Limits(max_distance, max_color_difference, max_product_difference)
    search = _Search(hashes, colors, order[searched], limits)
    search.run()
    # Only the first of equal rows was searched for: the others are near the same rows, and near it.
    nearest = searched[search.nearest[(np.cumsum(is_first, dtype=np.int32) - 1)[first]]]
    out = np.flatnonzero(nearest != np.arange(num, dtype=np.int32))
    keepers = np.full(num, -1, np.int64)
    keepers[order[out]] = order[nearest[out]]
    return keepers


def _colors(*columns: pa.Array | pa.ChunkedArray) -> Colors:
    """Returns uint8 N×120: thumbnails and product colours; zeros for nulls, and behind.

    Raises: ArrowInvalid where a value has another length.
    """
    colors = np.zeros((len(columns[0]), _COLOR_BYTES), np.uint8)
    left = 0
    for column, width in zip(columns, (_THUMBNAIL_BYTES, NUM_BYTES), strict=True):
        start = 0
        for batch in pa.table({"column": column}).to_batches(max_chunksize=_SLICE):
            binary = batch.column(0)
            filled = pc.fill_null(binary, pa.scalar(bytes(width), binary.type)) if binary.null_count else binary
            fixed = filled.cast(pa.binary(width))
            values = np.frombuffer(fixed.buffers()[1], np.uint8).reshape(-1, width)
            colors[start : start + len(fixed), left : left + width] = values[fixed.offset : fixed.offset + len(fixed)]
            start += len(fixed)
        left += width
    return colors


def _first_equals(hashes: Hashes, colors: Colors, order: CompactIndices) -> CompactIndices:
    """Returns int32 [N]: for each row, by its number, the first row with the same hash and the same colours.

    Shops share placeholder pictures. One that occurs a hundred thousand times is searched for once.
    """
    words = colors.view(np.uint64)
    factors = np.cumprod(np.full(words.shape[1], _ODD))
    mixed = hashes[order]
    for start in range(0, len(mixed), _SLICE):
        mixed[start : start + _SLICE] ^= (words[order[start : start + _SLICE]] * factors).sum(axis=1)
    first = np.arange(len(mixed), dtype=np.int32)
    for rows, starts in _buckets(mixed):
        repeats = np.ones(len(rows), bool)
        repeats[starts] = False
        candidates = np.flatnonzero(repeats)
        for start in range(0, len(candidates), _SLICE):
            some = candidates[start : start + _SLICE]
            here, before = order[rows[some]], order[rows[some - 1]]
            # Different rows with the same mixed value can split a run of equal ones: two of these are searched for.
            repeats[some] = (hashes[here] == hashes[before]) & (words[here] == words[before]).all(axis=1)
        heads = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(rows))))
        first[rows] = rows[heads]
    return first


def _buckets(values: Hashes) -> Iterator[tuple[Indices, Indices]]:
    """Groups indices by equal value. Yields (indices, starts of buckets in them), some complete buckets at a time.

    Indices ascend within a bucket. Overwrites `values`. A bucket rarely holds two values, because the index replaces
    the low bits of each value: one sort of plain numbers then orders both values and indices.
    """
    bits = np.uint64(max(1, (len(values) - 1).bit_length()))
    low = (np.uint64(1) << bits) - np.uint64(1)
    values *= _ODD
    values &= ~low
    for start in range(0, len(values), _SLICE):
        values[start : start + _SLICE] |= np.arange(start, min(start + _SLICE, len(values)), dtype=np.uint64)
    values.sort()
    start = 0
    while start < len(values):
        last = values[min(start + _SLICE, len(values)) - 1] | low
        stop = int(np.searchsorted(values, last, side="right"))
        keys = values[start:stop] >> bits
        starts = np.append(0, np.flatnonzero(keys[1:] != keys[:-1]) + 1)
        yield (values[start:stop] & low).astype(np.int64), starts
        start = stop


class _Limits(NamedTuple):
    """What near rows differ in at most."""

    distance: int
    color: float
    product: float


class _Search:
    """Finds the smallest near row of each row; a smaller row number is a smaller id."""

    def __init__(self, hashes: Hashes, colors: Colors, places: CompactIndices, limits: _Limits) -> None:
        """places: int32 [N], the index of each row in `hashes` and `colors`."""
        self.nearest: CompactIndices = np.arange(len(places), dtype=np.int32)
        """int32 [N]: the smallest near row found so far; the row itself where none was found."""
        self._hashes = hashes[places]
        self._colors = colors
        self._places = places
        self._max_distance = limits.distance
        self._max_sum = _THUMBNAIL_BYTES * limits.color
        self._max_product = limits.product

    def run(self) -> None:
        """Writes the result to `nearest`."""
        num_bands = _num_bands(self._hashes, self._max_distance)
        bands = _bands(num_bands)
        for agreeing in itertools.combinations(range(num_bands), num_bands - self._max_distance):
            # A pair that agrees in more bands is in several tables. It is checked in the first one: where it differs
            # in every band that the table skips before its last one.
            differing = [bands[band] for band in range(agreeing[-1]) if band not in agreeing]
            for rows, starts in _buckets(self._hashes & np.bitwise_or.reduce(bands[list(agreeing)])):
                sizes = np.diff(starts, append=len(rows))
                for bucket in np.flatnonzero(sizes >= _LARGE):
                    self._compare_large(rows[starts[bucket] : starts[bucket] + sizes[bucket]], differing)
                self._compare_small(rows, starts, sizes, differing)

    def _compare_small(self, rows: Indices, starts: Indices, sizes: Indices, differing: list[np.uint64]) -> None:
        """Compares all small buckets at once: each row with the first of its bucket, then the second, and so on."""
        hashes, nearest = self._hashes[rows], self.nearest[rows]
        later = np.flatnonzero(np.repeat(sizes < _LARGE, sizes))
        earlier = np.repeat(starts, sizes)[later]
        while True:
            can_improve = rows[earlier] < nearest[later]
            later, earlier = later[can_improve], earlier[can_improve]
            if not len(later):
                return
            alike = np.flatnonzero(np.bitwise_count(hashes[later] ^ hashes[earlier]) <= self._max_distance)
            if len(alike):
                found = later[alike]
                self._check(rows[found], rows[earlier[alike]], differing)
                nearest[found] = self.nearest[rows[found]]
            earlier += 1

    def _compare_large(self, rows: Indices, differing: list[np.uint64]) -> None:
        """Compares one bucket: its rows in ascending tiles, each with the rows that it may still be the nearest of."""
        start, width, later = 0, 1, rows
        while start < len(rows):
            later = later[self.nearest[later] > rows[start]]
            if not len(later):
                return
            earlier = rows[start : start + width]
            height = max(1, _TILE // len(earlier))
            for top in range(0, len(later), height):
                some = later[top : top + height]
                differences = self._hashes[some][:, None] ^ self._hashes[earlier]
                at = np.nonzero(np.bitwise_count(differences) <= self._max_distance)
                self._check(some[at[0]], earlier[at[1]], differing)
            start += width
            # Small tiles first: in a bucket of like pictures the first few rows are the nearest of almost all others.
            width = min(2 * width, max(256, _TILE // len(later)))

    def _check(self, later: Indices, earlier: Indices, differing: list[np.uint64]) -> None:
        """Records pairs that are near in colour as well. differing: bands in which this table's pairs must differ."""
        for start in range(0, len(later), _CHECKED):
            some, smaller = later[start : start + _CHECKED], earlier[start : start + _CHECKED]
            counts = smaller < self.nearest[some]
            if differing:
                differences = self._hashes[some] ^ self._hashes[smaller]
                for band in differing:
                    counts &= differences & band != 0
            some, smaller = some[counts], smaller[counts]
            colors = self._colors.take(self._places[some], axis=0)
            others = self._colors.take(self._places[smaller], axis=0)
            mean, other_mean = colors[:, :_THUMBNAIL_BYTES], others[:, :_THUMBNAIL_BYTES]
            # Maximum minus minimum, as differences of uint8 would wrap around.
            apart = (np.maximum(mean, other_mean) - np.minimum(mean, other_mean)).sum(axis=1, dtype=np.uint16)
            near = np.flatnonzero(apart <= self._max_sum)
            product, other_product = colors[near, _OF_PRODUCT], others[near, _OF_PRODUCT]
            near = near[product_color_differences(product, other_product) <= self._max_product]
            np.minimum.at(self.nearest, some[near], smaller[near].astype(np.int32))


def _num_bands(hashes: Hashes, max_distance: int) -> int:
    """Returns the number of bands with the least work. More bands make smaller buckets, but more tables."""
    if max_distance == 0:
        return 1
    sample = np.unique(hashes[:: 1 + len(hashes) // _SAMPLE])
    scale = (len(hashes) / max(1, len(sample))) ** 2
    costs = {}
    for num_bands in range(max_distance + 1, max_distance + 6):
        keys = sample & np.bitwise_or.reduce(_bands(num_bands)[max_distance:])
        sizes = np.unique(keys, return_counts=True)[1]
        num_pairs = scale * float((sizes * (sizes - 1)).sum()) / 2
        costs[num_bands] = math.comb(num_bands, max_distance) * (_ROW_COST * len(hashes) + num_pairs)
    return min(costs, key=costs.__getitem__)


def _bands(num_bands: int) -> Hashes:
    """Returns a bit mask per band. Neighbouring bits, which are often alike, are in different bands."""
    masks = [sum(1 << bit for bit in range(band, _HASH_BITS, num_bands)) for band in range(num_bands)]
    return np.array(masks, np.uint64)
