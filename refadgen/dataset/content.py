"""What an ad photograph shows that nobody should learn from: text, people in front, several products, unsafe content.

Networks look: RapidOCR (`TextFinder`), an image classifier (`UnsafeClassifier`), Grounding DINO (an `ObjectFinder`,
given from outside). Pure functions judge what they found: a finding that is too much is a RowError, rejected, which
names the setting. `ContentFilter` does both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from refadgen.config import FilterConfig
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError

if TYPE_CHECKING:
    from refadgen.segmentation.networks import FoundObject

PERSON, HAND = "person", "hand"
BEHIND = 0.9
"""A person's box that holds this share of the product's box says nothing of who is in front."""
ONE_THING = (0.5, 0.9)
"""Two boxes show one thing above this IoU, or with this share of the smaller one inside of the larger."""


MIN_LETTERS = 2
"""Letters and digits of a piece of text: a single one may be a round thing read as "●" or "O"."""

GAP = 0.04
"""Width of a gap in a product that is part of it when text is looked for; as a share of the picture's longer side."""


class ObjectFinder(Protocol):
    """What `refadgen.segmentation.networks.GroundedSegmenter` is here."""

    def objects(self, image_u8: np.ndarray, queries: Sequence[str]) -> list["FoundObject"]:
        """All that answers one of the queries."""
        ...


class ContentFilter:
    """The filters by content that are configured."""

    def __init__(
        self, config: FilterConfig, objects: ObjectFinder | None, device: str = "auto", *, gpu_expected: bool = False
    ) -> None:
        """objects: Grounding DINO; None: nobody looks for people and products. device, gpu_expected: of the classifier.

        Raises: ValueError naming the field whose package, weights or labels are not there.
        """
        self._config = config
        self._objects = objects
        self._text = TextFinder(config) if config.text else None
        self._unsafe: UnsafeClassifier | None = None
        if config.unsafe_model is not None:
            self._unsafe = UnsafeClassifier(config, device, gpu_expected=gpu_expected)

    def check(self, image_u8: np.ndarray, mask: np.ndarray, category: str | None) -> None:
        """Raises: RowError, rejected: `unsafe_content`, `person_in_front`, `several_products`, `embedded_text`.

        image_u8: uint8 H×W×3; mask: uint8 H×W, above 127 on the product, not empty; category: as the row has it.
        """
        for problem in self._problems(image_u8, mask, category):
            if problem is not None:
                raise problem

    def _problems(self, image_u8: np.ndarray, mask: np.ndarray, category: str | None) -> Iterator[RowError | None]:
        config = self._config
        if self._unsafe is not None:
            yield unsafe_content(self._unsafe.score(image_u8), config)
        people = [PERSON, HAND] if config.people else []
        queries = [*people, *([category] if category else [])]  # the category, which may be long, last: see `objects`
        if self._objects is not None and queries:
            found = self._objects.objects(image_u8, queries)
            in_front = [each for each in found if each.label in people]
            yield blocking_person(mask_box(mask), in_front, config.max_person_overlap)
            yield too_many_products([each.box for each in found if each.label == category], config.max_products)
        if self._text is not None:
            yield embedded_text(self._text.find(image_u8, mask), config)


@dataclass(frozen=True, kw_only=True)
class TextFinding:
    """Text in a picture."""

    area: float
    """Share of the picture that it covers, 0 to 1."""
    words: str
    """Of its largest piece, at most 60 letters; empty: there is none."""


class TextFinder:
    """RapidOCR with the models in its package, on the CPU; finds print, logos in letters, watermarks."""

    def __init__(self, config: FilterConfig, *, num_threads: int = 1) -> None:
        """num_threads: of one picture. Raises: ValueError naming `filter.text` where the extra `ocr` is not there."""
        try:
            import onnxruntime  # noqa: F401  RapidOCR asks for it only with the first picture
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
                threads.format("inter"): 1,
                # Named, or it would download what is not there.
                **{f"{kind}.model_path": _shipped_model(Path(rapidocr.__file__).parent, kind) for kind in _OCR_MODELS},
            }
        )

    def find(self, image_u8: np.ndarray, mask: np.ndarray | None = None) -> TextFinding:
        """Text outside of the product.

        image_u8: uint8 H×W×3, RGB. mask: uint8 H×W, above 127 on the product, whose own print does not count: pieces
        of text of which half or more lies on it or in its narrow gaps, and of others what lies there. None: all text
        counts. A single letter never does.
        """
        found: Any = self._reader(np.ascontiguousarray(image_u8[..., ::-1]))
        pieces = [] if found.boxes is None else list(zip(found.boxes, found.txts, strict=True))
        return text_outside(pieces, image_u8.shape[:2], mask)


_OCR_MODELS = ("Det", "Cls", "Rec")


def _shipped_model(package: Path, kind: str) -> str:
    found = sorted((package / "models").glob(f"*_{kind.lower()}_*.onnx"))
    if not found:
        raise ValueError(f"filter.text=True: the installed rapidocr has no {kind} model in it: install the extra `ocr`")
    return str(found[0])


