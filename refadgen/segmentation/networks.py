"""The networks that a user brings, as one: a single one decides, several vote.

Each of them gives the product's alpha and a score (`Segmenter`). Weights load once, from the places that
`SegmentationConfig` names; there is no default network.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation.answers import iou
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.grounded import FoundObject, GroundedSegmenter
from refadgen.segmentation.saliency import SaliencySegmenter
from refadgen.segmentation.sam3 import Sam3Segmenter


class Segmenter(Protocol):
    """A network that finds the product. Not safe to share between threads."""

    source: str
    """Its name in the ledger's `mask_source`."""
    field: str
    """The setting that names it, for messages."""

    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        """Returns alpha (uint8 HW) and a score, 0 to 1.

        image_u8: uint8 HW3, RGB. name: what to look for, as plain text; None: any product.
        Raises: RowError: `product_not_found` (rejected), or `network_failed`.
        """
        ...


@runtime_checkable
class ObjectFinder(Protocol):
    """A network that finds objects by text queries."""

    def objects(self, image_u8: np.ndarray, queries: Sequence[str]) -> list[FoundObject]:
        """Returns all objects that match a query. image_u8: uint8 HW3, RGB."""
        ...


class Networks:
    """The configured networks. With several of them the score is the IoU of the two masks that agree best."""

    def __init__(self, segmenters: Sequence[Segmenter], min_agreement: float) -> None:
        """segmenters: at least one, in the order of the chain. min_agreement: least IoU of two masks, 0 to 1."""
        assert segmenters
        self._segmenters = list(segmenters)
        self._min_agreement = min_agreement

    @property
    def source(self) -> str:
        """The ledger's `mask_source`: the only network's, or `vote`."""
        return self._segmenters[0].source if len(self._segmenters) == 1 else "vote"

    @property
    def finder(self) -> ObjectFinder | None:
        """The network that finds people and other objects: Grounding DINO, else SAM 3; None without both."""
        finders = [each for each in self._segmenters if isinstance(each, ObjectFinder)]
        return finders[-1] if finders else None

    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        """Returns alpha, uint8 HW, and a score, 0 to 1: the network's own, or the agreement of two.

        Of two that agree, the alpha is the first one's in the order of the chain. Of three, two must agree.
        image_u8, name: as for `Segmenter.segment`.
        Raises: RowError: `product_not_found` (rejected) or `network_failed`; DoubtfulMask: `networks_disagree`, with
        the mask of the first network.
        """
        if len(self._segmenters) == 1:
            return _ask(self._segmenters[0], image_u8, name)
        alphas: list[np.ndarray] = []
        missing: list[RowError] = []
        for each in self._segmenters:
            try:
                alphas.append(_ask(each, image_u8, name)[0])
            except RowError as error:
                if error.reason != "product_not_found":
                    raise
                missing.append(error)
                alphas.append(np.zeros(image_u8.shape[:2], np.uint8))
        if len(missing) == len(alphas):
            raise missing[0]
        agreement, first = max(
            ((iou(alphas[one], alphas[other]), one) for one, other in itertools.combinations(range(len(alphas)), 2)),
            key=lambda pair: pair[0],
        )
        if agreement < self._min_agreement:
            proposal = next(alpha for alpha in alphas if alpha.any())
            problem = self._disagreement(alphas, agreement)
            raise DoubtfulMask("networks_disagree", problem, alpha=proposal, source=self.source, score=agreement)
        if not alphas[first].any():
            raise missing[0]  # of three, two agree that there is none
        return alphas[first], agreement

    def _disagreement(self, alphas: Sequence[np.ndarray], agreement: float) -> str:
        shares = ", ".join(
            f"{each.field} sees the product on {(alpha > 127).mean():.1%} of the image"
            for each, alpha in zip(self._segmenters, alphas, strict=True)
        )
        return (
            f"{shares}; the masks of no two have an IoU above {agreement:.2f}, at least {self._min_agreement:g} is "
            "needed (segmentation.min_agreement); give a mask of its own"
        )


def load_networks(config: SegmentationConfig, *, gpu_expected: bool, num_threads: int) -> Networks:
    """Loads the networks that are set; `config.has_networks` says whether there are any.

    gpu_expected: the cluster gave this process a GPU. num_threads: of ONNX Runtime.
    Raises: ValueError naming the field whose network, weights or device are not usable.
    """
    segmenters: list[Segmenter] = []
    if config.saliency_model is not None:
        segmenters.append(SaliencySegmenter(config, gpu_expected=gpu_expected, num_threads=num_threads))
    if config.sam3 is not None:
        segmenters.append(Sam3Segmenter(config, gpu_expected=gpu_expected))
    if config.grounding_dino is not None:
        segmenters.append(GroundedSegmenter(config, gpu_expected=gpu_expected))
    return Networks(segmenters, config.min_agreement)


def _ask(segmenter: Segmenter, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
    """The answer of one network. Raises: RowError, also for what the network's library raises."""
    try:
        return segmenter.segment(image_u8, name)
    except (RuntimeError, ValueError, MemoryError) as error:
        # Too little GPU memory is a RuntimeError, too. The photograph costs its row, not the stage.
        raise RowError(
            "network_failed",
            f"{segmenter.field} failed for this photograph: {type(error).__name__}: {str(error)[:200]}",
        ) from error
