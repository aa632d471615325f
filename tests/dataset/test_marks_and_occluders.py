"""Repeated watermarks and things in front of the product: planted ads by seed, and what they must not take for one."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from refadgen.config import DatasetConfig, FilterConfig, SegmentationConfig, load_config
from refadgen.config.loading import preset_file
from refadgen.dataset.content import ContentFilter, classified_watermark, require_filters
from refadgen.dataset.occlusion import hidden_share, occluded
from refadgen.dataset.variants import VariantMaker, require_sam2
from refadgen.dataset.watermarks import repeated_watermark, watermark_score
from refadgen.errors import RowError
from refadgen.triplets.schema import original_variant

CONFIG = FilterConfig()


def _scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 320×256×3 and its mask: a jug with a handle on a grained floor before a wall."""
    rng = np.random.default_rng(seed)
    scene = np.full((320, 256, 3), (150, 170, 160), np.float32)
    scene[200:] = (120, 90, 70)
    scene += cv2.GaussianBlur(rng.normal(0, 6, (320, 256)).astype(np.float32), (0, 0), 1)[..., None]
    image = np.clip(scene, 0, 255).astype(np.uint8)
    mask = np.zeros((320, 256), np.uint8)
    cv2.rectangle(mask, (80, 110), (150, 250), 255, -1)
    cv2.ellipse(mask, (150, 180), (45, 50), 0, -90, 90, 255, 12)
    image[mask > 0] = (190, 60, 50)
    return image, mask


