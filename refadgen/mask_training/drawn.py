"""Which products are drawn, and which of them are for training, for calibration and for tests only."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from refadgen.mask_training import drawn_random as shapes
from refadgen.mask_training import drawn_things as things
from refadgen.mask_training import drawn_vessels as vessels
from refadgen.mask_training.pen import Color, Cutout, Pen

Split = Literal["train", "calibrate", "test"]
Family = Callable[[Pen], None]
"""Draws a random product of one kind; its name is the family's."""

FAMILIES: dict[Split, tuple[Family, ...]] = {
    "train": (
        vessels.bottle,
        vessels.can,
        vessels.mug,
        vessels.bowl,
        vessels.wine_glass,
        vessels.box,
        vessels.television,
        vessels.notebook,
        vessels.plate,
        vessels.lipstick,
        vessels.frame_corner,
        things.tee,
        things.trousers,
        things.sneaker,
        things.glasses,
        things.ring,
        things.necklace,
        things.slat_chair,
        things.shelf,
        things.basket,
        things.fork,
        things.scissors,
        things.lamp,
        things.bag,
        things.wheel,
        things.keyboard_set,
        things.plant,
        things.guitar,
        things.umbrella,
        things.blob,
        things.composite,
        shapes.strung,
        shapes.toothed,
        shapes.perforated,
        shapes.trellis,
    ),
    "calibrate": (
        vessels.jar,
        vessels.tablet,
        vessels.cushion,
        vessels.spray,
        vessels.bucket,
        vessels.flacon,
        vessels.vase,
        things.dress,
        things.boot,
        things.bench,
        things.rack,
        things.headphones,
        shapes.wreath,
        shapes.rake,
        shapes.grater,
    ),
    "test": (
        vessels.carafe,
        vessels.tumbler,
        vessels.kettle,
        vessels.laptop,
        vessels.wall_clock,
        vessels.poster,
        things.hoodie,
        things.clog,
        things.fence,
        things.cage,
        things.comb,
        things.bracelet,
        things.screwdriver,
    ),
}
"""No family is in two splits: what the tests show was never trained on, nor calibrated on."""

WITH_PALE_PARTS = (
    "bottle",
    "can",
    "lipstick",
    "tee",
    "sneaker",
    "keyboard_set",
    "box",
    "lamp",
    "plant",
    "jar",
    "spray",
    "boot",
    "headphones",
    "dress",
    "carafe",
    "hoodie",
    "clog",
    "kettle",
    "trousers",
)
"""Families whose `pale` parts reach the contour."""
WITH_FACE = ("television", "notebook", "plate", "tablet", "laptop", "wall_clock", "poster")
"""Families that are mostly one `face` within a thin frame."""
WITH_SLATS = ("slat_chair", "shelf", "fork", "toothed", "bench", "rake", "fence", "comb")
"""Families with gaps between bars, through which the backdrop shows."""
LATTICES = ("basket", "wheel", "perforated", "trellis", "rack", "grater", "cage")
"""Families of crossing wires or spokes, with many small gaps."""
TRANSLUCENT = ("wine_glass", "flacon", "vase", "tumbler")
"""Families through which the backdrop shines."""


def draw_product(
    rng: np.random.Generator,
    split: Split,
    size_px: int,
    *,
    among: tuple[str, ...] | None = None,
    near: Color | None = None,
    turn: float = 1.0,
) -> tuple[str, Cutout]:
    """Draws one product on a square picture of `size_px`. Returns: its family's name, and the product.

    among: names of the families to choose from; all of the split, where it has none of them or `among` is None.
    near, turn: as `Pen` has them.
    """
    families = [f for f in FAMILIES[split] if among is None or f.__name__ in among] or list(FAMILIES[split])
    family = families[int(rng.integers(len(families)))]
    pen = Pen(rng, size_px, near=near, turn=turn)
    family(pen)
    return family.__name__, pen.cutout()
