"""From pixels to Gaussians: a closed shell of flat Gaussians, one a pixel in front and behind, and a rim between them.

World axes: x to the right, y down, z away from the camera, in pixels of the photograph; the origin is the middle of the
product's box on the plane of the turning axis. The photograph's camera stands at z = −distance and looks along z.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from refadgen.dataset.multi_view.depth import Relief

SIGMA_PX = 0.36
"""Standard deviation of a Gaussian as the photograph's camera sees it: neighbours just close the surface."""
MAX_SIGMA = 0.02
"""The longest, as a share of the product's size: between surfaces that are farther apart there is nothing."""
OPACITY = 0.999
_THICKNESS_PX = 0.05
_RIM_STEP_PX = 1.0
_EDGE_PX = 2.5
"""How far colours are carried outwards, over the mask's outermost pixels."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """N Gaussians of 3D Gaussian Splatting, float32."""

    means: Tensor
    """[N, 3]."""
    quats: Tensor
    """[N, 4]: w, x, y, z of the rotation, of length 1."""
    scales: Tensor
    """[N, 3]: standard deviations along the rotated axes."""
    opacities: Tensor
    """[N], 0…1."""
    colors: Tensor
    """[N, C], any channels; of `lift` red, green and blue, 0…1."""

    def __len__(self) -> int:
        return len(self.means)

    def rotations(self) -> Tensor:
        """[N, 3, 3]; the columns are the Gaussians' axes."""
        w, x, y, z = self.quats.unbind(1)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    def half_covariances(self) -> Tensor:
        """L [N, 3, 3] with covariance Σ = L Lᵀ = R S Sᵀ Rᵀ (Kerbl et al. 2023, Eq. 6)."""
        return self.rotations() * self.scales[:, None]

    def facing(self, eye: Tensor) -> Tensor:
        """bool [N]: those of a shell whose outside is toward a point [3]. The others lie behind these."""
        return ((eye - self.means) * self.rotations()[:, :, 2]).sum(1) > 0

    def chosen(self, which: Tensor) -> "Gaussians":
        """Those of a mask or an index."""
        return Gaussians(
            means=self.means[which],
            quats=self.quats[which],
            scales=self.scales[which],
            opacities=self.opacities[which],
            colors=self.colors[which],
        )


@dataclass(frozen=True)
class Shell:
    """The product as `lift` makes it."""

    gaussians: Gaussians
    """Front, back and rim in this order; each one's third axis is the outward normal."""
    num_front: int
    """How many the photograph shows."""

    def to(self, device: torch.device) -> "Shell":
        """The same on a device."""
        own = self.gaussians
        moved = {name: getattr(own, name).to(device) for name in ("means", "quats", "scales", "opacities", "colors")}
        return Shell(Gaussians(**moved), self.num_front)


def lift(image_u8: np.ndarray, mask: np.ndarray, relief: Relief, distance: float, center: tuple[float, float]) -> Shell:
    """Every pixel of the product as a surfel on the front of the relief, one on its back, and the rim between them.

    image_u8: uint8 [H, W, 3]; mask: uint8 [H, W], 0 or 255, not empty; distance: of the camera, in pixels; center: of
    the product's box, in pixels. A surfel covers its pixel on the surface: it is as much longer as the surface is
    steeper there. The back and the rim wear the colours of the pixel in front of them.
    """
    inside = mask > 127
    rows, columns = np.nonzero(inside)
    colors = clean_edge(image_u8, inside).astype(np.float64) / 255
    longest = max(MAX_SIGMA * max(np.ptp(rows), np.ptp(columns)), SIGMA_PX)
    parts = []
    for surface, side in ((relief.front, 1), (relief.back, -1)):
        means, across = _surface(surface.astype(np.float64), inside, distance, center)
        parts.append((means, *_surfels(across, side, longest), colors[rows, columns]))
    parts.append(_rim(relief, inside, distance, center, colors))
    means, rotations, scales, colors = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Shell(
        Gaussians(
            means=_tensor(means),
            quats=_tensor(quaternions(rotations)),
            scales=_tensor(scales),
            opacities=torch.full((len(means),), OPACITY),
            colors=_tensor(colors),
        ),
        num_front=len(rows),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def places(
    rows: np.ndarray, columns: np.ndarray, relief: np.ndarray, distance: float, center: tuple[float, float]
) -> np.ndarray:
    """World points [N, 3] that the photograph shows in pixels, at this relief [N]."""
    return _rays(rows, columns, distance, center) * (distance - relief)[:, None] - [0, 0, distance]


def _rays(rows: np.ndarray, columns: np.ndarray, distance: float, center: tuple[float, float]) -> np.ndarray:
    """Through pixel centres, [N, 3], one unit deep."""
    x, y = (columns + 0.5 - center[0]) / distance, (rows + 0.5 - center[1]) / distance
    return np.stack([x, y, np.ones(len(rows))], axis=1)


def _surface(
    surface: np.ndarray, inside: np.ndarray, distance: float, center: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 3] of the pixels on a surface, and [N, 3, 2]: how much they move from column to column, row to row."""
    rows, columns = np.nonzero(inside)
    across = np.zeros((len(rows), 3, 2))
    across[:, 0, 0] = across[:, 1, 1] = 1 - surface[inside] / distance
    slopes = np.stack([_slope(surface, inside, axis)[inside] for axis in (1, 0)], axis=1)
    across -= _rays(rows, columns, distance, center)[:, :, None] * slopes[:, None, :]
    return places(rows, columns, surface[inside], distance, center), across


def _slope(surface: np.ndarray, inside: np.ndarray, axis: int) -> np.ndarray:
    """Of the surface along an axis, by the neighbours that are inside; 0 without any."""
    values = np.pad(np.where(inside, surface, np.nan), 1, constant_values=np.nan)
    before, after = np.roll(values, 1, axis), np.roll(values, -1, axis)
    steps = np.stack([values - before, after - values])[:, 1:-1, 1:-1]
    known = np.isfinite(steps)
    return np.where(known, steps, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _surfels(across: np.ndarray, side: int, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Axes [N, 3, 3] and scales [N, 3] of surfels with covariance SIGMA_PX² · across · acrossᵀ.

    side: 1 where the outside is toward the camera, −1 where it is away; longest: limit of the scales, in pixels.
    """
    xx, xy, yy = ((across[:, :, i] * across[:, :, j]).sum(axis=1) for i, j in ((0, 0), (0, 1), (1, 1)))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)[:, None]
    long = np.cos(angle) * across[:, :, 0] + np.sin(angle) * across[:, :, 1]
    short = np.cos(angle) * across[:, :, 1] - np.sin(angle) * across[:, :, 0]
    lengths = np.stack([np.linalg.norm(long, axis=1), np.linalg.norm(short, axis=1)], axis=1)
    long, short = long / lengths[:, :1], short / lengths[:, 1:]
    # Across columns and rows stand right-handed for someone who looks along z: toward the camera turns it round.
    axes = np.stack([-side * long, short, -side * np.cross(long, short)], axis=2)
    scales = np.minimum(SIGMA_PX * lengths, longest)
    return axes, np.concatenate([scales, np.full((len(scales), 1), _THICKNESS_PX)], axis=1)


