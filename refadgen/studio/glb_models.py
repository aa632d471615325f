"""Loads 3D models (.glb, .gltf, .obj) as shapes of the studio, in their own colours.

A part keeps the texture, vertex colours or colour of its file. A part without any of them gets the appearance's print.
Needs `trimesh`, from the extra `refadgen[studio]`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refadgen.studio.colors import Color, to_linear
from refadgen.studio.meshes import Part, Shape, smooth_normals
from refadgen.studio.shapes import CATEGORIES, noun_of

if TYPE_CHECKING:
    import trimesh

SUFFIXES = (".glb", ".gltf", ".obj")
MAX_FACES = 60_000
_MAX_WIDTH = 1.5
_MAX_TEXTURE_PX = 1024
_CELL_PX = 4
_CREASE_DEG = 45.0


def load_model(path: Path) -> Shape:
    """The model in a file, standing on y = 0, centred in x and z, one unit tall; at most 1.5 units wide, else lower.

    The category is the name of the file's folder, in any case, where that is one of CATEGORIES; else "Other", with the
    noun "product". A model of more than MAX_FACES triangles is coarsened.
    Raises: ValueError for a file that cannot be read or has no surface.
    """
    parts = _placed(_read(Path(path)), path)
    category = {name.lower(): name for name in CATEGORIES}.get(Path(path).parent.name.lower(), "Other")
    noun = "product" if category == "Other" else noun_of(category)
    wide, tall, _ = np.ptp(np.concatenate([part.vertices for part in parts]), axis=0)
    left, top = -wide / 2, max(tall, 1e-3)
    bare = {id(part): part.labelled(left, -left, 0.0, top) for part in parts if not _has_color(part)}
    worn = tuple(bare.get(id(part), part) for part in parts)
    return Shape(category=category, noun=noun, parts=worn, label_aspect=float(np.clip(wide / top, 0.2, 5.0)))


def _has_color(part: Part) -> bool:
    return part.color is not None or part.texture is not None


def _read(path: Path) -> list[Part]:
    import trimesh

    try:
        scene = trimesh.load_scene(path, process=False)
        parts = []
        for node in scene.graph.nodes_geometry:
            matrix, name = scene.graph[node]
            mesh = scene.geometry[name]
            if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
                parts.append(_part(str(node), mesh, np.array(matrix), linear=path.suffix.lower() != ".obj"))
    except Exception as error:  # trimesh's readers raise errors of any type
        raise ValueError(f"{path}: cannot be read as a 3D model: {error!r}") from error
    return parts


def _placed(parts: list[Part], path: Path) -> list[Part]:
    """The parts scaled and moved to the studio's place, and coarsened where there are too many triangles."""
    if not parts:
        raise ValueError(f"{path}: has no triangles")
    # Only the vertices of faces: unused ones would change the size.
    used = np.concatenate([part.vertices[np.unique(part.faces)] for part in parts])
    low, high = used.min(axis=0), used.max(axis=0)
    extent = high - low
    if not (np.isfinite(extent).all() and extent[1] > 0 and extent[[0, 2]].max() > 0):
        raise ValueError(f"{path}: needs a finite surface with a height, its extents are {extent.tolist()}")
    scale = 1 / max(extent[1], extent[[0, 2]].max() / _MAX_WIDTH)
    middle = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    moved = [replace(part, vertices=(part.vertices - middle) * scale) for part in parts]
    if sum(len(part.faces) for part in moved) > MAX_FACES:
        return _coarsened(moved)
    return [_creased(part) for part in moved]


def _part(name: str, mesh: trimesh.Trimesh, matrix: np.ndarray, *, linear: bool) -> Part:
    """One mesh at its place in the scene, with its colour.

    matrix: [4, 4], from mesh to scene. linear: whether the file's colours (not its textures) are linear light, as in
    glTF.
    """
    vertices = np.array(mesh.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    faces = np.array(mesh.faces, np.int64)
    if np.linalg.det(matrix[:3, :3]) < 0:  # a mirror turns faces inside out
        faces = faces[:, ::-1]
    # Computed here: without scipy, trimesh takes minutes to read the file's normals of a large mesh.
    normals = smooth_normals(vertices, faces)
    part = Part(
        name=name, material="body", vertices=vertices, normals=normals, uvs=np.zeros((len(vertices), 2)), faces=faces
    )
    visual: Any = mesh.visual  # trimesh's classes have different attributes, told apart by `kind`
    if visual.kind in ("vertex", "face"):
        colors = np.asarray(visual.vertex_colors if visual.kind == "vertex" else visual.face_colors)[:, :3]
        if visual.kind == "vertex":
            colors = colors[mesh.faces].mean(axis=1)
        return _painted(part, _srgb(colors, linear))
    if visual.kind != "texture":
        return part
    material = visual.material
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None) if linear else getattr(material, "diffuse", None)
    factor = np.array([255, 255, 255]) if factor is None else np.asarray(factor)[:3]
    if picture is None:
        return part.colored(_color(_srgb(factor, linear)))
    picture = picture.convert("RGB")
    # A product is a few hundred pixels tall: larger textures only take memory.
    picture.thumbnail((_MAX_TEXTURE_PX, _MAX_TEXTURE_PX))
    texture = np.asarray(picture)
    if linear:
        texture = _srgb(to_linear(texture) * factor, True)
    if visual.uv is None:
        return part.colored(_color(texture.mean(axis=(0, 1))))
    return replace(part, texture=texture, uvs=np.array(visual.uv, np.float64))


