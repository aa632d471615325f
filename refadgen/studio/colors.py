"""Colours: sRGB 0–255 as everywhere in files, and linear light as in the path tracer."""

import colorsys

import numpy as np

Color = tuple[int, int, int]
"""sRGB, 0–255."""


def rgb_of(hue: float, saturation: float, value: float) -> Color:
    """An HSV colour, each 0 … 1, as sRGB."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0–255, of any shape, as linear light 0 … 1."""
    share = srgb / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