def _rim(
    relief: Relief, inside: np.ndarray, distance: float, center: tuple[float, float], colors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Upright surfels that close the edge of the mask from front to back: means, axes, scales, colours."""
    around = np.pad(inside, 1)
    edge = inside & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
    rows, columns = np.nonzero(edge)
    height = np.maximum(relief.front - relief.back, 0)[edge].astype(np.float64)
    num = np.maximum(np.ceil(height / _RIM_STEP_PX).astype(int) - 1, 0)
    each = np.repeat(np.arange(len(rows)), num)
    step = np.arange(len(each)) - np.repeat(np.cumsum(num) - num, num) + 1
    rows, columns = rows[each], columns[each]
    place = relief.back[rows, columns] + height[each] * step / (num[each] + 1)
    means = places(rows, columns, place, distance, center)
    # The way out of the mask: down the slope of its blurred picture.
    soft = cv2.GaussianBlur(around.astype(np.float32), (0, 0), 1.5)
    out = -np.stack([np.gradient(soft, axis=axis)[rows + 1, columns + 1] for axis in (1, 0)], axis=1)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)
    out[(out == 0).all(axis=1)] = [1, 0]
    zero, one = np.zeros(len(rows)), np.ones(len(rows))
    normal, upright = np.stack([*out.T, zero], axis=1), np.stack([zero, zero, one], axis=1)
    axes = np.stack([np.cross(upright, normal), upright, normal], axis=2)
    scales = np.tile([SIGMA_PX, 0.6 * _RIM_STEP_PX, _THICKNESS_PX], (len(rows), 1))
    return means, axes, scales, colors[rows, columns]


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """w, x, y, z [N, 4] of rotations [N, 3, 3]."""
    r = rotations
    xx, yy, zz = r[:, 0, 0], r[:, 1, 1], r[:, 2, 2]
    # Four times the quaternion times each of its parts; the row of the largest part is the exact one.
    products = np.empty((len(r), 4, 4))
    for part, value in enumerate((1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz)):
        products[:, part, part] = value
    for i, j, k in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
        products[:, 0, i] = products[:, i, 0] = r[:, k - 1, j - 1] - r[:, j - 1, k - 1]
        products[:, i, j] = products[:, j, i] = r[:, i - 1, j - 1] + r[:, j - 1, i - 1]
    largest = np.einsum("nii->ni", products).argmax(axis=1)
    best = products[np.arange(len(r)), largest]
    return best / np.linalg.norm(best, axis=1, keepdims=True)


def clean_edge(image_u8: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The image with the mask's outermost pixels, which hold some of the background, in the colours inside of them.

    image_u8: uint8 [H, W, 3]; inside: bool [H, W]. Parts too thin to have an inside keep their own colours.
    """
    core = cv2.erode(np.pad(inside, 1).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    if not core.any():
        return image_u8
    far, nearest = cv2.distanceTransformWithLabels(1 - core, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rows, columns = np.nonzero(core)
    place = np.zeros((nearest.max() + 1, 2), np.int64)
    place[nearest[rows, columns]] = np.stack([rows, columns], axis=1)
    rows, columns = np.nonzero(inside & (core == 0) & (far <= _EDGE_PX))
    source = place[nearest[rows, columns]]
    cleaned = image_u8.copy()
    cleaned[rows, columns] = image_u8[source[:, 0], source[:, 1]]
    return cleaned
