"""Parametric product shapes: meshes of named parts, standing on y = 0, about one unit tall.

A shape has no colours: `Part.material` says which parts carry the appearance's print ("body") and which its secondary
colour ("accent"). Only parts that look the same on every product, like tyres, have a fixed colour. One seed gives one
shape. The categories are all thirty of the paper's (Table 1). The builders are in `shapes_*.py`. The label of a turned
shape covers its front half, so its `label_aspect` is half the circumference over the label's height.
"""

from collections.abc import Callable

import numpy as np

from refadgen.studio import shapes_containers as containers
from refadgen.studio import shapes_household as household
from refadgen.studio import shapes_outdoors as outdoors
from refadgen.studio import shapes_personal as personal
from refadgen.studio import shapes_wear as wear
from refadgen.studio.meshes import Part, Shape, rotation_y

__all__ = ["BUILDERS", "CATEGORIES", "NOUNS", "Part", "Shape", "noun_of", "sample_shape", "turned_vertices"]

Builder = Callable[[np.random.Generator], Shape]

BUILDERS: tuple[tuple[str, str, Builder], ...] = (
    ("Bottle", "bottle", containers.bottle),
    ("Body wash", "body wash", containers.pump_bottle),
    ("Shampoo", "shampoo", containers.shampoo),
    ("Cup", "cup", containers.cup),
    ("Coffee", "coffee can", containers.can),
    ("Snacks", "snack box", containers.snack_box),
    ("Snacks", "snack pouch", containers.pouch),
    ("Lipstick", "lipstick", personal.lipstick),
    ("Foundation", "foundation jar", containers.jar),
    ("Notebooks", "notebook", household.notebook),
    ("Pillows", "pillow", household.pillow),
    ("Sports ball", "sports ball", outdoors.ball),
    ("Cell phone", "cell phone", personal.phone),
    ("Handbag", "handbag", wear.handbag),
    ("Backpack", "backpack", wear.backpack),
    ("Bench", "bench", household.bench),
    ("Car", "car", outdoors.car),
    ("Chargers", "charger", personal.charger),
    ("Clothing", "garment", wear.t_shirt),
    ("Eyeshadow", "palette of eyeshadow", personal.eyeshadow),
    ("Fork", "fork", household.fork),
    ("Hats", "hat", wear.hat),
    ("Headphones", "pair of headphones", personal.headphones),
    ("Kite", "kite", outdoors.kite),
    ("Motorcycle", "motorcycle", outdoors.motorcycle),
    ("Pens", "pen", personal.pen),
    ("Rugs", "rug", household.rug),
    ("Sneakers", "sneaker", wear.sneaker),
    ("Toothbrush", "toothbrush", personal.toothbrush),
    ("Umbrella", "rain umbrella", outdoors.umbrella),
    ("Wine glass", "wine glass", containers.wine_glass),
)
"""Category, noun and builder of each kind of product. Captions say "a" before the noun."""

CATEGORIES = tuple(dict.fromkeys(category for category, _, _ in BUILDERS))
"""The paper's categories (Table 1), all thirty."""

NOUNS = tuple(noun for _, noun, _ in BUILDERS)
"""The words for the products in captions."""


def noun_of(category: str) -> str:
    """The word for a category's products in captions; the first of several kinds."""
    return next(noun for name, noun, _ in BUILDERS if name == category)


def sample_shape(rng: np.random.Generator) -> Shape:
    """A random shape: first a category, all equally likely, then one of its kinds."""
    # By category first: kinds alone would make snacks, with two of them, twice as frequent.
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    kinds = [build for name, _, build in BUILDERS if name == category]
    return kinds[int(rng.integers(len(kinds)))](rng)


def turned_vertices(shape: Shape, yaw_deg: float) -> np.ndarray:
    """All vertices [V, 3] of the shape after turning it about the upward axis."""
    vertices: np.ndarray = np.concatenate([part.vertices for part in shape.parts])
    return np.asarray(vertices @ rotation_y(yaw_deg).T)
