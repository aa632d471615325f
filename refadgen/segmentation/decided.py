"""A mask that a person decided on: neither triage nor score doubts it any more."""

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.errors import RowError
from refadgen.segmentation.segmenter import Segmentation
from refadgen.segmentation.triage import measure


def decided(alpha: npt.NDArray[np.uint8], size: tuple[int, int], min_piece: float) -> Segmentation:
    """The segmentation of a decided mask: source `review`, score 1.

    alpha: uint8 HW, 255 is product; of the photograph's shape, but perhaps smaller. size: width and height of the
    photograph. min_piece: as in `measure`.
    Raises: RowError (rejected) `empty_mask`.
    """
    if (alpha.shape[1], alpha.shape[0]) != size:
        # Linear between the pixels of a soft edge: it stays an edge, without steps and without ringing.
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
    if not mask.any():
        raise RowError("empty_mask", "mask: the decided mask is empty: paint the product, or refuse it", field="mask")
    return Segmentation(mask, alpha, "review", 1.0, measure(mask, min_piece))
