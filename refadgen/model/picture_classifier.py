"""Image classifiers that users bring: what a picture shows, by a network of transformers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refadgen.config.weights import require_all_weights

if TYPE_CHECKING:
    import torch


class PictureClassifier:
    """An image classifier of transformers, float32, one picture at a time. Several threads may ask it."""

    def __init__(
        self, address: str, chosen: Sequence[str], *, model_field: str, labels_field: str, device: "torch.device"
    ) -> None:
        """address: a folder or hub id. chosen: labels whose probabilities are summed, in upper or lower case.
        model_field, labels_field: the settings that gave these, for messages.

        Raises: ValueError naming the setting: the model where weights are missing or incomplete, or the labels where
        they are none or all of the model's labels.
        """
        field = f"{model_field}={address!r}"
        self._device = device
        self._processor, self._model = _load(field, address)
        self._model.to(device).eval()
        labels = {index: str(label) for index, label in self._model.config.id2label.items()}
        wanted = {label.strip().lower() for label in chosen}
        self._found = [int(index) for index, label in labels.items() if label.strip().lower() in wanted]
        if not 0 < len(self._found) < len(labels):
            raise ValueError(
                f"{labels_field}={tuple(chosen)!r}: must be some, not all, of the labels of {field}: "
                f"{', '.join(labels.values())}"
            )

    def score(self, image_u8: npt.NDArray[np.uint8]) -> float:
        """Returns the sum of the probabilities of the chosen labels, 0 to 1. image_u8: uint8 H×W×3, RGB."""
        import torch

        # A copy: torch warns of read-only arrays, and those that Pillow gives are.
        inputs = self._processor(images=[image_u8.copy()], return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits[0]
        return float(logits.softmax(dim=-1)[self._found].sum().clamp(0, 1))  # a sum of float32 may exceed 1


def _load(field: str, address: str) -> tuple[Any, Any]:
    """Loads processor and model from a folder or hub id. Raises: ValueError, also where a single weight is missing."""
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(address)
        model, report = AutoModelForImageClassification.from_pretrained(address, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{field}: cannot be loaded: {error}") from error
    require_all_weights(field, report)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{field}: has labels that do not exclude each other; must have one label per picture")
    return processor, model.float()
