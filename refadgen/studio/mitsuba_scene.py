"""The only module that uses Mitsuba: meshes, materials, lights and the path tracer.

Importing it selects the variant `scalar_rgb` for the process.
"""

import functools
from collections.abc import Callable
from typing import Any

import drjit as dr
import mitsuba as mi
import numpy as np

from refadgen.studio.appearance import Appearance, draw_label
from refadgen.studio.camera import Pinhole, View
from refadgen.studio.colors import Color, to_linear
from refadgen.studio.denoise import denoise
from refadgen.studio.meshes import Part, rotation_y
from refadgen.studio.scenes import Scene
from refadgen.studio.shapes import Shape
from refadgen.studio.textures import TILE_UNITS, surface_texture, wall_texture

mi.set_variant("scalar_rgb")  # the compiled variants would compile again for every product

MitsubaDict = dict[str, Any]
"""A description for `mi.load_dict`: plugin type, parameters, objects and further descriptions by name."""

PAPER = (232, 230, 224)
_FLOOR_UNITS = 60.0
BACKDROP_REPEAT = _FLOOR_UNITS / TILE_UNITS
"""Repeats of a surface's or wall's picture from one end of the floor or wall to the other."""


def _flat(color: Color) -> MitsubaDict:
    """A constant colour. color: sRGB 0–255."""
    return {"type": "rgb", "value": to_linear(np.array(color)).tolist()}


def _picture(pixels: np.ndarray, *, repeat: float = 1.0) -> MitsubaDict:
    """An sRGB picture uint8 [H, W, 3], top row first, as a texture, tiled `repeat` times over the label square."""
    scale = mi.ScalarTransform4f().scale([repeat, repeat, 1])
    # Turned over: label coordinates run upwards, rows of a picture downwards.
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.array(pixels[::-1])), "to_uv": scale}


