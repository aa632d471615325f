"""Measures without a network: where the product stands in the ad, which one of the run it looks like, its colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values, on_white
from refadgen.generation.relit import color_drift

Floats = npt.NDArray[np.float32]
Candidates = Mapping[str, Mapping[str, Floats]]
"""By the address of a run: signatures of its products, by sku."""

_SEARCH = 0.15
"""How far the product is looked for around its place, as a share of the picture's longer side."""
_SCALES = tuple(round(1 + step / 50, 2) for step in range(-6, 7))
"""0.88 to 1.12 in steps of 0.02."""
_SIDE_PX = 256
"""Longer side of the picture in which the product is looked for."""
_LEAST_MATCH = 0.3
"""Correlation below which the product is not there, so that it has no place."""
_CELLS = 6
"""A signature has this many cells along either side of the mask's box."""


class Registration:
    """`shift` and `scale_error` of the product in the ad against M′: the place and scale of best correlation.

    shift: distance as a share of the picture's longer side. scale_error: |scale − 1|. None for both where nothing like
    the product is found. The edges of the picture are compared, not its brightness: new light must not count.
    """

    measures = ("shift", "scale_error")
    network = ""

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        found = [registered(picture) for picture in pictures]
        return {
            "shift": [None if each is None else each[0] for each in found],
            "scale_error": [None if each is None else abs(each[1] - 1) for each in found],
        }


