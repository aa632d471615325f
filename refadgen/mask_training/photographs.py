"""Takes one picture of a product in the virtual studio, with the true soft mask.

Three kinds: the product alone (`cutout`), on a seamless backdrop of one colour (`plain`), and in a scene among other
things (`in_scene`). The same generator state gives the same picture. Few samples a pixel: a little noise does no harm,
photographs have it, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from refadgen.studio import mitsuba_scene
from refadgen.studio.appearance import PATTERNS, Appearance, draw_label, sample_appearance
from refadgen.studio.camera import Pinhole, View, coverage
from refadgen.studio.colors import Color, rgb_of
from refadgen.studio.meshes import Part, Shape, on_floor, rotation_x, rotation_y, rotation_z, surface
from refadgen.studio.mitsuba_scene import MitsubaDict, product_dict
from refadgen.studio.render import to_srgb, with_sky
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS, Scene, make_scene
from refadgen.studio.textures import TILE_PX, fractal_noise, surface_texture, wall_texture

_AS_IS = View(yaw_deg=0, pitch_deg=0, height_share=1, center_x=0.5, base_y=1)  # the shapes here are turned already


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Size and effort of a picture."""

    long_px: int = 320
    """At most, the longer side of the product's box in a cut-out, and of other pictures; at least two thirds of it."""
    spp: int = 4
    """Samples a pixel."""


@dataclass(frozen=True, kw_only=True)
class Dressed:
    """A shape in an appearance, turned and at its place, ready to be photographed."""

    shape: Shape
    look: Appearance
    metallic: float
    """How much of a metallic appearance is metal, 0 … 1."""

    @property
    def vertices(self) -> np.ndarray:
        """All vertices, float64 [V, 3]."""
        return np.concatenate([part.vertices for part in self.shape.parts])

    def moved(self, x: float, z: float) -> "Dressed":
        """The product at another place on the floor."""
        parts = tuple(part.moved(x=x, z=z) for part in self.shape.parts)
        return replace(self, shape=replace(self.shape, parts=parts))

    def objects(self) -> MitsubaDict:
        """Its meshes for `trace`."""
        return product_dict(self.shape, self.look, _AS_IS, metallic=self.metallic)


# -- Products ---------------------------------------------------------------------------------------------------------


def dress(shape: Shape, rng: np.random.Generator, *, lying: float, scale: float = 1.0) -> Dressed:
    """The shape stretched a little, in a random appearance, turned, standing or lying on the floor.

    lying: the probability that it lies.
    """
    stretch = np.exp(rng.uniform(-0.25, 0.25, 3)) * scale
    matrix = np.diag(stretch)
    if rng.random() < lying:
        tip = rotation_x(-90) if rng.random() < 0.6 else rotation_z(float(rng.choice([-90, 90])))
        matrix = tip @ matrix
    yaw = rng.uniform(-50, 50) if rng.random() < 0.6 else rng.uniform(-180, 180)
    parts = on_floor([part.mapped(rotation_y(yaw) @ matrix) for part in shape.parts])
    low, high = np.array([[p.vertices.min(axis=0), p.vertices.max(axis=0)] for p in parts]).swapaxes(0, 1)
    middle = (low.min(axis=0) + high.max(axis=0)) / 2
    # A hair above the floor, where both would be seen at random.
    parts = tuple(part.moved(x=-middle[0], y=2e-3, z=-middle[2]) for part in parts)
    if rng.random() < 0.35:
        parts = _recolored(parts, rng)
    return Dressed(shape=replace(shape, parts=parts), look=sample_look(rng), metallic=float(rng.uniform(0.3, 1.0)))


def pale_color(rng: np.random.Generator) -> Color:
    """White, cream, pale grey or pastel."""
    kind = rng.random()
    if kind < 0.45:
        return rgb_of(rng.random(), rng.uniform(0, 0.03), rng.uniform(0.9, 1.0))
    if kind < 0.6:
        return rgb_of(rng.uniform(0.08, 0.16), rng.uniform(0.04, 0.16), rng.uniform(0.9, 1.0))
    if kind < 0.8:
        return rgb_of(rng.random(), rng.uniform(0, 0.04), rng.uniform(0.7, 0.9))
    return rgb_of(rng.random(), rng.uniform(0.08, 0.3), rng.uniform(0.88, 1.0))


