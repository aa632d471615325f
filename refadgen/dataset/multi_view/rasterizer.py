"""The rasterizer of 3D Gaussian Splatting (Kerbl et al. 2023): Gaussians and a pinhole camera give a picture.

`rasterize` runs the torch reference below, or the CUDA kernels of the package gsplat; both compute the same picture.
The local affine approximation of the projection (EWA, Zwicker et al. 2001) maps a Gaussian's covariance to the picture.
A pixel's reconstruction filter widens it. Each pixel blends its Gaussians from front to back.

Axes: x to the right, y down, z away from the camera. A pixel (column, row) is centred at (column + ½, row + ½).
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from refadgen.dataset.multi_view.gaussians import Gaussians

FILTER_PX2 = 0.3
"""Variance of a pixel's reconstruction filter, in px² (3DGS's code)."""
MIN_ALPHA, MAX_ALPHA = 1 / 255, 0.999
"""The limits of gsplat's kernels: with others the reference would draw another picture."""
MIN_TRANSMITTANCE = 1e-4
"""A pixel is complete before the Gaussian that would reduce its transmittance below this."""
NEAR = 0.01
"""Smallest depth at which a Gaussian is drawn."""
_MAX_PAIRS = 1_000_000
"""Pairs of pixel and Gaussian per step: about 100 MB."""

Backend = Literal["torch", "gsplat"]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera. It shows (x, y, z) = rotation · point + translation at principal + focal_px · (x, y) / z."""

    rotation: Tensor
    """float32 [3, 3], world to camera."""
    translation: Tensor
    """float32 [3]."""
    focal_px: float
    principal: tuple[float, float]
    """Principal point x, y, in pixels from the top left corner of the picture."""
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Splats:
    """Gaussians projected to a camera's picture."""

    centers: Tensor
    """[N, 2]: x, y in pixels."""
    covariances: Tensor
    """[N, 3]: xx, xy, yy in px², without the pixel's filter."""
    depths: Tensor
    """[N], along the camera's axis."""


def rasterize(gaussians: Gaussians, camera: Camera, backend: Backend = "torch") -> tuple[Tensor, Tensor]:
    """Renders Gaussians on black.

    Returns colours float32 [H, W, C], the C channels of `gaussians.colors` weighted by alpha, and alpha float32 [H, W],
    0…1. The reference is deterministic and runs on the Gaussians' device; gsplat needs them on a CUDA device.
    """
    if backend == "gsplat":
        return _rasterize_gsplat(gaussians, camera)
    return _rasterize_torch(gaussians, camera)


def choose_backend(name: str, device: torch.device) -> Backend:
    """Returns the backend for `multi_view.rasterizer`. Raises: ValueError where gsplat is asked for and cannot run."""
    package = importlib.util.find_spec("gsplat") is not None
    if name == "auto":
        return "gsplat" if package and device.type == "cuda" else "torch"
    if name == "gsplat" and not package:
        raise ValueError("multi_view.rasterizer='gsplat': the package gsplat is not installed; auto does without")
    if name == "gsplat" and device.type != "cuda":
        raise ValueError(f"multi_view.rasterizer='gsplat': needs CUDA, but multi_view.device is {device}")
    return "gsplat" if name == "gsplat" else "torch"


def project(gaussians: Gaussians, camera: Camera) -> Splats:
    """Projects Gaussians to a camera's picture: cov2d = J W Σ Wᵀ Jᵀ (Kerbl et al. 2023, Eq. 5)."""
    points = gaussians.means @ camera.rotation.T + camera.translation
    x, y, z = points.unbind(1)
    z = z.clamp(min=NEAR)  # those nearer are not drawn; this only keeps their numbers finite
    focal, (center_x, center_y) = camera.focal_px, camera.principal
    zero = torch.zeros_like(z)
    along_x = torch.stack([focal / z, zero, -focal * x / z**2], 1)
    along_y = torch.stack([zero, focal / z, -focal * y / z**2], 1)
    # With Σ = L Lᵀ, J W L is enough: its product with itself is cov2d, and symmetric by construction.
    half = torch.stack([along_x, along_y], 1) @ (camera.rotation @ gaussians.half_covariances())
    covariances = torch.stack([(half[:, i] * half[:, j]).sum(1) for i, j in ((0, 0), (0, 1), (1, 1))], 1)
    centers = torch.stack([center_x + focal * x / z, center_y + focal * y / z], 1)
    return Splats(centers, covariances, points[:, 2])