def registered(picture: AdPicture) -> tuple[float, float] | None:
    """(shift as a share of the longer side, scale) of the product in the ad; None: not found."""
    height, width = picture.mask_u8.shape
    factor = _SIDE_PX / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    ad, canvas = (cv2.resize(each, size, interpolation=interpolation) for each in (picture.ad_u8, picture.canvas_u8))
    mask = cv2.resize(picture.inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    if not mask.any():
        return None
    reach = round(_SEARCH * _SIDE_PX)
    ad_edges = np.pad(_edges(ad), 2 * reach)
    # The contour's own edge, against white, is not in the ad.
    weight = cv2.erode(mask, np.ones((5, 5), np.uint8)).astype(np.float32)
    if weight.sum() < 50:
        weight = mask.astype(np.float32)
    left, top, box_width, box_height = cv2.boundingRect(mask)
    center = (left + box_width / 2, top + box_height / 2)
    best = (-1.0, 0.0, 1.0)
    for scale in _SCALES:
        scaled = (max(3, round(box_width * scale)), max(3, round(box_height * scale)))
        box = (slice(top, top + box_height), slice(left, left + box_width))
        shape = cv2.resize(weight[box], scaled, interpolation=cv2.INTER_LINEAR)
        template = _edges(cv2.resize(canvas[box], scaled, interpolation=cv2.INTER_LINEAR))
        at = (center[0] - scaled[0] / 2 + 2 * reach, center[1] - scaled[1] / 2 + 2 * reach)
        x0, y0 = max(0, round(at[0]) - reach), max(0, round(at[1]) - reach)
        window = ad_edges[y0 : round(at[1]) + reach + scaled[1] + 1, x0 : round(at[0]) + reach + scaled[0] + 1]
        matches = correlation(window, template, shape)
        y, x = np.unravel_index(int(matches.argmax()), matches.shape)
        match = float(matches[y, x])
        if match > best[0] + 1e-4 * (scale != 1):
            distance = float(np.hypot(x0 + x - at[0], y0 + y - at[1]))
            best = (match, max(0.0, distance - 0.5) / _SIDE_PX, scale)  # at[...] may lie between two pixels
    return None if best[0] < _LEAST_MATCH else best[1:]


def correlation(window: Floats, template: Floats, weight: npt.NDArray[Any]) -> Floats:
    """The weighted correlation coefficient of the template with every place of the window, −1 to 1."""
    total = float(weight.sum())
    mean = float((weight * template).sum()) / total
    centered = np.asarray(weight * (template - mean), np.float32)
    spread = float((weight * (template - mean) ** 2).sum())
    product = cv2.matchTemplate(window, centered, cv2.TM_CCORR)
    sums = cv2.matchTemplate(window, weight, cv2.TM_CCORR)
    squares = cv2.matchTemplate(window * window, weight, cv2.TM_CCORR)
    other = np.maximum(squares - sums * sums / total, 0)
    scale = np.sqrt(other * spread)
    # A flat place correlates with nothing; rounding would give it any value.
    found = np.where(scale > 1e-3 * total, product / np.maximum(scale, 1e-6), 0)
    return np.asarray(np.clip(found, -1, 1), np.float32)


def _edges(image_u8: npt.NDArray[Any]) -> Floats:
    """Strength of the edges of all colours, H×W; blurred, so that a place between two pixels is found too."""
    blurred = cv2.GaussianBlur(image_u8.astype(np.float32), (0, 0), 1.0)
    across, down = (cv2.Sobel(blurred, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return np.asarray(np.sqrt((across**2 + down**2).sum(-1)), np.float32)


class ColorDrift:
    """`color_drift`: how far the product's colours in the ad are from its own once the ad's light is taken out, as the
    gate does (`generation/relit.py`): mean distance in CIELAB's a and b. None: no M′, or nothing broader than a wire.
    """

    measures = ("color_drift",)
    network = ""

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        return {"color_drift": [color_drift(each.ad_u8, each.canvas_u8, each.inside) for each in pictures]}


def signature(image_u8: ImageU8, mask_u8: ImageU8) -> Floats:
    """What a product looks like, roughly: mean CIELAB of the cells of its mask's box, and how much of each is product.

    float32 cells²×4; the last column is the share of the cell that the mask covers. All 0 for an empty mask.
    """
    inside = mask_u8 >= 128
    if not inside.any():
        return np.zeros((_CELLS**2, 4), np.float32)
    left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
    box = (slice(top, top + height), slice(left, left + width))
    lab = cv2.cvtColor(on_white(image_u8, inside)[box].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    weight = inside[box].astype(np.float32)
    planes = np.dstack([lab * weight[..., None], weight])
    cells = cv2.resize(planes, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).reshape(-1, 4)
    share = cells[:, 3:]
    return np.asarray(np.hstack([cells[:, :3] / np.maximum(share, 1e-6), share]), np.float32)


def signature_distances(signed: Floats, candidates: Floats) -> Floats:
    """The mean colour distance (ΔE*ab) to each of n candidates' signatures (n×cells²×4) where both have product.

    The mean colour's difference counts half: new light moves it.
    """
    share = np.minimum(signed[:, 3], candidates[..., 3])
    total = np.maximum(share.sum(1, keepdims=True), 1e-6)
    difference = signed[:, :3] - candidates[..., :3]
    mean = (share[..., None] * difference).sum(1, keepdims=True) / total[..., None]
    return np.asarray((share * np.linalg.norm(difference - mean / 2, axis=-1)).sum(1) / total[:, 0], np.float32)


class NearestProduct:
    """`nearest_product`: 1 where the ad looks more like its own product than like any other one of the run, else 0.

    Compares signatures, so that products of other shapes can be compared. None: there is no other product.
    """

    measures = ("nearest_product",)

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = {
            run: (np.array(list(found), dtype=object), np.reshape(list(found.values()), (-1, _CELLS**2, 4)))
            for run, found in candidates.items()
        }
        sizes = sorted({len(found) for found in candidates.values()})
        self.network = f"no network; among {' or '.join(map(str, sizes))} products of the run"

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        return {"nearest_product": [self._is_own(picture) for picture in pictures]}

    def _is_own(self, picture: AdPicture) -> float | None:
        skus, signatures = self._candidates[picture.run]
        others = signatures[skus != picture.sku]
        if not len(others):
            return None
        seen = signature(picture.ad_u8, picture.mask_u8)
        own = signature_distances(seen, signature(picture.canvas_u8, picture.mask_u8)[None])[0]
        return float(own <= signature_distances(seen, others).min())
