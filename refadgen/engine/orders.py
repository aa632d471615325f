"""The order that `AdDenoiser` takes: one image to denoise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class AdOrder:
    """One image to denoise.

    canvas: uint8 H×W×3, the product placed on white. mask: uint8 H×W, M′. product_key: equal for equal canvases; K_ref
    and V_ref are kept under it. negative_prompt: None: the model's. fusion_scale: λ (Sec. 5.5).
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
        """Height, width, and whether it has guidance. Orders of one shape share batches."""
        return (*self.mask.shape, self.guidance_scale > 1)
