"""Checks of masks that were given, a row's own mask or an alpha channel: is it the wrong way round, is it a cut-out.

Both look at the photograph beside the mask. A backdrop is smooth, and unlike the product in front of it.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.transparency import product_share

WORK_SIDE_PX = 512
MIN_TRANSPARENT = 0.001
"""Share of nearly transparent pixels from which on an alpha channel may be a cut-out."""
WHOLE_BORDER, MOST_BORDER = 0.97, 0.6
"""Share of the border that a mask covers whose way round is looked at; and where that border is plain."""
MIN_LEFT_OUT = 0.01
"""Smallest part that an inverted mask leaves out, as a share of the image."""
MAX_HOLES = 8
"""Most parts that an inverted mask leaves out: more are the holes of a lattice."""
MIN_FIT = 0.985
"""Least overlap (IoU) of an alpha channel's outline with a rectangle or an ellipse that was cut by a machine."""
BAND = 0.03
"""Width of the band that is looked at inside an outline, as a share of the shorter side."""
PLAIN, UNLIKE = 5.0, 10.0
"""Largest ΔE of a plain band from one smooth colour (90 % of it), and least ΔE of a colour that is another."""
WHITE, COLORLESS = 90.0, 6.0
"""Least L* and most chroma of a studio's white backdrop."""
CROP_HELP = "give the uncropped photograph, or a cut-out, or a mask of its own (white where the product is)"

Given = Literal["own_mask", "alpha"]


@dataclass(frozen=True)
class _Ring:
    """A band of pixels. color: float32 3, median CIE Lab. plain: one smooth colour. surface: float32 HW3, that colour
    at each pixel of the image, also beyond the band."""

    color: np.ndarray
    plain: bool
    surface: np.ndarray

    @property
    def white(self) -> bool:
        return bool(self.plain and self.color[0] >= WHITE and np.hypot(*self.color[1:]) <= COLORLESS)


