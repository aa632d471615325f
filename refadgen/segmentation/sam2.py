"""SAM2: the mask of the object in a box."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refadgen.config import SegmentationConfig
from refadgen.segmentation.answers import sigmoid, to_alpha

FIELD = "segmentation.sam2_checkpoint"


class Sam2:
    """SAM2 on one device, one image at a time. Not safe to share between threads."""

    def __init__(self, config: SegmentationConfig, device: torch.device) -> None:
        """config: with a `sam2_checkpoint`. Raises: ValueError naming the field whose weights are not usable."""
        assert config.sam2_checkpoint is not None
        self._predictor = _load_sam2(config.sam2_config, config.sam2_checkpoint, device)

    def segment(self, image_u8: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns alpha, uint8 HW, and the IoU that SAM2 predicts for it, 0 to 1.

        image_u8: uint8 HW3, RGB. box: left, top, right and bottom in pixels.
        Raises: RowError, failed `network_failed`.
        """
        with torch.inference_mode():
            self._predictor.set_image(image_u8)
            logits, predicted_iou, _ = self._predictor.predict(box=box, multimask_output=False, return_logits=True)
        self._predictor.reset_predictor()
        alpha = to_alpha(sigmoid(logits[0]), (image_u8.shape[1], image_u8.shape[0]), FIELD)
        return alpha, float(np.clip(predicted_iou[0], 0, 1))


def _load_sam2(config_name: str, checkpoint: str, device: torch.device) -> Any:
    """Loads SAM2's image predictor from a configuration of the sam2 package and a weights file. Raises: ValueError."""
    from hydra.errors import HydraException
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    if not Path(checkpoint).is_file():
        raise ValueError(f"{FIELD}={checkpoint!r}: there is no such file")
    try:
        model = build_sam2(config_name, checkpoint, device=str(device))
    except HydraException as error:
        raise ValueError(f"segmentation.sam2_config={config_name!r}: the sam2 package has none of that name") from error
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(
            f"{FIELD}={checkpoint!r}: is not a SAM2 checkpoint of {config_name} (segmentation.sam2_config): {error}"
        ) from error
    # Instead of a probe: SAM2's image encoder takes seconds on a CPU.
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise ValueError(f"{FIELD}={checkpoint!r}: has NaN or infinite weights")
    return SAM2ImagePredictor(model)
