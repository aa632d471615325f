"""From pixels to Gaussians: a closed shell of flat Gaussians (surfels).

Each pixel of the product has one surfel on the front surface and one on the back; a rim closes the edge between them.

World axes: x to the right, y down, z away from the camera, in pixels of the photograph. The origin is the middle of the
product's box, on the plane of the turning axis. The photograph's camera stands at z = −distance and looks along z.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from refadgen.dataset.multi_view.depth import Relief

SIGMA_PX = 0.36
"""Standard deviation of a Gaussian in the photograph: neighbours just close the surface."""
MAX_SIGMA = 0.02
"""Largest standard deviation, as a share of the product's size. Where the relief jumps farther, the surface is torn."""
OPACITY = 0.999
"""As opaque as the rasterizer lets a Gaussian be (MAX_ALPHA)."""
_THICKNESS_PX = 0.05
_RIM_STEP_PX = 1.0
_EDGE_PX = 2.5
"""How far colours from inside replace those of the mask's outermost pixels."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """N Gaussians of 3D Gaussian Splatting, float32."""

    means: Tensor
    """[N, 3]."""
    quats: Tensor
    """[N, 4]: unit quaternions w, x, y, z."""
    scales: Tensor
    """[N, 3]: standard deviations along the rotated axes."""
    opacities: Tensor
    """[N], 0…1."""
    colors: Tensor
    """[N, C], any channels; `lift` gives red, green and blue, 0…1."""

    def __len__(self) -> int:
        return len(self.means)

    def rotations(self) -> Tensor:
        """Returns rotations [N, 3, 3]; the columns are the Gaussians' axes."""
        w, x, y, z = self.quats.unbind(1)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    def half_covariances(self) -> Tensor:
        """Returns L [N, 3, 3] with the covariance Σ = L Lᵀ = R S Sᵀ Rᵀ (Kerbl et al. 2023, Eq. 6)."""
        return self.rotations() * self.scales[:, None]

    def facing(self, eye: Tensor) -> Tensor:
        """Returns bool [N]: whether a surfel of a shell has its outside toward `eye` [3]. The others are hidden."""
        return ((eye - self.means) * self.rotations()[:, :, 2]).sum(1) > 0

    def chosen(self, which: Tensor) -> "Gaussians":
        """Returns the Gaussians that a mask or an index selects."""
        return Gaussians(
            means=self.means[which],
            quats=self.quats[which],
            scales=self.scales[which],
            opacities=self.opacities[which],
            colors=self.colors[which],
        )


@dataclass(frozen=True)
class Shell:
    """The product's surface, as `lift` makes it."""

    gaussians: Gaussians
    """Front, back and rim in this order. Each surfel's third axis is the outward normal."""
    num_front: int
    """Number of surfels on the front: those that the photograph shows."""

    def to(self, device: torch.device) -> "Shell":
        """Returns the shell on a device."""
        own = self.gaussians
        moved = {name: getattr(own, name).to(device) for name in ("means", "quats", "scales", "opacities", "colors")}
        return Shell(Gaussians(**moved), self.num_front)


def lift(image_u8: np.ndarray, mask: np.ndarray, relief: Relief, distance: float, center: tuple[float, float]) -> Shell:
    """Returns the shell of a product: a surfel per pixel on the relief's front, one on its back, and the rim.

    image_u8: uint8 [H, W, 3]; mask: uint8 [H, W], 0 or 255, not empty; distance: the camera's, in pixels; center: of
    the product's box, in pixels. A surfel covers its pixel on the surface, so it is longer where the surface is
    steeper. Surfels of the back and the rim have the colour of the pixel in front of them.
    """
    inside = mask > 127
    rows, columns = np.nonzero(inside)
    colors = clean_edge(image_u8, inside).astype(np.float64) / 255
    # A surface that is almost edge-on would give surfels of any length.
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
    """Returns the world points [N, 3] of pixels (rows [N], columns [N]) at heights relief [N]."""
    return _rays(rows, columns, distance, center) * (distance - relief)[:, None] - [0, 0, distance]


def _rays(rows: np.ndarray, columns: np.ndarray, distance: float, center: tuple[float, float]) -> np.ndarray:
    """Returns the rays [N, 3] through pixel centres, scaled to a depth of 1."""
    x, y = (columns + 0.5 - center[0]) / distance, (rows + 0.5 - center[1]) / distance
    return np.stack([x, y, np.ones(len(rows))], axis=1)


