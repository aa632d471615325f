"""Grounding DINO and SAM2 for real: smallest configurations, random weights, loaded through the code path of a job."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import disk, photograph
from PIL import Image

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.grounded import GroundedSegmenter, as_query, best_box, query_places, query_scores

SAM2_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
IMAGE_U8 = photograph(disk((60, 80), 40, (160, 128)), (200, 40, 40), 120)


def _config(detector: str, sam2_checkpoint: str, **settings: object) -> SegmentationConfig:
    return SegmentationConfig(
        grounding_dino=detector, sam2_checkpoint=sam2_checkpoint, sam2_config=SAM2_CONFIG, device="cpu", **settings
    )


@pytest.fixture(scope="module")
def networks(detector: str, sam2_checkpoint: str) -> GroundedSegmenter:
    return GroundedSegmenter(_config(detector, sam2_checkpoint, box_threshold=0.0, text_threshold=0.0))


def test_box_of_random_weights(networks: GroundedSegmenter) -> None:
    box = networks.find_box(IMAGE_U8, "Shoes")
    assert box.shape == (4,)
    assert (box >= 0).all()
    assert (box <= [128, 160, 128, 160]).all()
    assert (networks.find_box(IMAGE_U8, "Shoes") == box).all()


def test_threshold_of_one_finds_nothing(networks: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "config", SegmentationConfig(box_threshold=1.0))
    with pytest.raises(RowError) as caught:
        networks.segment(IMAGE_U8, "Mug")
    assert (caught.value.status, caught.value.reason) == ("rejected", "product_not_found")
    assert "'mug'" in caught.value.detail
    assert "segmentation.box_threshold" in caught.value.detail


def test_a_category_longer_than_the_text_encoder_is_cut(networks: GroundedSegmenter) -> None:
    assert networks.find_box(IMAGE_U8, "shoes " * 600).shape == (4,)


def test_objects_of_random_weights(networks: GroundedSegmenter) -> None:
    found = networks.objects(IMAGE_U8, ["mug", "Shoes"])
    assert len(found) > 1
    assert {each.label for each in found} <= {"mug", "Shoes"}
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    for _, score, box in found:
        assert 0 < score < 1
        assert box.dtype == np.float32
        assert (box >= 0).all()
        assert (box <= [128, 160, 128, 160]).all()
        assert (box[2:] - box[:2] >= 1).all()
    again = networks.objects(IMAGE_U8, ["mug", "Shoes"])
    assert all(
        one.score == other.score and (one.box == other.box).all() for one, other in zip(found, again, strict=True)
    )
    assert any((each.box == networks.find_box(IMAGE_U8, "mug")).all() for each in networks.objects(IMAGE_U8, ["mug"]))


@pytest.mark.parametrize("field", ["box_threshold", "text_threshold"])
def test_objects_are_above_both_thresholds(
    networks: GroundedSegmenter, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = networks.objects(IMAGE_U8, ["mug", "shoes"])
    middle = found[len(found) // 2].score
    settings = {"box_threshold": 0.0, "text_threshold": 0.0, field: middle}
    monkeypatch.setattr(networks, "config", SegmentationConfig(**settings))
    fewer = networks.objects(IMAGE_U8, ["mug", "shoes"])
    assert [each.score for each in fewer] == [each.score for each in found if each.score > middle]
    assert fewer


def test_an_object_has_the_query_that_its_words_belong_to(
    networks: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    # [CLS] mug . a product . shoes . [SEP]: a box for each of three words, one for a dot, one without an area.
    logits = torch.full((1, 5, 32), -20.0)
    for box, (place, logit) in enumerate([(1, 0.0), (4, 2.0), (6, 1.0), (2, 5.0), (1, 3.0)]):
        logits[0, box, place] = logit
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.25, 0.5, 1.0, 0.5], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1],
                           [0.5, 0.5, 0, 1]]])  # fmt: skip
    output = SimpleNamespace(logits=logits, pred_boxes=boxes)
    detector = networks._detector

    class Fixed:
        config = detector.config

        def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
            assert inputs["input_ids"].shape == (1, 9)
            return output

    monkeypatch.setattr(networks, "_detector", Fixed())
    monkeypatch.setattr(networks, "config", SegmentationConfig())
    found = networks.objects(IMAGE_U8, ["Mug", "a product", "shoes"])
    assert [(each.label, round(each.score, 3), each.box.tolist()) for each in found] == [
        ("a product", 0.881, [0, 40, 96, 120]),  # 128×160 px; cut at the left
        ("shoes", 0.731, [0, 0, 128, 160]),
        ("Mug", 0.5, [32, 60, 96, 100]),
    ]


def test_queries_beyond_the_text_encoder_are_not_looked_for(networks: GroundedSegmenter) -> None:
    found = networks.objects(IMAGE_U8, ["mug", "shoes " * 600, "product"])
    assert {each.label for each in found} <= {"mug", "shoes " * 600}
    assert networks.objects(IMAGE_U8, ["\u200b", "mug"])  # no token at all is no query


def test_places_and_scores_of_queries() -> None:
    tokens = [2, 9, 5, 10, 8, 5, 5, 7, 3, 0]  # [CLS] mug . a ##s . . product [SEP] [PAD]
    places = query_places(tokens, 5, dot=5, special={0, 2, 3})
    assert places == [[1], [3, 4], [], [7], []]
    probability = np.float32([[0.9, 0.1, 0.9, 0.1, 0.4, 0.9, 0.9, 0.3, 0.9, 0], [0, 0.2, 0, 0.1, 0.1, 0, 0, 0.2, 0, 0]])
    scores, best = query_scores(probability, places)
    np.testing.assert_allclose(scores, [0.4, 0.2], rtol=1e-6)
    assert best.tolist() == [1, 0]


def test_the_chain_ends_in_sam2(
    detector: str, sam2_checkpoint: str, networks: GroundedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    import refadgen.segmentation.networks as module

    made: list[tuple[np.ndarray, float]] = []

    class Recording:
        """The loaded networks; keeps what they made: random weights may mask nothing, which triage would refuse."""

        source, field = GroundedSegmenter.source, GroundedSegmenter.field

        def segment(self, image_u8: np.ndarray, category: str | None) -> tuple[np.ndarray, float]:
            made.append(networks.segment(image_u8, category))
            return made[-1]

    monkeypatch.setattr(module, "GroundedSegmenter", lambda config, gpu_expected: Recording())
    anything = {"min_area": 0.0, "max_area": 1.0, "max_edge_contact": 1.0, "max_pieces": 10_000, "min_score": 0.0}
    masker = ProductMasker(_config(detector, sam2_checkpoint, **anything))
    scene = np.random.default_rng(0).integers(0, 255, (160, 128, 3)).astype(np.uint8)
    try:
        outcome = masker.segment(Image.fromarray(scene), "shoes").source
    except RowError as error:
        outcome = error.reason
    alpha, score = made[0]
    assert outcome == ("sam2" if alpha.max() > 127 else "mask_empty")
    assert alpha.shape == (160, 128)
    assert alpha.dtype == np.uint8
    assert 0 <= score <= 1


def test_best_box_is_the_highest_score_with_words_and_area() -> None:
    boxes = np.float32([[0, 0, 9, 9], [10, 10, 50, 60], [20, 20, 20, 90], [-5, 4, 300, 40], [1, 1, 8, 8]])
    labels = ["mug", "mug", "mug", "mug", ""]
    assert best_box(np.float32([0.4, 0.6, 0.9, 0.5, 0.95]), boxes, labels, (100, 80)).tolist() == [10, 10, 50, 60]
    assert best_box(np.float32([0.1, 0.2, 0.3, 0.8, 0.1]), boxes, labels, (100, 80)).tolist() == [0, 4, 100, 40]
    assert best_box(np.float32([]), np.zeros((0, 4), np.float32), [], (100, 80)) is None


@pytest.mark.parametrize(
    ("category", "query"),
    [(None, "product."), ("", "product."), ("Shoes", "shoes."), ("Men's  Shoes. Size 8", "men's shoes size 8.")],
)
def test_query(category: str | None, query: str) -> None:
    assert as_query(category) == query


def test_what_is_missing_is_named(detector: str, sam2_checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"segmentation\.grounding_dino"):
        GroundedSegmenter(_config(str(tmp_path / "none"), sam2_checkpoint))
    with pytest.raises(ValueError, match=r"segmentation\.sam2_checkpoint.*no such file"):
        GroundedSegmenter(_config(detector, str(tmp_path / "none.pt")))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"segmentation\.sam2_checkpoint"):
        GroundedSegmenter(_config(detector, str(broken)))


def _with_nan(file: Path) -> None:
    """Writes NaN into the first floating-point weights of a checkpoint of torch or safetensors."""
    if file.suffix == ".pt":
        state = torch.load(file)
        next(iter(state["model"].values())).fill_(float("nan"))
        torch.save(state, file)
    else:
        from safetensors.torch import load_file, save_file

        weights = load_file(file)
        for name in weights:
            if "bbox_embed" in name or "class_embed" in name:
                weights[name] = torch.full_like(weights[name], float("nan"))
        save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("broken", ["grounding_dino", "sam2_checkpoint"])
def test_broken_weights_are_refused_by_name(broken: str, detector: str, sam2_checkpoint: str, tmp_path: Path) -> None:
    if broken == "grounding_dino":
        detector = str(shutil.copytree(detector, tmp_path / "detector"))
        _with_nan(Path(detector) / "model.safetensors")
    else:
        sam2_checkpoint = str(shutil.copy(sam2_checkpoint, tmp_path / "sam2.pt"))
        _with_nan(Path(sam2_checkpoint))
    with pytest.raises(ValueError, match=rf"^segmentation\.{broken}='.*': (answers with|has) NaN"):
        GroundedSegmenter(_config(detector, sam2_checkpoint))


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(ValueError, match=r"segmentation\.device"):
        GroundedSegmenter(SegmentationConfig(grounding_dino="x", sam2_checkpoint="y", device=device))
