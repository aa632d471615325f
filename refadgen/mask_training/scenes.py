"""Photographs as shops have them, made with the true mask: what is behind, under, around and over a product.

A scene follows from a kind (`KINDS`), a split of the product families, a size and a seed. Each pixel has a class, so
that a network learns not only where the product is, but also what the rest is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.mask_training import backdrops, overlays
from refadgen.mask_training.bank import Bank
from refadgen.mask_training.drawn import (
    LATTICES,
    TRANSLUCENT,
    WITH_FACE,
    WITH_PALE_PARTS,
    WITH_SLATS,
    Split,
    draw_product,
)
from refadgen.mask_training.pen import Color, Cutout, Floats
from refadgen.segmentation.classes import BACKDROP, PRODUCT, SHADOW

KINDS = {
    "white": 2.0,
    "coloured": 2.4,
    "gradient": 1.0,
    "white_part": 2.5,
    "white_face": 1.5,
    "slats": 2.4,
    "lattice": 2.0,
    "framed": 1.5,
    "marks": 2.0,
    "dust": 0.6,
    "white_on_white": 1.2,
    "shadow": 2.2,
    "reflection": 1.4,
    "glass": 0.8,
    "scene": 4.0,
}
"""Kinds of photographs, and how often each is drawn for training, relative to the others."""
PLAIN_KINDS = ("white", "coloured", "gradient", "slats", "lattice", "dust", "shadow", "reflection")
"""Kinds whose backdrop is plain and whose product stands out from it: a shop expects that their masks are found."""
_AMONG = {
    "white_part": WITH_PALE_PARTS,
    "white_face": WITH_FACE,
    "slats": WITH_SLATS,
    "lattice": LATTICES,
    "glass": TRANSLUCENT,
}
"""The families of the kinds that show some families only."""
_SHADOWS: tuple[backdrops.Shadow, ...] = ("contact", "drop", "cast")


@dataclass(frozen=True)
class Scene:
    """One photograph. kind: of `KINDS`. family: of the product, by name.

    image: uint8 HW3, RGB. coverage: float32 HW, 0 to 1, the true mask. classes: uint8 HW, as `segmentation.classes`
    names them; PRODUCT where the coverage is 0.5 or more, and nowhere else.
    """

    kind: str
    family: str
    image: npt.NDArray[np.uint8]
    coverage: Floats
    classes: npt.NDArray[np.uint8]


class _Stage:
    """A scene in the making: image, coverage and classes as in `Scene`, but the image float32 and not yet clipped."""

    def __init__(self, rng: np.random.Generator, backdrop: Floats) -> None:
        """backdrop: float32 HW3, 0 to 255; it is drawn over."""
        self.rng = rng
        self.image = backdrop
        height, width = backdrop.shape[:2]
        self.coverage = np.zeros((height, width), np.float32)
        self.classes = np.full((height, width), BACKDROP, np.uint8)

    def stand(
        self, cutout: Cutout, *, shadow: backdrops.Shadow | None, reflection: float = 0.0, least: float = 0.35
    ) -> None:
        """Puts the product onto the stage, at a random place and size.

        reflection: 0 to 1, its opacity; 0: none. least: the smallest size, as a share of what fits into the picture.
        """
        placed = _placed(self.rng, cutout, self.coverage.shape, least)
        if shadow is not None:
            self._darken(backdrops.shadow(self.rng, placed.coverage, shadow))
        if reflection:
            mirrored = backdrops.mirrored(self.rng, placed, reflection)
            self.image += mirrored.opacity[..., None] * (mirrored.rgb - self.image)
            self.classes[mirrored.opacity > 0.02] = SHADOW
        opacity = placed.opacity[..., None]
        self.image = self.image * (1 - opacity) + placed.rgb * opacity
        self.coverage = placed.coverage
        self.classes[placed.coverage >= 0.5] = PRODUCT

    def _darken(self, darkening: Floats) -> None:
        """Lays a shadow over the picture. darkening: float32 HW, 0 to 1; under 0.012 nobody sees it."""
        tint = 1 - darkening[..., None] * self.rng.uniform(0.85, 1.0, 3)
        self.image *= tint.astype(np.float32)
        self.classes[darkening > 0.012] = SHADOW


def make_scene(rng: np.random.Generator, kind: str, split: Split, longest_px: int, bank: Bank | None = None) -> Scene:
    """Makes one scene; the same generator state makes the same one.

    kind: of `KINDS`. split: which product families may be drawn. longest_px: the longer side of the picture; a padding
    adds to it, and no side is under 24. bank: rendered products and photographs, used beside the drawn ones; None:
    drawn ones only.
    """
    assert kind in KINDS, f"{kind} is no kind of scene"
    if kind == "scene" and bank is not None and rng.random() < 0.6:
        found = bank.photo(rng, "scene", longest_px)
        if found is not None:
            return _finished(rng, kind, *found)
    if kind in ("white", "coloured", "shadow") and bank is not None and rng.random() < 0.2:
        found = bank.photo(rng, "plain", longest_px)
        if found is not None:
            return _finished(rng, kind, *found)
    aspect = float(np.exp(rng.normal(0, 0.22)))
    width, height = (longest_px, round(longest_px / aspect)) if aspect > 1 else (round(longest_px * aspect), longest_px)
    size = (max(24, height), max(24, width))
    if kind == "framed":
        return _framed(rng, split, longest_px, bank)
    family, stage = _MAKERS.get(kind, _plain)(rng, kind, split, size, bank)
    if kind == "marks" or (kind not in ("scene", "glass") and rng.random() < 0.04):
        overlays.add_marks(rng, stage.image, stage.coverage, stage.classes)
    if kind == "dust":
        overlays.add_dust(rng, stage.image, stage.coverage)
    return _finished(rng, kind, family, stage.image, stage.coverage, stage.classes)


def _finished(
    rng: np.random.Generator, kind: str, family: str, image: Floats, coverage: Floats, classes: npt.NDArray[np.uint8]
) -> Scene:
    """The scene as a shop's photograph. Compression bleeds into narrow gaps, so slats are compressed more often."""
    pixels = overlays.photographed(rng, image, jpeg=0.9 if kind == "slats" else 0.75)
    return Scene(kind, family, pixels, coverage, classes)


