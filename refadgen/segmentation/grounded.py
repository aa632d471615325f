"""Grounding DINO finds the product's box by its name, SAM2 the mask in the box.

Grounding DINO also finds other objects in a picture (`GroundedSegmenter.objects`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from refadgen.config import SegmentationConfig
from refadgen.config.devices import resolve_device
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError
from refadgen.segmentation.answers import probe_image, require_usable
from refadgen.segmentation.hub import LOADING_ERRORS, loading_fault
from refadgen.segmentation.sam2 import FIELD, Sam2

ANY_PRODUCT = "product"
"""The query for a product without a name; prompts of a product without a category say the same word."""
DETECTORS = ("grounding-dino", "mm-grounding-dino")


class FoundObject(NamedTuple):
    """One object that a network finds by text."""

    label: str
    """The query that fits it best, as it was asked."""
    score: float
    """0 to 1."""
    box: np.ndarray
    """float32 [left, top, right, bottom] in pixels, within the image."""


class GroundedSegmenter:
    """Grounding DINO and SAM2 on one device, one image at a time. Not safe to share between threads."""

    source = "sam2"
    field = FIELD

    def __init__(self, config: SegmentationConfig, *, gpu_expected: bool = False) -> None:
        """gpu_expected: the cluster gave this process a GPU, so that `segmentation.device=auto` must find one.

        Raises: ValueError naming the field whose weights, configuration or device is not there, or whose weights are
        broken.
        """
        assert config.grounding_dino is not None
        self.config = config
        self.device = resolve_device(config.device, gpu_expected=gpu_expected, field="segmentation.device")
        self._processor, self._detector = _load_detector(config.grounding_dino)
        self._detector.to(self.device).eval()
        self._sam2 = Sam2(config, self.device)
        with torch.inference_mode():
            boxes = self._detector(**self._inputs(probe_image(), as_query(None))).pred_boxes
        require_usable(f"segmentation.grounding_dino={config.grounding_dino!r}", boxes.float().cpu().numpy())

    @torch.inference_mode()
    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        """Returns alpha, uint8 HW, and SAM2's predicted IoU, 0 to 1.

        image_u8: uint8 HW3, RGB. name: what to look for, as plain text; None: any product.
        Raises: RowError: `product_not_found` (rejected), or `network_failed`.
        """
        return self._sam2.segment(image_u8, self.find_box(image_u8, name))

    @torch.inference_mode()
    def find_box(self, image_u8: np.ndarray, name: str | None) -> np.ndarray:
        """Returns the box of the highest score, float32 [left, top, right, bottom] in pixels.

        Raises: RowError, rejected `product_not_found`.
        """
        text = as_query(name)
        inputs = self._inputs(image_u8, text)
        outputs = self._detector(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.config.box_threshold,
            text_threshold=self.config.text_threshold,
            target_sizes=[image_u8.shape[:2]],
        )[0]
        box = best_box(
            found["scores"].float().cpu().numpy(),
            found["boxes"].float().cpu().numpy(),
            found["text_labels"],
            size=(image_u8.shape[1], image_u8.shape[0]),
        )
        if box is None:
            raise RowError(
                "product_not_found",
                f"no {text.rstrip('.')!r} found above the scores {self.config.box_threshold:g} "
                f"(segmentation.box_threshold) and {self.config.text_threshold:g} (segmentation.text_threshold)",
            )
        return box

    @torch.inference_mode()
    def objects(self, image_u8: np.ndarray, queries: Sequence[str]) -> list[FoundObject]:
        """Finds all objects that fit one of `queries`, highest score first; a box has the query that fits it best.

        image_u8: uint8 HW3, RGB. queries: plain texts such as "mugs", "person" or "hand", all asked at once.
        Queries beyond the length of the text encoder (about 200 words) are not looked for: put the longest last.
        The thresholds are those of `find_box`. Two boxes may show one object.
        """
        inputs = self._inputs(image_u8, " ".join(map(as_query, queries)))
        outputs = self._detector(**inputs)
        tokenizer = self._processor.tokenizer
        dot, special = tokenizer.convert_tokens_to_ids("."), {tokenizer.cls_token_id, tokenizer.sep_token_id}
        assert dot != tokenizer.unk_token_id
        places = query_places(inputs["input_ids"][0].tolist(), len(queries), dot=dot, special=special)
        scores, best = query_scores(outputs.logits[0].float().sigmoid().cpu().numpy(), places)
        height, width = image_u8.shape[:2]
        center, size = np.split(outputs.pred_boxes[0].float().cpu().numpy() * [width, height, width, height], 2, axis=1)
        boxes = np.clip(np.hstack([center - size / 2, center + size / 2]), 0, [width, height, width, height])
        large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        counts = large & (scores > self.config.box_threshold) & (scores > self.config.text_threshold)
        order = [index for index in np.argsort(-scores, kind="stable") if counts[index]]
        return [FoundObject(queries[best[k]], float(scores[k]), boxes[k].astype(np.float32)) for k in order]

    def _inputs(self, image_u8: np.ndarray, text: str) -> Any:
        config = self._detector.config
        # The tokenizer's own limit is the text encoder's; the detector's text layers take fewer tokens.
        max_length = min(config.max_text_len, config.text_config.max_position_embeddings)
        # A copy: arrays of Pillow images are read-only, which torch does not support.
        inputs = self._processor(
            images=image_u8.copy(), text=text, return_tensors="pt", truncation=True, max_length=max_length
        )
        return inputs.to(self.device)


def as_query(name: str | None) -> str:
    """The detector's text for one phrase: lower case, with the final dot that it was trained with.

    name: plain text such as "Mugs", without a category's path; None: any product.
    """
    # A dot within the phrase would end it: the detector separates phrases by dots.
    return (" ".join((name or "").replace(".", " ").lower().split()) or ANY_PRODUCT) + "."


def query_places(tokens: Sequence[int], num_queries: int, *, dot: int, special: set[int]) -> list[list[int]]:
    """The places of each query's tokens in a text of several queries, each ended by a dot; none for one cut off.

    dot, special: ids of the dot and of the tokens that frame a text.
    """
    places: list[list[int]] = [[]]
    for place, token in enumerate(tokens):
        if token == dot:
            places.append([])
        elif token not in special:
            places[-1].append(place)
    return [*places, *([] for _ in range(num_queries))][:num_queries]


def query_scores(probability: np.ndarray, places: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each of N boxes, the score of the query that fits it best, and that query's index, the first of equal ones.

    probability: [N, tokens], that a box shows a token. places: each query's tokens, from `query_places`.
    """
    # A query scores as its best token does, as in the detector's own post-processing.
    of_query = [probability[:, each].max(axis=1) if each else np.zeros(len(probability)) for each in places]
    scores = np.stack(of_query, axis=1)
    return scores.max(axis=1), scores.argmax(axis=1)


def best_box(scores: np.ndarray, boxes: np.ndarray, labels: list[str], size: tuple[int, int]) -> np.ndarray | None:
    """The box of the highest score, clipped to the image; None: no box has both words and an area.

    scores: [N]. boxes: [N, 4] left, top, right, bottom in pixels. labels: each box's words above the text threshold.
    size: width and height of the image.
    """
    for index in np.argsort(-scores, kind="stable"):
        box: np.ndarray = np.clip(boxes[index], 0, [*size, *size]).astype(np.float32)
        if str(labels[index]).strip() and box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
            return box
    return None


def _load_detector(address: str) -> tuple[Any, Any]:
    """Grounding DINO's processor and model from a folder or hub id. Raises: ValueError, also for missing weights."""
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    field = f"segmentation.grounding_dino={address!r}"
    try:
        kind = AutoConfig.from_pretrained(address, trust_remote_code=False).model_type
        if kind not in DETECTORS:
            raise ValueError(f"is a {kind} model, must be one of {', '.join(DETECTORS)}")
        processor = AutoProcessor.from_pretrained(address, trust_remote_code=False)
        model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
            address, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise loading_fault(field, error) from error
    require_all_weights(field, report)
    return processor, model
