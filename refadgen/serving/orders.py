"""What travels between the ingress, the generation replicas and their step engines."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refadgen.config import GenerateConfig
from refadgen.generation.wanted import WantedImage
from refadgen.serving.products import PlacedAd


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """One image for a generation replica."""

    wanted: WantedImage
    config: GenerateConfig
    placed: PlacedAd
    facts: dict[str, Any]
    """sku, category, negative_prompt, input_sha256: what the image's record says beside `wanted`."""
    preview_every: int = 0


@dataclass(frozen=True, kw_only=True)
class AdResult:
    """What became of one order. encoded: the file; empty unless `status` is done."""

    status: str
    reason: str
    detail: str
    attempts: int
    seed: int
    color_similarity: float | None
    structure_similarity: float | None
    waited_s: float
    generate_s: float
    encoded: bytes


@dataclass(frozen=True)
class StepDone:
    """step: from 1; 0: the image has a place, and no step was done yet."""

    step: int
    preview: bytes | None


@dataclass(frozen=True, kw_only=True)
class AdOrder:
    """One image to denoise.

    canvas: uint8 H×W×3, the product placed on white. mask: uint8 H×W, M′. product_key: the same for the same canvas.
    """

    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    product_key: str
    prompt: str
    negative_prompt: str | None
    seed: int
    fusion_scale: float
    guidance_scale: float
    num_inference_steps: int

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Orders of one shape share batches: canvas, and whether guidance runs two branches."""
        return (*self.mask.shape, self.guidance_scale > 1)