def _color(values: np.ndarray) -> Color:
    red, green, blue = (int(c) for c in values)
    return red, green, blue


def _srgb(color: np.ndarray, linear: bool) -> np.ndarray:
    """A file's colours 0–255 as sRGB uint8."""
    share = np.asarray(color, np.float64) / 255
    if linear:
        share = np.where(share <= 0.0031308, 12.92 * share, 1.055 * np.maximum(share, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(255 * share.clip(0, 1)).astype(np.uint8)


def _painted(part: Part, face_colors: np.ndarray) -> Part:
    """The part with a colour for each face, uint8 [F, 3], as a texture of small squares, one per colour."""
    if len(np.unique(face_colors, axis=0)) > 4096:  # rounded to 16 steps a channel, so that the texture stays small
        face_colors = face_colors // 16 * 16 + 8
    colors, index = np.unique(face_colors, axis=0, return_inverse=True)
    if len(colors) == 1:
        return part.colored(_color(colors[0]))
    side = int(np.ceil(np.sqrt(len(colors))))
    squares = np.zeros((side * side, 3), np.uint8)
    squares[: len(colors)] = colors
    # Several pixels each, so that interpolation between pixels does not reach a square's middle.
    texture = squares.reshape(side, side, 3).repeat(_CELL_PX, axis=0).repeat(_CELL_PX, axis=1)
    row, column = np.divmod(index.ravel().repeat(3), side)
    corners = part.faces.ravel()
    return replace(
        part,
        vertices=part.vertices[corners],
        normals=part.normals[corners],
        uvs=np.stack([(column + 0.5) / side, 1 - (row + 0.5) / side], axis=1),
        faces=np.arange(len(corners)).reshape(-1, 3),
        texture=texture,
    )


def _creased(part: Part) -> Part:
    """The part with flat normals around vertices where it bends sharply, so that edges do not look rounded."""
    corners = part.faces.ravel()
    a, b, c = (part.vertices[part.faces[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    size = np.linalg.norm(flat, axis=1, keepdims=True)
    flat, solid = (flat / np.maximum(size, 1e-20)).repeat(3, axis=0), (size[:, 0] > 1e-12).repeat(3)
    smooth = part.normals[corners]
    least = np.ones(len(part.vertices))
    np.minimum.at(least, corners[solid], (flat * smooth).sum(axis=1)[solid])
    sharp = (least < np.cos(np.radians(_CREASE_DEG)))[corners] & solid
    return replace(
        part,
        vertices=part.vertices[corners],
        normals=np.where(sharp[:, None], flat, smooth),
        uvs=part.uvs[corners],
        faces=np.arange(len(corners)).reshape(-1, 3),
    )


def _coarsened(parts: list[Part]) -> list[Part]:
    """The parts with about MAX_FACES triangles at most: vertices within a small cube are merged."""
    cells = 400.0
    while True:
        coarse = [part for part in (_clustered(part, cells) for part in parts) if len(part.faces)]
        if sum(len(part.faces) for part in coarse) <= MAX_FACES or cells < 20:
            return coarse
        cells *= 0.8


def _clustered(part: Part, cells: float) -> Part:
    cube = np.floor(part.vertices * cells).astype(np.int64)
    _, place = np.unique(cube, axis=0, return_inverse=True)
    # Merged into one place, but into several vertices where the surface bends sharply or its texture has a seam.
    looks = np.concatenate([cube, part.normals > 0, np.floor(part.uvs * 16).astype(np.int64)], axis=1)
    _, vertex = np.unique(looks, axis=0, return_inverse=True)
    place, vertex = place.ravel(), vertex.ravel()
    corners = place[part.faces]
    solid = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    first = np.unique(vertex, return_index=True)[1]
    normals = _means(part.normals, vertex)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return replace(
        part,
        vertices=_means(part.vertices, place)[place[first]],
        normals=np.where(length > 1e-9, normals / np.maximum(length, 1e-9), [0.0, 1.0, 0.0]),
        uvs=_means(part.uvs, vertex),
        faces=np.unique(vertex[part.faces[solid]], axis=0),
    )


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean of each group's values, [groups, D]."""
    counts = np.bincount(group)
    return np.stack([np.bincount(group, weights=column) / counts for column in values.T], axis=1)
