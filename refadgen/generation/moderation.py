"""Moderation: an image classifier that the shop brings looks at each ad before it is published."""

import numpy as np
import numpy.typing as npt

from refadgen.config import GenerateConfig
from refadgen.config.devices import resolve_device
from refadgen.errors import RowError
from refadgen.model.picture_classifier import PictureClassifier


class Moderation:
    """What a classifier makes of finished ads; where none is set, everything passes."""

    def __init__(self, config: GenerateConfig, *, gpu_expected: bool) -> None:
        """gpu_expected: the cluster gave this process a GPU; the classifier runs where the model does.

        Raises: ValueError naming `quality.unsafe_model`, `quality.unsafe_labels` or the device.
        """
        self._max_score = config.quality.max_unsafe_score
        self._classifier: PictureClassifier | None = None
        if config.quality.unsafe_model is not None:
            self._classifier = PictureClassifier(
                config.quality.unsafe_model,
                config.quality.unsafe_labels,
                model_field="quality.unsafe_model",
                labels_field="quality.unsafe_labels",
                device=resolve_device(config.model.device, gpu_expected=gpu_expected, field="model.device"),
            )

    def problem(self, ad_u8: npt.NDArray[np.uint8]) -> RowError | None:
        """Returns why an ad must not be published (rejected, `unsafe`), or None. ad_u8: uint8 H×W×3, RGB."""
        if self._classifier is None:
            return None
        score = self._classifier.score(ad_u8)
        if score <= self._max_score:
            return None
        return RowError(
            "unsafe", f"score {score:.2f} of the classifier is above {self._max_score:g} (quality.max_unsafe_score)"
        )
