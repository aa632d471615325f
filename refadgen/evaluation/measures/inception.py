"""Features of InceptionV3 for FID (Heusel et al. 2017), as pytorch-fid takes them: pool3, 2,048 numbers a picture."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refadgen.evaluation.measures.picture import ImageU8, by_size
from refadgen.evaluation.measures.state import read_state

NUM_FEATURES = 2048


class InceptionFeatures:
    """The network of torch-fidelity, with weights from a file."""

    def __init__(self, weights: str, batch_size: int, device: torch.device) -> None:
        """Raises: ValueError naming `fid.weights`."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(f"fid.weights: needs the extra `evaluate` (refadgen[evaluate]): {error}") from error
        state = read_state("fid.weights", weights)
        with tempfile.TemporaryDirectory() as folder:
            # torch-fidelity would run code in a pickle: it gets a copy that holds tensors only.
            file = Path(folder) / "inception.pth"
            torch.save(dict(state), file)
            try:
                model: Any = FeatureExtractorInceptionV3(
                    "inception", [str(NUM_FEATURES)], feature_extractor_weights_path=str(file)
                )
            except RuntimeError as error:
                raise ValueError(f"fid.weights={weights!r}: weights of another architecture: {error}") from error
        self._model = model.eval().to(device)
        self._batch_size, self._device = batch_size, device
        self.label = f"InceptionV3 pool3, {Path(weights).name} (Apache-2.0)"

    def __call__(self, images: Sequence[ImageU8]) -> npt.NDArray[np.float32]:
        """Features of pictures, uint8 H×W×3: float32 n×2048."""
        features = np.zeros((len(images), NUM_FEATURES), np.float32)
        for batch in by_size(images, lambda image: image.shape, self._batch_size):
            pixels = torch.from_numpy(np.stack([images[index] for index in batch])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                features[batch] = self._model(pixels.to(self._device))[0].cpu().numpy()
        return features
