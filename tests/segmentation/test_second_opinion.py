"""The mask network's opinion, and what is made of it: with the shipped weights."""

import contextlib
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from refadgen.config import SegmentationConfig
from refadgen.config.identity import ALGORITHM_VERSIONS
from refadgen.mask_training.scenes import make_scene
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.agreement import agreed_mask
from refadgen.segmentation.classes import MARK
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.second_opinion import WEIGHTS, second_opinion
from refadgen.segmentation.verdict import VERDICT


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def _slats(size: tuple[int, int] = (600, 500)) -> tuple[np.ndarray, np.ndarray]:
    """A bench of blue slats on white, and its mask."""
    mask = Image.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    for top in range(120, 300, 30):
        draw.rectangle((80, top, 520, top + 17), fill=255)
    for left in (100, 480):
        draw.rectangle((left, 110, left + 24, 430), fill=255)
    inside = np.asarray(mask) > 0
    return np.where(inside[..., None], np.uint8([40, 70, 150]), np.uint8([250, 250, 250])), inside


def test_an_opinion_is_a_distribution_and_does_not_depend_on_threads() -> None:
    image, _ = _slats()
    before = torch.get_num_threads()
    opinions = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        opinions.append(second_opinion(image))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert np.allclose(opinions[0].classes.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(opinions[0].classes, opinions[1].classes)


def test_other_weights_need_another_version() -> None:
    """Masks change with the weights: a new pair of files raises `ALGORITHM_VERSIONS["segmentation"]` and this."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in (WEIGHTS, VERDICT)]
    assert (ALGORITHM_VERSIONS["segmentation"], *digests) == (4, "b208974e8470881c", "9c1c6b9ce5858e89")


def test_gaps_between_slats_are_open() -> None:
    image, inside = _slats()
    assert _iou(agreed_mask(image, 12.0).alpha > 127, inside) > 0.95


def test_a_badge_is_no_product() -> None:
    image = Image.new("RGB", (600, 600), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((180, 200, 430, 520), fill=(30, 110, 60))
    draw.rounded_rectangle((380, 30, 580, 90), 12, fill=(220, 30, 40))
    draw.text((410, 45), "-20% SALE", fill="white", font_size=28)
    image_u8 = np.asarray(image)
    assert second_opinion(image_u8).classes[MARK][20:45, 210:300].mean() > 0.5
    found = agreed_mask(image_u8, 12.0).alpha > 127
    assert not found[:100].any()
    assert found[300, 300]


def test_most_products_on_plain_backdrops_pass_and_hardly_any_wrongly() -> None:
    """Families that were never trained on, some of them hard (combs, cages): at most one silently wrong of 16."""
    masker, ious = ProductMasker(SegmentationConfig()), []
    for seed in range(16):
        kind = ("white", "coloured", "white_part", "shadow")[seed % 4]
        scene = make_scene(np.random.default_rng([seed // 4, 5]), kind, "test", 480)
        with contextlib.suppress(DoubtfulMask):
            found = masker.segment(Image.fromarray(scene.image), None)
            assert found.score >= SegmentationConfig().min_probability
            ious.append(_iou(found.mask > 0, scene.coverage >= 0.5))
    assert len(ious) >= 8
    assert sum(iou < 0.9 for iou in ious) <= 1
    assert np.median(ious) > 0.97


def test_without_it_colours_alone_decide() -> None:
    image, _ = _slats()
    found = ProductMasker(SegmentationConfig(second_opinion=False)).segment(Image.fromarray(image), None)
    assert found.source == "plain_background"


def test_a_doubt_says_how_probable_the_mask_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((400, 400))
    with pytest.raises(DoubtfulMask) as caught:
        ProductMasker(SegmentationConfig()).segment(image, None)
    assert caught.value.reason == "no_plain_background"
    assert "segmentation.min_probability=" in str(caught.value)
