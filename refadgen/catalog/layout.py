"""Puts the product onto the canvas: the placed product image and its mask M′, from one size and one anchor.

The product is cut out by its mask and pasted onto a pure white canvas. Canvas and M′ come from the same resampled
cut-out, so they agree to the pixel. The mask says where the product is; the image's own alpha, how much of it shows:
the body of a glass is product, and white shines through it.

With `layout.as_photographed` the product keeps its place instead: the photograph is squashed to the canvas, as the
paper's authors do with photographs in the wild, and `file_size` is the shape that the ad is stretched back to.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refadgen.catalog.placement import Placement
from refadgen.catalog.rim import without_backdrop
from refadgen.config import LayoutConfig
from refadgen.errors import RowError

_PAD_PX = 8  # pixels of the canvas around the product's box: room for the soft edge, and for the backdrop beside it
_HALF = 128
_MOST_SIDE_PX = 8192  # of a file: a strip of the canvas's area could be longer than any format holds


@dataclass(frozen=True, kw_only=True)
class SafeZone:
    """Sides of a canvas that the product stays out of: shares of its width or height, 0 to below 0.5 each.

    The margins of the layout count too; the larger one decides.
    """

    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0
    left: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError for a side that leaves nothing."""
        for name, share in vars(self).items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 0.5:
                raise ValueError(f"safe_zone.{name}={share!r}: must be 0 to below 0.5")

    def joined(self, other: "SafeZone") -> "SafeZone":
        """The zone that keeps both."""
        return SafeZone(**{name: max(share, getattr(other, name)) for name, share in vars(self).items()})


NO_SAFE_ZONE = SafeZone()


@dataclass(frozen=True, kw_only=True)
class PlacedProduct:
    """canvas: uint8 HW3, the product with soft edges on pure white. mask: M′, uint8 HW, 255 where the product covers at
    least half of a pixel, however transparent it is, else 0."""

    canvas: np.ndarray
    mask: np.ndarray


def merged_layout(layout: LayoutConfig, placement: Placement | None) -> LayoutConfig:
    """The job's layout, with the row's own values in place of the job's."""
    return layout if placement is None else placement.over(layout)


def file_size(layout: LayoutConfig, photo: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the ad's file in px. photo, canvas: width and height of the photograph and of the canvas."""
    if not layout.as_photographed:
        return canvas
    if layout.long_side_px is None:
        scale = min(math.sqrt(canvas[0] * canvas[1] / (photo[0] * photo[1])), _MOST_SIDE_PX / max(photo))
    else:
        scale = layout.long_side_px / max(photo)
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))


