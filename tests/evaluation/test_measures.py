"""Each measure moves the right way under planted changes, and is blind to what its description says."""

import math

import numpy as np
import pytest
from measure_cases import LABEL, changes, pictures, product

from refadgen.config import EvaluateConfig, SegmentationConfig, load_config
from refadgen.config.evaluate import OcrConfig
from refadgen.evaluation.intervals import interval, mean_of
from refadgen.evaluation.measures.load import skipped_measures
from refadgen.evaluation.measures.masks import MaskOverlap, expansion, overlap
from refadgen.evaluation.measures.pixels import ColorDrift, NearestProduct, Registration, signature
from refadgen.evaluation.measures.table import MEASURES
from refadgen.evaluation.measures.text import CharacterErrors, error_rate, letters
from refadgen.evaluation.rows import ImageScores

CHANGES = changes()


def by_change(scorer, measure: str, *names: str) -> list[float | None]:
    return list(scorer(pictures({name: CHANGES[name] for name in names}))[measure])


def test_the_shift_is_found_whatever_the_light():
    names = ("the product itself", "shifted by 2%", "shifted by 5%", "shifted by 10%")
    assert by_change(Registration(), "shift", *names) == pytest.approx([0, 0.02, 0.05, 0.10], abs=0.003)
    darker = {name: (CHANGES[name] * 0.6).astype(np.uint8) for name in names}
    assert list(Registration()(pictures(darker))["shift"]) == pytest.approx([0, 0.02, 0.05, 0.10], abs=0.003)


def test_the_scale_is_found_and_is_no_shift():
    scorer = Registration()
    assert by_change(scorer, "scale_error", "the product itself", "scaled by 5 %") == pytest.approx(
        [0, 0.05], abs=0.011
    )
    assert by_change(scorer, "shift", "scaled by 5 %")[0] < 0.003


def test_another_product_has_no_place():
    assert by_change(Registration(), "shift", "wrong product") == [None]


def test_the_place_does_not_see_hue_and_label():
    """What the description says: another label on the same shape stands where it should."""
    found = by_change(Registration(), "shift", "hue turned by 10°", "label removed", "another label")
    assert found == pytest.approx([0, 0, 0], abs=0.002)


def lit(ad: np.ndarray, *gains: float) -> np.ndarray:
    """An ad in another light: gains of linear red, green and blue that fall off to a third from left to right."""
    shade = np.linspace(1, 1 / 3, ad.shape[1])[None, :, None] * np.array(gains)
    return np.clip(255 * ((ad / 255.0) ** 2.2 * shade) ** (1 / 2.2), 0, 255).astype(np.uint8)


def test_colours_drift_by_another_hue_and_not_by_another_light():
    own = CHANGES["the product itself"]
    ads = {"own": own, "shade": lit(own, 0.9, 0.9, 0.9), "evening": lit(own, 0.95, 0.8, 0.65)}
    ads |= {"noise": CHANGES["noise of 15"], "turned": CHANGES["hue turned by 10°"]}
    ads |= {"turned in the evening": lit(CHANGES["hue turned by 10°"], 0.95, 0.8, 0.65)}
    ads |= {"wrong product": CHANGES["wrong product"], "green": (own * (0.6, 1.0, 0.6)).astype(np.uint8)}
    drift = dict(zip(ads, ColorDrift()(pictures(ads))["color_drift"], strict=True))
    assert drift["own"] == 0
    assert max(drift["shade"], drift["evening"], drift["noise"]) < 0.5 * drift["turned"]
    assert drift["turned in the evening"] > 0.6 * drift["turned"]
    assert drift["turned"] > 3, "seen by anybody"
    assert drift["green"] > 3, "no light is green"
    assert drift["wrong product"] > 2 * drift["turned"]
    nothing = pictures({"own": own})[0]
    empty = type(nothing)(**{**vars(nothing), "mask_u8": np.zeros_like(nothing.mask_u8)})
    assert ColorDrift()([empty])["color_drift"] == [None]


