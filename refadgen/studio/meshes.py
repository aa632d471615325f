"""Mesh building blocks of the studio: triangle parts with normals and label coordinates.

Axes: x to the right, y up, z towards the camera. Lengths are in units of about one product height. Label coordinates
(u, v): the square [0, 1]² is one label, u to the right and v up as seen from the front; u repeats around the product.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

Material = Literal["body", "accent", "paper"]
"""What covers a part: the appearance's printed body, its secondary colour, or plain white paper."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One named piece of a product."""

    name: str
    material: Material
    vertices: np.ndarray
    """float64 [V, 3]."""
    normals: np.ndarray
    """float64 [V, 3], unit length, outwards."""
    uvs: np.ndarray
    """float64 [V, 2]; v stays in [0, 1], u may leave it."""
    faces: np.ndarray
    """int64 [F, 3], indices into `vertices`."""

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Part":
        """The part shifted by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def mapped(self, matrix: np.ndarray) -> "Part":
        """The part under a linear map, `matrix` [3, 3]; normals go by the inverse transpose."""
        normals = self.normals @ np.linalg.inv(matrix)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return replace(self, vertices=self.vertices @ matrix.T, normals=normals)


def rotation_y(angle_deg: float) -> np.ndarray:
    """Rotation [3, 3] about the upward axis; positive turns the front to the right."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_x(angle_deg: float) -> np.ndarray:
    """Rotation [3, 3] about the x axis; negative leans the top backwards."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles [2·(rows-1)·(columns-1), 3] of a rows × columns vertex grid."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None]).ravel()
    lower = np.stack([corner, corner + 1, corner + columns + 1], axis=1)
    upper = np.stack([corner, corner + columns + 1, corner + columns], axis=1)
    return np.concatenate([lower, upper])


def _split_at_creases(profile: np.ndarray, crease_deg: float) -> list[np.ndarray]:
    """Cuts a polyline [N, 2] where it bends by more than `crease_deg`, so that edges stay sharp."""
    steps = np.diff(profile, axis=0)
    angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    bends = np.abs((np.diff(angles) + 180) % 360 - 180)
    cuts = [0, *(np.flatnonzero(bends > crease_deg) + 1), len(profile) - 1]
    return [profile[a : b + 1] for a, b in pairwise(cuts)]


def lathe(
    name: str,
    material: Material,
    profile: list[tuple[float, float]] | np.ndarray,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    exponent: float = 2.0,
    label: tuple[float, float] | None = None,
    front_share: float = 0.5,
    crease_deg: float = 35.0,
    segments: int = 56,
) -> Part:
    """A profile swept around the y axis along a superellipse.

    `profile` [N, 2]: (radius, y) from bottom to top. `width`, `depth` scale x and z. `exponent` 2 is round, 8 nearly a
    box. `label`: y range that v = 0…1 covers, None for the whole profile. `front_share`: share of the way around that
    one label width covers. `crease_deg`: sharper bends keep a hard edge.
    """
    profile = np.maximum(np.asarray(profile, dtype=np.float64), [1e-4, -np.inf])
    bottom, top = label or (profile[:, 1].min(), profile[:, 1].max())
    theta = np.linspace(-np.pi, np.pi, segments + 1)  # 0 is the front (+z), so the seam is at the back
    sin, cos = np.sin(theta), np.cos(theta)
    x = np.sign(sin) * np.abs(sin) ** (2 / exponent) * width
    z = np.sign(cos) * np.abs(cos) ** (2 / exponent) * depth
    x[[0, -1]] = 0.0
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    u = 0.5 + (arc / arc[-1] - 0.5) / front_share
    dx, dz = (np.roll(a[:-1], -1) - np.roll(a[:-1], 1) for a in (x, z))
    dx, dz = np.append(dx, dx[0]), np.append(dz, dz[0])
    vertices, normals, uvs, faces, count = [], [], [], [], 0
    for run in _split_at_creases(profile, crease_deg):
        slope = np.gradient(run, axis=0)
        radius, y = run[:, :1], run[:, 1:]
        grid = np.stack([radius * x, np.broadcast_to(y, (len(run), len(x))), radius * z], axis=-1)
        around = np.stack([dx, np.zeros_like(dx), dz], axis=-1)[None]
        along = np.stack([slope[:, :1] * x, np.broadcast_to(slope[:, 1:], (len(run), len(x))), slope[:, :1] * z], -1)
        normal = np.cross(along, np.broadcast_to(around, along.shape))
        normal *= -1.0
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
        v = np.clip((y - bottom) / (top - bottom), 0, 1)
        vertices.append(grid.reshape(-1, 3))
        normals.append(normal.reshape(-1, 3))
        uvs.append(np.stack(np.broadcast_arrays(u[None], v), axis=-1).reshape(-1, 2))
        faces.append(_grid_faces(len(run), len(x)) + count)
        count += len(run) * len(x)
    return Part(
        name=name,
        material=material,
        vertices=np.concatenate(vertices),
        normals=np.concatenate(normals),
        uvs=np.concatenate(uvs),
        faces=np.concatenate(faces),
    )


def arc(x0: float, y0: float, radius: float, start_deg: float, end_deg: float, steps: int = 6) -> list[tuple]:
    """Points of a circular arc around (x0, y0), for profiles."""
    return [
        (x0 + radius * np.cos(a), y0 + radius * np.sin(a))
        for a in np.radians(np.linspace(start_deg, end_deg, steps + 1))
    ]


def tube(name: str, material: Material, path: np.ndarray, radius: float, *, segments: int = 14) -> Part:
    """A round tube along `path` [N, 3], which lies in a plane of constant z; both ends stay open."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, [0.0, 0.0, 1.0])
    theta = np.linspace(0, 2 * np.pi, segments + 1)
    normal = side[:, None] * np.cos(theta)[None, :, None] + np.array([0, 0, 1.0]) * np.sin(theta)[None, :, None]
    vertices = path[:, None] + radius * normal
    u, v = np.meshgrid(theta / (2 * np.pi), np.linspace(0, 1, len(path)))
    return Part(
        name=name,
        material=material,
        vertices=vertices.reshape(-1, 3),
        normals=normal.reshape(-1, 3),
        uvs=np.stack([u, v], axis=-1).reshape(-1, 2),
        faces=_grid_faces(len(path), segments + 1),
    )