def _product(
    rng: np.random.Generator,
    split: Split,
    bank: Bank | None,
    size_px: int,
    among: tuple[str, ...] | None = None,
    near: Color | None = None,
) -> tuple[str, Cutout]:
    """Family and product: rendered, where the bank has some and any family will do, or drawn as `draw_product` does."""
    if bank is not None and among is None and rng.random() < 0.5:
        found = bank.cutout(rng)
        if found is not None:
            return found
    return draw_product(rng, split, size_px, among=among, near=near)


def _plain(
    rng: np.random.Generator, kind: str, split: Split, size: tuple[int, int], bank: Bank | None
) -> tuple[str, _Stage]:
    """A product on a plain backdrop: white, coloured, graded; with a shadow or a reflection at times."""
    tone = backdrops.tone(rng, "coloured" if kind in ("coloured", "glass") and rng.random() < 0.7 else "white")
    hard = kind in ("white_part", "white_face") and rng.random() < 0.85
    family, cutout = _product(rng, split, bank, round(0.9 * max(size)), _AMONG.get(kind), near=tone if hard else None)
    if not hard:
        tone = backdrops.apart(rng, tone, cutout)
    graded = kind == "gradient" or rng.random() < 0.2
    stage = _Stage(rng, backdrops.plain(rng, tone, size, graded=graded))
    share = {"shadow": 1.0, "white_part": 0.3, "white_face": 0.3}.get(kind, 0.45)
    shadow = _SHADOWS[int(rng.choice(3, p=[0.5, 0.25, 0.25]))] if rng.random() < share else None
    reflection = float(rng.uniform(0.08, 0.45)) if kind == "reflection" or rng.random() < 0.03 else 0.0
    stage.stand(cutout, shadow=shadow, reflection=reflection)
    return family, stage