def _black(rng: np.random.Generator) -> Color:
    return rgb_of(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.02, 0.14))


def _any_color(rng: np.random.Generator) -> Color:
    kind = rng.random()
    if kind < 0.3:
        return pale_color(rng)
    if kind < 0.42:
        return _black(rng)
    return rgb_of(rng.random(), rng.uniform(0.3, 1.0), rng.uniform(0.15, 1.0))


def sample_look(rng: np.random.Generator) -> Appearance:
    """A random appearance; a quarter is pale or has pale parts, a tenth is black, all finishes occur."""
    look = sample_appearance(rng)
    roughness = float(rng.choice([rng.uniform(0.08, 0.25), rng.uniform(0.25, 0.9)], p=[0.3, 0.7]))
    look = replace(look, roughness=roughness, metallic=bool(rng.random() < 0.15))
    kind = rng.random()
    if kind < 0.28:
        pale, other = pale_color(rng), _any_color(rng)
        whole, on_body = rng.random() < 0.45, rng.random() < 0.6
        body, accent = (pale, pale if whole else other) if whole or on_body else (other, pale)
        look = replace(look, body=body, accent=accent)
        if rng.random() < 0.5:
            look = replace(look, pattern="plain", logo=look.logo if rng.random() < 0.5 else "none")
        elif rng.random() < 0.4:
            look = replace(look, print_color=pale_color(rng))
    elif kind < 0.38:
        look = replace(look, body=_black(rng), accent=_any_color(rng))
        if rng.random() < 0.5:
            look = replace(look, pattern="plain", logo="none")
    elif kind < 0.6:
        look = replace(look, pattern="plain", logo=look.logo if rng.random() < 0.4 else "none")
    return look


def _recolored(parts: Sequence[Part], rng: np.random.Generator) -> tuple[Part, ...]:
    """Parts with a colour of their own in other colours; equal ones stay equal."""
    new: dict[Color, Color] = {}
    for part in parts:
        if part.color is not None and part.texture is None and part.color not in new:
            new[part.color] = _any_color(rng)
    return tuple(part if part.color not in new else replace(part, color=new[part.color]) for part in parts)


# -- Camera -----------------------------------------------------------------------------------------------------------


def _aimed(points: np.ndarray, pitch_deg: float, roll_deg: float, distance: float) -> tuple[Pinhole, np.ndarray]:
    """A camera of focal length 1 at `distance` box diagonals from the points, and their box in it, [[x, y], [x, y]]."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle = (low + high) / 2
    pitch, roll = np.radians(pitch_deg), np.radians(roll_deg)
    forward = -np.array([0.0, np.sin(pitch), np.cos(pitch)])
    right, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(pitch), -np.sin(pitch)])
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    origin = middle - distance * float(np.linalg.norm(high - low)) * forward
    unit = Pinhole(origin=origin, axes=np.stack([right, up, forward]), focal_px=1.0, principal=(0.0, 0.0))
    flat = unit.project(points)
    return unit, np.stack([flat.min(axis=0), flat.max(axis=0)])


def _zoomed(unit: Pinhole, box: np.ndarray, focal_px: float, left: float, top: float) -> Pinhole:
    """The camera at a focal length, with the box's corner at (left, top). Whole pixels, as an open lens needs them."""
    principal = (float(round(left - focal_px * box[0, 0])), float(round(top - focal_px * box[0, 1])))
    return replace(unit, focal_px=focal_px, principal=principal)


def _placed_camera(
    product: Dressed, rng: np.random.Generator, quality: Quality, *, pitch_deg: float, least: float, most: float
) -> tuple[Pinhole, int, int]:
    """A camera that shows the product at a random place, `least` … `most` of the picture's width, all inside of it.

    Returns: camera, width and height of the picture in pixels.
    """
    unit, box = _aimed(product.vertices, pitch_deg, rng.normal(0, 1.5), rng.uniform(1.6, 4.5))
    aspect = float(rng.choice([1.0, 0.8, 0.75, 0.67, 1.25, 1.33, 1.5]))
    long_px = quality.long_px * rng.uniform(2 / 3, 1)
    width_px, height_px = round(long_px * min(1.0, aspect)), round(long_px * min(1.0, 1 / aspect))
    wide, tall = box[1] - box[0]
    focal = min(rng.uniform(least, most) * width_px / wide, 0.88 * height_px / tall)
    room = np.array([width_px - focal * wide, height_px - focal * tall])
    share = np.array([0.5, 0.55]) + rng.uniform(-0.38, 0.38, 2) * rng.random()
    left, top = room * share
    return _zoomed(unit, box, float(focal), float(left), float(top)), width_px, height_px


