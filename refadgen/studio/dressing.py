"""One render, many products: light is traced once, then products, surfaces and walls are coloured.

With direct light only, a pixel is affine in the colour of the surface it sees: its value at reflectance 0, plus the
reflectance times the gain from 0 to 1. One view in one light therefore serves any number of appearances, surfaces and
walls. The only approximation is that light is averaged over a pixel. The folder's README has the speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refadgen.studio import scenes
from refadgen.studio.appearance import Appearance, draw_label, sample_appearance
from refadgen.studio.camera import Pinhole, View, camera_for, sample_view, silhouette
from refadgen.studio.colors import Color, to_linear
from refadgen.studio.mitsuba_scene import (
    BACKDROP_REPEAT,
    PAPER,
    MitsubaDict,
    backdrop_dict,
    product_dict,
    trace_light,
    trace_surfaces,
)
from refadgen.studio.render import (
    HEIGHT_PX,
    WIDTH_PX,
    Product,
    Triplet,
    on_paper,
    sample_novel_views,
    sample_product,
    split_of,
    to_srgb,
    with_sky,
)
from refadgen.studio.scenes import Scene
from refadgen.studio.textures import surface_texture, wall_texture

_SAMPLES = 2
"""Samples per pixel of the visible surface, along each axis."""


@dataclass(frozen=True)
class LitView:
    """A product's view in one light, before colours are chosen."""

    dark: np.ndarray
    """Linear rgba at reflectance 0, [H, W, 4]."""
    gain: np.ndarray
    """Linear rgb that reflectance 1 adds, [H, W, 3]."""
    parts: np.ndarray
    """The object that each sample sees, int [S·H, S·W] with S = _SAMPLES: index into `names`, -1 for none."""
    label_coordinates: np.ndarray
    """(u, v) of each sample on its object's label square, [S·H, S·W, 2]."""
    names: list[str]
    """The objects' names: part0 …, floor, wall."""

    def dressed(self, materials: dict[str, np.ndarray | Color]) -> np.ndarray:
        """The render with these materials, linear rgba [H, W, 4].

        materials: by object name, an image (uint8 [h, w, 3], over the label square, repeating) or a colour. Objects
        without one are black.
        """
        reflectance = np.zeros((*self.parts.shape, 3), np.float32)
        for index, name in enumerate(self.names):
            if name not in materials:
                continue
            here = self.parts == index
            material = np.asarray(materials[name], np.uint8)
            if material.ndim == 1:
                reflectance[here] = _TO_LINEAR[material]
            else:
                # Nearest pixel of the picture; its first row is the top, v runs upwards, and both coordinates repeat.
                repeat = BACKDROP_REPEAT if name in ("floor", "wall") else 1.0
                u, v = repeat * self.label_coordinates[here].T
                height, width = material.shape[:2]
                x = np.minimum((u % 1.0 * width).astype(int), width - 1)
                y = np.minimum(((1 - v % 1.0) * height).astype(int), height - 1)
                reflectance[here] = _TO_LINEAR[material[y, x]]
        height, width = self.gain.shape[:2]
        mean = reflectance.reshape(height, _SAMPLES, width, _SAMPLES, 3).mean(axis=(1, 3))
        return np.concatenate([self.dark[..., :3] + self.gain * mean, self.dark[..., 3:]], axis=-1)


_TO_LINEAR = to_linear(np.arange(256)).astype(np.float32)


def _light_up(
    product: Product, view: View, scene: Scene | None, camera: Pinhole, width_px: int, height_px: int, spp: int
) -> LitView:
    def objects(flat: float) -> MitsubaDict:
        meshes = product_dict(product.shape, product.appearance, view, flat=flat)
        return meshes if scene is None else meshes | backdrop_dict(scene, flat=flat)

    white = objects(1.0)
    dark, gain = trace_light(white, objects(0.0), camera, scene, width_px=width_px, height_px=height_px, spp=spp)
    x, y = camera.principal
    fine_camera = replace(camera, focal_px=_SAMPLES * camera.focal_px, principal=(_SAMPLES * x, _SAMPLES * y))
    # Light is smooth and noisy, surfaces are sharp and exact: these take more pixels and one sample each.
    fine = {"width_px": _SAMPLES * width_px, "height_px": _SAMPLES * height_px}
    return LitView(dark, gain, *trace_surfaces(white, fine_camera, **fine))


