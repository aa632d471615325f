"""Filters by content: text, watermarks, people and things in front of the product, several products, unsafe content.

Networks look at the picture: RapidOCR (`TextFinder`), image classifiers, and Grounding DINO or
SAM 3 (an `ObjectFinder` that the caller passes in). Pure functions judge the findings; too much is a RowError
(rejected) that names the setting. `ContentFilter` does both.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from refadgen.config import FilterConfig, SegmentationConfig
from refadgen.dataset.masks import product_box
from refadgen.dataset.occlusion import hidden_share, occluded
from refadgen.dataset.watermarks import repeated_watermark, watermark_score
from refadgen.errors import RowError
from refadgen.model.picture_classifier import PictureClassifier

if TYPE_CHECKING:
    import torch

    from refadgen.dataset.multi_view.depth import DepthAnything
    from refadgen.segmentation.grounded import FoundObject
    from refadgen.segmentation.networks import ObjectFinder

Box = Sequence[float] | np.ndarray
"""Left, top, right and bottom in pixels."""
PERSON, HAND = "person", "hand"
BEHIND = 0.9
"""A person's box that covers this share of the product's box does not show who is in front."""
ONE_THING = (0.5, 0.9)
"""Two boxes show the same object above this IoU, or where this share of the smaller box lies in the larger one."""
MIN_LETTERS = 2
"""Text with fewer letters and digits does not count: OCR reads round objects as "●" or "O"."""
GAP = 0.04
"""A gap in the product up to this width counts as product when text is judged; a share of the picture's longer side."""


def require_filters(config: FilterConfig, segmentation: SegmentationConfig) -> None:
    """What the filters need, before Ray starts. Raises: ValueError naming the setting and the remedy."""
    if config.text:
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"filter.text=True: needs the extra `ocr` (pip install 'refadgen[ocr]'): no {', '.join(missing)} here"
            )
    if config.people == "required" and segmentation.grounding_dino is None and segmentation.sam3 is None:
        raise ValueError(
            "filter.people='required': needs a network that finds people: set segmentation.grounding_dino (with "
            "segmentation.sam2_checkpoint) or segmentation.sam3, or filter.people=false to do without"
        )


class ContentFilter:
    """Runs the content filters that are configured."""

    def __init__(
        self, config: FilterConfig, objects: "ObjectFinder | None", device: str = "auto", *, gpu_expected: bool = False
    ) -> None:
        """objects: Grounding DINO or SAM 3; None: no search for people and products.

        device, gpu_expected: of classifiers and depth network.
        Raises: ValueError naming the field whose package, weights or labels are missing.
        """
        self._config = config
        self._objects = objects
        self._text = TextFinder(config) if config.text else None
        self._unsafe = self._watermark = None
        self._depth: DepthAnything | None = None
        if not any((config.unsafe_model, config.watermark_model, config.depth_model)):
            return  # none needs torch
        from refadgen.config.devices import resolve_device

        place = resolve_device(device, gpu_expected=gpu_expected, field="segmentation.device")
        if config.unsafe_model is not None:
            self._unsafe = _classifier("unsafe", config.unsafe_model, config.unsafe_labels, place)
        if config.watermark_model is not None:
            self._watermark = _classifier("watermark", config.watermark_model, config.watermark_labels, place)
        if config.depth_model is not None:
            from refadgen.dataset.multi_view import depth

            self._depth = depth.DepthAnything(config.depth_model, place, field="filter.depth_model")

    def check(self, image_u8: np.ndarray, mask: np.ndarray, category: str | None) -> None:
        """Returns for an ad that passes all filters.

        image_u8: uint8 H×W×3; mask: uint8 H×W, above 127 on the product, not empty; category: its last element.
        Raises: RowError (rejected): `unsafe_content`, `watermark`, `occluded`, `person_in_front`, `several_products` or
        `embedded_text`.
        """
        for problem in self._problems(image_u8, mask, category):
            if problem is not None:
                raise problem  # here, so that later networks don't look at a rejected ad

    def _problems(self, image_u8: np.ndarray, mask: np.ndarray, category: str | None) -> Iterator[RowError | None]:
        config = self._config
        if self._unsafe is not None:
            yield unsafe_content(self._unsafe.score(image_u8), config)
        if config.watermarks:
            yield repeated_watermark(watermark_score(image_u8, mask), config)
        if config.occluders:
            nearness = None if self._depth is None else self._depth.nearness(image_u8)
            yield occluded(hidden_share(image_u8, mask, nearness), config)
        if self._watermark is not None:
            yield classified_watermark(self._watermark.score(image_u8), config)
        people = [PERSON, HAND] if config.people else []
        # `objects` ignores queries beyond the text encoder's length: the category, which may be long, comes last.
        queries = [*people, *([category] if category else [])]
        if self._objects is not None and queries:
            found = self._objects.objects(image_u8, queries)
            in_front = [each for each in found if each.label in people]
            yield blocking_person(product_box(mask), in_front, config.max_person_overlap)
            yield too_many_products([each.box for each in found if each.label == category], config.max_products)
        if self._text is not None:
            yield embedded_text(self._text.find(image_u8, mask), config)


