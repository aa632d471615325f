"""A small filter against path tracing noise.

It smooths the light that falls on surfaces and leaves their print sharp: the image is divided by the surface colour,
averaged over neighbours of similar direction, depth and brightness, and multiplied by the surface colour again.
"""

import numpy as np

_RADIUS_PX = 2
_BRIGHTEST = 4.0
"""Single samples that hit a lamp in a mirror-like spot are clamped to this many times a white surface."""
_NORMAL_SPREAD = 0.25
_DEPTH_SPREAD = 0.15
"""In product heights."""
_LIGHT_SPREAD = 0.45
"""Relative: edges of cast shadows are stronger than this and stay sharp, noise is weaker."""


def denoise(pixels: np.ndarray) -> np.ndarray:
    """Filters a render.

    pixels: linear float32 [H, W, 11]: rgba (rgb weighted by alpha), albedo, normal, depth.
    Returns: rgba, float32 [H, W, 4], alpha unchanged.
    """
    rgb, alpha, albedo, normal, depth = np.split(pixels, [3, 4, 7, 10], axis=-1)
    albedo = np.where(depth > 0, albedo, 1.0)  # an environment map has no surface colour
    light = np.minimum(rgb / (albedo + 0.02), _BRIGHTEST)
    level = np.log(light.mean(axis=-1, keepdims=True) + 0.05)
    # Brightness is compared after smoothing, else a noisy pixel would differ from all neighbours and stay.
    level = _box3(level)
    guide = np.concatenate([normal / _NORMAL_SPREAD, depth / _DEPTH_SPREAD, level / _LIGHT_SPREAD, 4 * alpha], axis=-1)
    total, weights = np.zeros_like(light), np.zeros_like(alpha)
    for dy in range(-_RADIUS_PX, _RADIUS_PX + 1):
        for dx in range(-_RADIUS_PX, _RADIUS_PX + 1):
            near = _shifted(guide, dy, dx)
            weight = np.exp(-0.5 * ((near - guide) ** 2).sum(axis=-1, keepdims=True) - 0.1 * (dx * dx + dy * dy))
            total += weight * _shifted(light, dy, dx)
            weights += weight
    return np.concatenate([total / weights * (albedo + 0.02), alpha], axis=-1)


def _shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """`image` moved by (dy, dx) pixels, its border repeated."""
    rows = np.clip(np.arange(image.shape[0]) + dy, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) + dx, 0, image.shape[1] - 1)
    return image[rows[:, None], columns]


def _box3(image: np.ndarray) -> np.ndarray:
    """Mean of each 3 × 3 neighbourhood."""
    total = sum(_shifted(image, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    return np.asarray(total / 9)
