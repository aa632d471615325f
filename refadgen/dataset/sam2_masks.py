"""Masks of product images by SAM2, as the paper's authors make them; the geometric ones are kept beside them.

A warped or rendered product image brings its mask, exact by construction. SAM2 looks at the picture instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refadgen.config import DatasetConfig
from refadgen.config.devices import resolve_device
from refadgen.dataset.masks import product_box
from refadgen.segmentation.answers import iou
from refadgen.segmentation.sam2 import Sam2
from refadgen.triplets.schema import Variant


@dataclass(frozen=True, kw_only=True)
class MaskedVariants:
    """Product images with SAM2's masks, all in the order of `triplet.variants`.

    geometric: the masks that they had. ious: of both masks; None for the original, whose mask is the ad's own.
    """

    variants: list[Variant]
    geometric: list[np.ndarray]
    ious: list[float | None]


class Sam2Masks:
    """SAM2, asked about each product image with the box of its geometric mask."""

    def __init__(self, config: DatasetConfig) -> None:
        """Raises: ValueError naming the field whose weights or device are missing."""
        expected = config.stages.augment.num_gpus > 0
        device = resolve_device(config.segmentation.device, gpu_expected=expected, field="segmentation.device")
        self._sam2 = Sam2(config.segmentation, device)
        self._min_iou = config.triplet.min_sam2_iou

    def masked(self, variants: Sequence[Variant]) -> MaskedVariants:
        """Returns the product images with SAM2's masks, white outside of them.

        Below `triplet.min_sam2_iou` a mask is none of this product, and the geometric one stays.
        Raises: RowError, failed `network_failed`.
        """
        found: list[Variant] = []
        ious: list[float | None] = []
        for each in variants:
            if each.kind == "original":
                found.append(each)
                ious.append(None)
                continue
            alpha, _ = self._sam2.segment(each.image, np.array(product_box(each.mask), np.float32))
            mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
            agreement = iou(mask, each.mask)
            ious.append(round(agreement, 4))
            if mask.any() and agreement >= self._min_iou:
                image = np.where(mask[..., None] > 0, each.image, 255).astype(np.uint8)
                each = replace(each, image=image, mask=mask)
            found.append(each)
        return MaskedVariants(variants=found, geometric=[each.mask for each in variants], ious=ious)
