"""SAM 3 finds the product by its name and gives its mask: text to masks, in place of Grounding DINO and SAM2.

It finds every object that the name fits. The product is the one with the highest score, together with others of its
size: a pair of shoes is one product. SAM 3 also finds other objects in a picture (`Sam3Segmenter.objects`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from refadgen.config import SegmentationConfig
from refadgen.config.devices import resolve_device
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError
from refadgen.segmentation.answers import probe_image, require_usable, to_alpha
from refadgen.segmentation.grounded import ANY_PRODUCT, FoundObject
from refadgen.segmentation.hub import LOADING_ERRORS, loading_fault

FIELD = "segmentation.sam3"
KINDS = ("sam3", "sam3_video")
"""Kinds of checkpoints; the released one is a video tracker whose detector is the model used here."""
SAME_SIZE = 0.25
"""An object joins the product from this share of its area on. Smaller ones of the same name stand in the background."""


class Sam3Segmenter:
    """SAM 3 on one device, one image at a time."""

    source = "sam3"
    field = FIELD

    def __init__(self, config: SegmentationConfig, *, gpu_expected: bool = False) -> None:
        """gpu_expected: the cluster gave this process a GPU, so that `segmentation.device=auto` must find one.

        Raises: ValueError naming the field whose weights or device are not there, or whose network answers the probe
        with NaN or the same value everywhere.
        """
        assert config.sam3 is not None
        self.config = config
        place = f"{FIELD}={config.sam3!r}"
        self.device = resolve_device(config.device, gpu_expected=gpu_expected, field="segmentation.device")
        self._processor, self._model = _load(place, config.sam3)
        self._model.to(self.device).eval()
        scores, masks, _ = self._instances(self._see(probe_image()), ANY_PRODUCT)
        require_usable(place, scores)
        require_usable(place, masks)

    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        """Returns alpha, uint8 HW, and the least score of the objects in it, 0 to 1.

        image_u8: uint8 HW3, RGB. name: what to look for, as plain text; None: any product.
        Raises: RowError: `product_not_found` (rejected), or `network_failed`.
        """
        words = " ".join((name or "").lower().split()) or ANY_PRODUCT
        scores, masks, _ = self._instances(self._see(image_u8), words)
        if not np.isfinite(scores).all():
            raise RowError("network_failed", f"{FIELD}: scores are NaN for this photograph")
        product = product_instances(scores, masks, self.config.sam3_threshold)
        if not product:
            raise RowError(
                "product_not_found",
                f"no {words!r} found above the score {self.config.sam3_threshold:g} (segmentation.sam3_threshold)",
            )
        alpha = to_alpha(masks[product].max(axis=0), (image_u8.shape[1], image_u8.shape[0]), FIELD)
        return alpha, float(scores[product].min())

    def objects(self, image_u8: np.ndarray, queries: Sequence[str]) -> list[FoundObject]:
        """Finds all objects that fit one of `queries`, highest score first. Two boxes may show one object.

        image_u8: uint8 HW3, RGB. queries: plain texts such as "mugs", "person" or "hand".
        """
        seen = self._see(image_u8)
        height, width = image_u8.shape[:2]
        limits = np.array([width, height, width, height], np.float32)
        found = []
        for query in queries:
            scores, _, boxes = self._instances(seen, " ".join(query.lower().split()) or ANY_PRODUCT)
            for score, box in zip(scores, np.clip(boxes * limits, 0, limits), strict=True):
                if score > self.config.sam3_threshold and (box[2:] - box[:2] >= 1).all():
                    found.append(FoundObject(query, float(score), box))
        return sorted(found, key=lambda each: -each.score)

    @torch.inference_mode()
    def _see(self, image_u8: np.ndarray) -> Any:
        """What the image encoder sees; the slow part, the same for all texts."""
        # A copy: arrays of Pillow images are read-only, which torch does not support.
        inputs = self._processor.image_processor(
            image_u8.copy(), input_data_format="channels_last", return_tensors="pt"
        ).to(self.device)
        return self._model.get_vision_features(pixel_values=inputs["pixel_values"])

    @torch.inference_mode()
    def _instances(self, seen: Any, words: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """N candidates: scores [N], soft masks [N, h, w], boxes [N, 4] (left, top, right, bottom); all from 0 to 1."""
        length = self._model.config.text_config.max_position_embeddings
        text = self._processor.tokenizer(
            words, return_tensors="pt", padding="max_length", truncation=True, max_length=length
        ).to(self.device)
        output = self._model(vision_embeds=seen, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        scores = output.pred_logits[0].float().sigmoid()
        if output.presence_logits is not None:
            scores = scores * output.presence_logits[0].float().sigmoid()
        masks = output.pred_masks[0].float().sigmoid()
        return scores.cpu().numpy(), masks.cpu().numpy(), output.pred_boxes[0].float().cpu().numpy()


def product_instances(scores: np.ndarray, masks: np.ndarray, threshold: float) -> list[int]:
    """Indices of the candidates that are the product; none where no score is above the threshold.

    scores: [N]. masks: [N, h, w], 0 to 1.
    """
    above = [int(index) for index in np.argsort(-scores, kind="stable") if scores[index] > threshold]
    if not above:
        return []
    areas = (masks > 0.5).sum(axis=(1, 2))
    return [index for index in above if areas[index] >= SAME_SIZE * areas[above[0]]]


def _load(place: str, address: str) -> tuple[Any, Any]:
    """SAM 3's processor and model from a folder or hub id. Raises: ValueError, also for missing weights."""
    from transformers import AutoConfig, Sam3Model, Sam3Processor

    try:
        kind = AutoConfig.from_pretrained(address, trust_remote_code=False).model_type
        if kind not in KINDS:
            raise ValueError(f"is a {kind} model, must be one of {', '.join(KINDS)}")
        processor = Sam3Processor.from_pretrained(address)
        model, report = Sam3Model.from_pretrained(address, dtype=torch.float32, output_loading_info=True)
    except LOADING_ERRORS as error:
        raise loading_fault(place, error) from error
    require_all_weights(place, report)
    return processor, model