def _mesh(part: Part, bsdf: MitsubaDict) -> mi.Mesh:
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(bsdf)
    mesh = mi.Mesh(
        part.name,
        vertex_count=len(part.vertices),
        face_count=len(part.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=properties,
    )
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = part.vertices.astype(np.float32).ravel()
    parameters["vertex_normals"] = part.normals.astype(np.float32).ravel()
    parameters["vertex_texcoords"] = part.uvs.astype(np.float32).ravel()
    parameters["faces"] = part.faces.astype(np.uint32).ravel()
    parameters.update()
    return mesh


def product_dict(
    shape: Shape, appearance: Appearance, view: View, *, flat: float | None = None, metallic: float = 0.35
) -> MitsubaDict:
    """The product's meshes, turned by the view's yaw, ready for `trace`.

    flat: one grey reflectance for all parts. metallic: how much of a metallic appearance is metal, 0 … 1.
    """
    finish = {
        "type": "principled",
        "roughness": appearance.roughness,
        "metallic": metallic if appearance.metallic else 0.0,
        "specular": 0.4,
    }
    if flat is None:
        label = _picture(draw_label(appearance, shape.label_aspect))
        colors = {"body": label, "accent": _flat(appearance.accent), "paper": _flat(PAPER)}
    else:
        colors = {kind: {"type": "rgb", "value": [flat] * 3} for kind in ("body", "accent", "paper")}
    objects = {}
    for index, part in enumerate(shape.parts):
        color = colors[part.material]
        if flat is None and part.texture is not None:
            color = _picture(part.texture)
        elif flat is None and part.color is not None:
            color = _flat(part.color)
        # Two-sided, since open shapes like cups and umbrellas show their inner side.
        bsdf = {"type": "twosided", "material": finish | {"base_color": color}}
        objects[f"part{index}"] = _mesh(part.mapped(rotation_y(view.yaw_deg)), bsdf)
    return objects


def backdrop_dict(scene: Scene, *, flat: float | None = None) -> MitsubaDict:
    """Floor and wall of a scene. flat: one grey reflectance in place of their pictures.

    An open sky has no wall: its pixels stay transparent and are painted afterwards.
    """

    def reflectance(picture: Callable[[str, int], np.ndarray], word: str) -> MitsubaDict:
        if flat is not None:
            return {"type": "rgb", "value": [flat] * 3}
        return _picture(picture(word, scene.texture_seed), repeat=BACKDROP_REPEAT)

    floor = _floor(scene, reflectance(surface_texture, scene.surface))
    if scene.wall == "open sky" or scene.environment:
        return floor
    return floor | _wall(scene, reflectance(wall_texture, scene.wall))


def pictured_backdrop(scene: Scene, floor: np.ndarray, wall: np.ndarray | None, *, repeat: float) -> MitsubaDict:
    """Floor and wall of a scene in given pictures, uint8 [H, W, 3], tiled `repeat` times. wall: None for none."""
    objects = _floor(scene, _picture(floor, repeat=repeat))
    return objects if wall is None else objects | _wall(scene, _picture(wall, repeat=repeat))


def swept_backdrop(part: Part, color: Color, *, roughness: float | None) -> MitsubaDict:
    """A seamless backdrop of one colour. roughness: None for a matt one, else of its gloss, 0 is a mirror."""
    bsdf: MitsubaDict = {"type": "diffuse", "reflectance": _flat(color)}
    if roughness is not None:
        bsdf = {"type": "principled", "base_color": _flat(color), "roughness": roughness, "specular": 0.6}
    return {"sweep": _mesh(part, {"type": "twosided", "material": bsdf})}


def _floor(scene: Scene, reflectance: MitsubaDict) -> MitsubaDict:
    turn = mi.ScalarTransform4f()
    floor = {
        "type": "rectangle",
        "to_world": turn.rotate([0, 1, 0], scene.surface_turn_deg).rotate([1, 0, 0], -90).scale(_FLOOR_UNITS / 2),
        "bsdf": {"type": "diffuse", "reflectance": reflectance},
    }
    return {"floor": floor}


def _wall(scene: Scene, reflectance: MitsubaDict) -> MitsubaDict:
    wall = {
        "type": "rectangle",
        "to_world": mi.ScalarTransform4f().translate([0, 0, -scene.wall_distance]).scale(_FLOOR_UNITS / 2),
        "bsdf": {"type": "diffuse", "reflectance": reflectance},
    }
    return {"wall": wall}


def _sky_fill(red: float, green: float, blue: float) -> MitsubaDict:
    return {"type": "constant", "radiance": {"type": "rgb", "value": [red, green, blue]}}


def _softbox(x: float, y: float, z: float, half_size: float, radiance: float) -> MitsubaDict:
    """A square lamp at (x, y, z) that faces the product."""
    # `up` leans, since it must not be parallel to the direction of a lamp right above.
    place = mi.ScalarTransform4f().look_at(origin=[x, y, z], target=[0, 0.4, 0], up=[0, 0.99, 0.1])
    return {
        "type": "rectangle",
        "to_world": place.scale(half_size),
        "emitter": {"type": "area", "radiance": {"type": "rgb", "value": [radiance] * 3}},
    }


@functools.lru_cache(maxsize=16)
def environment_picture(file: str) -> np.ndarray:
    """An environment map, linear float32 [H, W, 3], scaled to a mean of 0.5. Raises: ValueError."""
    threads = dr.thread_count()
    dr.set_thread_count(max(2, threads))  # with one thread, reading OpenEXR never returns
    try:
        bitmap = mi.Bitmap(file).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, srgb_gamma=False)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as an environment map: {error}") from error
    finally:
        dr.set_thread_count(threads)
    picture = np.nan_to_num(np.array(bitmap), nan=0.0, posinf=1e3).clip(0, 1e3)
    return np.asarray(picture * (0.5 / max(float(picture.mean()), 1e-6)))


def _environment(file: str, turn_deg: float) -> MitsubaDict:
    """An environment map as the only light."""
    turn = mi.ScalarTransform4f().rotate([0, 1, 0], 10 * turn_deg)
    return {"type": "envmap", "bitmap": mi.Bitmap(environment_picture(file)), "to_world": turn}


def _direction(azimuth_deg: float, lift_deg: float) -> np.ndarray:
    """Unit vector towards a lamp: azimuth 0 is the camera's side, positive to the right."""
    a, e = np.radians(azimuth_deg), np.radians(lift_deg)
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


