"""SAM2's masks of product images: drawn answers for rules and files, random weights for the way to them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import DatasetConfig, load_config
from refadgen.dataset.ledgers import AdLedgerRow
from refadgen.dataset.rows import DescribedAd
from refadgen.dataset.sam2_masks import Sam2Masks
from refadgen.dataset.stages import TripletBuilder, pixels
from refadgen.dataset.variants import require_sam2
from refadgen.triplets.schema import Variant, decode, scan

SAM2_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
WORDS = ["triplet.variants=[original, degraded]", "triplet.sam2_masks=true", "segmentation.device=cpu"]


def _config(checkpoint: str, *words: str) -> DatasetConfig:
    places = [f"segmentation.sam2_checkpoint={checkpoint}", "segmentation.grounding_dino=some/detector"]
    return load_config(DatasetConfig, None, [*WORDS, *places, f"segmentation.sam2_config={SAM2_CONFIG}", *words])


def _variant(kind: str, shift: int = 0) -> Variant:
    """A block of 40×40 px on white."""
    image, mask = np.full((96, 80, 3), 255, np.uint8), np.zeros((96, 80), np.uint8)
    mask[20 : 60 + shift, 20:60] = 255
    image[mask > 0] = (180, 40, 40)
    return Variant(kind, image, mask)


def _answers(monkeypatch: pytest.MonkeyPatch, *masks: np.ndarray) -> list[list[float]]:
    """Lets SAM2 answer these masks, one after the other. Returns the list of boxes that it will be asked with."""
    boxes: list[list[float]] = []

    class Drawn:
        def __init__(self, *_: object) -> None:
            pass

        def segment(self, image_u8: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float]:
            boxes.append(box.tolist())
            return masks[len(boxes) - 1], 0.9

    monkeypatch.setattr("refadgen.dataset.sam2_masks.Sam2", Drawn)
    return boxes


def _described() -> DescribedAd:
    original = _variant("original")
    return DescribedAd(
        row_id="0" * 32, row=0, ad_id="ad", group="ad", category="Mug", image="", error=None,
        product_mask=encode_png(original.mask), mask_source="own_mask", mask_score=1.0, mask_area=0.2,
        ad=encode_png(original.image), input_sha256="", width_px=80, height_px=96, fetch_s=0.0, extract_s=0.0,
        captions=("a mug",), describe_s=0.0,
    )  # fmt: skip


def test_a_mask_of_this_product_replaces_the_geometric_one(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller, nothing, elsewhere = _variant("", -10).mask, np.zeros((96, 80), np.uint8), _variant("").mask[::-1]
    given = [_variant("original"), *[_variant("degraded", shift) for shift in (0, 4, 0)]]
    boxes = _answers(monkeypatch, smaller, nothing, elsewhere)
    masked = Sam2Masks(_config("sam2.pt")).masked(given)
    assert boxes == [[20, 20, 60, 60], [20, 20, 60, 64], [20, 20, 60, 60]]
    assert masked.ious == [None, 0.75, 0.0, pytest.approx(24 / 56, abs=1e-3)]  # 4 rows meet 36 from above: 36 to 76
    assert all(one is each.mask for one, each in zip(masked.geometric, given, strict=True))
    taken = masked.variants[1]
    assert np.array_equal(taken.mask, smaller)
    assert (taken.image[taken.mask == 0] == 255).all()
    assert (taken.image[taken.mask > 0] == (180, 40, 40)).all()
    for number in (0, 2, 3):  # the original, nothing found, and something else found
        assert masked.variants[number] is given[number]
    _answers(monkeypatch, smaller, nothing, elsewhere)
    lower = Sam2Masks(_config("sam2.pt", "triplet.min_sam2_iou=0.4")).masked(given)
    assert np.array_equal(lower.variants[3].mask, elsewhere)


def test_the_stage_keeps_both_masks_and_their_iou(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _answers(monkeypatch, _variant("", -10).mask)
    ad = _described()
    broken = dataclasses.replace(ad, row_id="1" * 32, row=1, ad=b"no picture")
    stage = TripletBuilder(_config("sam2.pt", "degradation.warp=[0, 0]"), "run-1", str(tmp_path))
    done, failed = from_table(stage(to_table([ad, broken], DescribedAd)), AdLedgerRow)
    assert (done.status, failed.status, failed.mask_ious) == ("done", "failed", None)
    assert json.loads(done.mask_ious or "") == [None, 0.75]
    (row,) = pq.read_table(tmp_path / done.file).to_pylist()
    assert [int((each.mask > 0).sum()) for each in decode(row).variants] == [1600, 1200]
    assert [int((pixels(data) > 0).sum()) for data in row["geometric_masks"]] == [1600, 1600]
    assert scan(str(tmp_path / "data")).num_rows == 1  # training reads it as it is


@pytest.mark.long
def test_random_weights_make_a_triplet(sam2_checkpoint: str, tmp_path: Path) -> None:
    """min_sam2_iou of 0: whatever they mask is taken."""
    stage = TripletBuilder(_config(sam2_checkpoint, "triplet.min_sam2_iou=0"), "run-1", str(tmp_path))
    (done,) = from_table(stage(to_table([_described()], DescribedAd)), AdLedgerRow)
    assert done.status == "done", done.detail
    (row,) = pq.read_table(tmp_path / done.file).to_pylist()
    variant, geometric = decode(row).variants[1], pixels(row["geometric_masks"][1])
    if json.loads(done.mask_ious or "")[1] not in (0.0, 1.0):
        assert not np.array_equal(variant.mask, geometric)


def test_what_it_needs_is_asked_for_before_it_starts() -> None:
    config = load_config(DatasetConfig, None, WORDS)
    with pytest.raises(ValueError, match=r"^triplet\.sam2_masks=True: needs segmentation\.sam2_checkpoint"):
        require_sam2(config)
    require_sam2(_config("anywhere"))
    require_sam2(DatasetConfig())