def _surface(
    surface: np.ndarray, inside: np.ndarray, distance: float, center: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the world points [N, 3] of pixels on a surface, and their derivatives [N, 3, 2] by column and by row."""
    rows, columns = np.nonzero(inside)
    across = np.zeros((len(rows), 3, 2))
    across[:, 0, 0] = across[:, 1, 1] = 1 - surface[inside] / distance
    slopes = np.stack([_slope(surface, inside, axis)[inside] for axis in (1, 0)], axis=1)
    across -= _rays(rows, columns, distance, center)[:, :, None] * slopes[:, None, :]
    return places(rows, columns, surface[inside], distance, center), across


def _slope(surface: np.ndarray, inside: np.ndarray, axis: int) -> np.ndarray:
    """Returns the slope [H, W] of a surface along an axis, from the neighbours that are inside; 0 without any."""
    values = np.pad(np.where(inside, surface, np.nan), 1, constant_values=np.nan)
    before, after = np.roll(values, 1, axis), np.roll(values, -1, axis)
    steps = np.stack([values - before, after - values])[:, 1:-1, 1:-1]
    known = np.isfinite(steps)
    slope: np.ndarray = np.where(known, steps, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return slope


def _surfels(across: np.ndarray, side: int, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns axes [N, 3, 3] and scales [N, 3] of surfels with the covariance SIGMA_PX² · across · acrossᵀ.

    side: 1 where the outside is toward the camera, −1 where it is away; longest: limit of the scales, in pixels.
    """
    # The principal axes of the 2×2 matrix acrossᵀ · across, in closed form.
    xx, xy, yy = ((across[:, :, i] * across[:, :, j]).sum(axis=1) for i, j in ((0, 0), (0, 1), (1, 1)))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)[:, None]
    long = np.cos(angle) * across[:, :, 0] + np.sin(angle) * across[:, :, 1]
    short = np.cos(angle) * across[:, :, 1] - np.sin(angle) * across[:, :, 0]
    lengths = np.stack([np.linalg.norm(long, axis=1), np.linalg.norm(short, axis=1)], axis=1)
    long, short = long / lengths[:, :1], short / lengths[:, 1:]
    # long × short points away from the camera. For an outside toward the camera the normal changes its sign, and `long`
    # with it: a rotation must not mirror.
    axes = np.stack([-side * long, short, -side * np.cross(long, short)], axis=2)
    scales = np.minimum(SIGMA_PX * lengths, longest)
    return axes, np.concatenate([scales, np.full((len(scales), 1), _THICKNESS_PX)], axis=1)


def _rim(
    relief: Relief, inside: np.ndarray, distance: float, center: tuple[float, float], colors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns surfels that close the edge of the mask from front to back: means, axes, scales, colours."""
    around = np.pad(inside, 1)
    edge = inside & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
    rows, columns = np.nonzero(edge)
    height = np.maximum(relief.front - relief.back, 0)[edge].astype(np.float64)
    # Between front and back, without both: those have surfels already.
    num = np.maximum(np.ceil(height / _RIM_STEP_PX).astype(int) - 1, 0)
    each = np.repeat(np.arange(len(rows)), num)
    step = np.arange(len(each)) - np.repeat(np.cumsum(num) - num, num) + 1
    rows, columns = rows[each], columns[each]
    place = relief.back[rows, columns] + height[each] * step / (num[each] + 1)
    means = places(rows, columns, place, distance, center)
    # The outward direction: down the gradient of the blurred mask.
    soft = cv2.GaussianBlur(around.astype(np.float32), (0, 0), 1.5)
    out = -np.stack([np.gradient(soft, axis=axis)[rows + 1, columns + 1] for axis in (1, 0)], axis=1)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)
    out[(out == 0).all(axis=1)] = [1, 0]  # a pixel with the mask on no side or on all: any direction will do
    zero, one = np.zeros(len(rows)), np.ones(len(rows))
    normal, upright = np.stack([*out.T, zero], axis=1), np.stack([zero, zero, one], axis=1)
    axes = np.stack([np.cross(upright, normal), upright, normal], axis=2)
    scales = np.tile([SIGMA_PX, 0.6 * _RIM_STEP_PX, _THICKNESS_PX], (len(rows), 1))
    return means, axes, scales, colors[rows, columns]


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Returns the unit quaternions w, x, y, z [N, 4] of rotations [N, 3, 3]."""
    r = rotations
    xx, yy, zz = r[:, 0, 0], r[:, 1, 1], r[:, 2, 2]
    # Row i is the quaternion times four times its component i. The row of the largest component is the most exact.
    products = np.empty((len(r), 4, 4))
    for part, value in enumerate((1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz)):
        products[:, part, part] = value
    for i, j, k in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
        products[:, 0, i] = products[:, i, 0] = r[:, k - 1, j - 1] - r[:, j - 1, k - 1]
        products[:, i, j] = products[:, j, i] = r[:, i - 1, j - 1] + r[:, j - 1, i - 1]
    largest = np.einsum("nii->ni", products).argmax(axis=1)
    best = products[np.arange(len(r)), largest]
    unit: np.ndarray = best / np.linalg.norm(best, axis=1, keepdims=True)
    return unit


def clean_edge(image_u8: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the image with the mask's outermost pixels in the nearest colours from inside.

    The outermost pixels hold some of the background. image_u8: uint8 [H, W, 3]; inside: bool [H, W]. Parts too thin to
    have an inside keep their own colours.
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