def _lights(scene: Scene | None) -> MitsubaDict:
    """The lamps of a scene; None: those of the product photograph."""
    # All strengths are set so that a diffuse surface shows about its own colour.
    if scene is None:
        return {
            "fill": _sky_fill(0.62, 0.62, 0.62),
            "key": _softbox(-3.0, 3.5, 4.0, 1.8, 4.0),
        }
    if scene.environment:
        return {"environment": _environment(scene.environment, scene.light_turn_deg)}
    turn, lift = scene.light_turn_deg, scene.light_lift_deg
    if scene.light == "soft studio light":
        x, y, z = 6.5 * _direction(-30 + turn, 48 + lift)
        return {"fill": _sky_fill(0.5, 0.5, 0.5), "key": _softbox(x, y, z, 2.0, 7.0)}
    if scene.light == "spotlight from above":
        origin = 4.2 * _direction(15 + 2 * turn, 60 + lift)
        place = mi.ScalarTransform4f().look_at(origin=origin.tolist(), target=[0, 0.35, 0], up=[0, 0.1, -0.99])
        spot = {"type": "spot", "to_world": place, "cutoff_angle": 16, "beam_width": 11}
        strength = 4.2**2 * np.pi * 1.35
        spot["intensity"] = {"type": "rgb", "value": [strength, 0.96 * strength, 0.88 * strength]}
        return {"fill": _sky_fill(0.17, 0.17, 0.19), "key": spot}
    if scene.light == "morning sun from the left":
        towards, color, fill = _direction(-48 + turn, 36 + lift), (1.0, 0.94, 0.80), _sky_fill(0.34, 0.38, 0.44)
        strength = 1.15 * np.pi
    else:
        towards, color, fill = _direction(50 + turn, 24 + lift), (1.0, 0.66, 0.36), _sky_fill(0.27, 0.24, 0.30)
        strength = 1.45 * np.pi
    sun = {
        "type": "directional",
        "direction": (-towards).tolist(),
        "irradiance": {"type": "rgb", "value": [strength * c for c in color]},
    }
    return {"fill": fill, "key": sun}


def trace(
    objects: MitsubaDict,
    camera: Pinhole,
    scene: Scene | None,
    *,
    width_px: int,
    height_px: int,
    spp: int,
    max_depth: int = 2,
    hide_environment: bool = False,
) -> np.ndarray:
    """Path-traces `objects` in the light of `scene`; None: in the neutral light of product photographs.

    max_depth: 2 is direct light only, 3 shows objects in a glossy floor as well. hide_environment: whether a scene's
    environment map gives light and is not seen itself.
    Returns: linear rgba, float32 [H, W, 4]; rgb is weighted by alpha, alpha is 0 where no object is seen.
    """
    path = _path(max_depth, hide_emitters=hide_environment or not (scene and scene.environment))
    world = _world(objects, camera, scene, width_px=width_px, height_px=height_px, path=path)
    # Guides in a pass of their own: in one pass with the picture they take twice as long. The seed is the same, and so
    # are the sample positions.
    guides = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal,depth:depth"})
    passes = [_traced(world, spp), _traced(world, spp, guides)]
    return _denoised(*passes)


