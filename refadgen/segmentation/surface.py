"""The smooth surface of colour through the border of a photograph: its backdrop, if the backdrop is plain."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REACHES = (30.0, 20.0, 1.0, 1.0, 0.5, 0.5)
"""One fit each. A colour at half this distance from the surface before has half its weight. The first two are in ΔE,
the others shares of the tolerance. They shrink, so that far colours (the product) lose their weight step by step."""


@dataclass(frozen=True)
class Surface:
    """A smooth surface of colour.

    lab: float32 HW3, CIE Lab, its colour at every pixel, also behind the product. plain: 0 to 1, the share of the
    pixels it was fitted to that lie within the tolerance. noise: the spread of these, in ΔE. center: float64 [3], the
    median colour of all it was fitted to.
    """

    lab: npt.NDArray[np.float32]
    plain: float
    noise: float
    center: npt.NDArray[np.float64]


def border_of(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Bool HW: a band along the image's border, 1.5 % of the shorter side wide, at least two pixels.

    shape: begins with height and width.
    """
    band = max(2, round(0.015 * min(shape[:2])))
    border = np.ones(shape[:2], bool)
    border[band:-band, band:-band] = False
    return border


def fit_surface(lab: npt.NDArray[np.float32], tolerance: float, where: npt.NDArray[np.bool_] | None = None) -> Surface:
    """Fits a quadratic surface to the colours of the pixels `where` (bool HW; None: the border).

    lab: float32 HW3, CIE Lab. tolerance: in ΔE*ab, how far a colour of the backdrop may lie from the surface.
    Robust: a product that covers up to a sixth of the border bends it by 2 ΔE at most, if their colours differ by some
    25 ΔE. A larger or nearer one may pass for a steep gradient, above all around a corner.
    """
    where = border_of(lab.shape) if where is None else where
    # 20,000 pixels determine six coefficients; a flooded background has up to a million.
    pixels = np.flatnonzero(where)[:: max(1, np.count_nonzero(where) // 20_000)]
    rows, columns = np.divmod(pixels, where.shape[1])
    colors, basis = lab[rows, columns].astype(np.float64), _terms(rows, columns, where.shape)
    center = np.median(colors, axis=0)
    residual = np.linalg.norm(colors - center, axis=1)
    coefficients = np.zeros((basis.shape[1], 3))
    coefficients[0] = center
    for reach in (*REACHES[:2], *(share * tolerance for share in REACHES[2:])):
        weight = 1 / (1 + (residual / (reach / 2)) ** 2)[:, None]
        ridge = 1e-3 * len(basis) * np.diag([0, 1, 1, 3, 3, 3])  # flat where the pixels leave the surface open
        normal = basis.T @ (weight * basis) + ridge
        coefficients = np.linalg.solve(normal, basis.T @ (weight * colors))
        residual = np.linalg.norm(colors - basis @ coefficients, axis=1)
    plain = residual < tolerance
    # 1.4826 times the median deviation estimates a standard deviation that outliers do not move.
    noise = 1.4826 * float(np.median(residual[plain])) if plain.any() else tolerance
    return Surface(_evaluated(coefficients, where.shape), float(plain.mean()), noise, center)


def _terms(
    rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """float64 [N, 6]: the terms of a quadratic surface at N pixels. Coordinates run from -1 to 1 over the image."""
    y, x = 2 * rows / max(1, shape[0] - 1) - 1, 2 * columns / max(1, shape[1] - 1) - 1
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _evaluated(coefficients: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """float32 HW3: the quadratic surface of `coefficients` (6 by 3, in the order of `_terms`) over the image."""
    one, x, y, xx, xy, yy = coefficients.astype(np.float32)
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[:, None]
    along_rows, along_columns = y * rows + yy * rows**2, one + x * columns + xx * columns**2
    surface: npt.NDArray[np.float32] = along_rows[:, None] + along_columns[None] + rows[:, None] * (xy * columns)[None]
    return surface
