"""Content filters: RapidOCR and a tiny random ViT for real, boxes of Grounding DINO as numbers."""

import builtins
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from refadgen.config import FilterConfig
from refadgen.dataset.content import (
    ContentFilter,
    TextFinder,
    TextFinding,
    blocking_person,
    embedded_text,
    text_outside,
    too_many_products,
    unsafe_content,
)
from refadgen.dataset.masks import product_box
from refadgen.errors import RowError
from refadgen.model.picture_classifier import PictureClassifier
from refadgen.segmentation.networks import FoundObject

needs_ocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="the extra `ocr` is not installed",
)
CONFIG = FilterConfig()


def _box(*corners: float) -> np.ndarray:
    return np.float32(corners)


def _seen(label: str, *corners: float) -> FoundObject:
    return FoundObject(label, 0.5, _box(*corners))


# --- text


def _picture(text: str = "", at: tuple[int, int] = (30, 40), size: int = 40) -> np.ndarray:
    """uint8 240×320×3: a red disk on beige, with letters of `size` px, their top left at `at`."""
    picture = Image.new("RGB", (320, 240), (230, 220, 200))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((110, 110, 210, 230), fill=(190, 60, 50))
    draw.text(at, text, font=ImageFont.load_default(size), fill=(20, 20, 90))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def text_filter() -> ContentFilter:
    return ContentFilter(FilterConfig(text=True), None)


@pytest.fixture(scope="module")
def finder(text_filter: ContentFilter) -> TextFinder:
    assert text_filter._text is not None
    return text_filter._text


@needs_ocr
def test_letters_are_found_and_read(finder: TextFinder) -> None:
    found = finder.find(_picture("SUMMER SALE"))
    assert found.words == "SUMMER SALE"
    assert 0.08 < found.area < 0.22  # about 250×35 of 320×240 px
    problem = embedded_text(found, CONFIG)
    assert problem is not None
    assert (problem.status, problem.reason) == ("rejected", "embedded_text")
    assert "SUMMER SALE" in problem.detail
    assert "filter.max_text_area" in problem.detail


@needs_ocr
def test_no_letters_no_text(finder: TextFinder) -> None:
    # RapidOCR reads the disk as "●".
    assert finder.find(_picture()) == TextFinding(area=0.0, words="")


@needs_ocr
def test_the_products_own_print_does_not_count(finder: TextFinder) -> None:
    picture = _picture("SUMMER SALE")
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[20:110, 10:] = 255
    assert finder.find(picture, mask) == TextFinding(area=0.0, words="")


def test_text_outside_of_the_product() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 255
    corners = _box(0, 10, 59, 10, 59, 19, 0, 19).reshape(4, 2)  # 60×10 px, a sixth of it on the product
    print_ = _box(46, 40, 99, 40, 99, 49, 46, 49).reshape(4, 2)
    small = _box(0, 15, 9, 15, 9, 24, 0, 24).reshape(4, 2)  # half of it over the first piece
    pieces = [(small, "small"), (print_, "print"), (corners, "a  watermark\n" + "x" * 80)]
    found = text_outside(pieces, (100, 100), mask)
    assert found.area == pytest.approx((500 + 50) / 10_000)
    assert found.words == "a watermark " + "x" * 47 + "…"
    assert text_outside(pieces, (100, 100), None).area == pytest.approx((600 + 50 + 540) / 10_000)
    assert text_outside([], (100, 100), None) == TextFinding(area=0.0, words="")
    assert text_outside([(corners, "●"), (small, "O!")], (100, 100), None) == TextFinding(area=0.0, words="")


def test_letters_that_are_a_product_with_gaps() -> None:
    mask = np.zeros((100, 100), np.uint8)
    for left in (40, 44, 48, 52):
        mask[20:60, left : left + 1] = 255
    tines = [(_box(39, 20, 53, 20, 53, 59, 39, 59).reshape(4, 2), "LLLL")]
    assert text_outside(tines, (100, 100), mask).area == 0
    assert text_outside(tines, (100, 100), np.zeros_like(mask)).area == pytest.approx(15 * 40 / 10_000)
    beside = [(_box(60, 20, 74, 20, 74, 59, 60, 59).reshape(4, 2), "LLLL")]
    assert text_outside(beside, (100, 100), mask).area == pytest.approx(15 * 40 / 10_000)


def test_little_text_is_allowed() -> None:
    assert embedded_text(TextFinding(area=0.02, words="x"), FilterConfig(max_text_area=0.02)) is None
    assert embedded_text(TextFinding(area=0.021, words="x"), FilterConfig(max_text_area=0.02)) is not None


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_without_the_extra_the_setting_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"^filter\.text=True: needs the extra `ocr`"):
        TextFinder(FilterConfig(text=True))


@needs_ocr
def test_a_package_without_models_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rapidocr

    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"^filter\.text=True: .*no Det model"):
        TextFinder(FilterConfig(text=True))


# --- unsafe content