def check_way_round(mask: np.ndarray, image_u8: np.ndarray, source: Given) -> None:
    """Refuses a mask that is white where the backdrop is, and black where the product is.

    mask: uint8 HW, above 127 on the product. image_u8: uint8 HW3.
    Such a mask covers the image's border and leaves out what is unlike it. A product that fills its image leaves out
    nothing; a frame leaves out a rectangle in its middle with a plain colour in it; a lattice, many parts.
    Raises: DoubtfulMask `inverted_mask`.
    """
    small, lab = _reduced((mask > 127).astype(np.uint8) * 255, image_u8)
    product = small > 127
    band = _band(product.shape, 2)
    cover = float(product[band].mean())
    left_out = cv2.morphologyEx((~product).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    if cover < MOST_BORDER or left_out.mean() < MIN_LEFT_OUT:
        return
    _, _, stats, _ = cv2.connectedComponentsWithStats(left_out, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if np.count_nonzero(areas >= 0.02 * areas.sum()) > MAX_HOLES:
        return
    outside = _ring(lab, _band(product.shape, max(4, round(BAND * min(product.shape)))) & product)
    hole = cv2.erode(left_out, np.ones((5, 5), np.uint8)) > 0
    if not hole.any():
        return
    unlike = float((_distance(lab, outside.surface)[hole] > UNLIKE).mean())
    if cover < WHOLE_BORDER and not (outside.plain and unlike > 0.5):
        return
    inside = _ring(lab, hole)
    framed = _frames(stats[1 + int(np.argmax(areas))], areas, product.shape)
    flat = inside.plain and float((_distance(lab, inside.surface)[hole] > UNLIKE).mean()) < 0.02
    if framed and flat and not outside.white:
        return
    if not outside.plain and _texture(lab, hole).like(_texture(lab, product)):
        return  # gaps in a mask of a product that fills its image
    share = f"{100 * cover:.0f} %"
    named = "the mask" if source == "own_mask" else "the alpha channel"
    raise DoubtfulMask(
        "inverted_mask",
        f"{named} covers {share} of the image's border and leaves out what differs from it: it looks inverted. White "
        "(opaque) must be the product: invert it; if the product does surround its middle, leave a margin around it",
        field="mask" if source == "own_mask" else None,
        alpha=mask,
        source=source,
        score=1.0,
    )


def photograph_in(image: Image.Image, share: np.ndarray) -> np.ndarray | None:
    """The photograph in an alpha channel that only crops it, uint8 HW3; None: the alpha channel cuts out a product.

    image: RGBA. share: what `product_share` makes of its alpha. Margins, circles and rounded corners are cut by a
    machine: their outline is a perfect rectangle or ellipse. So may be that of a book or a plate. What lies inside the
    outline decides: a studio's white around something else is a backdrop, and is continued over the transparent part.
    A pattern, or one colour all over, is a product.
    Raises: DoubtfulMask `alpha_not_cutout` where that is unclear.
    """
    image_u8 = np.asarray(image.convert("RGB"))
    small, lab = _reduced(share, image_u8)
    outline = small > 127
    if not _cut_by_machine(outline):
        return None
    width = max(3, round(BAND * np.sqrt(np.count_nonzero(outline))))
    inner = cv2.erode(np.pad(outline, 1).astype(np.uint8), _disk(2))[1:-1, 1:-1] > 0
    middle = cv2.erode(np.pad(inner, 1).astype(np.uint8), _disk(width))[1:-1, 1:-1] > 0
    band = inner & ~middle
    if not middle.any():
        return None
    ring = _ring(lab, band)
    other = middle & (_distance(lab, ring.surface) > UNLIKE)
    unlike = np.count_nonzero(other) / np.count_nonzero(middle)
    if ring.plain and unlike < 0.002:
        return None
    printed = _printed(other)
    if ring.white and not printed:
        return _continued(image_u8, share, ring)
    if (ring.plain and printed and not ring.white) or (not ring.plain and _patterned(lab, band)):
        return None
    problem = "one smooth colour lies along it, and something else inside" if ring.plain else "a scene goes on to it"
    raise DoubtfulMask(
        "alpha_not_cutout",
        f"the alpha channel's outline is a perfect rectangle, rounded rectangle or ellipse, and {problem}: this may be "
        f"a cropped photograph instead of a product; {CROP_HELP}",
        alpha=share,
        source="alpha",
        score=1.0,
    )


def alpha_cut(image: Image.Image) -> tuple[np.ndarray | None, np.ndarray]:
    """The share of product in each pixel, uint8 HW, or None where alpha says nothing of it; the photograph, uint8 HW3.

    image: RGBA. Raises: DoubtfulMask `inverted_mask`, `alpha_not_cutout`.
    """
    image_u8, alpha = np.asarray(image.convert("RGB")), np.asarray(image)[..., 3]
    # Exports often carry an alpha channel that is opaque all over, or half transparent all over: no cut-out.
    if (alpha < 16).mean() < MIN_TRANSPARENT:
        return None, image_u8
    share = product_share(alpha, image_u8)
    check_way_round(share, image_u8, "alpha")
    photograph = photograph_in(image, share)
    return (share, image_u8) if photograph is None else (None, photograph)


@dataclass(frozen=True)
class _Texture:
    """Mean and standard deviation of CIE Lab colours: float64 3 each."""

    mean: np.ndarray
    spread: np.ndarray

    def like(self, other: "_Texture") -> bool:
        """Whether both may be pieces of one surface: the means differ by less than the colours within them."""
        within = max(6.0, float(np.linalg.norm(self.spread + other.spread) / 2))
        near = float(np.linalg.norm(self.mean - other.mean)) < 0.3 * within
        return near and float(np.linalg.norm(self.spread - other.spread)) < 0.5 * within


def _texture(lab: np.ndarray, where: np.ndarray) -> _Texture:
    colors = lab[where].astype(np.float64)
    return _Texture(colors.mean(axis=0), colors.std(axis=0))


def _reduced(mask: np.ndarray, image_u8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask, uint8 HW, and colours, float32 HW3 in CIE Lab, at `WORK_SIDE_PX` at most."""
    height, width = mask.shape
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        image_u8 = cv2.resize(image_u8, size, interpolation=cv2.INTER_AREA)
    return mask, cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _band(shape: tuple[int, ...], width: int) -> np.ndarray:
    """Bool HW: the pixels within `width` of the image's border."""
    band = np.ones(shape, bool)
    band[width:-width, width:-width] = False
    return band


def _ring(lab: np.ndarray, where: np.ndarray) -> _Ring:
    """Fits a quadratic surface to the colours of the pixels `where`, so that a shaded backdrop or body is one colour.

    Twice: the second time without the tenth that is farthest from the first.
    """
    rows, columns = np.nonzero(where)
    every = max(1, len(rows) // 20_000)
    rows, columns = rows[::every], columns[::every]
    colors = lab[rows, columns].astype(np.float64)
    height, width = where.shape
    basis = _terms(rows / height - 0.5, columns / width - 0.5)
    residual, near = np.zeros(len(rows)), np.ones(len(rows), bool)
    for _ in range(2):
        ridge = 1e-5 * np.count_nonzero(near) * np.diag([0, 1, 1, 1, 1, 1])
        fit = np.linalg.solve(basis[near].T @ basis[near] + ridge, basis[near].T @ colors[near])
        residual = np.linalg.norm(colors - basis @ fit, axis=1)
        near = residual <= np.percentile(residual, 90)
    ys, xs = np.meshgrid(np.arange(height) / height - 0.5, np.arange(width) / width - 0.5, indexing="ij")
    surface = (_terms(ys, xs) @ fit).astype(np.float32)
    return _Ring(np.median(colors, axis=0), bool(np.percentile(residual, 90) <= PLAIN), surface)


def _terms(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float64 …6: the terms of a quadratic surface."""
    return np.stack([np.ones_like(y), y, x, y * y, x * y, x * x], axis=-1)


def _distance(lab: np.ndarray, surface: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.linalg.norm(lab - surface, axis=-1)
    return distance


def _frames(stats: np.ndarray, areas: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether what is left out is one rectangle or ellipse in the middle of the image, with a wall of even width."""
    left, top, width, height, area = (int(value) for value in stats)
    right, bottom = shape[1] - left - width, shape[0] - top - height
    even = abs(left - right) <= 0.04 * shape[1] and abs(top - bottom) <= 0.04 * shape[0]
    fill = area / (width * height)
    return even and area >= 0.95 * areas.sum() and (fill > 0.97 or abs(fill - np.pi / 4) < 0.015)


def _cut_by_machine(outline: np.ndarray) -> bool:
    """Whether the outline (bool HW) is a rectangle, also a turned one, a rounded rectangle or an ellipse."""
    contours, _ = cv2.findContours(outline.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return False
    contour = np.asarray(max(contours, key=len))
    filled = cv2.drawContours(np.zeros(outline.shape, np.uint8), [contour], -1, 1, cv2.FILLED) > 0
    area = np.count_nonzero(filled)
    if np.count_nonzero(outline & filled) < 0.99 * max(area, np.count_nonzero(outline)):
        return False  # holes, or several pieces
    left, top, width, height = cv2.boundingRect(contour)
    corners = cv2.boxPoints(cv2.minAreaRect(contour))
    turned = cv2.fillPoly(np.zeros(outline.shape, np.uint8), [np.round(corners).astype(np.int32)], 1)
    shapes = [turned, np.zeros(outline.shape, np.uint8), np.zeros(outline.shape, np.uint8)]
    middle, half = ((2 * left + width - 1) * 8, (2 * top + height - 1) * 8), (width * 8, height * 8)
    cv2.ellipse(shapes[1], middle, half, 0, 0, 360, 1, cv2.FILLED, shift=4)
    # The four corners that a circle of this radius rounds off miss (4 - pi) of its square.
    missing = max(0, width * height - int(area))
    radius = min(int(np.sqrt(missing / (4 - np.pi))), min(width, height) // 2)
    rounded = cv2.dilate(
        _box(outline.shape, left + radius, top + radius, width - 2 * radius, height - 2 * radius), _disk(radius)
    )
    shapes[2] = rounded
    return any(
        np.count_nonzero(filled & (each > 0)) >= MIN_FIT * np.count_nonzero(filled | (each > 0)) for each in shapes
    )


def _box(shape: tuple[int, ...], left: int, top: int, width: int, height: int) -> np.ndarray:
    box = np.zeros(shape, np.uint8)
    box[top : top + max(1, height), left : left + max(1, width)] = 1
    return box


def _printed(other: np.ndarray) -> bool:
    """Whether what differs from the ring (bool HW) is many small pieces, as letters and numerals are."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(other.astype(np.uint8), connectivity=8)
    areas = [int(area) for area in stats[1:, cv2.CC_STAT_AREA] if area >= 4]
    return len(areas) >= 4 and max(areas) < 0.6 * sum(areas)


def _patterned(lab: np.ndarray, band: np.ndarray) -> bool:
    """Whether the band has the same pattern all around, as carpets and rims of plates have, and scenes have not."""
    rows, columns = np.nonzero(band)
    angle = np.arctan2(rows - rows.mean(), columns - columns.mean())
    sector = np.minimum(((angle + np.pi) * 4 / np.pi).astype(int), 7)
    colors = lab[rows, columns]
    parts = [
        _Texture(each.mean(axis=0), each.std(axis=0)) for each in (colors[sector == i] for i in range(8)) if len(each)
    ]
    return all(part.like(other) for i, part in enumerate(parts) for other in parts[:i])


def _continued(image_u8: np.ndarray, share: np.ndarray, ring: _Ring) -> np.ndarray:
    """The photograph with the ring's smooth colour where its alpha shows nothing, and on the soft edge."""
    opaque = cv2.erode((share == 255).astype(np.uint8), _disk(2), borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    smooth = np.round(cv2.cvtColor(ring.surface, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)
    whole = cv2.resize(smooth, (image_u8.shape[1], image_u8.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.where(opaque[..., None], image_u8, whole).astype(np.uint8)


def _disk(radius: int) -> np.ndarray:
    """uint8: 1 on a disk of 2 · radius + 1 pixels across."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