@dataclass(frozen=True)
class _Sorted:
    """The splats inside the picture, nearest first, with the values that compositing needs."""

    centers: Tensor
    conics: Tensor
    """[N, 3]: xx, xy, yy of the inverse of the widened covariance."""
    low: Tensor
    """int64 [N, 2]: the first column and row that a splat may reach."""
    high: Tensor
    """int64 [N, 2]: one more than the last column and row."""
    opacities: Tensor
    colors: Tensor

    def inside(self, tile: tuple[int, int, int, int]) -> "_Sorted":
        """Returns the splats that reach into a tile (left, top, right, bottom), cut to it."""
        low = torch.maximum(self.low, self.low.new_tensor(tile[:2]))
        high = torch.minimum(self.high, self.high.new_tensor(tile[2:]))
        keep = (low < high).all(1)
        return _Sorted(
            self.centers[keep], self.conics[keep], low[keep], high[keep], self.opacities[keep], self.colors[keep]
        )

    def num_pairs(self) -> int:
        return int((self.high - self.low).prod(1).sum())


def _rasterize_torch(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, Tensor]:
    splats = _sort(gaussians, camera)
    color = splats.colors.new_zeros((camera.height_px, camera.width_px, splats.colors.shape[1]))
    alpha = splats.colors.new_zeros((camera.height_px, camera.width_px))
    for tile, reaching in _tiles(splats, (0, 0, camera.width_px, camera.height_px)):
        left, top, right, bottom = tile
        tile_color, tile_alpha = _composite(reaching, tile)
        color[top:bottom, left:right], alpha[top:bottom, left:right] = tile_color, tile_alpha
    return color, alpha


def _sort(gaussians: Gaussians, camera: Camera) -> _Sorted:
    splats = project(gaussians, camera)
    xx, xy, yy = (splats.covariances + splats.covariances.new_tensor([FILTER_PX2, 0, FILTER_PX2])).unbind(1)
    conics = torch.stack([yy, -xy, xx], 1) / (xx * yy - xy**2)[:, None]
    # Alpha is at least MIN_ALPHA within so many standard deviations; the margin covers rounding.
    reach = (2 * (gaussians.opacities / MIN_ALPHA).clamp(min=1).log()).sqrt() * 1.0001
    extent = reach[:, None] * torch.stack([xx, yy], 1).sqrt()
    size = torch.tensor([camera.width_px, camera.height_px], device=extent.device)
    low = (splats.centers - extent - 0.5).ceil().long().clamp(min=0)
    high = torch.minimum((splats.centers + extent + 0.5).floor().long(), size)
    seen = (splats.depths > NEAR) & (low < high).all(1) & (gaussians.opacities >= MIN_ALPHA)
    index = seen.nonzero()[:, 0]
    index = index[torch.argsort(splats.depths[index], stable=True)]
    columns = (splats.centers, conics, low, high, gaussians.opacities, gaussians.colors)
    return _Sorted(*(each[index] for each in columns))


def _tiles(splats: _Sorted, tile: tuple[int, int, int, int]) -> Iterator[tuple[tuple[int, int, int, int], _Sorted]]:
    """Yields tiles (left, top, right, bottom) with the splats that reach them, at most _MAX_PAIRS each or one pixel."""
    left, top, right, bottom = tile
    splats = splats.inside(tile)
    if splats.num_pairs() <= _MAX_PAIRS or (right - left == 1 and bottom - top == 1):
        yield tile, splats
    elif right - left > bottom - top:
        middle = (left + right) // 2
        yield from _tiles(splats, (left, top, middle, bottom))
        yield from _tiles(splats, (middle, top, right, bottom))
    else:
        middle = (top + bottom) // 2
        yield from _tiles(splats, (left, top, right, middle))
        yield from _tiles(splats, (left, middle, right, bottom))