def _classifier(kind: str, address: str, labels: Sequence[str], device: "torch.device") -> PictureClassifier:
    """kind: the start of its settings' names."""
    fields = {"model_field": f"filter.{kind}_model", "labels_field": f"filter.{kind}_labels"}
    return PictureClassifier(address, labels, device=device, **fields)


@dataclass(frozen=True, kw_only=True)
class TextFinding:
    """Text in a picture."""

    area: float
    """Share of the picture that the text covers, 0 to 1."""
    words: str
    """Words of the largest piece, at most 60 characters; empty: there is no text."""


class TextFinder:
    """Finds print, lettered logos and watermarks: RapidOCR with the models in its package, on the CPU."""

    def __init__(self, config: FilterConfig, *, num_threads: int = 1) -> None:
        """num_threads: per picture. Raises: ValueError naming `filter.text` where the extra `ocr` is not installed."""
        try:
            import onnxruntime  # noqa: F401  RapidOCR imports it with the first picture: fail before that
            import rapidocr
        except ImportError as error:
            raise ValueError(
                f"filter.text=True: needs the extra `ocr` (pip install 'refadgen[ocr]'): {error}"
            ) from error
        threads = "EngineConfig.onnxruntime.{}_op_num_threads"
        self._reader = rapidocr.RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": config.min_text_score,
                threads.format("intra"): num_threads,
                threads.format("inter"): 1,  # ONNX Runtime would take every core; Ray counts on num_cpus
                # RapidOCR downloads a model that it is not given a path of.
                **{f"{kind}.model_path": _shipped_model(Path(rapidocr.__file__).parent, kind) for kind in _OCR_MODELS},
            }
        )

    def find(self, image_u8: np.ndarray, mask: np.ndarray | None = None) -> TextFinding:
        """Returns the text outside the product.

        image_u8: uint8 H×W×3, RGB. mask: uint8 H×W, above 127 on the product; None: all text counts. The product's own
        print does not count. A piece of text is ignored where half or more of it lies on the product or in its narrow
        gaps. Of other pieces the part outside counts. A single letter never counts.
        """
        return text_outside(self.pieces(image_u8), image_u8.shape[:2], mask)

    def pieces(self, image_u8: np.ndarray) -> list[tuple[np.ndarray, str]]:
        """All text of a picture (uint8 H×W×3, RGB), from top to bottom: (corners, words), corners float 4×2."""
        found: Any = self._reader(np.ascontiguousarray(image_u8[..., ::-1]))  # RapidOCR takes BGR
        return [] if found.boxes is None else list(zip(found.boxes, found.txts, strict=True))


_OCR_MODELS = ("Det", "Cls", "Rec")


def _shipped_model(package: Path, kind: str) -> str:
    found = sorted((package / "models").glob(f"*_{kind.lower()}_*.onnx"))
    if not found:
        raise ValueError(f"filter.text=True: the installed rapidocr has no {kind} model in it: install the extra `ocr`")
    return str(found[0])


def text_outside(
    pieces: Sequence[tuple[np.ndarray, str]], size: tuple[int, int], mask: np.ndarray | None
) -> TextFinding:
    """Returns the text outside `mask`, by the rules of `TextFinder.find`.

    pieces: (corners, words), corners float 4×2 as x, y in pixels. size: height and width in pixels.
    """
    pieces = [(corners, text) for corners, text in pieces if sum(map(str.isalnum, text)) >= MIN_LETTERS]
    outside = np.ones(size, bool) if mask is None else ~_without_gaps(mask)
    covered = np.zeros(size, bool)  # pieces overlap: a sum of their areas would count some pixels twice
    largest, words = 0, ""
    for corners, text in pieces:
        piece = np.zeros(size, np.uint8)
        cv2.fillPoly(piece, [np.rint(corners).astype(np.int32)], 1)
        seen = (piece > 0) & outside
        count = int(np.count_nonzero(seen))
        if 2 * count <= np.count_nonzero(piece):
            continue  # the product's own print, whose box reaches beyond the product
        covered |= seen
        if count > largest:
            largest, words = count, " ".join(text.split())
    return TextFinding(area=float(covered.mean()), words=words if len(words) <= 60 else f"{words[:59]}…")


