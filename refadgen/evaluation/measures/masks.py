"""Where a network finds the product in the ad, against M′: overlap, and how far the product has grown."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.config import SegmentationConfig
from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values
from refadgen.evaluation.measures.table import licensed
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.second_opinion import second_opinion

Found = npt.NDArray[np.bool_]


class MaskOverlap:
    """`mask_iou` (intersection over union) and `object_expansion` (arXiv 2404.10157): area(found ∪ M′) − area(M′), as a
    share of M′.

    Asks the networks of `segmentation`, which look for the product by its name; where none is set, the project's own
    mask network, which takes the foremost thing. None where networks disagree.
    """

    measures = ("mask_iou", "object_expansion")

    def __init__(self, config: SegmentationConfig, *, gpu_expected: bool) -> None:
        """Raises: ValueError naming the field of a network that cannot be loaded."""
        self._masker = ProductMasker(config, gpu_expected=gpu_expected) if config.has_networks else None
        names = (config.saliency_model, config.sam3, config.grounding_dino)
        own = "the project's mask network (Apache-2.0)"
        self.network = ", ".join(licensed(each) for each in names if each) or own

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        pairs = [(self._found(picture), picture.inside) for picture in pictures]
        return {
            "mask_iou": [None if found is None else overlap(found, inside) for found, inside in pairs],
            "object_expansion": [None if found is None else expansion(found, inside) for found, inside in pairs],
        }

    def _found(self, picture: AdPicture) -> Found | None:
        if self._masker is None:
            return own_mask(picture.ad_u8)
        found = self._masker.find(picture.ad_u8, picture.name)
        return None if found is None else np.asarray(found >= 128)


def own_mask(image_u8: ImageU8) -> Found:
    """The product as the project's mask network sees it, H×W."""
    size = (image_u8.shape[1], image_u8.shape[0])
    return np.asarray(cv2.resize(second_opinion(image_u8).product, size, interpolation=cv2.INTER_LINEAR) > 0.5)


def overlap(found: Found, inside: Found) -> float:
    """Intersection over union, 0 to 1; 0 where both are empty."""
    return float((found & inside).sum() / max(1, (found | inside).sum()))


def expansion(found: Found, inside: Found) -> float | None:
    """What is found beside M′, as a share of M′; None: M′ is empty."""
    return float((found & ~inside).sum() / inside.sum()) if inside.any() else None