# -- Light ------------------------------------------------------------------------------------------------------------


def _lit(rng: np.random.Generator, environment: str | None, pitch_deg: float, lights: Sequence[str] = LIGHTS) -> Scene:
    """A scene whose only meaning is its light: a lamp from somewhere, or an environment map."""
    scene = make_scene(SURFACES[0], WALLS[0], str(rng.choice(lights)), seed=int(rng.integers(2**31)))
    scene = replace(scene, surface_turn_deg=float(rng.uniform(-180, 180)), environment=environment or "")
    if environment:  # the studio turns a map by ten times the light's turn
        return replace(scene, light_turn_deg=float(rng.uniform(-18, 18)))
    # A soft lamp is 6.5 units away and 4 wide: a camera behind it would see its back.
    while True:
        turn, lift = rng.uniform(-60, 60), rng.uniform(-25, 20)
        between = _angle_deg(-30 + turn, 48 + lift, pitch_deg)
        if between > 32:
            return replace(scene, light_turn_deg=float(turn), light_lift_deg=float(lift))


def _angle_deg(azimuth_deg: float, lift_deg: float, pitch_deg: float) -> float:
    """The angle between a direction and that of a camera at azimuth 0, as seen from the product."""
    a, e, p = np.radians([azimuth_deg, lift_deg, pitch_deg])
    return float(np.degrees(np.arccos(np.clip(np.sin(e) * np.sin(p) + np.cos(a) * np.cos(e) * np.cos(p), -1, 1))))


def _exposure(linear: np.ndarray, seen: np.ndarray, scene: Scene, rng: np.random.Generator) -> float:
    """The factor on light for what `seen` (bool) shows; a lamp's stays within bounds, a map may be of any strength."""
    wanted = rng.uniform(0.5, 0.95)
    level = float(np.percentile(linear[seen].mean(axis=-1), 95)) if seen.any() else 0.5
    least, most = (0.3, 6.0) if scene.environment else (0.8, 1.6)
    return float(np.clip(wanted / max(level, 1e-3), least, most))


# -- The three kinds --------------------------------------------------------------------------------------------------


