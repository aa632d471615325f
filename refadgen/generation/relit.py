"""An ad and its placed product compared after the ad's light is taken out: where they differ most, and how hues turn.

The product is compared in cells, some 96 along the diagonal of its box, in linear light. From the ratio of both come a
broad light (shade, exposure) and one tint for the whole product, mostly along the line from warm to cool light. Both
are estimated robustly, so that a changed part does not count as light.
"""

import cv2
import numpy as np
import numpy.typing as npt

ImageU8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_DIAGONAL = 96
"""Cells along the diagonal of the product's box."""
_LIGHT_CELLS = 6.0
"""Gaussian deviation of what counts as light."""
_LIGHT_RANGE = (-1.5, 1.2)
"""Natural logarithm of the light; what is darker or brighter counts as a difference."""
_WARM = np.array([1, 0, -1], np.float32)
"""Direction of the tint in log RGB: daylight that gets warmer."""
_OTHER_TINT = 0.3
"""Share of a tint in other directions that counts as light: lamps are seldom green or pink."""
_DARK = 0.02
"""Linear light that is added to both before they are divided: dark pixels say little."""
_FINE_CELLS, _BROAD_CELLS = 1.5, 3.5
"""Gaussian deviations within which differences are averaged: small print, and parts of the product."""
_BROAD_SHARE = 0.9
"""Weight of broad differences beside fine ones, which count without what they have in common with their surroundings:
that is rather a light that was not estimated well."""
_LIGHTNESS_SHARE = 0.4
"""Weight of lightness beside a and b: highlights and cast shadows change it most."""
_FULL_WEIGHT = 0.6
"""Share of the product around a cell below which its difference counts less: rims and wires are noisy."""
_COLORFUL = 15.0
"""Mean chroma from which on hues count in full; grey has none."""