def _product_materials(product: Product, appearance: Appearance) -> dict[str, np.ndarray | Color]:
    label = draw_label(appearance, product.shape.label_aspect)
    colors: dict[str, np.ndarray | Color] = {"body": label, "accent": appearance.accent, "paper": PAPER}
    worn: dict[str, np.ndarray | Color] = {}
    for index, part in enumerate(product.shape.parts):
        own = part.texture if part.texture is not None else part.color
        worn[f"part{index}"] = colors[part.material] if own is None else own
    return worn


def _backdrop_materials(scene: Scene) -> dict[str, np.ndarray | Color]:
    materials: dict[str, np.ndarray | Color] = {"floor": surface_texture(scene.surface, scene.texture_seed)}
    if scene.wall != "open sky":
        materials["wall"] = wall_texture(scene.wall, scene.texture_seed)
    return materials


def dress_photos(
    product: Product, view: View, looks: Sequence[Appearance], *, width_px: int, height_px: int, spp: int
) -> tuple[np.ndarray, np.ndarray]:
    """Photographs of one shape and view in several appearances.

    Their finish is that of `product`. Returns: photographs uint8 [N, H, W, 3]; their mask uint8 [H, W], 0 or 255.
    """
    camera = camera_for(product.shape, view, width_px=width_px, height_px=height_px)
    lit = _light_up(product, view, None, camera, width_px, height_px, spp)
    mask = silhouette(product.shape, view, width_px=width_px, height_px=height_px)
    return np.stack([on_paper(lit.dressed(_product_materials(product, look)), mask) for look in looks]), mask


def dress_ads(
    product: Product,
    view: View,
    scenes_of: Sequence[Scene],
    looks: Sequence[Appearance],
    *,
    width_px: int,
    height_px: int,
    spp: int,
) -> np.ndarray:
    """Ads of one shape and view in several appearances, each in its own scene, uint8 [N, H, W, 3].

    All are lit as in the first scene, so the scenes may differ in surface, wall and exposure only.
    """
    first = scenes_of[0]
    camera = camera_for(product.shape, view, width_px=width_px, height_px=height_px)
    lit = _light_up(product, view, first, camera, width_px, height_px, spp)
    ads = []
    for scene, look in zip(scenes_of, looks, strict=True):
        materials = _product_materials(product, look) | _backdrop_materials(scene)
        ads.append(to_srgb(with_sky(lit.dressed(materials), scene, camera) * scene.exposure))
    return np.stack(ads)


def render_dressed(
    seed: int,
    num: int,
    *,
    width_px: int = WIDTH_PX,
    height_px: int = HEIGHT_PX,
    spp: int = 6,
    novel_views: bool = True,
) -> list[Triplet]:
    """`num` triplets of one shape, view and light; each has its own appearance, surface and wall.

    The finish (gloss) of all is the seed's own product's. Triplet i has the seed `num` · seed + i. All stand in trained
    combinations of surface and wall, also those of the test split.
    """
    base, view = sample_product(seed), sample_view(seed)
    first = scenes.sample_scene(seed)
    size = {"width_px": width_px, "height_px": height_px}
    # NumPy pads seeds with zeros: [seed, 1, 0] would draw the appearance of the seed's own product.
    looks = [sample_appearance(np.random.default_rng([seed, 1, index + 1])) for index in range(num)]
    places = [_other_backdrop(first, np.random.default_rng([seed, 3, index + 1])) for index in range(num)]
    photos, mask = dress_photos(base, view, looks, **size, spp=spp)
    # Half the samples suffice: as product images these get noise on top.
    views = sample_novel_views(seed, view) if novel_views else []
    turned = [dress_photos(base, each, looks, **size, spp=max(1, spp // 2)) for each in views]
    ads = dress_ads(base, view, places, looks, **size, spp=spp)
    found = []
    for index in range(num):
        product_id = f"studio-{seed:07d}-{index:02d}"
        found.append(
            Triplet(
                seed=seed * num + index,
                product_id=product_id,
                category=base.category,
                split=split_of(product_id),
                scene=places[index],
                view=view,
                captions=scenes.captions(base.shape.noun, places[index]),
                product_image=photos[index],
                product_mask=mask,
                ad_image=ads[index],
                novel_views=[(images[index], place) for images, place in turned],
            )
        )
    return found


def _other_backdrop(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with another trained surface and wall; an open sky stays one, since it is part of the light."""
    walls = [wall for wall in scenes.WALLS if (wall == "open sky") == (scene.wall == "open sky")]
    pairs = [(s, w) for s in scenes.SURFACES for w in walls if not scenes.is_held_out_combination(s, w)]
    surface, wall = pairs[int(rng.integers(len(pairs)))]
    return replace(scene, surface=surface, wall=wall, texture_seed=int(rng.integers(2**31)))
