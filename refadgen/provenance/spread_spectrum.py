"""A watermark without weights: patterns of low contrast in the brightness, repeated tile by tile.

Each of 64 bits (48 of payload, 16 of CRC) adds or takes away one of 64 fixed patterns, which lie in middle frequencies:
they survive JPEG and a resize to half. Since the tile repeats, a crop only shifts it; a 65th pattern, the pilot, tells
shift and scale. The patterns are fixed: whoever reads this file can take the mark off, or put another one on.
"""

import binascii
import functools
import itertools

import cv2
import numpy as np
import numpy.typing as npt

ImageU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

TILE_PX = 128
SCALES = (1.0, 1 / 2, 2.0, 3 / 4, 2 / 3, 4 / 3, 3 / 2, 1 / 3, 1 / 4)
"""Sizes of a copy, as a share of the published file, at which a mark is looked for."""
_LOWEST, _HIGHEST = 5, 24
"""Frequencies of the patterns, in cycles a tile."""
_BITS = 64
_TARGET = 24.0
"""Wanted correlation of a bit's pattern, of unit length, with the mean tile."""
_PILOT = 75.0
_MOST = 36.0
"""Largest amplitude that is added for one bit, where the picture itself speaks against it."""
_STRENGTHS = (1.0, 1.5, 2.2)
"""Tried in turn until the payload is read back from JPEG of quality 70 and from half the size."""
_LEAST_PEAK = 6.5
"""Of the pilot, in deviations: one in 16,384 places of noise reaches 5 often and 6.5 about never."""
_UNSURE = 5
"""Bits of the weakest answers that are tried both ways until the CRC fits: 32 readings at most."""


class SpreadSpectrum:
    """See the module. A `Watermark`."""

    def embed(self, image_u8: ImageU8, payload: int) -> ImageU8:
        """See `Watermark`. The weakest of `_STRENGTHS` that survives, or else the strongest."""
        marked = image_u8
        for strength in _STRENGTHS:
            marked = self._marked(image_u8, payload, strength)
            if self._survives(marked, payload):
                break
        return marked

    def _survives(self, marked_u8: ImageU8, payload: int) -> bool:
        height, width = marked_u8.shape[:2]
        _, file = cv2.imencode(".jpg", marked_u8, [cv2.IMWRITE_JPEG_QUALITY, 70])
        again = cv2.imdecode(file, cv2.IMREAD_COLOR)
        assert again is not None, "the encoder's own file"
        assert again is not None  # it was just encoded
        small = cv2.resize(marked_u8, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
        return self._read_at(_as_u8(again), 1.0) == payload and self._read_at(_as_u8(small), 0.5) == payload

    def _marked(self, image_u8: ImageU8, payload: int, strength: float) -> ImageU8:
        """Patterns are stronger where the picture is busy, and hidden there."""
        height, width = image_u8.shape[:2]
        luma = _luma(image_u8)
        weight = _activity(luma)
        patterns = _patterns()
        signs = np.where(_bits(payload), 1.0, -1.0)
        # Informed: what the picture holds of a pattern counts, so a bit that it agrees with costs nothing.
        own = patterns[:_BITS].reshape(_BITS, -1) @ _folded(_middle(luma)).ravel()
        amplitudes = np.clip(_TARGET - signs * own, 0, _MOST) * signs
        tile = np.tensordot(amplitudes, patterns[:_BITS], 1) + _PILOT * patterns[_BITS]
        rows, columns = -(-height // TILE_PX), -(-width // TILE_PX)
        mark = np.tile(tile * strength, (rows, columns))[:height, :width] * weight
        return np.asarray(np.clip(np.rint(image_u8 + mark[..., None]), 0, 255), np.uint8)

    def read(self, image_u8: ImageU8) -> int | None:
        """See `Watermark`. Looks at each of `SCALES`."""
        for scale in SCALES:
            found = self._read_at(image_u8, scale)
            if found is not None:
                return found
        return None

    def _read_at(self, image_u8: ImageU8, scale: float) -> int | None:
        height, width = image_u8.shape[:2]
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
        if min(size) < TILE_PX // 2 or max(size) > 8192:
            return None
        luma = _luma(image_u8)
        if scale != 1:
            luma = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_CUBIC), np.float32)
        tile = _folded(_middle(luma))
        patterns = _patterns()
        spectrum = np.fft.fft2(tile)
        whitened = spectrum / (np.abs(spectrum) + 1e-6)
        surface = np.real(np.fft.ifft2(whitened * np.conj(np.fft.fft2(patterns[_BITS]))))
        peak = int(np.argmax(surface))
        if surface.flat[peak] < _LEAST_PEAK * surface.std():
            return None
        shift = np.unravel_index(peak, surface.shape)
        aligned = np.roll(tile, (-int(shift[0]), -int(shift[1])), (0, 1))
        return _payload(patterns[:_BITS].reshape(_BITS, -1) @ aligned.ravel())