def _without_gaps(mask: np.ndarray) -> np.ndarray:
    """Returns bool H×W: the product with its narrow gaps closed. OCR reads the tines of a fork as "LLL"."""
    side = round(GAP * max(mask.shape))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side | 1, side | 1))
    return cv2.morphologyEx((mask > 127).astype(np.uint8), cv2.MORPH_CLOSE, disk) > 0


def embedded_text(finding: TextFinding, config: FilterConfig) -> RowError | None:
    """Returns `embedded_text` where text covers more than `filter.max_text_area`, else None."""
    if finding.area <= config.max_text_area:
        return None
    return RowError(
        "embedded_text",
        f"text covers {finding.area:.1%} of the picture beside the product, more than {config.max_text_area:.1%} "
        f"(filter.max_text_area); the largest piece is {finding.words!r}",
    )


def unsafe_content(score: float, config: FilterConfig) -> RowError | None:
    """Returns `unsafe_content` where the classifier's score is above `filter.max_unsafe_score`, else None."""
    if score <= config.max_unsafe_score:
        return None
    detail = f"score {score:.2f} of the classifier is above {config.max_unsafe_score:g} (filter.max_unsafe_score)"
    return RowError("unsafe_content", detail)


def classified_watermark(score: float, config: FilterConfig) -> RowError | None:
    """Returns `watermark` where the classifier's score is above `filter.max_watermark_score`, else None."""
    if score <= config.max_watermark_score:
        return None
    detail = f"score {score:.2f} of the classifier is above {config.max_watermark_score:g} (filter.max_watermark_score)"
    return RowError("watermark", detail)


def blocking_person(product: Box, people: Sequence["FoundObject"], max_overlap: float) -> RowError | None:
    """Returns `person_in_front` where people and hands together cover more than `max_overlap` of the product's box.

    product: the product's box, left, top, right and bottom in pixels. people: labels PERSON and HAND.

    The paper drops occluded products. Boxes do not show who is in front, so each kind is read as its usual case:

    * A hand near a product holds it and covers some of it. Every hand counts, even one that wears a ring.
    * A person whose box covers a part of the product's box sits on it, leans on it or stands before it, and counts. So
      does a person behind its edge; that loses a good picture at most.
    * A person whose box covers the product's box (BEHIND) wears the product, holds it or stands behind it: a product
      hidden that far would not have been found. There only the hands count.
    """
    left, top, right, bottom = (round(float(each)) for each in product)
    # Pixels of the product's box, not areas: people who overlap cover a place once.
    covered = np.zeros((max(1, bottom - top), max(1, right - left)), bool)
    for label, _, box in people:
        part = np.zeros_like(covered)
        start_x, start_y, end_x, end_y = (round(float(each)) for each in box - np.array([left, top, left, top]))
        part[max(0, start_y) : max(0, end_y), max(0, start_x) : max(0, end_x)] = True
        if label == HAND or part.mean() < BEHIND:
            covered |= part
    share = float(covered.mean())
    if share <= max_overlap:
        return None
    return RowError(
        "person_in_front",
        f"people or hands cover {share:.0%} of the product's box, more than {max_overlap:.0%} "
        "(filter.max_person_overlap)",
    )


def too_many_products(boxes: Sequence[np.ndarray], max_products: int) -> RowError | None:
    """Returns `several_products` where the boxes of a category show more than `max_products` objects, else None.

    boxes: [left, top, right, bottom] each, in pixels. Boxes that overlap by more than half (IoU) or lie in one another
    show one object (ONE_THING). A third box joins two others: a pair of shoes is one product where the pair has a box
    as well.
    """
    # All pairs, as boxes are few; each box merges the groups that it touches, so that their order does not matter.
    groups: list[list[np.ndarray]] = []
    for box in boxes:
        near = [group for group in groups if any(_is_one_thing(box, other) for other in group)]
        apart = [group for group in groups if not any(group is each for each in near)]
        groups = [*apart, [box, *(other for group in near for other in group)]]
    if len(groups) <= max_products:
        return None
    detail = (
        f"{len(groups)} products of the category are in the picture, more than {max_products} (filter.max_products)"
    )
    return RowError("several_products", detail)


def _is_one_thing(one: np.ndarray, other: np.ndarray) -> bool:
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.clip(inner, 0, None)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    max_iou, inside = ONE_THING
    return both > max_iou * (sum(areas) - both) or both >= inside * min(areas)
