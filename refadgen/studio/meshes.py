"""Mesh building blocks of the studio: triangle parts with normals and label coordinates.

Axes: x points right, y up, z towards the camera. Lengths are in product heights, roughly. Label coordinates (u, v): the
square [0, 1]² is one label, u to the right and v up as seen from the front; u repeats around the product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from refadgen.studio.colors import Color

Points = np.ndarray | Sequence[Sequence[float] | np.ndarray]
"""N points of D coordinates: float [N, D], or a list of them."""

Material = Literal["body", "accent", "paper"]
"""The cover of a part: the appearance's print, its secondary colour, or plain white paper."""

RUBBER, GLASS, STEEL = (38, 38, 41), (58, 68, 80), (178, 180, 186)
"""Colours, sRGB 0–255, of parts that look the same on every product: tyres, panes, metal."""


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
    color: Color | None = None
    """sRGB 0–255, replaces the material's colour. None: the material's."""
    texture: np.ndarray | None = None
    """uint8 [H, W, 3], sRGB, top row first, over the label square; replaces the material and `color`."""

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Part":
        """The part shifted by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def mapped(self, matrix: np.ndarray) -> "Part":
        """The part under a linear map, `matrix` [3, 3]. Normals are mapped by its inverse transpose."""
        normals = self.normals @ np.linalg.inv(matrix)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return replace(self, vertices=self.vertices @ matrix.T, normals=normals)

    def warped(self, warp: Callable[[np.ndarray], np.ndarray]) -> "Part":
        """The part with its vertices moved by `warp`, [V, 3] → [V, 3]. Normals are computed anew from the faces."""
        vertices = warp(self.vertices)
        return replace(self, vertices=vertices, normals=smooth_normals(vertices, self.faces))

    def labelled(self, left: float, right: float, bottom: float, top: float) -> "Part":
        """The part with the label projected from the front onto this rectangle of x and y."""
        x, y = self.vertices[:, 0], self.vertices[:, 1]
        u, v = (x - left) / (right - left), np.clip((y - bottom) / (top - bottom), 0, 1)
        return replace(self, uvs=np.stack([u, v], axis=1))

    def colored(self, color: Color) -> "Part":
        """The part in a fixed colour, whatever the product's appearance."""
        return replace(self, color=color)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The geometry of one product."""

    category: str
    noun: str
    """The word for it in captions."""
    parts: tuple[Part, ...]
    label_aspect: float
    """Width over height of the label square on this shape, so that prints are not stretched."""


def rotation_y(angle_deg: float) -> np.ndarray:
    """Rotation [3, 3] about the upward axis; positive turns the front to the right."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_x(angle_deg: float) -> np.ndarray:
    """Rotation [3, 3] about the x axis; negative leans the top backwards."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_z(angle_deg: float) -> np.ndarray:
    """Rotation [3, 3] about the axis towards the camera; positive turns counter-clockwise as seen from the front."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def on_floor(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts moved up or down together until the lowest stands on y = 0."""
    floor = min(part.vertices[:, 1].min() for part in parts)
    return tuple(part.moved(y=-floor) for part in parts)


def mirrored(parts: Sequence[Part]) -> list[Part]:
    """The parts with left and right exchanged; their print stays readable."""
    flip = np.array([-1.0, 1, 1])
    return [
        replace(
            part,
            vertices=part.vertices * flip,
            normals=part.normals * flip,
            uvs=part.uvs * [-1, 1] + [1, 0],
            faces=part.faces[:, ::-1],
        )
        for part in parts
    ]


def joined(name: str, parts: Sequence[Part]) -> Part:
    """Several parts of one material as one part, with the colour and material of the first."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return replace(
        parts[0],
        name=name,
        vertices=np.concatenate([part.vertices for part in parts]),
        normals=np.concatenate([part.normals for part in parts]),
        uvs=np.concatenate([part.uvs for part in parts]),
        faces=np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)]),
    )


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertex normals [V, 3]: the mean of the adjoining faces' normals, weighted by area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, faces[:, i], np.cross(b - a, c - a))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles [2·(rows-1)·(columns-1), 3] of a rows × columns vertex grid."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None]).ravel()
    lower = np.stack([corner, corner + 1, corner + columns + 1], axis=1)
    upper = np.stack([corner, corner + columns + 1, corner + columns], axis=1)
    return np.concatenate([lower, upper])


def _split_at_creases(profile: np.ndarray, crease_deg: float) -> list[np.ndarray]:
    """Cuts a polyline [N, 2] where it bends by more than `crease_deg`: normals are not smoothed across a cut."""
    steps = np.diff(profile, axis=0)
    angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    bends = np.abs((np.diff(angles) + 180) % 360 - 180)
    cuts = [0, *(np.flatnonzero(bends > crease_deg) + 1), len(profile) - 1]
    return [profile[a : b + 1] for a, b in pairwise(cuts)]


def lathe(
    name: str,
    material: Material,
    profile: Points,
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

    profile: (radius, y) [N, 2] from bottom to top. width, depth: scale x and z. exponent: 2 is round, 8 nearly a box.
    label: the range of y over which v goes from 0 to 1; None: all of the profile. front_share: share of the
    circumference that one label width covers. crease_deg: sharper bends keep a hard edge.
    """
    points = np.maximum(np.asarray(profile, dtype=np.float64), [1e-4, -np.inf])  # at radius 0, triangles have no area
    points = points[np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))]
    bottom, top = label or (points[:, 1].min(), points[:, 1].max())
    theta = np.linspace(-np.pi, np.pi, segments + 1)  # 0 is the front (+z), so the seam is at the back
    sin, cos = np.sin(theta), np.cos(theta)
    x = np.sign(sin) * np.abs(sin) ** (2 / exponent) * width
    z = np.sign(cos) * np.abs(cos) ** (2 / exponent) * depth
    x[[0, -1]] = 0.0  # sin(±π) is not quite 0, and a small power of it is large enough for a gap at the seam
    # u goes by length along the outline, so that the print is not stretched at corners.
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    u = 0.5 + (arc / arc[-1] - 0.5) / front_share
    dx, dz = (np.roll(a[:-1], -1) - np.roll(a[:-1], 1) for a in (x, z))
    dx, dz = np.append(dx, dx[0]), np.append(dz, dz[0])
    vertices, normals, uvs, faces, count = [], [], [], [], 0
    for run in _split_at_creases(points, crease_deg):
        slope = np.gradient(run, axis=0)
        radius, y = run[:, :1], run[:, 1:]
        grid = np.stack([radius * x, np.broadcast_to(y, (len(run), len(x))), radius * z], axis=-1)
        around = np.stack([dx, np.zeros_like(dx), dz], axis=-1)[None]
        along = np.stack([slope[:, :1] * x, np.broadcast_to(slope[:, 1:], (len(run), len(x))), slope[:, :1] * z], -1)
        normal = np.cross(along, np.broadcast_to(around, along.shape))
        normal *= -1.0  # the cross product points inwards
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