def _tiled(image: np.ndarray, pitch: tuple[int, int], share: float) -> np.ndarray:
    cover = np.zeros(image.shape[:2], np.uint8)
    for row, y in enumerate(range(10, 320, pitch[1])):
        for x in range(10 + row % 2 * pitch[0] // 2, 256, pitch[0]):
            cv2.putText(cover, "abc", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
    return np.rint(image + (255.0 - image) * (cover / 255)[..., None] * share).astype(np.uint8)


@pytest.mark.parametrize("pitch", [(60, 50), (80, 64)])
def test_a_weak_repeated_mark_is_found(pitch: tuple[int, int]) -> None:
    image, mask = _scene()
    assert watermark_score(image, mask) < CONFIG.max_lattice
    marked = watermark_score(_tiled(image, pitch, 0.25), mask)
    problem = repeated_watermark(marked, CONFIG)
    assert problem is not None
    assert (problem.status, problem.reason) == ("rejected", "watermark")
    assert "filter.max_lattice" in problem.detail
    assert repeated_watermark(marked, replace(CONFIG, max_lattice=1.0)) is None


def test_the_products_own_pattern_is_no_watermark() -> None:
    image, mask = _scene()
    wide = mask.copy()
    wide[60:260, 40:216] = 255
    patterned = np.where(wide[..., None] > 0, _tiled(image, (40, 36), 0.9), image)
    assert watermark_score(patterned, wide) < CONFIG.max_lattice < watermark_score(patterned)


def test_straight_edges_and_a_flat_picture_are_no_lattice() -> None:
    planks = np.full((320, 256, 3), 140, np.uint8)
    planks[:, ::40] = 90
    assert watermark_score(planks) < CONFIG.max_lattice
    assert watermark_score(np.full((64, 48, 3), 255, np.uint8)) < CONFIG.max_lattice


def test_a_thing_before_the_product_hides_it_and_a_handle_does_not() -> None:
    image, mask = _scene()
    assert hidden_share(image, mask) == 0
    shadow = image.copy()
    shadow[200:] = shadow[200:] * 0.6
    assert hidden_share(shadow, mask) == 0
    image[150:200, 60:130] = (40, 80, 220)
    mask[150:200, 60:130] = 0
    share = hidden_share(image, mask)
    assert 0.05 < share < 0.25  # 50×50 px of a hull of about 14,000
    problem = occluded(share, CONFIG)
    assert problem is not None
    assert (problem.status, problem.reason) == ("rejected", "occluded")
    assert "filter.max_hidden" in problem.detail


def test_depth_tells_things_in_front_from_things_behind() -> None:
    """A thing of the wall's colour in front counts, and one of a colour of its own behind the product does not."""
    image, mask = _scene()
    nearness = np.where(mask > 0, 1.0, np.linspace(0, 0.8, 320)[:, None]).astype(np.float32)  # the floor comes nearer
    assert hidden_share(image, mask, nearness) == 0
    thing = np.s_[140:190, 60:130]
    foreign, hidden = image.copy(), mask.copy()
    foreign[thing], hidden[thing] = (40, 80, 220), 0
    in_front, behind, level = (np.array(nearness) for _ in range(3))
    in_front[thing], behind[thing], level[thing] = 1.3, 0.2, 1.0
    by_color = hidden_share(foreign, hidden)
    assert by_color > 0.05
    camouflaged = image.copy()
    camouflaged[thing] = (150, 170, 160)
    assert hidden_share(camouflaged, hidden) < CONFIG.max_hidden
    assert hidden_share(camouflaged, hidden, 50 * in_front - 7) == pytest.approx(by_color, abs=0.02)  # scale and shift
    assert hidden_share(foreign, hidden, behind) == 0
    assert hidden_share(foreign, hidden, level) == pytest.approx(by_color, abs=0.02)


def test_a_depth_model_is_for_occluders() -> None:
    with pytest.raises(ValueError, match=r"^filter\.depth_model='anything': is for filter\.occluders=true"):
        FilterConfig(depth_model="anything")


def test_the_filters_run_where_they_are_set() -> None:
    image, mask = _scene()
    marked = _tiled(image, (60, 50), 0.3)
    on = ContentFilter(FilterConfig(watermarks=True, occluders=True), None)
    on.check(image, mask, None)
    ContentFilter(CONFIG, None).check(marked, mask, None)
    with pytest.raises(RowError, match="watermark"):
        on.check(marked, mask, None)
    image[150:200, 60:130], mask[150:200, 60:130] = (40, 80, 220), 0
    with pytest.raises(RowError, match="occluded"):
        on.check(image, mask, None)


def test_a_classifiers_score() -> None:
    assert classified_watermark(0.5, CONFIG) is None
    problem = classified_watermark(0.9, CONFIG)
    assert problem is not None
    assert problem.reason == "watermark"
    with pytest.raises(ValueError, match=r"^filter\.watermark_labels="):
        FilterConfig(watermark_model="somewhere", watermark_labels=("",))


def test_the_authors_preset_asks_for_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import refadgen.dataset

    config = load_config(DatasetConfig, preset_file("authors", refadgen.dataset))
    assert config.triplet.variants == ("original", "degraded", "degraded", "novel_view", "novel_view")
    assert config.triplet.one_view
    assert config.filter.text
    assert config.filter.watermarks
    assert config.filter.occluders
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "rapidocr" else object())
    with pytest.raises(ValueError, match=r"^filter\.text=True: .*refadgen\[ocr\].*rapidocr"):
        require_filters(config.filter, config.segmentation)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"^filter\.people='required': .*segmentation\.grounding_dino"):
        require_filters(config.filter, config.segmentation)
    require_filters(config.filter, SegmentationConfig(sam3="facebook/sam3"))
    with pytest.raises(ValueError, match=r"^triplet\.sam2_masks=True: needs segmentation\.sam2_checkpoint"):
        require_sam2(replace(config, segmentation=SegmentationConfig(sam3="facebook/sam3")))
    require_filters(CONFIG, SegmentationConfig())


def test_one_view_is_shared_and_degraded_twice() -> None:
    image, mask = _scene()
    kinds = ["original", "degraded", "degraded", "novel_view", "novel_view"]

    def views(one_view: bool) -> tuple[list[np.ndarray], list[dict[str, float]]]:
        config = load_config(DatasetConfig, None, [f"triplet.variants={kinds}", f"triplet.one_view={one_view}"])
        variants, measures = VariantMaker(config).make(original_variant(image[::2, ::2], mask[::2, ::2]), "row")
        assert [each.kind for each in variants] == kinds
        return [each.image for each in variants], [{**each, "variant": 0} for each in measures]

    same, shared = views(True)
    different, own = views(False)
    assert shared[0] == shared[1] == own[0] != own[1]
    assert not np.array_equal(same[3], same[4])  # each is degraded in its own way
    for number in range(4):
        assert np.array_equal(same[number], different[number])
    assert not np.array_equal(same[4], different[4])