def test_the_nearest_product_sees_another_product_and_no_other_label():
    canvas, mask = product()
    other = signature(*product(other=True))
    nearest = NearestProduct({"r": {"own": signature(canvas, mask), "other": other}})
    names = ("the product itself", "noise of 45", "wrong product", "another label")
    assert by_change(nearest, "nearest_product", *names) == [1, 1, 0, 1]
    alone = NearestProduct({"r": {"own": signature(canvas, mask)}})
    assert by_change(alone, "nearest_product", "the product itself") == [None]


def test_overlap_and_expansion_by_hand():
    inside = np.zeros((10, 10), bool)
    inside[2:6, 2:6] = True
    found = np.zeros((10, 10), bool)
    found[2:6, 3:7] = True
    assert overlap(found, inside) == pytest.approx(12 / 20)
    assert expansion(found, inside) == pytest.approx(4 / 16)
    assert expansion(found, np.zeros_like(inside)) is None


def test_the_mask_network_sees_a_shift_and_not_the_label():
    scorer = MaskOverlap(SegmentationConfig(), gpu_expected=False)
    true, label, shifted = by_change(scorer, "mask_iou", "the product itself", "another label", "shifted by 10%")
    assert true > 0.95
    assert label > 0.95
    assert shifted < 0.7


@pytest.mark.parametrize(
    ("wanted", "found", "rate"),
    [("abc", "abc", 0), ("abc", "", 1), ("abc", "abd", 1 / 3), ("ab", "aXb", 0.5), ("a", "bcd", 3)],
)
def test_the_character_error_rate_by_hand(wanted: str, found: str, rate: float):
    assert error_rate(wanted, found) == pytest.approx(rate)


def test_letters_are_compared_without_case_dots_and_spaces():
    assert letters("Auró ra.№5") == letters("AURÓRA No5")


def test_print_is_read_on_the_product():
    """A swapped label, and one that is gone, are what this measure alone sees; turned hue it does not."""
    pytest.importorskip("rapidocr")
    names = ("the product itself", "another label", "label removed", "hue turned by 10°")
    assert by_change(CharacterErrors(OcrConfig()), "character_error_rate", *names) == [0, 1, 1, 0]
    bare = CharacterErrors(OcrConfig(min_characters=len(LABEL) + 1))
    assert by_change(bare, "character_error_rate", "the product itself") == [None]


def test_every_measure_has_a_column_and_says_what_it_does_not_see():
    columns = set(ImageScores.__dataclass_fields__)
    for measure in MEASURES:
        assert measure.blind
        assert (measure.name in columns) == (measure.per_image and measure.name != "image_reward")


def test_measures_without_weights_are_left_out_with_the_reason():
    skipped = skipped_measures(EvaluateConfig(), dataset=False)
    assert skipped["clip_score"] == "no weights: set clip.model"
    assert "ocr.read=true" in skipped["character_error_rate"]
    assert "2023" in skipped["image_reward"]
    assert not {"shift", "mask_iou", "nearest_product", "color_similarity"} & skipped.keys()
    only = skipped_measures(
        load_config(EvaluateConfig, None, ["mp_lpips.features=x/y", "fid.weights=f"]), dataset=False
    )
    assert "lpips.backbone" in only["mp_lpips"]
    assert "--dataset" in only["fid"]


def test_the_extras_are_asked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for word, extra in (("ocr.read=true", "ocr"), ("fid.weights=f", "evaluate"), ("lpips.backbone=f", "evaluate")):
        with pytest.raises(ValueError, match=rf"needs the extra `{extra}`"):
            skipped_measures(load_config(EvaluateConfig, None, [word]), dataset=True)


def test_intervals_of_few_and_of_many_products_agree():
    values = np.random.default_rng(0).normal(0.5, 0.1, 1000)
    few, many = interval(values[:999]), interval(values)
    assert few == pytest.approx(many, abs=0.001)
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(1000), rel=0.1)


def test_a_mean_leaves_out_what_has_no_value_and_counts_products_once():
    found = mean_of(np.array([1.0, 1.0, 0.0, np.nan]), np.array(["a", "a", "b", "c"], dtype=object))
    assert found is not None
    assert (found.mean, found.count) == (0.5, 3)
    assert mean_of(np.array([np.nan]), ["a"]) is None
    alone = mean_of(np.array([0.5, 0.7]), ["a", "a"])
    assert alone is not None
    assert (alone.low, alone.high, alone.count) == (None, None, 2)