def trace_light(
    white: MitsubaDict,
    black: MitsubaDict,
    camera: Pinhole,
    scene: Scene | None,
    *,
    width_px: int,
    height_px: int,
    spp: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The light in a scene, independent of its colours. white, black: the objects at reflectance 1 and at 0.

    With direct light only, a pixel is affine in the reflectance.
    Returns: rgba at reflectance 0, linear float32 [H, W, 4]; the rgb that reflectance 1 adds to it, [H, W, 3].
    """
    worlds = [_world(objects, camera, scene, width_px=width_px, height_px=height_px) for objects in (white, black)]
    guides = mi.load_dict({"type": "aov", "aovs": "normal:sh_normal,depth:depth"})
    guide = _traced(worlds[0], spp, guides)
    albedo = np.ones((height_px, width_px, 3), np.float32)
    lit, dark = (_denoised(_traced(world, spp), albedo, guide) for world in worlds)
    return dark, np.maximum(lit[..., :3] - dark[..., :3], 0.0)


def trace_surfaces(
    objects: MitsubaDict, camera: Pinhole, *, width_px: int, height_px: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The surface that each pixel's single sample hits.

    Returns: index into the names, int [H, W], -1 for none; label coordinates float32 [H, W, 2]; the objects' names.
    """
    # Not optimised: Mitsuba would merge objects of one material and lose their names.
    world = _world(objects, camera, None, width_px=width_px, height_px=height_px, optimize=False)
    integrator = mi.load_dict({"type": "aov", "aovs": "shape:shape_index,uv:uv"})
    seen = _traced(world, 1, integrator)
    index = np.round(seen[..., 0]).astype(int) - 1  # counted from 1, 0 is nothing
    return index, seen[..., 1:3], [shape.id() for shape in world.shapes()]


def _traced(world: mi.Scene, spp: int, integrator: mi.Integrator | None = None) -> np.ndarray:
    """The channels of an integrator, float32 [H, W, C]; None: the world's own. Always the same sample positions."""
    # Mitsuba's stubs ask for its own integer type, which the scalar variant does not have.
    return np.array(mi.render(world, integrator=integrator, spp=spp, seed=0))  # type: ignore[arg-type]


def _denoised(*layers: np.ndarray) -> np.ndarray:
    pixels = np.concatenate(layers, axis=-1)
    return denoise(np.nan_to_num(pixels, nan=0.0, posinf=0.0))


def _pinhole(camera: Pinhole, width_px: int, height_px: int) -> MitsubaDict:
    return {
        "type": "perspective",
        "principal_point_offset_x": 0.5 - camera.principal[0] / width_px,
        "principal_point_offset_y": 0.5 - camera.principal[1] / height_px,
    }


def _open_lens(
    camera: Pinhole, aperture: float, width_px: int, height_px: int
) -> tuple[tuple[int, int], MitsubaDict, MitsubaDict]:
    """Film size, lens and crop of an open lens focused on the product. aperture: its radius in product heights."""
    # Mitsuba cannot shift a thin lens: the image is cut out of a larger film with the principal point in its middle.
    x, y = round(camera.principal[0]), round(camera.principal[1])
    film_px = (2 * max(x, width_px - x), 2 * max(y, height_px - y))
    focus = float(np.hypot(camera.origin[0], camera.origin[2]))
    crop = {
        "crop_width": width_px,
        "crop_height": height_px,
        "crop_offset_x": film_px[0] // 2 - x,
        "crop_offset_y": film_px[1] // 2 - y,
    }
    return film_px, {"type": "thinlens", "aperture_radius": aperture, "focus_distance": focus}, crop


def _path(max_depth: int = 2, *, hide_emitters: bool) -> MitsubaDict:
    # Depth 2 is direct light only: bounces between objects cost a third more time, bring most of the noise, and are
    # hardly visible at this size. Dressing relies on it as well.
    # Hidden lamps leave alpha at 0, where the sky or white paper is put later.
    return {"type": "path", "max_depth": max_depth, "hide_emitters": hide_emitters}


def _world(
    objects: MitsubaDict,
    camera: Pinhole,
    scene: Scene | None,
    *,
    width_px: int,
    height_px: int,
    path: MitsubaDict | None = None,
    optimize: bool = True,
) -> mi.Scene:
    target = camera.origin + camera.axes[2]
    film_px, lens = (width_px, height_px), _pinhole(camera, width_px, height_px)
    crop: MitsubaDict = {}
    if scene is not None and scene.aperture:
        film_px, lens, crop = _open_lens(camera, scene.aperture, width_px, height_px)
    sensor = lens | {
        "fov_axis": "x",
        "fov": float(np.degrees(2 * np.arctan(film_px[0] / 2 / camera.focal_px))),
        "near_clip": 0.1,
        "far_clip": 1e4,
        "to_world": mi.ScalarTransform4f().look_at(
            origin=camera.origin.tolist(), target=target.tolist(), up=camera.axes[1].tolist()
        ),
        "film": {
            "type": "hdrfilm",
            "width": film_px[0],
            "height": film_px[1],
            **crop,
            "pixel_format": "rgba",
            "component_format": "float32",
            "rfilter": {"type": "box"},
        },
        "sampler": {"type": "multijitter"},
    }
    path = path or _path(hide_emitters=not (scene and scene.environment))
    world = {"type": "scene", "integrator": path, "sensor": sensor} | objects | _lights(scene)
    loaded: mi.Scene = mi.load_dict(world, optimize=optimize)
    return loaded
