"""Held-out cases with their truth: products and pairs of surface and wall that no training ever saw.

Sixteen shapes, each in three appearances, give 48 products; each product is asked for in several scenes. The candidates
of a case are true renders in its scene: one per product, all in the case's shape, pose, mask and light. The silhouette
therefore says nothing about which candidate is right. One trace of light serves all candidates of a case
(`refadgen.studio.dressing`).

    with render_pool() as pool:
        products = held_out_products(48)
        cases = cases_of(pool, products, 3)

Rendering needs the extra `refadgen[studio]`.
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refadgen.studio.appearance import Appearance
from refadgen.studio.camera import View
from refadgen.studio.dressing import dress_ads, dress_photos
from refadgen.studio.render import Product, product_id_of, sample_product, sample_view, split_of
from refadgen.studio.scenes import Scene, sample_scene, scene_prompt
from refadgen.studio.shapes import NOUNS

SIZE = {"width_px": 128, "height_px": 160, "spp": 6}
"""Keyword arguments of every render here: the size of the built-in model, and samples per pixel."""
SEED_OFFSET = 1_000_000
"""First seed; far from the seeds that anything was trained on."""
PER_SHAPE = 3
"""Products that share a shape."""
MAX_SCENES = 9
"""The number of pairs of surface and wall that are held out, hence of a product's scenes."""


@dataclass(frozen=True)
class HeldOutProduct:
    """One product with its photograph. Images are uint8 H×W×3."""

    product: Product
    view: View
    photo: npt.NDArray[np.uint8]
    """The product on white: the model's product image."""
    other_photo: npt.NDArray[np.uint8]
    """The photograph of another product of the same shape, for the control with the wrong product image."""
    mask: npt.NDArray[np.uint8]
    """H×W, 0 or 255; true for both photographs and for every ad of the product."""


@dataclass(frozen=True)
class Case:
    """One product in one scene: a prompt for the model, and the true ads of all products there."""

    index: int
    """The product's number, and so the number of the right candidate."""
    scene: Scene
    prompt: str
    candidates: npt.NDArray[np.uint8]
    """True renders, products×H×W×3; `candidates[index]` is the truth."""


def unseen_products(start: int) -> Iterator[Product]:
    """The products of the test split from seed `start` on."""
    for seed in range(start, start + 10**6):
        if split_of(product_id_of(seed)) == "test":
            yield sample_product(seed)


def held_out_products(count: int) -> list[HeldOutProduct]:
    """The first `count` held-out products, PER_SHAPE of each shape, each shape of another kind of product.

    Raises: ValueError unless `count` is a multiple of PER_SHAPE and there are enough kinds.
    """
    most = PER_SHAPE * len(set(NOUNS))
    if count % PER_SHAPE or not 0 < count <= most:
        raise ValueError(f"--products {count}: must be a multiple of {PER_SHAPE}, at most {most}")
    shapes: dict[str, Product] = {}
    for product in unseen_products(SEED_OFFSET):
        if len(shapes) == count // PER_SHAPE:
            break
        shapes.setdefault(product.shape.noun, product)
    # Appearances come from other seeds, so that products of one shape differ in nothing else.
    looks = looks_of(count)
    found = []
    for number, product in enumerate(shapes.values()):
        view = sample_view(SEED_OFFSET + number)
        own_looks = looks[PER_SHAPE * number : PER_SHAPE * (number + 1)]
        photos, mask = dress_photos(product, view, own_looks, **SIZE)
        finish = product.appearance
        for place, look in enumerate(own_looks):
            # A dressing keeps the finish of the traced product, so the record must say the same.
            worn = replace(look, roughness=finish.roughness, metallic=finish.metallic)
            other = photos[(place + 1) % PER_SHAPE]
            found.append(HeldOutProduct(replace(product, appearance=worn), view, photos[place], other, mask))
    return found


def looks_of(count: int) -> list[Appearance]:
    """The appearances of `count` held-out products, others than those that give the shapes."""
    products = unseen_products(2 * SEED_OFFSET)
    return [next(products).appearance for _ in range(count)]


def cases_of(pool: Executor, products: list[HeldOutProduct], scenes: int) -> list[Case]:
    """The cases, product by product, each product in `scenes` scenes (at most MAX_SCENES).

    Renders products × scenes × products images, in the pool's processes.
    """
    looks = [each.product.appearance for each in products]
    numbers = [index for index in range(len(products)) for _ in range(scenes)]
    places = [scene for index in range(len(products)) for scene in scenes_of(index, scenes)]
    return list(pool.map(_case, [products[index] for index in numbers], numbers, places, itertools.repeat(looks)))


def scenes_of(index: int, count: int) -> list[Scene]:
    """`count` scenes (at most MAX_SCENES) of product number `index`: held-out pairs of surface and wall, none twice."""
    assert count <= MAX_SCENES
    found: dict[tuple[str, str], Scene] = {}
    for seed in itertools.count(SEED_OFFSET + 1000 * index):
        scene = sample_scene(seed, held_out=True)
        found.setdefault((scene.surface, scene.wall), scene)
        if len(found) == count:
            return list(found.values())
    raise AssertionError


def _case(held: HeldOutProduct, index: int, scene: Scene, looks: list[Appearance]) -> Case:
    candidates = dress_ads(held.product, held.view, [scene] * len(looks), looks, **SIZE)
    # The plain prompt: the first of the captions that training draws from.
    prompt = scene_prompt(scene.surface, scene.wall, scene.light, held.product.shape.noun)
    return Case(index, scene, prompt, candidates)


def render_pool(processes: int = 2) -> ProcessPoolExecutor:
    """Processes for rendering: much of a render is the work of one thread."""
    # Not forked: a child would inherit locks that threads of torch and Mitsuba hold, and hang.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