def place(
    product_image: Image.Image | np.ndarray,
    product_mask: np.ndarray,
    layout: LayoutConfig,
    width_px: int,
    height_px: int,
    safe_zone: SafeZone = NO_SAFE_ZONE,
) -> PlacedProduct:
    """Places the product on a canvas of `width_px` × `height_px`.

    product_image: RGB or RGBA; as an array, uint8 HWC. product_mask: uint8 HW of the same size, soft (0 to 255) or hard
    (0 or 255): the share of product in each pixel. Where the image is fully transparent, there is none.
    The larger of the product's extents relative to the canvas is `layout.size`, or less where the margins or the
    `safe_zone` need it; with `layout.as_photographed` its box has the same shares of the canvas as of the image.
    Raises: RowError (rejected) `empty_mask`.
    """
    image = Image.fromarray(product_image) if isinstance(product_image, np.ndarray) else product_image
    assert image.mode in ("RGB", "RGBA"), image.mode
    assert product_mask.shape == (image.height, image.width), (product_mask.shape, image.size)
    rows = np.flatnonzero((product_mask >= _HALF).any(axis=1))
    columns = np.flatnonzero((product_mask >= _HALF).any(axis=0))
    if not len(rows):
        raise RowError("empty_mask", "mask: no product in it")
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    if layout.as_photographed:  # the complete image: the product's own box would be rounded to whole pixels
        box = (0, 0, image.width, image.height)
        left, top, width, height = 0, 0, width_px, height_px
    else:
        left, top, width, height = _standing_box(
            box[2] - box[0], box[3] - box[1], layout, width_px, height_px, safe_zone
        )
    cutout, coverage = _resampled(image, product_mask, box, (width, height))

    canvas = np.full((height_px, width_px, 3), 255, np.uint8)
    covered = np.zeros((height_px, width_px), np.uint8)
    x0, y0 = max(left - _PAD_PX, 0), max(top - _PAD_PX, 0)
    x1, y1 = min(left + width + _PAD_PX, width_px), min(top + height + _PAD_PX, height_px)
    inner = slice(y0 - top + _PAD_PX, y1 - top + _PAD_PX), slice(x0 - left + _PAD_PX, x1 - left + _PAD_PX)
    visible = cutout[inner]
    over_white = visible[..., :3].astype(np.uint16) + (255 - visible[..., 3:].astype(np.uint16))
    canvas[y0:y1, x0:x1] = np.minimum(over_white, 255).astype(np.uint8)
    covered[y0:y1, x0:x1] = coverage[inner]
    if not visible[..., 3].any():
        raise RowError("empty_mask", "mask: the image is transparent where the mask says product")
    # A hair-thin product covers no pixel by half. Its mask then follows its densest parts.
    threshold = min(_HALF, max(1, int(covered.max()) // 2))
    return PlacedProduct(canvas=canvas, mask=np.where(covered >= threshold, 255, 0).astype(np.uint8))


def _standing_box(
    width: int, height: int, layout: LayoutConfig, canvas_width: int, canvas_height: int, safe_zone: SafeZone
) -> tuple[int, int, int, int]:
    """Left, top, width and height on the canvas, for a product of `width` × `height` pixels in its image."""
    shares = {name: max(layout.margin, share) for name, share in vars(safe_zone).items()}
    size_x = min(layout.size, 1 - (shares["left"] + shares["right"]))
    size_y = min(layout.size, 1 - (shares["top"] + shares["bottom"]))
    scale = min(size_x * (canvas_width / width), size_y * (canvas_height / height))
    free_left, free_right = (round(shares[name] * canvas_width) for name in ("left", "right"))
    free_top, free_bottom = (round(shares[name] * canvas_height) for name in ("top", "bottom"))
    placed_width = min(max(round(width * scale), 1), canvas_width - free_left - free_right)
    placed_height = min(max(round(height * scale), 1), canvas_height - free_top - free_bottom)
    sides = layout.anchor.split("-")
    left = free_left + (canvas_width - free_left - free_right - placed_width) // 2
    top = free_top + (canvas_height - free_top - free_bottom - placed_height) // 2
    if "left" in sides:
        left = free_left
    if "right" in sides:
        left = canvas_width - free_right - placed_width
    if "top" in sides:
        top = free_top
    if "bottom" in sides:
        top = canvas_height - free_bottom - placed_height
    box = left, top, placed_width, placed_height
    if layout.keep_free is None:
        return box
    inner = free_left, free_top, canvas_width - free_right, canvas_height - free_bottom
    return _beside(box, layout.keep_free, inner, (canvas_width, canvas_height))


def _beside(
    box: tuple[int, int, int, int],
    keep_free: tuple[float, float, float, float],
    inner: tuple[int, int, int, int],
    canvas: tuple[int, int],
) -> tuple[int, int, int, int]:
    """The box (left, top, width, height) beside the rectangle: as large as may be, then moved as little as may be.

    keep_free: left, top, right, bottom as shares of the canvas. inner: left, top, right, bottom within the margins, px.
    """
    left, top, width, height = box
    free_left, free_top = math.floor(keep_free[0] * canvas[0]), math.floor(keep_free[1] * canvas[1])
    free_right, free_bottom = math.ceil(keep_free[2] * canvas[0]), math.ceil(keep_free[3] * canvas[1])
    if left >= free_right or left + width <= free_left or top >= free_bottom or top + height <= free_top:
        return box
    found = []
    for x0, y0, x1, y1 in (inner, (0, 0, *canvas)):  # where margins leave no side, they give way
        sides = [
            (x0, y0, min(x1, free_left), y1),
            (max(x0, free_right), y0, x1, y1),
            (x0, y0, x1, min(y1, free_top)),
            (x0, max(y0, free_bottom), x1, y1),
        ]
        for side_left, side_top, side_right, side_bottom in sides:
            if side_right <= side_left or side_bottom <= side_top:
                continue
            scale = min(1, (side_right - side_left) / width, (side_bottom - side_top) / height)
            new_width, new_height = max(1, int(width * scale)), max(1, int(height * scale))
            # It shrinks towards its foot: a product on a table stays on it.
            new_left = min(max(left + (width - new_width) // 2, side_left), side_right - new_width)
            new_top = min(max(top + height - new_height, side_top), side_bottom - new_height)
            moved = abs(new_left - left) + abs(new_top - top)
            found.append((-new_width * new_height, moved, (new_left, new_top, new_width, new_height)))
        if found:
            break
    return min(found)[2]


def _resampled(
    image: Image.Image, mask: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The cut-out within `box`, resized to `size`, with `_PAD_PX` around it.

    Returns the cut-out, uint8 HW4, premultiplied by its opacity, and the share of product in each pixel, uint8 HW.
    """
    left, top, right, bottom = box
    # The source pixels that fall on the canvas's pad, and one more for the filter's reach.
    pad_x, pad_y = ((_PAD_PX + 1) * (right - left) / size[0], (_PAD_PX + 1) * (bottom - top) / size[1])
    x0, y0 = left - int(pad_x) - 1, top - int(pad_y) - 1
    x1, y1 = right + int(pad_x) + 1, bottom + int(pad_y) + 1
    photo = image.convert("RGBA").crop((x0, y0, x1, y1))  # Pillow fills with transparent black beyond the image
    shown, share = np.asarray(photo.getchannel("A")), np.asarray(Image.fromarray(mask).crop((x0, y0, x1, y1)))
    opacity = _opacity(shown, share)
    window = photo.copy()
    window.putalpha(Image.fromarray(opacity))
    step_x, step_y = (right - left) / size[0], (bottom - top) / size[1]
    source = (
        left - x0 - _PAD_PX * step_x,
        top - y0 - _PAD_PX * step_y,
        right - x0 + _PAD_PX * step_x,
        bottom - y0 + _PAD_PX * step_y,
    )
    # Filters without negative lobes: Lanczos and bicubic would draw a halo around the product.
    enlarged = step_x < 1 and step_y < 1
    resampling = Image.Resampling.BILINEAR if enlarged else Image.Resampling.HAMMING

    def resized(part: Image.Image) -> np.ndarray:
        return np.asarray(part.resize((size[0] + 2 * _PAD_PX, size[1] + 2 * _PAD_PX), resampling, box=source))

    # Premultiplied, so that resizing does not mix the cut-away background's colour into the edge.
    premultiplied = window.convert("RGBa")
    bands = [resized(premultiplied.getchannel(band)) for band in "RGBa"]
    cutout = without_backdrop(np.dstack(bands), resized(photo), max(step_x, step_y))
    covered = np.where(shown > 0, np.maximum(share, opacity), 0).astype(np.uint8)
    coverage = cutout[..., 3] if np.array_equal(covered, opacity) else resized(Image.fromarray(covered))
    return cutout, coverage


def _opacity(alpha: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How much of the product shows in each pixel, uint8 HW: the smaller of the mask's value and the image's alpha.

    A hard mask may come from this alpha channel, by a threshold. The channel's faint half of the edge, just outside the
    mask, is then kept. A soft mask says itself where the edge ends.
    """
    if ((mask > 0) & (mask < 255)).any():
        softened: np.ndarray = np.minimum(alpha, mask)
        return softened
    inside = mask >= _HALF
    near = np.zeros_like(inside)
    near[1:, :] |= inside[:-1, :]
    near[:-1, :] |= inside[1:, :]
    near[:, 1:] |= inside[:, :-1]
    near[:, :-1] |= inside[:, 1:]
    faint_edge = near & ~inside & (alpha < _HALF)
    visible: np.ndarray = np.where(faint_edge, alpha, np.minimum(alpha, mask))
    return visible