def cutout(shape: Shape, rng: np.random.Generator, quality: Quality, environment: str | None) -> np.ndarray:
    """The product alone: sRGB with straight alpha, uint8 [H, W, 4]; its longer side has `long_px`.

    Under alpha 0 stand the colours of the nearest rim, so that the picture can be scaled.
    """
    product = dress(shape, rng, lying=0.2)
    pitch = rng.uniform(0, 50) ** 2 / 50
    unit, box = _aimed(product.vertices, pitch, rng.normal(0, 4), rng.uniform(1.6, 5))
    wide, tall = box[1] - box[0]
    focal = quality.long_px * rng.uniform(2 / 3, 1) / max(wide, tall)
    margin = max(2, quality.long_px // 80)
    width_px, height_px = (int(np.ceil(focal * side)) + 2 * margin for side in (wide, tall))
    camera = _zoomed(unit, box, float(focal), margin, margin)
    scene = _lit(rng, environment, pitch)
    rgba = mitsuba_scene.trace(
        product.objects(),
        camera,
        scene,
        width_px=width_px,
        height_px=height_px,
        spp=quality.spp,
        hide_environment=True,
    )
    alpha = coverage(product.shape.parts, camera, width_px=width_px, height_px=height_px)
    traced = rgba[..., 3:].clip(0, 1)
    linear = rgba[..., :3] / np.maximum(traced, 1e-3)
    exposure = 1.0
    if scene.environment or rng.random() < 0.3:  # the studio's lamps show about a surface's own colour
        exposure = _exposure(linear, alpha > 128, scene, rng)
    return np.dstack([_bled(to_srgb(linear * exposure), traced), alpha])


def _bled(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The picture with the rim's colours continued where the render has none. uint8 [H, W, 3], float32 [H, W, 1]."""
    weight = cv2.GaussianBlur(alpha[..., 0], (0, 0), sigmaX=3.0)[..., None]
    near = cv2.GaussianBlur((rgb * alpha).astype(np.float32), (0, 0), sigmaX=3.0) / np.maximum(weight, 1e-3)
    return np.where(alpha > 0, rgb, np.round(near).clip(0, 255)).astype(np.uint8)


def plain(shape: Shape, rng: np.random.Generator, quality: Quality) -> tuple[np.ndarray, np.ndarray]:
    """The product on a seamless backdrop of one colour with its contact shadow, at times mirrored in a glossy floor.

    Returns: rgb uint8 [H, W, 3]; mask uint8 [H, W], the product's coverage.
    """
    flat_lay = rng.random() < 0.25
    product = dress(shape, rng, lying=0.8 if flat_lay else 0.15)
    pitch = rng.uniform(55, 88) if flat_lay else rng.uniform(2, 35)
    camera, width_px, height_px = _placed_camera(product, rng, quality, pitch_deg=pitch, least=0.4, most=0.85)
    white = rng.random() < 0.5
    color = rgb_of(0, 0, rng.uniform(0.9, 0.97)) if white else _backdrop_color(rng)
    gloss = float(rng.uniform(0.05, 0.25)) if rng.random() < 0.3 else None
    sweep = mitsuba_scene.swept_backdrop(_sweep(rng, product.vertices), color, roughness=gloss)
    scene = _lit(rng, None, pitch, LIGHTS[:3])
    rgba = mitsuba_scene.trace(
        product.objects() | sweep,
        camera,
        scene,
        width_px=width_px,
        height_px=height_px,
        spp=quality.spp,
        max_depth=2 if gloss is None else 3,
    )
    mask = coverage(product.shape.parts, camera, width_px=width_px, height_px=height_px)
    around = mask == 0
    exposure = 1.0 if rng.random() < 0.5 else _exposure(rgba[..., :3], np.full_like(around, True), scene, rng)
    rgb = to_srgb(rgba[..., :3] * exposure)
    if white and rng.random() < 0.8:  # as shops do: stretched until most of the backdrop is pure white
        level = np.percentile(rgb[around], rng.uniform(5, 70)) if around.any() else 255
        rgb = np.minimum(np.round(rgb * (255 / max(level, 160.0))), 255).astype(np.uint8)
    return rgb, mask


def _backdrop_color(rng: np.random.Generator) -> Color:
    kind = rng.random()
    if kind < 0.3:
        return rgb_of(rng.random(), rng.uniform(0, 0.05), rng.uniform(0.1, 0.9))
    if kind < 0.65:
        return rgb_of(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.75, 1.0))
    return rgb_of(rng.random(), rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0))


def _sweep(rng: np.random.Generator, vertices: np.ndarray) -> Part:
    """Floor and wall in one sheet that bends softly behind the product."""
    back = float(-vertices[:, 2].min() + rng.uniform(0.1, 2.0))
    radius = float(rng.uniform(0.8, 3.0))
    bend = np.linspace(0, np.pi / 2, 13)
    # Rows close to the bend: normals are shared between neighbours, and a long strip would take the bend's.
    profile = [(0.0, 40.0), (0.0, -back + 0.02), (radius + 0.02, -back - radius), (30.0, -back - radius)]
    curve = np.stack([radius * (1 - np.cos(bend)), -back - radius * np.sin(bend)], axis=1)
    y, z = np.insert(np.array(profile), 2, curve, axis=0).T
    x = np.linspace(-40, 40, 3)
    grid = np.stack(np.broadcast_arrays(x[None], y[:, None], z[:, None]), axis=-1)
    return surface("sweep", "paper", grid, np.zeros((*grid.shape[:2], 2)))


