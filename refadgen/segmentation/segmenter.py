"""Product image to product mask, by a chain: the row's own mask, alpha channel, the project's own mask, networks.

The first link that applies decides. The project's own mask is what the colours of a plain backdrop and the mask network
agree on (`agreement`). Where it is doubted, the networks decide that are configured. Else the row is rejected, and the
message says what to configure.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation.agreement import agreed_mask
from refadgen.segmentation.background import propose
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.given import alpha_cut, check_way_round
from refadgen.segmentation.specks import without_specks
from refadgen.segmentation.triage import Measurements, find_weakness, measure
from refadgen.segmentation.verdict import load_verdict

if TYPE_CHECKING:
    from refadgen.segmentation.networks import Networks

CONFIGURE = (
    "give a mask of its own, or set segmentation.saliency_model, segmentation.sam3, or segmentation.grounding_dino and "
    "segmentation.sam2_checkpoint"
)


@dataclass(frozen=True)
class Segmentation:
    """A product mask that passed triage.

    mask: uint8 HW, 0 or 255. alpha: uint8 HW, the same with a soft edge: the share of product in each pixel, also where
    the product is translucent. source: the link of the chain that made it: own_mask, alpha, plain_background,
    second_opinion (the mask network alone), or that of the networks (`Networks.source`). score: 0 to 1; 1 for a mask
    that was given, the probability that the project's own is right, else the networks' own score.
    """

    mask: np.ndarray
    alpha: np.ndarray
    source: str
    score: float
    measurements: Measurements


class ProductMasker:
    """The chain. Loads the networks' weights once, in the constructor, if they are configured."""

    def __init__(self, config: SegmentationConfig, *, gpu_expected: bool = False, num_cpus: float = 1) -> None:
        """gpu_expected: the cluster gave this process a GPU, so that `segmentation.device=auto` must find one.

        num_cpus: those that the cluster gave it; less than one is one thread.
        Raises: ValueError naming the field of a network, weights file or device that is not there or not usable.
        """
        self.config = config
        self.networks: Networks | None = None
        if config.has_networks:
            from refadgen.segmentation import networks  # imports torch, which the plain links do without

            num_threads = max(1, int(num_cpus))
            self.networks = networks.load_networks(config, gpu_expected=gpu_expected, num_threads=num_threads)

    def segment(self, image: Image.Image, name: str | None, own_mask: np.ndarray | None = None) -> Segmentation:
        """Finds the mask of the product in `image` (RGB or RGBA).

        name: what to look for, as plain text such as "Mugs"; None: any product. own_mask: the row's, as `decode_mask`
        gives it: uint8 HW of the image's size, 0 or 255; None: there is none.
        Raises: RowError, rejected; where there is a mask, but a weak one, DoubtfulMask.
        """
        if own_mask is not None:
            assert own_mask.shape == (image.height, image.width)
            assert own_mask.dtype == np.uint8
            check_way_round(own_mask, np.asarray(image.convert("RGB")), "own_mask")
            return self._checked(own_mask, "own_mask", 1.0)
        image_u8 = np.asarray(image.convert("RGB"))
        if image.mode == "RGBA":
            if np.asarray(image.getchannel("A")).max() < 16:
                raise RowError("mask_empty", "the image is fully transparent")
            share, image_u8 = alpha_cut(image)
            if share is not None:
                return self._checked(share, "alpha", 1.0)
        try:
            return self._own(image_u8)
        except DoubtfulMask as error:
            if self.networks is None:
                raise error.advised(CONFIGURE) from error
        except RowError as error:
            if self.networks is None:
                raise RowError(error.reason, f"{error.problem}; {CONFIGURE}") from error
        alpha, score = self.networks.segment(image_u8, name)
        return self._checked(alpha, self.networks.source, score)

    def _own(self, image_u8: np.ndarray) -> Segmentation:
        """The project's own mask of a photograph (uint8 HW3, RGB). Raises: RowError, rejected; DoubtfulMask."""
        if not self.config.second_opinion:
            proposal = propose(image_u8, self.config.background_tolerance)
            return self._checked(proposal.alpha(proposal.product), "plain_background", proposal.score)
        found = agreed_mask(image_u8, self.config.background_tolerance)
        score, least = load_verdict().probability(found.features), self.config.min_probability
        checked = self._checked(found.alpha, found.source, score, judged=True)
        if score < least:
            rule = f"right with a probability of {score:.2f}, below segmentation.min_probability={least:g}"
            problem = f"{found.problem} ({rule})"
            raise DoubtfulMask(found.doubt, problem, alpha=found.alpha, source=found.source, score=score)
        return checked

    def find(self, image_u8: np.ndarray, name: str | None) -> np.ndarray | None:
        """Finds the product by the networks, which must be configured: uint8 HW, all 0 where they find none.

        None: they fail or disagree, so that nothing is known. For a generated ad, which has neither an alpha channel
        nor a plain background.
        """
        assert self.networks is not None
        try:
            alpha: np.ndarray = self.networks.segment(image_u8, name)[0]
        except RowError as error:
            return np.zeros(image_u8.shape[:2], np.uint8) if error.reason == "product_not_found" else None
        return alpha

    def _checked(self, alpha: np.ndarray, source: str, score: float, *, judged: bool = False) -> Segmentation:
        """Returns the segmentation if triage finds nothing wrong. Raises: DoubtfulMask.

        judged: the score is the verdict's, which has a threshold of its own.
        """
        alpha, specks = without_specks(alpha)
        mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
        measurements = replace(measure(mask, self.config.min_piece), specks=specks)
        given = source in ("own_mask", "alpha")
        weakness = find_weakness(measurements, 1.0 if judged else score, self.config, cropped_to_product=given)
        if weakness is not None:
            field = "mask" if source == "own_mask" else None  # None: the image, as the table of reasons has it
            raise DoubtfulMask(weakness.reason, weakness.detail, field=field, alpha=alpha, source=source, score=score)
        return Segmentation(mask, alpha, source, score, measurements)
