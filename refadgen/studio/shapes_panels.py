"""Curves, and swelling panels between two of them: the building block of shapes without an axis of rotation."""

import numpy as np

from refadgen.studio.meshes import Material, Part, Points, joined, surface


def spline(points: Points, steps: int = 6) -> np.ndarray:
    """A smooth curve [steps·(N-1)+1, D] through `points` [N, D] (Catmull-Rom)."""
    knots = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = (np.arange(steps) / steps)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]
    return np.concatenate([*pieces, knots[-1:]])


def polyline(points: Points, steps: int = 6) -> np.ndarray:
    """Straight lines [steps·(N-1)+1, D] through `points` [N, D], each divided into `steps`."""
    knots = np.asarray(points, dtype=np.float64)
    where = np.linspace(0, len(knots) - 1, steps * (len(knots) - 1) + 1)
    return np.stack([np.interp(where, np.arange(len(knots)), column) for column in knots.T], axis=1)


def panel(
    name: str,
    material: Material,
    bottom: np.ndarray,
    top: np.ndarray,
    thickness: float,
    *,
    edge: float = 0.03,
    fullness: tuple[float, float] = (4.0, 4.0),
    wide_foot: bool = False,
    rows: int = 15,
) -> Part:
    """A swelling body whose outline in x–y consists of two curves [N, 2], `bottom` and `top`, both from left to right.

    Its thickness grows from `edge` at the outline to `thickness` in the middle; with both equal it is a flat plate.
    fullness: along x and y, how near to the outline it stays thick; 2 is round, 20 nearly a box. wide_foot: it is thick
    down to the bottom curve. rows: of the mesh. The label covers the bounding box, flat on front and back.
    """
    height = (np.sin(np.pi / 2 * np.linspace(-1, 1, rows)) + 1) / 2  # rows crowd where the swelling is steep
    outline = bottom + height[:, None, None] * (top - bottom)
    middle = (bottom + top) / 2
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(middle, axis=0), axis=1))])
    s, t = 2 * length / length[-1] - 1, (height if wide_foot else 2 * height - 1)[:, None]
    swelling = ((1 - np.abs(s) ** fullness[0]) * (1 - np.abs(t) ** fullness[1])).clip(0) ** 0.5
    half = (edge + (thickness - edge) * swelling) / 2
    front = np.concatenate([outline, half[..., None]], axis=-1)
    back = front * [1, 1, -1]
    rim = np.concatenate([front[0], front[1:, -1], front[-1, -2::-1], front[-2::-1, 0]])
    none = np.zeros((2, len(rim), 2))
    sheets = [
        surface(name, material, front, np.zeros_like(outline)),
        surface(name, material, back[:, ::-1], np.zeros_like(outline)),
        surface(name, material, np.stack([rim * [1, 1, -1], rim]), none),
    ]
    low, high = outline.min(axis=(0, 1)), outline.max(axis=(0, 1))
    return joined(name, sheets).labelled(low[0], high[0], low[1], high[1])
