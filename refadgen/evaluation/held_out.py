"""Held-out cases with their truth: products never trained on, in scene pairs never trained on, and look-alikes.

Sixteen shapes, each worn by three products; each product is asked for in three scenes. The candidates of a case are
true renders of its shape, pose, mask, scene and light in the appearance of every product, so the silhouette gives
nothing away. One trace of light serves them all (`refadgen.studio.dressing`).
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np

from refadgen.studio.appearance import Appearance
from refadgen.studio.camera import View
from refadgen.studio.dressing import dress_ads, dress_photos
from refadgen.studio.render import Product, product_id_of, sample_product, sample_view, split_of
from refadgen.studio.scenes import Scene, sample_scene, scene_prompt
from refadgen.studio.shapes import NOUNS

SIZE = {"width_px": 128, "height_px": 160, "spp": 6}
SEED_OFFSET = 1_000_000  # far from the seeds that anything was trained on
PER_SHAPE = 3


@dataclass(frozen=True)
class HeldOutProduct:
    """One product, its photograph, and the photograph of the next product of the same shape."""

    product: Product
    view: View
    photo: np.ndarray
    other_photo: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Case:
    """One product in one scene."""

    index: int
    """Of the product: the number of the right candidate."""
    scene: Scene
    prompt: str
    candidates: np.ndarray
    """True renders, uint8 products×H×W×3."""


def unseen_products(start: int) -> Iterator[Product]:
    """Products of the test split."""
    for seed in range(start, start + 10**6):
        if split_of(product_id_of(seed)) == "test":
            yield sample_product(seed)


def held_out_products(count: int) -> list[HeldOutProduct]:
    """`count` products, three of each shape, each shape of another kind. Raises: ValueError."""
    most = PER_SHAPE * len(set(NOUNS))
    if count % PER_SHAPE or not 0 < count <= most:
        raise ValueError(f"--products {count}: must be a multiple of {PER_SHAPE}, at most {most}")
    shapes: dict[str, Product] = {}
    for product in unseen_products(SEED_OFFSET):
        if len(shapes) == count // PER_SHAPE:
            break
        shapes.setdefault(product.shape.noun, product)
    looks = looks_of(count)
    found = []
    for number, product in enumerate(shapes.values()):
        view = sample_view(SEED_OFFSET + number)
        mine = looks[PER_SHAPE * number : PER_SHAPE * (number + 1)]
        photos, mask = dress_photos(product, view, mine, **SIZE)
        for place, look in enumerate(mine):
            finish = {"roughness": product.appearance.roughness, "metallic": product.appearance.metallic}
            worn = replace(product, appearance=replace(look, **finish))  # as it is photographed
            found.append(HeldOutProduct(worn, view, photos[place], photos[(place + 1) % PER_SHAPE], mask))
    return found


def looks_of(count: int) -> list[Appearance]:
    """The appearances of the first `count` products beyond those that give the shapes."""
    products = unseen_products(2 * SEED_OFFSET)
    return [next(products).appearance for _ in range(count)]


def cases_of(pool: Executor, products: list[HeldOutProduct], scenes: int) -> list[Case]:
    """The cases, product by product; each in `scenes` different unseen combinations of trained words."""
    looks = [each.product.appearance for each in products]
    numbers = [index for index in range(len(products)) for _ in range(scenes)]
    places = [scene for index in range(len(products)) for scene in scenes_of(index, scenes)]
    return list(pool.map(_case, [products[index] for index in numbers], numbers, places, itertools.repeat(looks)))


def scenes_of(index: int, count: int) -> list[Scene]:
    """`count` scenes of a product, at most nine, no pair of surface and wall twice."""
    assert count <= 9
    found: dict[tuple[str, str], Scene] = {}
    for seed in itertools.count(SEED_OFFSET + 1000 * index):
        scene = sample_scene(seed, held_out=True)
        found.setdefault((scene.surface, scene.wall), scene)
        if len(found) == count:
            return list(found.values())
    raise AssertionError


def _case(held: HeldOutProduct, index: int, scene: Scene, looks: list[Appearance]) -> Case:
    candidates = dress_ads(held.product, held.view, [scene] * len(looks), looks, **SIZE)
    prompt = scene_prompt(scene.surface, scene.wall, scene.light, held.product.shape.noun)
    return Case(index, scene, prompt, candidates)


def two_processes() -> ProcessPoolExecutor:
    """For rendering, of which much is one thread's work."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def nearest(output: np.ndarray, candidates: np.ndarray, mask: np.ndarray) -> int:
    """The candidate of the least mean distance in Lab inside the mask, both slightly smoothed."""
    inside = mask > 127
    seen = _smooth_lab(output)[inside]
    return int(np.argmin([np.abs(seen - _smooth_lab(candidate)[inside]).mean() for candidate in candidates]))


def _smooth_lab(image_u8: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), (0, 0), 1.0)


def inmask_ssim(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Mean SSIM (Wang et al. 2004: Gaussian window of 1.5, K 0.01 and 0.03) of grey values inside the mask."""
    a, b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (output, truth))

    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(ssim[mask > 127].mean())