def in_scene(
    shape: Shape, others: Sequence[Shape], rng: np.random.Generator, quality: Quality, environment: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The product on a textured floor before a wall, the sky or an environment map, `others` beside and behind it.

    Returns: rgb uint8 [H, W, 3]; mask uint8 [H, W], the product's coverage.
    """
    steep = rng.random() < 0.35
    product = dress(shape, rng, lying=0.6 if steep else 0.25)
    pitch = rng.uniform(40, 88) if steep else rng.uniform(1, 40)
    camera, width_px, height_px = _placed_camera(product, rng, quality, pitch_deg=pitch, least=0.15, most=0.7)
    clutter = _clutter(product, others, rng)
    scene = _lit(rng, environment, pitch)
    scene = replace(scene, wall=str(rng.choice(WALLS)), wall_distance=float(rng.uniform(1.0, 4.0)))
    if pitch < 25 and rng.random() < 0.5:  # farther up, the studio's lens would not be focused on the product
        scene = replace(scene, aperture=float(rng.uniform(0.02, 0.06)))
    open_air = bool(environment) or scene.wall == "open sky"
    walls = None if open_air else _wall_picture(scene, rng)
    repeat = float(mitsuba_scene.BACKDROP_REPEAT * np.exp(rng.uniform(-0.7, 1.2)))
    backdrop = mitsuba_scene.pictured_backdrop(scene, _floor_picture(rng), walls, repeat=repeat)
    objects = product.objects() | backdrop
    for index, other in enumerate(clutter):
        objects |= {f"other{index}-{name}": mesh for name, mesh in other.objects().items()}
    rgba = mitsuba_scene.trace(objects, camera, scene, width_px=width_px, height_px=height_px, spp=quality.spp)
    linear = with_sky(rgba, scene, camera)
    mask = coverage(product.shape.parts, camera, width_px=width_px, height_px=height_px)
    return to_srgb(linear * _exposure(linear, np.full(mask.shape, True), scene, rng)), mask


def _clutter(product: Dressed, others: Sequence[Shape], rng: np.random.Generator) -> list[Dressed]:
    """The other shapes beside and behind the product, not touching it nor each other.

    None stands before the product: a vertical plane between both has the camera on the product's side.
    """
    taken = [(0.0, 0.0, float(np.hypot(*product.vertices[:, [0, 2]].T).max()))]
    found = []
    for shape in others:
        thing = dress(shape, rng, lying=0.3, scale=float(np.exp(rng.uniform(-0.7, 0.5))))
        radius = float(np.hypot(*thing.vertices[:, [0, 2]].T).max())
        for _ in range(6):
            angle = np.radians(rng.uniform(0, 180))  # 90 is straight behind
            reach = taken[0][2] + radius + rng.uniform(0.02, 1.6)
            x, z = float(reach * np.cos(angle)), float(-reach * np.sin(angle))
            if all(np.hypot(x - a, z - b) > radius + r for a, b, r in taken):
                taken.append((x, z, radius))
                found.append(thing.moved(x, z))
                break
    return found


# -- Pictures of floors and walls -------------------------------------------------------------------------------------


def _floor_picture(rng: np.random.Generator) -> np.ndarray:
    """Wood, stone, cloth, tiles, carpet: the studio's surfaces in other tones, with joints or a print. uint8."""
    kind = rng.random()
    if kind < 0.25:
        return _printed_cloth(rng)
    picture = _toned(surface_texture(str(rng.choice(SURFACES)), int(rng.integers(2**31))), rng)
    if kind < 0.45:
        joint, gap = int(rng.choice([2, 3, 4, 6])), int(rng.integers(2, 6))
        rows = np.arange(TILE_PX) % (TILE_PX // joint) < gap
        tone = np.array(_any_color(rng) if rng.random() < 0.3 else rgb_of(0, 0, rng.uniform(0.2, 0.95)))
        return np.where((rows[:, None] | rows[None])[..., None], tone, picture).astype(np.uint8)
    return picture


def _printed_cloth(rng: np.random.Generator) -> np.ndarray:
    """A print with the grain of cloth or carpet."""
    look = replace(sample_appearance(rng), pattern=str(rng.choice(PATTERNS)), logo="none", body=_any_color(rng))
    print_px = cv2.resize(draw_label(look, 1.0), (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    grain = fractal_noise(rng, slope=float(rng.uniform(0.1, 0.9)), stretch=float(np.exp(rng.uniform(-1, 1))))
    return np.asarray((print_px + rng.uniform(3, 16) * grain[..., None]).clip(0, 255), np.uint8)


def _wall_picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.2:
        return _printed_cloth(rng)
    return _toned(wall_texture(scene.wall, scene.texture_seed), rng)


def _toned(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture in another tone and contrast, half of the time."""
    if rng.random() < 0.5:
        return picture
    mean = picture.mean(axis=(0, 1))
    tone = np.array(_any_color(rng)) if rng.random() < 0.5 else mean * rng.uniform(0.5, 1.3) * rng.uniform(0.9, 1.1, 3)
    return np.asarray((tone + (picture - mean) * rng.uniform(0.4, 1.4)).clip(0, 255), np.uint8)