def _payload(answers: npt.NDArray[np.float64]) -> int | None:
    """The payload whose CRC fits; None: none does. answers: of the 64 patterns, positive for a 1."""
    bits = answers > 0
    weakest = np.argsort(np.abs(answers))[:_UNSURE]
    for number in range(_UNSURE + 1):
        for flipped in itertools.combinations(weakest, number):
            tried = bits.copy()
            tried[list(flipped)] ^= True
            value = int("".join("1" if bit else "0" for bit in tried), 2)
            if _crc(value >> 16) == value & 0xFFFF:
                return value >> 16
    return None


def _bits(payload: int) -> npt.NDArray[np.bool_]:
    value = payload << 16 | _crc(payload)
    return np.array([digit == "1" for digit in f"{value:064b}"])


def _crc(payload: int) -> int:
    return binascii.crc_hqx(payload.to_bytes(6, "big"), 0xFFFF)


def _as_u8(image: npt.NDArray[np.generic]) -> ImageU8:
    return np.asarray(image, np.uint8)


def _luma(image_u8: ImageU8) -> Floats:
    return cv2.cvtColor(image_u8, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _middle(luma: Floats) -> Floats:
    """The middle frequencies, with strong edges cut: they are the picture's own, and would drown the patterns."""
    detail = cv2.GaussianBlur(luma, (0, 0), 1.0) - cv2.GaussianBlur(luma, (0, 0), 6.0)
    return np.asarray(np.clip(detail, -12, 12), np.float32)


def _activity(luma: Floats) -> Floats:
    """How much a mark is hidden, 0.6 in plain areas to 1.6 in busy ones."""
    detail = luma - cv2.GaussianBlur(luma, (0, 0), 3.0)
    busy = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 6.0))
    return np.asarray(np.clip(0.6 + busy / 12, 0.6, 1.6), np.float32)


def _folded(picture: Floats) -> npt.NDArray[np.float64]:
    """The mean tile."""
    height, width = picture.shape
    rows, columns = -(-height // TILE_PX), -(-width // TILE_PX)
    padded = np.zeros((rows * TILE_PX, columns * TILE_PX))
    padded[:height, :width] = picture
    covered = np.zeros_like(padded)
    covered[:height, :width] = 1
    shape, axes = (rows, TILE_PX, columns, TILE_PX), (0, 2)
    counts = covered.reshape(shape).sum(axes)
    return np.asarray(padded.reshape(shape).sum(axes) / np.maximum(counts, 1))


@functools.cache
def _patterns() -> npt.NDArray[np.float64]:
    """The 64 patterns of the bits and the pilot's, 65×128×128, each of length 1 and in the band."""
    rng = np.random.Generator(np.random.PCG64(0xAD))
    frequency = np.fft.fftfreq(TILE_PX) * TILE_PX
    radius = np.hypot(frequency[:, None], frequency[None])
    band = (radius >= _LOWEST) & (radius <= _HIGHEST)
    noise = rng.standard_normal((_BITS + 1, TILE_PX, TILE_PX))
    shaped = np.real(np.fft.ifft2(np.fft.fft2(noise) * band))
    # Orthogonal to each other: no bit speaks into another.
    flat = shaped.reshape(_BITS + 1, -1)
    orthogonal = np.linalg.qr(flat.T)[0].T
    orthogonal *= np.sign((orthogonal * flat).sum(1, keepdims=True))  # libraries may differ in the sign
    return np.ascontiguousarray(orthogonal).reshape(_BITS + 1, TILE_PX, TILE_PX)
