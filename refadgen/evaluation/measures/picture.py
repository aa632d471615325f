"""An ad with what it is measured against, and the parts of pictures that several measures look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

ImageU8 = npt.NDArray[np.uint8]
T = TypeVar("T")
_MARGIN = 0.05
"""Kept around the mask's box in a crop, as a share of its longer side."""


@dataclass(frozen=True, kw_only=True)
class AdPicture:
    """One ad. All three pictures have one size."""

    ad_u8: ImageU8
    """H×W×3."""
    canvas_u8: ImageU8
    """The placed product on white, H×W×3."""
    mask_u8: ImageU8
    """M′, H×W, the product where at least 128."""
    prompt: str
    run: str = ""
    """The address of its run."""
    sku: str = ""
    name: str | None = None
    """What the product is, for networks that look for it by name."""

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """M′, H×W."""
        return np.asarray(self.mask_u8 >= 128, np.bool_)


Values = Mapping[str, Sequence[float | None]]
"""By the measure's name a value of each picture; None: this picture has none."""


class Scorer(Protocol):
    """Gives the values of one or several measures."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def network(self) -> str:
        """What it asks, for people, with the licence where it is sure; empty: no network."""

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        """The values of pictures, which may differ in size."""


def on_white(image_u8: ImageU8, inside: npt.NDArray[np.bool_]) -> ImageU8:
    """The picture inside the mask, white outside."""
    return np.where(inside[..., None], image_u8, np.uint8(255))


def product_crops(picture: AdPicture) -> tuple[ImageU8, ImageU8] | None:
    """Placed product and ad, white outside M′, cut to M′'s box with a margin and filled up to a square.

    None: M′ is empty.
    """
    inside = picture.inside
    if not inside.any():
        return None
    left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
    side = max(width, height)
    space = (side - height) // 2, (side - width) // 2
    edge = max(1, round(_MARGIN * side))
    borders = (space[0] + edge, side - height - space[0] + edge, space[1] + edge, side - width - space[1] + edge)

    def crop(image_u8: ImageU8) -> ImageU8:
        cut = on_white(image_u8, inside)[top : top + height, left : left + width]
        return np.asarray(cv2.copyMakeBorder(cut, *borders, cv2.BORDER_CONSTANT, value=(255, 255, 255)), np.uint8)

    return crop(picture.canvas_u8), crop(picture.ad_u8)


def by_size(items: Sequence[T], size_of: Callable[[T], tuple[int, ...]], most: int) -> list[list[int]]:
    """The numbers of the items in groups of one size, at most `most` in each: what becomes one batch."""
    order = sorted(range(len(items)), key=lambda index: size_of(items[index]))
    groups = [list(group) for _, group in groupby(order, key=lambda index: size_of(items[index]))]
    return [group[start : start + most] for group in groups for start in range(0, len(group), most)]