def relit_similarities(image_u8: ImageU8, canvas_u8: ImageU8, inside: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Local and hue similarity, 0 to 1 each.

    image_u8, canvas_u8: H×W×3. inside: H×W, the product; not empty. Local: 1 − ΔE / 100 at the place where both differ
    most. Hue: 1 − the mean turn of the hue / 30°, weighted by chroma.
    """
    weight, lab, own_lab = _in_one_light(image_u8, canvas_u8, inside)
    return _local(lab - own_lab, weight), _hue(lab, own_lab, weight)


def color_drift(image_u8: ImageU8, canvas_u8: ImageU8, inside: npt.NDArray[np.bool_]) -> float | None:
    """How far the product's colours have drifted, apart from the light: the mean distance in CIELAB's a and b.

    Shapes: as `relit_similarities`. 0: not at all; about 2 is just seen. Lightness does not count: shade and highlights
    are light. None: the product is nowhere broader than a cell.
    """
    if not inside.any():
        return None
    weight, lab, own_lab = _in_one_light(image_u8, canvas_u8, inside)
    if not weight.any():
        return None
    around = np.maximum(_blur(weight, _FINE_CELLS), 1e-4)[..., None]
    # Blurred before its length is taken, so that noise cancels out.
    difference = _blur((lab - own_lab)[..., 1:] * weight[..., None], _FINE_CELLS) / around
    return float(np.average(np.linalg.norm(difference, axis=-1), weights=weight))


def _in_one_light(
    image_u8: ImageU8, canvas_u8: ImageU8, inside: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """The share of product in each cell, and both pictures there in one light, CIELAB."""
    weight, seen, given = _cells(image_u8, canvas_u8, inside)
    light, tint = _light(seen, given, weight)
    half = np.exp(0.5 * light)[..., None]  # halfway between both lights: neither saturates
    return weight, _lab(seen / half), _lab(given * half * np.exp(tint))


def _cells(image_u8: ImageU8, canvas_u8: ImageU8, inside: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """The share of product in each cell, 0 where most is not; and both pictures there, linear RGB."""
    mask = inside.astype(np.uint8)
    core = cv2.erode(mask, np.ones((3, 3), np.uint8))  # pixels at the contour are mixed with what is behind
    if core.sum() > 0.3 * mask.sum():
        mask = np.asarray(core, np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    box, scale = (slice(top, top + height), slice(left, left + width)), _DIAGONAL / float(np.hypot(width, height))
    size = (max(4, round(width * scale)), max(4, round(height * scale)))
    share = cv2.resize(mask[box].astype(np.float32), size, interpolation=cv2.INTER_AREA)

    def linear(pixels_u8: ImageU8) -> Floats:
        cut = cv2.bitwise_and(pixels_u8[box], pixels_u8[box], mask=mask[box])
        mean = cv2.resize(cut, size, interpolation=cv2.INTER_AREA) / (255 * np.maximum(share, 1e-3))[..., None]
        value = np.minimum(mean, 1)
        return np.asarray(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), np.float32)

    return np.where(share > 0.5, share, 0).astype(np.float32), linear(image_u8), linear(canvas_u8)


def _light(seen: Floats, given: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The logarithm of the light on each cell, and of the tint: three numbers of mean 0."""
    ratio = np.log((seen + _DARK) / (given + _DARK))
    trusted = given / (given + 0.05) * weight[..., None]  # a dark channel says little about the light
    total = np.maximum(trusted.sum(-1), 1e-4)
    tint = np.zeros(3, np.float32)
    light = np.zeros_like(weight)
    for _ in range(3):
        each = np.clip(((ratio - tint) * trusted).sum(-1) / total, *_LIGHT_RANGE)
        light = _smooth(each, weight, _LIGHT_CELLS)
        light = _smooth(each, weight / (1 + ((each - light) / 0.3) ** 2), _LIGHT_CELLS)  # highlights are not the light
        rest = np.clip(ratio - light[..., None], -1, 1)
        robust = trusted / (1 + ((rest - tint) / 0.2) ** 2) + 1e-6
        warm = (rest * robust * _WARM).sum() / (robust * _WARM**2).sum() * _WARM
        free = (rest * robust).sum((0, 1)) / robust.sum((0, 1))
        tint = np.asarray((1 - _OTHER_TINT) * warm + _OTHER_TINT * (free - free.mean()), np.float32)
    return light, tint


def _local(difference: Floats, weight: Floats) -> float:
    """difference: H×W×3, CIELAB."""
    around = np.maximum(_blur(weight, _BROAD_CELLS), 1e-4)[..., None]
    fine = np.asarray(difference - _blur(difference * weight[..., None], _BROAD_CELLS) / around, np.float32)
    worst = max(
        _largest(fine, weight, _FINE_CELLS),
        _BROAD_SHARE * _largest(difference, weight, _BROAD_CELLS),
    )
    return max(0.0, 1 - worst / 100)


def _largest(difference: Floats, weight: Floats, sigma: float) -> float:
    """The largest mean ΔE of any place."""
    distance = np.linalg.norm(difference * np.array([_LIGHTNESS_SHARE, 1, 1], np.float32), axis=-1) * weight
    means = _blur(distance, sigma) / np.maximum(_blur(weight, sigma), _FULL_WEIGHT)
    return float(means[weight > 0].max(initial=0))


def _hue(lab: Floats, own_lab: Floats, weight: Floats) -> float:
    color, own = (each[..., 1] + 1j * each[..., 2] for each in (lab, own_lab))
    chroma = np.minimum(np.abs(color), np.abs(own)) * weight
    turn = color * np.conj(own)
    mean = np.angle((turn / np.maximum(np.abs(turn), 1e-6) * chroma).sum())
    colorful = min(1.0, float(chroma.sum() / max(weight.sum(), 1)) / _COLORFUL)
    return max(0.0, 1 - abs(float(np.degrees(mean))) * colorful / 30)


def _smooth(values: Floats, weight: Floats, sigma: float) -> Floats:
    """The Gaussian mean of the product's cells."""
    return np.asarray(_blur(values * weight, sigma) / np.maximum(_blur(weight, sigma), 1e-4), np.float32)


def _blur(values: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(values.astype(np.float32, copy=False), (0, 0), sigma), np.float32)


def _lab(linear: Floats) -> Floats:
    value = np.clip(linear, 1e-9, 1)
    coded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.asarray(cv2.cvtColor(coded.astype(np.float32), cv2.COLOR_RGB2LAB), np.float32)