def _composite(splats: _Sorted, tile: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Returns colour [h, w, C] and alpha [h, w] of one tile."""
    left, top, right, bottom = tile
    width, height = right - left, bottom - top
    index, column, row, alpha = _pairs(splats)
    pixel = ((row - top) * width + column - left).int()
    # The splats are sorted nearest first: after a stable sort by pixel each pixel's splats are still front to back.
    pixel, order = torch.sort(pixel, stable=True)
    index, alpha = index[order], alpha[order]
    counts = torch.bincount(pixel, minlength=width * height)
    weight = alpha * _transmittance(alpha, counts)
    color = torch.segment_reduce(weight[:, None] * splats.colors[index], "sum", lengths=counts, axis=0, unsafe=True)
    total = torch.segment_reduce(weight, "sum", lengths=counts, unsafe=True)
    return color.reshape(height, width, -1), total.reshape(height, width)


def _pairs(splats: _Sorted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns splat, column, row and alpha of each pair of pixel and splat with alpha of MIN_ALPHA or more.

    The nearest splat comes first.
    """
    size = splats.high - splats.low
    counts = size.prod(1)
    index = torch.repeat_interleave(counts)
    place = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[index]
    row = torch.div(place, size[index, 0], rounding_mode="floor")
    column = place - row * size[index, 0] + splats.low[index, 0]
    row = row + splats.low[index, 1]
    x = column + 0.5 - splats.centers[index, 0]
    y = row + 0.5 - splats.centers[index, 1]
    xx, xy, yy = splats.conics[index].unbind(1)
    falloff = torch.exp(-0.5 * (xx * x * x + yy * y * y) - xy * x * y)
    alpha = (splats.opacities[index] * falloff).clamp(max=MAX_ALPHA)
    keep = (alpha >= MIN_ALPHA).nonzero()[:, 0]
    return index[keep], column[keep], row[keep], alpha[keep]


def _transmittance(alpha: Tensor, counts: Tensor) -> Tensor:
    """Returns the transmittance [P] of each pair: the light that the splats in front of it in its pixel let through.

    0 once a pixel is complete. alpha: [P], pixel by pixel, front to back; counts: pairs per pixel.
    """
    # A cumulative product over all pairs, divided by its value at the pixel's first pair. As sums of logarithms in
    # float64: the product of millions of factors would underflow.
    through = torch.log1p(-alpha.double())
    after = through.cumsum(0)
    before = after - through
    first = (counts.cumsum(0) - counts)[counts > 0]
    start = torch.repeat_interleave(before[first], counts[counts > 0])
    # As in 3DGS, the pair that would cross the limit is left out itself.
    ended = (after - start) <= torch.tensor(MIN_TRANSMITTANCE).log().item()
    return torch.exp(before - start).masked_fill(ended, 0).to(alpha.dtype)


def _rasterize_gsplat(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, Tensor]:
    from gsplat import rasterization

    device = gaussians.means.device
    view = torch.eye(4, device=device)
    view[:3, :3], view[:3, 3] = camera.rotation, camera.translation
    (center_x, center_y), focal = camera.principal, camera.focal_px
    lens = torch.tensor([[focal, 0, center_x], [0, focal, center_y], [0, 0, 1]], device=device)
    color, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=gaussians.colors,
        viewmats=view[None],
        Ks=lens[None],
        width=camera.width_px,
        height=camera.height_px,
        near_plane=NEAR,
        eps2d=FILTER_PX2,
        rasterize_mode="classic",  # the reference does not compensate for the filter's widening either
    )
    return color[0], alpha[0, :, :, 0]
