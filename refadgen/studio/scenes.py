"""Scene words (surfaces × walls × lights), their captions, and the combinations held out from training.

Nothing here needs Mitsuba: tests compare the built-in scene templates with these words, which are all that the built-in
model has seen.
"""

from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

SURFACES = ("wooden table", "marble slab", "sand", "grass", "concrete", "snow", "blue cloth", "dark slate")
"""Surfaces that a product stands on."""

WALLS = ("white wall", "pink wall", "green wall", "blue wall", "yellow wall", "grey wall", "open sky", "leafy hedge")
"""Backgrounds."""

LIGHTS = ("soft studio light", "morning sun from the left", "evening sun from the right", "spotlight from above")
"""Lights."""

_SURFACE_PHRASES = {
    "wooden table": "on a wooden table",
    "marble slab": "on a marble slab",
    "sand": "on sand",
    "grass": "on grass",
    "concrete": "on concrete",
    "snow": "on snow",
    "blue cloth": "on a blue cloth",
    "dark slate": "on dark slate",
}
_WALL_PHRASES = {
    **{wall: f"in front of a {wall}" for wall in WALLS},
    "open sky": "under an open sky",
}

ANY_PRODUCT = "product"
"""The noun of a caption that names no category."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One place to photograph in: three words, and random values by which two scenes of the same words differ."""

    surface: str
    wall: str
    light: str
    texture_seed: int
    wall_distance: float
    """From the product to the wall, in product heights."""
    surface_turn_deg: float
    light_turn_deg: float
    """Turn of the light about the upward axis."""
    light_lift_deg: float
    exposure: float
    """Factor on all light, about 1."""
    aperture: float = 0.0
    """Radius of the lens in product heights; at 0 everything is sharp."""
    environment: str = ""
    """File of an environment map, which replaces wall, sky and lamps; `wall` and `light` are then ignored."""


def is_held_out_combination(surface: str, wall: str) -> bool:
    """Whether this pair of surface and wall (9 of 64) is held out: each word is trained, the pair is not.

    Raises: ValueError for a word that is not in SURFACES or WALLS.
    """
    _check(surface, "surface", SURFACES)
    _check(wall, "wall", WALLS)
    # Spreads the pairs: one or two of each surface's eight walls, and of each wall's eight surfaces.
    return (3 * SURFACES.index(surface) + WALLS.index(wall)) % 7 == 1


def sample_scene(seed: int, *, held_out: bool | None = False) -> Scene:
    """The scene of a seed. held_out: False for trained combinations only, True for held-out ones only, None for any."""
    rng = np.random.default_rng([seed, 3])
    pairs = [(s, w) for s in SURFACES for w in WALLS if held_out is None or is_held_out_combination(s, w) == held_out]
    surface, wall = pairs[int(rng.integers(len(pairs)))]
    return make_scene(surface, wall, LIGHTS[int(rng.integers(len(LIGHTS)))], seed=seed)


def make_scene(surface: str, wall: str, light: str, *, seed: int) -> Scene:
    """A scene of given words. seed: of textures, distances and angles. Raises: ValueError for unknown words."""
    _check(surface, "surface", SURFACES)
    _check(wall, "wall", WALLS)
    _check(light, "light", LIGHTS)
    rng = np.random.default_rng([seed, 4])
    return Scene(
        surface=surface,
        wall=wall,
        light=light,
        texture_seed=int(rng.integers(2**31)),
        wall_distance=float(rng.uniform(1.0, 2.4)),
        surface_turn_deg=float(rng.uniform(-25, 25)),
        light_turn_deg=float(rng.uniform(-12, 12)),
        light_lift_deg=float(rng.uniform(-5, 5)),
        exposure=float(rng.uniform(0.92, 1.08)),
    )


def scene_prompt(surface: str, wall: str, light: str, category: str | None = None) -> str:
    """The plain prompt of a scene, e.g. "a bottle on a wooden table in front of a pink wall, soft studio light".

    category: the product's noun; None: "product". Raises: ValueError for words that were never trained.
    """
    _check(surface, "surface", SURFACES)
    _check(wall, "wall", WALLS)
    _check(light, "light", LIGHTS)
    return f"a {category or ANY_PRODUCT} {_SURFACE_PHRASES[surface]} {_WALL_PHRASES[wall]}, {light}"


def in_environment(scene: Scene, file: str) -> Scene:
    """The scene with an environment map in place of its wall and lamps."""
    return replace(scene, environment=file)


def with_depth_of_field(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene through an open lens that is focused on the product."""
    return replace(scene, aperture=float(rng.uniform(0.06, 0.2)))


def captions(category: str, scene: Scene) -> list[str]:
    """Four paraphrases of a scene: the plain prompt first, then the one that says "a product".

    category: the product's noun. Each caption has the scene's three words; in an environment map, the surface and the
    file name of the map.
    """
    on, behind = _SURFACE_PHRASES[scene.surface], _WALL_PHRASES[scene.wall]
    if scene.environment:
        place = PurePath(scene.environment).stem.replace("_", " ").replace("-", " ")
        return [
            f"a {category} {on}, {place}",
            f"a {ANY_PRODUCT} {on}, {place}",
            f"a photo of a {category} {on}, {place}",
            f"{place}, a {category} standing {on}",
        ]
    return [
        scene_prompt(scene.surface, scene.wall, scene.light, category),
        scene_prompt(scene.surface, scene.wall, scene.light),
        f"a photo of a {category} {on} {behind} with {scene.light}",
        f"{scene.light}, a {category} standing {on}, {behind}",
    ]


def _check(word: str, what: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise ValueError(f"{word!r} is not a trained {what}: use one of {', '.join(allowed)}")