def _unsafe(config: FilterConfig) -> PictureClassifier:
    assert config.unsafe_model is not None
    fields = {"model_field": "filter.unsafe_model", "labels_field": "filter.unsafe_labels"}
    return PictureClassifier(config.unsafe_model, config.unsafe_labels, device=torch.device("cpu"), **fields)


def test_the_score_is_the_sum_over_the_unsafe_labels(classifier: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    picture = _picture("SALE")
    inputs = AutoImageProcessor.from_pretrained(classifier)(Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        probability = AutoModelForImageClassification.from_pretrained(classifier)(**inputs).logits.softmax(-1)[0]
    expected = dict(zip(("Normal", "NSFW", "Sexy"), probability.tolist(), strict=True))
    both = _unsafe(FilterConfig(unsafe_model=str(classifier))).score(picture)
    one = _unsafe(FilterConfig(unsafe_model=str(classifier), unsafe_labels=(" sexy", "gore")))
    assert both == pytest.approx(expected["NSFW"] + expected["Sexy"], abs=1e-4)
    assert one.score(picture) == pytest.approx(expected["Sexy"], abs=1e-4)
    assert 0 < one.score(picture) < both < 1
    assert one.score(picture) != one.score(255 - picture)


def test_above_the_limit_it_is_unsafe() -> None:
    assert unsafe_content(0.5, CONFIG) is None
    problem = unsafe_content(0.83, CONFIG)
    assert problem is not None
    assert (problem.status, problem.reason) == ("rejected", "unsafe_content")
    assert "0.83" in problem.detail
    assert "filter.max_unsafe_score" in problem.detail


@pytest.mark.parametrize("labels", [("gore",), ("normal", "nsfw", "sexy")])
def test_labels_that_separate_nothing_are_named_beside_the_models(classifier: Path, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^filter\.unsafe_labels=.*{labels[0]}.*Normal, NSFW, Sexy"):
        _unsafe(FilterConfig(unsafe_model=str(classifier), unsafe_labels=labels))


def test_a_classifier_of_watermarks_is_one_of_the_filters(classifier: Path, tmp_path: Path) -> None:
    def filters(folder: Path, limit: float) -> ContentFilter:
        config = FilterConfig(watermark_model=str(folder), watermark_labels=("sexy",), max_watermark_score=limit)
        return ContentFilter(config, None, "cpu")

    picture, mask = _picture(), np.full((240, 320), 255, np.uint8)
    filters(classifier, 1.0).check(picture, mask, None)
    with pytest.raises(RowError, match=r"watermark: .*filter\.max_watermark_score"):
        filters(classifier, 0.0).check(picture, mask, None)
    with pytest.raises(ValueError, match=r"^filter\.watermark_model=.*none"):
        filters(tmp_path / "none", 0.5)


def test_no_labels_at_all_are_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match=r"^filter\.unsafe_labels="):
        FilterConfig(unsafe_model="somewhere", unsafe_labels=("", " "))
    FilterConfig(unsafe_labels=())


def test_weights_that_are_missing_are_named(classifier: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    def refusal(folder: Path) -> str:
        with pytest.raises(ValueError, match=r"^filter\.unsafe_model=") as caught:
            _unsafe(FilterConfig(unsafe_model=str(folder)))
        return str(caught.value)

    refusal(tmp_path / "none")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((classifier / name).read_bytes())
    refusal(tmp_path)
    weights = load_file(classifier / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "model.safetensors")
    assert "2 weights are missing" in refusal(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    settings = json.loads((classifier / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "problem_type": "multi_label_classification"}))
    assert "one label per picture" in refusal(tmp_path)


def test_a_gpu_that_is_not_there_is_an_error(classifier: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"segmentation\.device"):
        ContentFilter(FilterConfig(unsafe_model=str(classifier)), None, "cuda")


# --- people

PRODUCT = _box(100, 100, 200, 300)


@pytest.mark.parametrize(
    ("people", "share"),
    [
        ([], None),
        ([_seen("hand", 0, 0, 90, 90)], None),  # beside
        ([_seen("hand", 100, 100, 200, 120)], None),  # 10%: as much as is allowed
        ([_seen("hand", 100, 100, 200, 130)], "15%"),
        ([_seen("hand", 100, 100, 200, 112), _seen("hand", 60, 288, 260, 320)], "12%"),  # two hands together
        ([_seen("hand", 100, 100, 200, 112), _seen("hand", 100, 100, 200, 113)], None),  # one hand, found twice
        ([_seen("hand", 50, 50, 400, 400)], "100%"),  # a ring on a hand
        ([_seen("person", 50, 50, 400, 400)], None),  # a worn backpack
        ([_seen("person", 105, 50, 400, 400)], None),  # nearly all of it
        ([_seen("person", 50, 50, 400, 400), _seen("hand", 100, 200, 150, 300)], "25%"),  # held before the body
        ([_seen("person", 150, 150, 200, 300)], "38%"),  # sits on it
        ([_seen("person", 0, 0, 125, 400)], "25%"),  # stands before or behind its edge
        ([_seen("person", 0, 0, 105, 400)], None),
        ([_seen("person", -50, -50, 2000, 80)], None),
    ],
)
def test_people_in_front(people: list[FoundObject], share: str | None) -> None:
    problem = blocking_person(PRODUCT, people, 0.1)
    assert (problem is None) == (share is None)
    if problem is not None:
        assert (problem.status, problem.reason) == ("rejected", "person_in_front")
        assert f"cover {share} of" in problem.detail
        assert "filter.max_person_overlap" in problem.detail


def test_the_allowed_overlap_reaches_its_test() -> None:
    hand = [_seen("hand", 100, 100, 200, 200)]
    assert blocking_person(PRODUCT, hand, 0.5) is None
    assert blocking_person(PRODUCT, hand, 0.49) is not None
    assert blocking_person(_box(5.4, 5.4, 5.6, 5.6), [_seen("hand", 0, 0, 9, 9)], 0.5) is not None


# --- several products


@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        ([], 0),
        ([_box(0, 0, 10, 10)], 1),
        ([_box(0, 0, 10, 10), _box(20, 0, 30, 10)], 2),
        ([_box(0, 0, 10, 10), _box(0, 0, 10, 11), _box(1, 0, 11, 10)], 1),  # found three times
        ([_box(0, 0, 10, 10), _box(6, 0, 16, 10)], 2),  # IoU 0.25
        ([_box(0, 0, 10, 10), _box(3, 0, 13, 10)], 1),  # IoU 0.54
        ([_box(0, 0, 100, 100), _box(40, 40, 50, 50)], 1),  # a part of it
        ([_box(0, 0, 10, 10), _box(20, 0, 30, 10), _box(0, 0, 30, 10)], 1),  # a pair of shoes with its own box
        ([_box(0, 0, 10, 10), _box(20, 0, 30, 10), _box(40, 0, 50, 10), _box(0, 0, 10, 9)], 3),
    ],
)
def test_boxes_apart_are_products(boxes: list[np.ndarray], count: int) -> None:
    for order in (boxes, boxes[::-1], boxes[1:] + boxes[:1]):
        assert too_many_products(order, max(1, count)) is None
        problem = too_many_products(order, count - 1) if count > 1 else None
        if problem is not None:
            assert (problem.status, problem.reason) == ("rejected", "several_products")
            assert problem.detail.startswith(f"{count} products")
            assert "filter.max_products" in problem.detail
        assert (problem is not None) == (count > 1)


# --- all of them


class _Objects:
    """Finds what it is told to; keeps what it was asked."""

    def __init__(self, *found: FoundObject) -> None:
        self.found = list(found)
        self.asked: list[list[str]] = []

    def objects(self, image_u8: np.ndarray, queries: Sequence[str]) -> list[FoundObject]:
        self.asked.append(list(queries))
        return self.found


def _mask() -> np.ndarray:
    mask = np.zeros((240, 320), np.uint8)
    mask[110:231, 110:211] = 255
    return mask


def test_box_of_a_mask() -> None:
    assert product_box(_mask()) == (110, 110, 211, 231)


def test_without_networks_nothing_is_looked_for() -> None:
    ContentFilter(CONFIG, None).check(_picture("SUMMER SALE"), _mask(), "mug")


def test_people_and_products_are_asked_for_at_once_the_category_last() -> None:
    finder = _Objects(_seen("Mugs", 110, 110, 211, 231))
    ContentFilter(CONFIG, finder).check(_picture(), _mask(), "Mugs")
    ContentFilter(CONFIG, finder).check(_picture(), _mask(), None)
    ContentFilter(FilterConfig(people=False), finder).check(_picture(), _mask(), "Mugs")
    ContentFilter(FilterConfig(people=False), finder).check(_picture(), _mask(), None)
    assert finder.asked == [["person", "hand", "Mugs"], ["person", "hand"], ["Mugs"]]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ((_seen("hand", 110, 110, 211, 160),), "person_in_front"),
        ((_seen("Mugs", 0, 0, 50, 50), _seen("Mugs", 110, 110, 211, 231)), "several_products"),
    ],
)
def test_what_grounding_dino_finds_is_judged(found: tuple[FoundObject, ...], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        ContentFilter(CONFIG, _Objects(*found)).check(_picture(), _mask(), "Mugs")
    assert caught.value.reason == reason
    allowed = FilterConfig(max_person_overlap=1.0, max_products=2)
    ContentFilter(allowed, _Objects(*found)).check(_picture(), _mask(), "Mugs")


def test_unsafe_content_comes_first(classifier: Path) -> None:
    finder = _Objects(_seen("hand", 110, 110, 211, 160))
    config = FilterConfig(unsafe_model=str(classifier), max_unsafe_score=0.0)
    with pytest.raises(RowError) as caught:
        ContentFilter(config, finder, "cpu").check(_picture(), _mask(), "Mugs")
    assert caught.value.reason == "unsafe_content"
    assert finder.asked == []


@needs_ocr
def test_text_beside_the_product_is_rejected(text_filter: ContentFilter) -> None:
    with pytest.raises(RowError) as caught:
        text_filter.check(_picture("SUMMER SALE"), _mask(), "mug")
    assert caught.value.reason == "embedded_text"
