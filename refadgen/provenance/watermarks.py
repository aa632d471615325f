"""The interface of imperceptible watermarks, and how the configured one is found.

A watermark's payload is the first 48 bits of the image_id; the ledger says which row that is.
"""

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refadgen.config.provenance import SPREAD_SPECTRUM, ProvenanceConfig

PAYLOAD_BITS = 48


class Watermark(Protocol):
    """A way to hide `PAYLOAD_BITS` in an image. A `module:Class` is made with the path of its weights, or None.

    Both methods are functions of their arguments alone: the same image and payload give the same pixels.
    """

    def embed(self, image_u8: npt.NDArray[np.uint8], payload: int) -> npt.NDArray[np.uint8]:
        """The image, uint8 H×W×3, with the payload in it."""

    def read(self, image_u8: npt.NDArray[np.uint8]) -> int | None:
        """The payload that is found in uint8 H×W×3; None: none."""


def load_watermark(config: ProvenanceConfig) -> Watermark | None:
    """The configured watermark; None: none is. config: with absolute paths.

    Raises: ValueError naming `provenance.watermark` where the class cannot be made.
    """
    if config.watermark is None:
        return None
    if config.watermark == SPREAD_SPECTRUM:
        from refadgen.provenance.spread_spectrum import SpreadSpectrum

        return SpreadSpectrum()
    module, _, name = config.watermark.partition(":")
    try:
        made: Watermark = getattr(importlib.import_module(module), name)(config.watermark_weights)
    except Exception as error:  # foreign code
        raise ValueError(f"provenance.watermark={config.watermark!r}: {type(error).__name__}: {error}") from error
    return made


def payload_of(image_id: str) -> int:
    """The payload of an image, from its id."""
    return int(image_id[: PAYLOAD_BITS // 4], 16)


def id_prefix(payload: int) -> str:
    """The beginning of the image_id that a payload stands for."""
    return f"{payload:0{PAYLOAD_BITS // 4}x}"
