"""Triage: refuses masks that are too weak to make ads from."""

from dataclasses import dataclass

import cv2
import numpy as np

from refadgen.config import SegmentationConfig


@dataclass(frozen=True)
class Measurements:
    """Measurements of a mask.

    area: its share of the image, 0 to 1. edge_contact: for the side of the image where it is largest, the share of the
    product's extent along that side that touches it: 1 for a torso cut off at the bottom, near 0 for a ball that just
    touches. pieces: separate parts, without small ones. trimmed: touches all four sides, as an image cropped to its
    product does. specks: pieces too small to be a part of the product, which were dropped.
    """

    area: float
    edge_contact: float
    pieces: int
    trimmed: bool
    specks: int = 0


@dataclass(frozen=True)
class Weakness:
    """The fault of a mask. reason: a key of `REASONS`. detail: the measurement, the threshold and its setting."""

    reason: str
    detail: str


def measure(mask: np.ndarray, min_piece: float) -> Measurements:
    """Measures a mask, uint8 HW, above 127 on the product. min_piece: smallest share of the product that is a part."""
    product = mask > 127
    size = int(np.count_nonzero(product))
    if size == 0:
        return Measurements(area=0.0, edge_contact=0.0, pieces=0, trimmed=False)
    _, _, stats, _ = cv2.connectedComponentsWithStats(product.astype(np.uint8), connectivity=8)
    parts = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= min_piece * size]
    columns, rows = np.flatnonzero(product.any(axis=0)), np.flatnonzero(product.any(axis=1))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    contacts = [
        np.count_nonzero(product[0]) / width,
        np.count_nonzero(product[-1]) / width,
        np.count_nonzero(product[:, 0]) / height,
        np.count_nonzero(product[:, -1]) / height,
    ]
    return Measurements(
        area=size / product.size, edge_contact=float(max(contacts)), pieces=len(parts), trimmed=bool(min(contacts) > 0)
    )


def find_weakness(
    measurements: Measurements, score: float, config: SegmentationConfig, cropped_to_product: bool
) -> Weakness | None:
    """Returns the first fault of a mask; None: it has none.

    cropped_to_product: a product that touches all four sides was cropped to its own extent, as cut-outs are. False: it
    was cut off.
    """
    area, contact = measurements.area, measurements.edge_contact
    if area == 0:
        return Weakness("mask_empty", "the mask is empty: no product was found in the image")
    if area < config.min_area:
        return Weakness(
            "mask_area_too_small",
            f"the mask covers {area:.2%} of the image, less than {config.min_area:.2%} (segmentation.min_area)",
        )
    if area > config.max_area:
        return Weakness(
            "mask_area_too_large",
            f"the mask covers {area:.2%} of the image, more than {config.max_area:.2%} (segmentation.max_area)",
        )
    if contact > config.max_edge_contact and not (cropped_to_product and measurements.trimmed):
        return Weakness(
            "mask_touches_edge",
            f"the product is cut off: {contact:.0%} of its extent along one side of the image touches that side, "
            f"more than {config.max_edge_contact:.0%} (segmentation.max_edge_contact)",
        )
    if measurements.pieces > config.max_pieces:
        return Weakness(
            "mask_in_pieces",
            f"the mask is in {measurements.pieces} pieces, more than {config.max_pieces} (segmentation.max_pieces)",
        )
    if score < config.min_score:
        return Weakness(
            "mask_low_score",
            f"the mask's score is {score:.2f}, less than {config.min_score:.2f} (segmentation.min_score)",
        )
    return None
