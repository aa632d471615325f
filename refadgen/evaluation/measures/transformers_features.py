"""Measures that ask a network of transformers: CLIP-Score, and the cosine of masked crops' features."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refadgen.config.weights import require_all_weights
from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values, product_crops
from refadgen.evaluation.measures.table import licensed


def load_pretrained(model_class: Any, given: str, path_or_id: str, device: torch.device, kind: str) -> Any:
    """A network of transformers, complete, in float32, without code of its own.

    Raises: ValueError that begins with `given`, the setting and its value, and says that it is no `kind`.
    """
    try:
        network, report = model_class.from_pretrained(
            path_or_id, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{given}: no {kind}: {error}") from error
    require_all_weights(given, report)
    if mismatched := report.get("mismatched_keys"):
        raise ValueError(f"{given}: weights of another architecture, first {sorted(mismatched)[0]}")
    return network.eval().to(device)


class ClipScore:
    """`clip_score`: 100 · cosine of image and prompt, 0 where negative (Hessel et al. 2021). Long prompts are cut."""

    measures = ("clip_score",)

    def __init__(self, path_or_id: str, device: torch.device, given: str = "") -> None:
        """given: the setting, for errors. Raises: ValueError naming it where there is no complete CLIP."""
        from transformers import CLIPModel, CLIPProcessor

        given = given or f"clip.model={path_or_id!r}"
        self._model = load_pretrained(CLIPModel, given, path_or_id, device, "CLIP")
        try:
            self._processor: Any = CLIPProcessor.from_pretrained(path_or_id)
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: no CLIP: {error}") from error
        self._device = device
        self.network = licensed(path_or_id)

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        found = self.cosines([picture.ad_u8 for picture in pictures], [picture.prompt for picture in pictures])
        return {"clip_score": [100 * max(0.0, each) for each in found]}

    def cosines(self, images: Sequence[ImageU8], prompts: Sequence[str]) -> list[float]:
        """The cosine of each image with its prompt, −1 to 1."""
        inputs = self._processor(
            text=list(prompts), images=list(images), return_tensors="pt", padding=True, truncation=True
        )
        with torch.inference_mode():
            found = self._model(**inputs.to(self._device))
        cosines: list[float] = torch.cosine_similarity(found.image_embeds, found.text_embeds).double().tolist()
        return cosines


class VisionFeatures:
    """A vision transformer: features of whole pictures and of their patches."""

    def __init__(self, field: str, path_or_id: str, device: torch.device) -> None:
        """Raises: ValueError naming the field."""
        from transformers import AutoImageProcessor, AutoModel

        given, kind = f"{field}={path_or_id!r}", "vision transformer"
        self._model = load_pretrained(AutoModel, given, path_or_id, device, kind)
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(path_or_id, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: no {kind}: {error}") from error
        config = self._model.config
        if not hasattr(config, "patch_size") or not hasattr(config, "image_size"):
            raise ValueError(f"{given}: no {kind} (a {type(self._model).__name__})")
        self._registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._device = device

    def whole(self, images: Sequence[ImageU8]) -> Tensor:
        """Features of pictures, n×channels."""
        inputs: Mapping[str, Tensor] = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            tokens: Tensor = self._model(**inputs).last_hidden_state
        return tokens[:, 0]

    def patches(self, image_u8: ImageU8) -> Tensor:
        """Features of one picture's patches as a map, channels×h×w, over the complete picture."""
        size = self._model.config.patch_size
        sides = [max(1, round(side / size)) * size for side in image_u8.shape[:2]]
        mean, std = (torch.tensor(getattr(self._processor, name)) for name in ("image_mean", "image_std"))
        pixels = ((torch.from_numpy(image_u8) / 255 - mean) / std).permute(2, 0, 1)[None].to(self._device)
        with torch.inference_mode():
            pixels = torch.nn.functional.interpolate(pixels, sides, mode="bilinear", antialias=True)
            tokens: Tensor = self._model(pixel_values=pixels).last_hidden_state
        grid = tokens[0, 1 + self._registers :]
        return grid.T.reshape(-1, sides[0] // size, sides[1] // size)


class DinoSimilarity:
    """`dino`: cosine of the placed product's and the ad's features, of crops that are white outside M′."""

    measures = ("dino",)

    def __init__(self, path_or_id: str, device: torch.device) -> None:
        """Raises: ValueError naming the field."""
        self._features = VisionFeatures("dino.model", path_or_id, device)
        self.network = licensed(path_or_id)

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        values: list[float | None] = [None] * len(pictures)
        crops = [(index, found) for index, each in enumerate(pictures) if (found := product_crops(each)) is not None]
        if crops:
            both = self._features.whole([crop for _, pair in crops for crop in pair])
            cosines = torch.cosine_similarity(both[0::2], both[1::2]).double().cpu().numpy()
            for (index, _), cosine in zip(crops, np.asarray(cosines), strict=True):
                values[index] = float(cosine)
        return {"dino": values}