def slab(
    name: str,
    material: Material,
    width: float,
    height: float,
    depth: float,
    *,
    exponent: float = 8.0,
    taper: float = 0.0,
    bevel: float = 0.02,
) -> Part:
    """An upright plate standing on y = 0: rounded outline in x–y, thickness in z, the label flat on front and back.

    `taper`: share of the width lost at the top. `bevel`: rounding of the front and back edges.
    """
    swept = lathe(
        name,
        material,
        [
            (1e-4, -depth / 2),
            (1 - 2 * bevel / width, -depth / 2),
            *[(1 - 2 * bevel / width * (1 - np.sin(a)), -depth / 2 + bevel * (1 - np.cos(a))) for a in (0.5, 1.0)],
            (1.0, -depth / 2 + bevel),
            (1.0, depth / 2 - bevel),
            *[(1 - 2 * bevel / width * (1 - np.sin(a)), depth / 2 - bevel * (1 - np.cos(a))) for a in (1.0, 0.5)],
            (1 - 2 * bevel / width, depth / 2),
            (1e-4, depth / 2),
        ],
        width=width / 2,
        depth=height / 2,
        exponent=exponent,
        crease_deg=55,
    )
    # The sweep's axis becomes z; its front (+z) becomes the upper end.
    upright = swept.mapped(np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])).moved(y=height / 2)
    u, v = upright.vertices[:, 0] / width + 0.5, np.clip(upright.vertices[:, 1] / height, 0, 1)
    vertices = upright.vertices.copy()
    vertices[:, 0] *= 1 - taper * v
    return replace(upright, vertices=vertices, uvs=np.stack([u, v], axis=1))


def cushion(
    name: str,
    material: Material,
    width: float,
    height: float,
    thickness: float,
    *,
    pinch: float = 0.08,
    flat_ends: bool = False,
    steps: int = 22,
) -> Part:
    """A stuffed bag standing on y = 0: two bulging sheets joined at the seam.

    `pinch`: how far the middle of each side is drawn in. `flat_ends`: bottom and top stay straight, as with a pouch.
    """
    s, t = np.meshgrid(np.linspace(-1, 1, steps), np.linspace(-1, 1, steps))
    x = s * (1 - pinch * (1 - t**2)) * width / 2
    y = t * (1 - (0 if flat_ends else pinch) * (1 - s**2)) * height / 2
    bulge = thickness / 2 * ((1 - s**2).clip(0) * (1 - t**4).clip(0)) ** 0.5
    sheets = []
    for sign in (1.0, -1.0):
        grid = np.stack([x, y, sign * bulge], axis=-1)
        normal = sign * np.cross(np.gradient(grid, axis=1), np.gradient(grid, axis=0))
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
        sheets.append((grid.reshape(-1, 3), normal.reshape(-1, 3)))
    faces = _grid_faces(steps, steps)
    uv = np.stack([(s + 1) / 2, (t + 1) / 2], axis=-1).reshape(-1, 2)
    vertices = np.concatenate([sheet[0] for sheet in sheets])
    return Part(
        name=name,
        material=material,
        vertices=vertices - [0, vertices[:, 1].min(), 0],
        normals=np.concatenate([sheet[1] for sheet in sheets]),
        uvs=np.concatenate([uv, uv]),
        faces=np.concatenate([faces, faces[:, ::-1] + steps * steps]),
    )
