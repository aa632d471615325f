"""Several networks vote: agreement is the score, and disagreement refuses the photograph with all of them named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import red_detector
from pictures import disk, iou, photograph

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.networks import Networks, load_networks

IMAGE_U8 = photograph(disk((60, 80), 40, (160, 128)), (220, 40, 40), 120)
DISK, LARGER = disk((60, 80), 40, (160, 128)), disk((60, 80), 41, (160, 128))
ELSEWHERE = disk((100, 120), 20, (160, 128))


class Stub:
    """A network whose answer is known; None: it finds nothing."""

    def __init__(self, source: str, mask: np.ndarray | None, error: Exception | None = None) -> None:
        self.source, self.field = source, f"segmentation.{source}"
        self.mask, self.error = mask, error
        self.names: list[str | None] = []

    def segment(self, image_u8: np.ndarray, name: str | None) -> tuple[np.ndarray, float]:
        self.names.append(name)
        if self.error is not None:
            raise self.error
        if self.mask is None:
            raise RowError("product_not_found", f"{self.source} finds nothing")
        return self.mask.astype(np.uint8) * 255, 0.7


class Finder(Stub):
    def objects(self, image_u8: np.ndarray, queries: Any) -> list[Any]:
        return [self.source]


def _networks(*masks: np.ndarray | None, min_agreement: float = 0.9) -> Networks:
    return Networks([Stub(f"network_{number}", mask) for number, mask in enumerate(masks)], min_agreement)


def test_a_single_network_decides() -> None:
    networks = _networks(DISK, min_agreement=1.0)
    alpha, score = networks.segment(IMAGE_U8, "mug")
    assert networks.source == "network_0"
    assert (alpha > 127).tolist() == DISK.tolist()
    assert score == 0.7
    with pytest.raises(RowError, match="network_0 finds nothing"):
        _networks(None).segment(IMAGE_U8, "mug")


def test_two_that_agree_give_the_first_mask_and_their_agreement() -> None:
    networks = _networks(LARGER, DISK)
    alpha, score = networks.segment(IMAGE_U8, "mug")
    assert networks.source == "vote"
    assert (alpha > 127).tolist() == LARGER.tolist()
    assert score == pytest.approx(DISK.sum() / LARGER.sum())
    assert [each.names for each in networks._segmenters] == [["mug"], ["mug"]]


@pytest.mark.parametrize("other", [ELSEWHERE, None], ids=["elsewhere", "nothing"])
def test_two_that_disagree_are_both_named(other: np.ndarray | None) -> None:
    with pytest.raises(DoubtfulMask) as caught:
        _networks(DISK, other).segment(IMAGE_U8, "mug")
    assert ((caught.value.alpha > 127) == DISK).all()  # for a person to decide about
    assert (caught.value.status, caught.value.reason) == ("rejected", "networks_disagree")
    share = 0.0 if other is None else other.mean()
    for words in (f"network_0 sees the product on {DISK.mean():.1%}", f"network_1 sees the product on {share:.1%}"):
        assert words in caught.value.detail
    assert "segmentation.min_agreement" in caught.value.detail


def test_the_threshold_is_a_setting() -> None:
    agreement = DISK.sum() / LARGER.sum()
    assert _networks(DISK, LARGER, min_agreement=agreement - 1e-6).segment(IMAGE_U8, None)[1] == agreement
    with pytest.raises(RowError, match="networks_disagree"):
        _networks(DISK, LARGER, min_agreement=agreement + 1e-6).segment(IMAGE_U8, None)


@pytest.mark.parametrize("masks", [(ELSEWHERE, DISK, LARGER), (DISK, None, LARGER), (DISK, LARGER, ELSEWHERE)])
def test_of_three_two_must_agree(masks: tuple[np.ndarray | None, ...]) -> None:
    alpha, score = _networks(*masks).segment(IMAGE_U8, "mug")
    assert (alpha > 127).tolist() == DISK.tolist()
    assert score == pytest.approx(DISK.sum() / LARGER.sum())


@pytest.mark.parametrize("masks", [(None, None), (None, None, DISK), (None, None, None)])
def test_where_two_find_nothing_there_is_nothing(masks: tuple[np.ndarray | None, ...]) -> None:
    with pytest.raises(RowError, match="product_not_found"):
        _networks(*masks).segment(IMAGE_U8, "mug")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("bad size"), MemoryError()])
def test_a_network_that_fails_costs_the_row_and_is_named(error: Exception) -> None:
    broken = Stub("broken", None, error)
    for segmenters in ([broken], [Stub("sound", DISK), broken]):
        with pytest.raises(RowError) as caught:
            Networks(segmenters, 0.9).segment(IMAGE_U8, "mug")
        assert (caught.value.status, caught.value.reason) == ("failed", "network_failed")
        assert f"segmentation.broken failed for this photograph: {type(error).__name__}" in caught.value.detail


def test_grounding_dino_finds_people_before_sam3_and_a_saliency_model_finds_none() -> None:
    saliency, sam3, grounded = Stub("saliency_model", DISK), Finder("sam3", DISK), Finder("sam2", DISK)
    assert Networks([saliency], 0.9).finder is None
    assert Networks([saliency, sam3], 0.9).finder is sam3
    assert Networks([saliency, sam3, grounded], 0.9).finder is grounded


@pytest.mark.parametrize(
    ("masks", "expected"), [((DISK, LARGER), DISK), ((None, None), np.zeros_like(DISK)), ((DISK, ELSEWHERE), None)]
)
def test_the_product_in_an_ad_is_unknown_where_networks_disagree(masks: Any, expected: np.ndarray | None) -> None:
    masker = ProductMasker(SegmentationConfig())
    masker.networks = _networks(*masks)
    found = masker.find(IMAGE_U8, "mug")
    assert (found is None) == (expected is None)
    if expected is not None:
        assert ((found > 127) == expected).all()


def test_networks_load_in_the_order_of_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import refadgen.segmentation.networks as module

    made = []

    def stub(source: str, mask: np.ndarray) -> Any:
        def make(config: SegmentationConfig, **_: object) -> Stub:
            made.append(source)
            return Stub(source, mask)

        return make

    monkeypatch.setattr(module, "Sam3Segmenter", stub("sam3", DISK))
    monkeypatch.setattr(module, "GroundedSegmenter", stub("sam2", ELSEWHERE))
    places = {"sam3": "sam3", "grounding_dino": "dino", "sam2_checkpoint": "sam2.pt"}
    red = red_detector(tmp_path / "red.onnx", takes=(1, 3, 160, 128))
    config = SegmentationConfig(saliency_model=red, device="cpu", **places)
    assert config.has_networks
    networks = load_networks(config, gpu_expected=False, num_threads=1)
    assert made == ["sam3", "sam2"]
    assert (networks.source, networks._segmenters[0].source) == ("vote", "saliency_model")
    alpha, score = networks.segment(IMAGE_U8, "mug")
    assert iou(alpha, DISK) == score > 0.95
    assert not SegmentationConfig().has_networks