def text_outside(
    pieces: Sequence[tuple[np.ndarray, str]], size: tuple[int, int], mask: np.ndarray | None
) -> TextFinding:
    """What pieces of text cover outside of `mask`; see `TextFinder.find`.

    pieces: corners, float 4×2, x and y in pixels, and words. size: height and width.
    """
    pieces = [(corners, said) for corners, said in pieces if sum(map(str.isalnum, said)) >= MIN_LETTERS]
    outside = np.ones(size, bool) if mask is None else ~_without_gaps(mask)
    text = np.zeros(size, bool)
    largest, words = 0, ""
    for corners, said in pieces:
        piece = np.zeros(size, np.uint8)
        cv2.fillPoly(piece, [np.rint(corners).astype(np.int32)], 1)
        seen = (piece > 0) & outside
        count = int(np.count_nonzero(seen))
        if 2 * count <= np.count_nonzero(piece):
            continue
        text |= seen
        if count > largest:
            largest, words = count, " ".join(said.split())
    return TextFinding(area=float(text.mean()), words=words if len(words) <= 60 else f"{words[:59]}…")


def _without_gaps(mask: np.ndarray) -> np.ndarray:
    """Bool H×W: the product with its narrow gaps, between the tines of a fork that reads "LLL"."""
    side = round(GAP * max(mask.shape))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side | 1, side | 1))
    return cv2.morphologyEx((mask > 127).astype(np.uint8), cv2.MORPH_CLOSE, disk) > 0


class UnsafeClassifier:
    """An image classifier of transformers, float32, one picture at a time."""

    def __init__(self, config: FilterConfig, device: str = "auto", *, gpu_expected: bool = False) -> None:
        """device: auto, cpu, cuda, cuda:1, … gpu_expected: the cluster gave this process a GPU.

        Raises: ValueError naming `filter.unsafe_model` where weights are not there or not whole, `filter.unsafe_labels`
        where they are none or all of the model's labels, or the device.
        """
        from refadgen.config.devices import resolve_device

        assert config.unsafe_model is not None
        self._device = resolve_device(device, gpu_expected=gpu_expected, field="segmentation.device")
        self._processor, self._model = _load_classifier(config.unsafe_model)
        self._model.to(self._device).eval()
        labels = {index: str(label) for index, label in self._model.config.id2label.items()}
        wanted = {label.strip().lower() for label in config.unsafe_labels}
        self._unsafe = [int(index) for index, label in labels.items() if label.strip().lower() in wanted]
        if not 0 < len(self._unsafe) < len(labels):
            raise ValueError(
                f"filter.unsafe_labels={config.unsafe_labels!r}: must be some, not all, of the labels of "
                f"filter.unsafe_model={config.unsafe_model!r}: {', '.join(labels.values())}"
            )

    def score(self, image_u8: np.ndarray) -> float:
        """Sum of the probabilities of the unsafe labels, 0 to 1. image_u8: uint8 H×W×3, RGB."""
        import torch

        inputs = self._processor(images=[image_u8.copy()], return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits[0]
        return float(logits.softmax(dim=-1)[self._unsafe].sum().clamp(0, 1))


def _load_classifier(address: str) -> tuple[Any, Any]:
    """Processor and model from a folder or hub id, every weight of it present."""
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    field = f"filter.unsafe_model={address!r}"
    try:
        processor = AutoImageProcessor.from_pretrained(address)
        model, report = AutoModelForImageClassification.from_pretrained(address, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{field}: cannot be loaded: {error}") from error
    require_all_weights(field, report)
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{field}: has labels that go together; must have one label a picture")
    return processor, model.float()


def embedded_text(finding: TextFinding, config: FilterConfig) -> RowError | None:
    """`embedded_text` where text covers more than `filter.max_text_area`."""
    if finding.area <= config.max_text_area:
        return None
    return RowError(
        "embedded_text",
        f"text covers {finding.area:.1%} of the picture beside the product, more than {config.max_text_area:.1%} "
        f"(filter.max_text_area); the largest piece is {finding.words!r}",
    )


def unsafe_content(score: float, config: FilterConfig) -> RowError | None:
    """`unsafe_content` where a classifier's score is above `filter.max_unsafe_score`."""
    if score <= config.max_unsafe_score:
        return None
    detail = f"score {score:.2f} of the classifier is above {config.max_unsafe_score:g} (filter.max_unsafe_score)"
    return RowError("unsafe_content", detail)


def blocking_person(product_box: np.ndarray, people: Sequence["FoundObject"], max_overlap: float) -> RowError | None:
    """`person_in_front` where people and hands together cover more than `max_overlap` of the product's box.

    product_box: [left, top, right, bottom] in pixels. people: labels PERSON and HAND.

    The paper drops occluded products; boxes do not tell who is in front, so each kind is read as it mostly is. A hand
    near a product holds it, and covers some of it: every hand counts, also one that wears a ring. A person who covers a
    part of the product's box sits on it, leans on it or stands before it, and counts; so does one who stands behind
    its edge, which costs a good picture at most. A person whose box holds the whole product (BEHIND) wears it, holds it
    before them or stands behind it: a product covered as far as that would not have been found. There only the hands
    count.
    """
    left, top, right, bottom = (round(float(each)) for each in product_box)
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
    """`several_products` where the boxes of a category show more than `max_products` things.

    boxes: [left, top, right, bottom] each. Boxes that overlap by more than half (IoU) or lie inside of one another show
    one thing (ONE_THING), and so do those that a third box joins: a pair of shoes is one product where the pair has a
    box too.
    """
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


def mask_box(mask: np.ndarray) -> np.ndarray:
    """float32 [left, top, right, bottom] of what is above 127 in a mask, uint8 H×W, not empty."""
    rows, columns = (np.flatnonzero((mask > 127).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
