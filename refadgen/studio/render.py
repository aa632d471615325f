"""Renders products from seeds: the photograph on white and the ad in a scene.

One seed gives one product, one view and one scene. Photograph and ad share camera and place, so one mask is true for
both. Needs the extra `refadgen[studio]`; importing it selects Mitsuba's variant `scalar_rgb` for the process.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refadgen.studio import scenes
from refadgen.studio.appearance import Appearance, sample_appearance
from refadgen.studio.camera import Pinhole, View, camera_for, nearby_view, sample_view, silhouette
from refadgen.studio.glb_models import load_model
from refadgen.studio.mitsuba_scene import backdrop_dict, product_dict, trace
from refadgen.studio.scenes import Scene
from refadgen.studio.shapes import Shape, sample_shape
from refadgen.studio.textures import sky_picture
from refadgen.triplets import schema as triplets

WIDTH_PX, HEIGHT_PX = 128, 160
PHOTO_SPP, AD_SPP = 6, 6

__all__ = ["Product", "Scene", "Triplet", "View", "render_ad", "render_product_photo", "render_triplet", "sample_view"]


@dataclass(frozen=True, kw_only=True)
class Product:
    """A shape in an appearance."""

    product_id: str
    category: str
    """One of the paper's categories (Table 1)."""
    shape: Shape
    appearance: Appearance


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """One render with its truth; `build_triplets.as_row` makes a row of the data set from it."""

    seed: int
    product_id: str
    category: str
    split: str
    """Either "train" or "test"; a product is in one of them only."""
    scene: Scene
    view: View
    captions: list[str]
    product_image: np.ndarray
    """uint8 [H, W, 3], pure white outside of the mask."""
    product_mask: np.ndarray
    """uint8 [H, W], 0 or 255; the product's place in both pictures."""
    ad_image: np.ndarray
    """uint8 [H, W, 3]."""
    novel_views: list[tuple[np.ndarray, np.ndarray]]
    """Photographs and masks, as above, of the product in nearby views."""


def product_id_of(seed: int) -> str:
    """The id of the product of a seed."""
    return f"studio-{seed:07d}"


def sample_product(seed: int) -> Product:
    """The product of a seed: shape and appearance are drawn independently."""
    # Each use of a seed has a stream of its own, [seed, number]: a change in one leaves the others' bytes as they are.
    # 0 shape, 1 appearance, 2 view, 3 and 4 scene, 5 to 7 textures, 8 nearby views or phone, 9 environment and lens.
    shape = sample_shape(np.random.default_rng([seed, 0]))
    appearance = sample_appearance(np.random.default_rng([seed, 1]))
    return Product(product_id=product_id_of(seed), category=shape.category, shape=shape, appearance=appearance)


@functools.lru_cache(maxsize=64)  # a worker renders thousands of seeds from a few files, which take seconds to read
def model_product(file: str) -> Product:
    """A product from a 3D model file. Its id is a hash of the file's bytes. Raises: ValueError."""
    shape = load_model(Path(file))
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    look = sample_appearance(np.random.default_rng(int(digest, 16)))  # for parts without their own colours
    return Product(product_id=f"model-{digest}", category=shape.category, shape=shape, appearance=look)


def split_of(product_id: str) -> str:
    """The split of a product, by a hash of its id: "test" for about 4 %, else "train"."""
    return triplets.split_of(product_id, test_percent=4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear radiance to uint8 sRGB; highlights above 0.8 roll off softly and reach white at about 1.8."""
    over = np.maximum(linear - 0.8, 0.0)
    toned = np.minimum(linear, 0.8) + 0.2 * (1 - np.exp(-over / 0.2 * 0.8))
    srgb = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * np.maximum(toned, 1e-6) ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(np.round(srgb * 255), 0, 255), np.uint8)


def render_product_photo(
    product: Product,
    view: View,
    *,
    width_px: int = WIDTH_PX,
    height_px: int = HEIGHT_PX,
    spp: int = PHOTO_SPP,
) -> tuple[np.ndarray, np.ndarray]:
    """The product alone on white in neutral soft light, in the same place as in the ad.

    Returns: rgb uint8 [H, W, 3], exactly 255 outside of the mask; mask uint8 [H, W], 0 or 255.
    """
    camera = camera_for(product.shape, view, width_px=width_px, height_px=height_px)
    objects = product_dict(product.shape, product.appearance, view)
    rgba = trace(objects, camera, None, width_px=width_px, height_px=height_px, spp=spp)
    mask = silhouette(product.shape, view, width_px=width_px, height_px=height_px)
    return on_paper(rgba, mask), mask


def on_paper(rgba: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A render on white: uint8 sRGB [H, W, 3], exactly 255 outside of the mask. rgba: linear, weighted by alpha."""
    # Alpha is the product's coverage of a pixel: white fills the rest at the edge.
    paper = 1.0 - rgba[..., 3:]
    toned = to_srgb(rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-3))
    rgb = np.round(toned * (1 - paper) + 255 * paper).astype(np.uint8)
    rgb[mask == 0] = 255
    return rgb


