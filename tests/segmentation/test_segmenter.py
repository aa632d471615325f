"""The chain: which link decides, and how it ends."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pictures import disk, iou, mug, photograph
from PIL import Image

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.decided import decided
from refadgen.segmentation.doubt import DoubtfulMask

PRODUCT = disk()
ELSEWHERE = disk(center=(150, 150), radius=70)


class StubNetworks:
    """Stands where the networks do; real ones are tried in test_grounding.py, test_saliency.py and test_sam3.py."""

    source = "sam2"

    def __init__(self, alpha: np.ndarray) -> None:
        self.alpha = alpha
        self.categories: list[str | None] = []

    def segment(self, image_u8: np.ndarray, category: str | None) -> tuple[np.ndarray, float]:
        assert image_u8.shape == (*self.alpha.shape, 3)
        self.categories.append(category)
        return self.alpha, 0.9


def _mask(product: np.ndarray) -> np.ndarray:
    return product.astype(np.uint8) * 255


def _masker(**settings: object) -> ProductMasker:
    return ProductMasker(SegmentationConfig(**settings))


def _on_white() -> Image.Image:
    return Image.fromarray(photograph(PRODUCT, (200, 40, 40)))


def _in_scene() -> Image.Image:
    texture = np.random.default_rng(0).integers(0, 255, (500, 400, 3)).astype(np.float32)
    return Image.fromarray(photograph(PRODUCT, (200, 40, 40), texture))


def _with_alpha(alpha: np.ndarray) -> Image.Image:
    image = _on_white()
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def test_own_mask_comes_first() -> None:
    result = _masker().segment(_with_alpha(PRODUCT * 255), None, own_mask=_mask(ELSEWHERE))
    assert (result.source, result.score) == ("own_mask", 1.0)
    assert iou(result.mask, ELSEWHERE) == 1.0


def test_alpha_comes_before_the_background() -> None:
    elsewhere, _ = mug()
    result = _masker().segment(_with_alpha(elsewhere * 255), None)
    assert (result.source, result.score) == ("alpha", 1.0)
    assert (result.alpha == elsewhere * 255).all()


@pytest.mark.parametrize("value", [255, 120], ids=["opaque", "half transparent all over"])
def test_unused_alpha_is_passed_over(value: int) -> None:
    result = _masker().segment(_with_alpha(np.full((500, 400), value)), None)
    assert result.source == "plain_background"
    assert iou(result.mask, PRODUCT) > 0.98


def test_plain_background() -> None:
    result = _masker().segment(_on_white(), "shoes")
    assert result.source == "plain_background"
    assert result.mask.dtype == result.alpha.dtype == np.uint8
    assert result.mask.shape == result.alpha.shape == (500, 400)
    assert set(np.unique(result.mask)) == {0, 255}
    assert ((result.alpha > 127) == (result.mask == 255)).all()
    assert result.measurements.pieces == 1
    assert result.score > 0.9


def test_scene_without_networks_says_what_to_configure() -> None:
    with pytest.raises(RowError) as caught:
        _masker().segment(_in_scene(), None)
    assert (caught.value.status, caught.value.reason) == ("rejected", "no_plain_background")
    assert "segmentation.grounding_dino" in caught.value.detail
    assert "segmentation.sam2_checkpoint" in caught.value.detail


@pytest.mark.parametrize("weak", [False, True], ids=["scene", "weak mask"])
def test_networks_come_last(weak: bool) -> None:
    masker = _masker(max_area=0.2) if weak else _masker()  # the disk covers 0.23
    stub = StubNetworks((ELSEWHERE * 255).astype(np.uint8))
    masker.networks = stub
    result = masker.segment(_on_white() if weak else _in_scene(), "Shoes")
    assert (result.source, result.score) == ("sam2", 0.9)
    assert stub.categories == ["Shoes"]
    assert iou(result.mask, ELSEWHERE) == 1.0


def test_good_plain_mask_does_not_ask_the_networks() -> None:
    masker = _masker()
    stub = masker.networks = StubNetworks(np.zeros((500, 400), np.uint8))
    masker.segment(_on_white(), None)
    assert stub.categories == []


def test_weak_network_mask_is_rejected() -> None:
    masker = _masker()
    masker.networks = StubNetworks(np.zeros((500, 400), np.uint8))
    with pytest.raises(RowError, match="mask_empty"):
        masker.segment(_in_scene(), None)


@pytest.mark.parametrize(
    ("image", "own_mask", "reason"),
    [
        (_with_alpha(np.zeros((500, 400))), None, "mask_empty"),
        (Image.new("RGB", (400, 500), "white"), None, "mask_empty"),
        (_on_white(), np.zeros((500, 400), np.uint8), "mask_empty"),
        (_on_white(), np.full((500, 400), 255, np.uint8), "mask_area_too_large"),
        (_with_alpha(disk(radius=5) * 255), None, "mask_area_too_small"),
    ],
)
def test_rejections(image: Image.Image, own_mask: np.ndarray | None, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        _masker().segment(image, None, own_mask)
    assert (caught.value.status, caught.value.reason) == ("rejected", reason)
    assert caught.value.field == ("image" if own_mask is None else "mask")


@pytest.mark.parametrize(
    "own_mask", [disk(size=(250, 200)).astype(np.uint8), np.zeros((500, 400, 3), np.uint8), PRODUCT]
)
def test_own_mask_is_as_decode_mask_gives_it(own_mask: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        _masker().segment(_on_white(), None, own_mask)


def test_same_input_same_mask() -> None:
    first, second = (_masker().segment(_on_white(), None) for _ in range(2))
    assert (first.alpha == second.alpha).all()


def test_plain_links_do_not_import_torch() -> None:
    code = (
        "import refadgen.segmentation, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sam2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("image", "own_mask", "source"),
    [
        (_on_white(), None, "plain_background"),
        (_with_alpha(PRODUCT * 255), None, "alpha"),
        (_on_white(), 1, "own_mask"),
    ],
)
def test_a_doubted_mask_comes_with_its_refusal(image: Image.Image, own_mask: int | None, source: str) -> None:
    given = None if own_mask is None else _mask(PRODUCT)
    with pytest.raises(DoubtfulMask) as caught:
        _masker(max_area=0.2).segment(image, None, given)  # the disk covers 0.23
    assert (caught.value.reason, caught.value.source) == ("mask_area_too_large", source)
    assert iou(caught.value.alpha, PRODUCT) > 0.98
    assert 0 < caught.value.score <= 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.field) == (RowError, str(caught.value), caught.value.field)


def test_advice_is_added_to_a_refusal_with_its_mask() -> None:
    with pytest.raises(DoubtfulMask, match=r"segmentation\.max_area\); give a mask of its own, or set"):
        _masker(max_area=0.2).segment(_on_white(), None)


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_decided_mask_is_used_as_it_is(factor: int) -> None:
    """Whatever triage would say; a smaller one grows to the photograph, with a smooth edge."""
    soft = cv2.GaussianBlur(_mask(PRODUCT), (0, 0), 0.8)
    found = decided(soft, (400 * factor, 500 * factor), 0.02)
    assert (found.source, found.score) == ("review", 1.0)
    assert found.mask.shape == found.alpha.shape == (500 * factor, 400 * factor)
    assert found.measurements.area == pytest.approx(PRODUCT.mean(), rel=0.01)
    exact = disk((200 * factor, 260 * factor), 120 * factor, (500 * factor, 400 * factor))
    assert iou(found.mask, exact) > 0.98
    if factor == 1:
        assert (found.alpha == soft).all()


def test_a_decided_mask_that_is_empty_costs_its_row() -> None:
    with pytest.raises(RowError) as caught:
        decided(np.full((50, 40), 100, np.uint8), (80, 100), 0.02)
    assert (caught.value.reason, caught.value.field) == ("empty_mask", "mask")