def arc(
    x0: float, y0: float, radius: float, start_deg: float, end_deg: float, steps: int = 6
) -> list[tuple[float, float]]:
    """Points of a circular arc around (x0, y0), for profiles."""
    return [
        (x0 + radius * np.cos(a), y0 + radius * np.sin(a))
        for a in np.radians(np.linspace(start_deg, end_deg, steps + 1))
    ]


def tube(
    name: str,
    material: Material,
    path: Points,
    radius: float | Sequence[float] | np.ndarray,
    *,
    segments: int = 14,
    capped: bool = False,
) -> Part:
    """A round tube along `path` [N, 3]. radius: one, or one per point. capped: whether the ends are closed."""
    path = np.asarray(path, dtype=np.float64)
    radius = np.broadcast_to(radius, len(path)).astype(np.float64)
    tangent = np.gradient(path, axis=0)
    step = np.linalg.norm(tangent, axis=1, keepdims=True)
    tangent /= step
    # A direction across the path, transported along it without twist; for a path of constant z it stays z.
    across = np.array([0.0, 0.0, 1.0]) if abs(tangent[0, 2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    carried = []
    for direction in tangent:
        across = across - (across @ direction) * direction
        across /= np.linalg.norm(across)
        carried.append(across)
    up = np.array(carried)
    side = np.cross(tangent, up)
    theta = np.linspace(0, 2 * np.pi, segments + 1)
    around = side[:, None] * np.cos(theta)[None, :, None] + up[:, None] * np.sin(theta)[None, :, None]
    vertices = path[:, None] + radius[:, None, None] * around
    normal = around - (np.gradient(radius)[:, None] / step * tangent)[:, None]
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    u, v = np.meshgrid(theta / (2 * np.pi), np.linspace(0, 1, len(path)))
    part = Part(
        name=name,
        material=material,
        vertices=vertices.reshape(-1, 3),
        normals=normal.reshape(-1, 3),
        uvs=np.stack([u, v], axis=-1).reshape(-1, 2),
        faces=_grid_faces(len(path), segments + 1)[:, ::-1],
    )
    if not capped:
        return part
    caps = []
    for end, sign in ((0, -1), (-1, 1)):  # caps have vertices of their own, since normals jump at their edge
        ring = np.concatenate([path[end][None], vertices[end]])
        spokes = np.arange(1, segments + 1)
        fan = np.stack([np.zeros_like(spokes), spokes, spokes + 1], axis=1)
        normals = np.broadcast_to(sign * tangent[end], ring.shape)
        uvs = np.broadcast_to(part.uvs[end], (len(ring), 2))
        faces = fan if sign < 0 else fan[:, ::-1]
        caps.append(Part(name=name, material=material, vertices=ring, normals=normals, uvs=uvs, faces=faces))
    return joined(name, [part, *caps])


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

    exponent: of the outline, as in `lathe`. taper: share of the width lost at the top. bevel: radius of the front and
    back edges.
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

    pinch: share by which the middle of each side is drawn in. flat_ends: bottom and top stay straight, as in a pouch.
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


def surface(name: str, material: Material, grid: np.ndarray, uvs: np.ndarray) -> Part:
    """A smooth sheet through `grid` [R, C, 3] with `uvs` [R, C, 2].

    Its outer side is the one from which columns run to the right and rows run up.
    """
    vertices, faces = grid.reshape(-1, 3), _grid_faces(*grid.shape[:2])
    normals = smooth_normals(vertices, faces)
    return Part(name=name, material=material, vertices=vertices, normals=normals, uvs=uvs.reshape(-1, 2), faces=faces)