def render_ad(
    product: Product,
    scene: Scene,
    view: View,
    *,
    width_px: int = WIDTH_PX,
    height_px: int = HEIGHT_PX,
    spp: int = AD_SPP,
) -> tuple[np.ndarray, np.ndarray]:
    """The product in a scene.

    Returns: rgb uint8 [H, W, 3]; mask uint8 [H, W], 0 or 255, equal to that of the product photograph.
    """
    camera = camera_for(product.shape, view, width_px=width_px, height_px=height_px)
    objects = product_dict(product.shape, product.appearance, view) | backdrop_dict(scene)
    rgba = trace(objects, camera, scene, width_px=width_px, height_px=height_px, spp=spp)
    linear = with_sky(rgba, scene, camera)
    return to_srgb(linear * scene.exposure), silhouette(product.shape, view, width_px=width_px, height_px=height_px)


def with_sky(rgba: np.ndarray, scene: Scene, camera: Pinhole) -> np.ndarray:
    """Linear rgb of a render, [H, W, 3], with an open sky painted where no object is seen."""
    if scene.wall != "open sky" or scene.environment:
        return rgba[..., :3]
    far = camera.origin + np.array([[0.0, 0.0, -1e4]]) * [1, 0, 1]
    horizon = float(camera.project(far)[0, 1])
    height_px, width_px = rgba.shape[:2]
    sky = sky_picture(scene.light, scene.texture_seed, horizon=horizon, height=height_px, width=width_px)
    return np.asarray(rgba[..., :3] + (1 - rgba[..., 3:]) * sky)


def sample_novel_views(seed: int, view: View) -> list[View]:
    """The two to four nearby views of a seed."""
    rng = np.random.default_rng([seed, 8])
    return [nearby_view(view, rng) for _ in range(int(rng.integers(2, 5)))]


def render_triplet(
    seed: int,
    *,
    width_px: int = WIDTH_PX,
    height_px: int = HEIGHT_PX,
    spp: int = AD_SPP,
    models: Sequence[str] = (),
    environments: Sequence[str] = (),
    depth_of_field: bool = False,
) -> Triplet:
    """The render of a seed. Training products stand in trained scene combinations only, test products in any.

    models: 3D model files; the seed's product is one of them instead of a parametric one. environments: environment map
    files; about every second ad stands in one. depth_of_field: about every second ad is taken through an open lens.
    """
    product, view = sample_product(seed), sample_view(seed)
    if models:
        product = model_product(models[seed % len(models)])
    split = split_of(product.product_id)
    scene = scenes.sample_scene(seed, held_out=None if split == "test" else False)
    rng = np.random.default_rng([seed, 9])
    if environments and rng.random() < 0.5:
        scene = scenes.in_environment(scene, environments[int(rng.integers(len(environments)))])
    if depth_of_field and rng.random() < 0.5:
        scene = scenes.with_depth_of_field(scene, rng)
    size = {"width_px": width_px, "height_px": height_px}
    product_image, product_mask = render_product_photo(product, view, **size, spp=min(spp, PHOTO_SPP))
    ad_image, _ = render_ad(product, scene, view, **size, spp=spp)
    novel_views = [
        render_product_photo(product, each, **size, spp=min(spp, PHOTO_SPP)) for each in sample_novel_views(seed, view)
    ]
    return Triplet(
        seed=seed,
        product_id=product.product_id,
        category=product.category,
        split=split,
        scene=scene,
        view=view,
        captions=scenes.captions(product.shape.noun, scene),
        product_image=product_image,
        product_mask=product_mask,
        ad_image=ad_image,
        novel_views=novel_views,
    )
