"""Every reason for which a mask is weak, with its measurement, threshold and field."""

import numpy as np
import pytest
from pictures import disk

from refadgen.config import SegmentationConfig
from refadgen.segmentation.triage import find_weakness, measure


def _spots(count: int) -> np.ndarray:
    spots = np.zeros((500, 400), bool)
    for index in range(count):
        spots[40 * index + 10 : 40 * index + 40, 100:200] = True
    return spots


def _torso() -> np.ndarray:
    torso = np.zeros((500, 400), bool)
    torso[100:, 120:280] = True
    return torso


CASES = {
    "mask_empty": (np.zeros((500, 400), bool), 1.0, "empty"),
    "mask_area_too_small": (disk(radius=8), 1.0, "segmentation.min_area"),
    "mask_area_too_large": (np.ones((500, 400), bool), 1.0, "segmentation.max_area"),
    "mask_touches_edge": (_torso(), 1.0, "100% of its extent"),
    "mask_in_pieces": (_spots(9), 1.0, "9 pieces, more than 8 (segmentation.max_pieces)"),
    "mask_low_score": (disk(), 0.3, "0.30, less than 0.50 (segmentation.min_score)"),
}


@pytest.mark.parametrize("reason", CASES)
def test_reason(reason: str) -> None:
    mask, score, words = CASES[reason]
    config = SegmentationConfig()
    measurements = measure(mask.astype(np.uint8) * 255, config.min_piece)
    weakness = find_weakness(measurements, score, config, cropped_to_product=False)
    assert weakness is not None
    assert weakness.reason == reason
    assert words in weakness.detail


def test_good_mask_and_its_measurements() -> None:
    config = SegmentationConfig()
    measurements = measure(disk().astype(np.uint8) * 255, config.min_piece)
    assert measurements.area == pytest.approx(np.pi * 120**2 / 200_000, rel=0.01)
    assert (measurements.edge_contact, measurements.pieces, measurements.trimmed) == (0.0, 1, False)
    assert find_weakness(measurements, 0.9, config, cropped_to_product=False) is None


def test_a_side_just_touched_is_not_cut_off() -> None:
    config = SegmentationConfig()
    measurements = measure(disk(center=(121, 260)).astype(np.uint8) * 255, config.min_piece)
    assert 0 <= measurements.edge_contact < config.max_edge_contact
    assert find_weakness(measurements, 1.0, config, cropped_to_product=False) is None


def test_specks_are_no_pieces() -> None:
    mask = disk().astype(np.uint8) * 255
    mask[5:10, 5:10] = 255
    assert measure(mask, min_piece=0.02).pieces == 1


def test_cut_out_cropped_to_its_extent_is_whole() -> None:
    mask = np.full((300, 200), 255, np.uint8)
    mask[:60, :60] = 0  # nothing of a side is free, and yet nothing is cut off
    config = SegmentationConfig()
    measurements = measure(mask, config.min_piece)
    assert measurements.trimmed
    assert find_weakness(measurements, 1.0, config, cropped_to_product=True) is None
    weakness = find_weakness(measurements, 1.0, config, cropped_to_product=False)
    assert weakness is not None
    assert weakness.reason == "mask_touches_edge"


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_area", 0.4), ("max_area", 0.03), ("max_pieces", 2), ("min_score", 0.95), ("max_edge_contact", 0.0)],
)
def test_every_threshold_reaches_its_check(field: str, value: float) -> None:
    mask = _spots(3)
    mask[:100, 100:102] = True
    measurements = measure(mask.astype(np.uint8) * 255, 0.02)
    if field == "max_pieces":
        measurements = measure(_spots(3).astype(np.uint8) * 255, 0.02)
    config = SegmentationConfig(**{field: value, **({"min_area": 0.01} if field == "max_area" else {})})
    assert find_weakness(measurements, 0.9, SegmentationConfig(max_area=0.9), cropped_to_product=False) is None
    weakness = find_weakness(measurements, 0.9, config, cropped_to_product=False)
    assert weakness is not None
    assert f"segmentation.{field}" in weakness.detail