def _white_on_white(
    rng: np.random.Generator, kind: str, split: Split, size: tuple[int, int], bank: Bank | None
) -> tuple[str, _Stage]:
    """A white product on white: only its shading shows it."""
    family, cutout = _product(rng, split, bank, round(0.9 * max(size)))
    gray = cutout.rgb.mean(axis=-1, keepdims=True)
    inside = gray[cutout.coverage > 0.5]
    low, high = np.percentile(inside, [3, 97]) if inside.size else (0.0, 255.0)
    flat = 255 - (high - gray) / max(high - low, 1) * rng.uniform(12, 60) - rng.uniform(0, 8)
    white = np.clip(flat + rng.normal(0, 1.5, 3), 0, 255).astype(np.float32)
    stage = _Stage(rng, backdrops.plain(rng, backdrops.tone(rng, "white"), size, graded=rng.random() < 0.3))
    stage.stand(Cutout(white, cutout.opacity, cutout.coverage), shadow="contact" if rng.random() < 0.6 else None)
    return family, stage


def _scene(
    rng: np.random.Generator, kind: str, split: Split, size: tuple[int, int], bank: Bank | None
) -> tuple[str, _Stage]:
    """A product in front of a textured surrounding, with up to three other things behind it, which are backdrop."""
    stage = _Stage(rng, backdrops.surrounding(rng, size, bank))
    for _ in range(rng.integers(0, 4)):
        _, other = _product(rng, split, bank, 200)
        stage.stand(other, shadow="cast" if rng.random() < 0.5 else None, least=0.1)
        stage.coverage[:] = 0
        stage.classes[:] = BACKDROP
    blur = float(rng.uniform(0, 0.012)) * max(size)
    if blur > 0.4:
        stage.image = np.asarray(cv2.GaussianBlur(stage.image, (0, 0), blur), np.float32)
    family, cutout = _product(rng, split, bank, round(0.8 * max(size)))
    stage.stand(cutout, shadow="contact" if rng.random() < 0.8 else "cast", least=0.3)
    stage.image *= backdrops.light(rng, size)[..., None]
    return family, stage


_MAKERS: dict[str, Callable[..., tuple[str, _Stage]]] = {"white_on_white": _white_on_white, "scene": _scene}


def _framed(rng: np.random.Generator, split: Split, longest_px: int, bank: Bank | None) -> Scene:
    """A photograph within a frame, a line or a padding: the mask is that of the product, not of the photograph."""
    kind = str(rng.choice(["coloured", "white", "gradient", "scene"], p=[0.35, 0.3, 0.15, 0.2]))
    inner = make_scene(rng, kind, split, longest_px, bank)
    image, coverage, classes = overlays.framed(rng, inner.image.astype(np.float32), inner.coverage, inner.classes)
    return _finished(rng, "framed", inner.family, image, coverage, classes)


def _placed(rng: np.random.Generator, cutout: Cutout, shape: tuple[int, ...], least: float) -> Cutout:
    """The cut-out resized and moved onto a picture of `shape` (height, width); nothing, where it shows nothing.

    least: as in `_Stage.stand`.
    """
    height, width = shape[:2]
    x, y, w, h = cv2.boundingRect((cutout.coverage > 0.02).astype(np.uint8))
    if w == 0:
        none = np.zeros((height, width), np.float32)
        return Cutout(np.zeros((height, width, 3), np.float32), none, none)
    share = rng.uniform(least, 0.93)
    scale = share * min(width / w, height / h)
    new = (max(2, round(w * scale)), max(2, round(h * scale)))
    box, how = (slice(y, y + h), slice(x, x + w)), cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    weighted = np.dstack([cutout.rgb[box] * cutout.opacity[box][..., None], cutout.opacity[box]])
    coverage = cv2.resize(np.ascontiguousarray(cutout.coverage[box]), new, interpolation=how)
    small = np.dstack([cv2.resize(weighted, new, interpolation=how), coverage])
    free_x, free_y = width - new[0], height - new[1]
    left = int(np.clip(rng.normal(0.5, 0.15), 0.02, 0.98) * free_x)
    top = int(np.clip(rng.normal(0.55, 0.15), 0.02, 0.98) * free_y)
    full = np.zeros((height, width, 5), np.float32)
    full[top : top + new[1], left : left + new[0]] = small
    # Colours were weighted by opacity, so that what is not drawn does not bleed into the edge.
    rgb = np.asarray(full[..., :3] / np.maximum(full[..., 3:4], 1e-3), np.float32)
    return Cutout(rgb, full[..., 3], full[..., 4])
