"""SAM 3 for real: its smallest configuration, random weights, loaded through the code path of a job."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import disk, iou, photograph

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation.sam3 import Sam3Segmenter, product_instances

IMAGE_U8 = photograph(disk((60, 80), 40, (160, 128)), (200, 40, 40), 120)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random SAM 3 with its processor; its vocabulary is single letters."""
    from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("sam3")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 2}
    layers = {"num_layers": 1, "intermediate_size": 32}
    backbone = {
        "model_type": "sam3_vit_model", "intermediate_size": 32, "num_hidden_layers": 2, "image_size": 112,
        "patch_size": 14, "window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 56,
    }  # fmt: skip
    text = {
        "model_type": "clip_text_model", "vocab_size": 600, "intermediate_size": 32, "projection_dim": 16,
        "num_hidden_layers": 1, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = Sam3Config(
        vision_config={
            "backbone_config": backbone | small,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text | small,
        geometry_encoder_config=layers | small,
        detr_encoder_config=layers | small,
        detr_decoder_config=layers | small | {"num_queries": 8},
        mask_decoder_config=small,
    )
    Sam3Model(config).save_pretrained(folder)
    letters = list(bytes_to_unicode().values())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), tokenizer).save_pretrained(folder)
    return str(folder)


def _config(checkpoint: str, threshold: float = 0.0) -> SegmentationConfig:
    return SegmentationConfig(sam3=checkpoint, sam3_threshold=threshold, device="cpu")


@pytest.fixture(scope="module")
def network(checkpoint: str) -> Sam3Segmenter:
    return Sam3Segmenter(_config(checkpoint))


def test_a_mask_of_random_weights(network: Sam3Segmenter) -> None:
    alpha, score = network.segment(IMAGE_U8, "Mug")
    assert (alpha.dtype, alpha.shape) == (np.uint8, (160, 128))
    assert 0 < score < 1
    again, same = network.segment(IMAGE_U8, " mug ")
    assert (again == alpha).all()
    assert same == score
    assert (network.segment(IMAGE_U8, "zebra")[0] != alpha).any()  # the words reach the network
    assert network.segment(IMAGE_U8, None)[1] == network.segment(IMAGE_U8, "product")[1]


def test_a_name_longer_than_the_text_encoder_is_cut(network: Sam3Segmenter) -> None:
    assert network.segment(IMAGE_U8, "shoes " * 600)[0].shape == (160, 128)


def test_a_threshold_of_one_finds_nothing(network: Sam3Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "config", SegmentationConfig(sam3_threshold=1.0))
    with pytest.raises(RowError) as caught:
        network.segment(IMAGE_U8, "Mug")
    assert (caught.value.status, caught.value.reason) == ("rejected", "product_not_found")
    assert "'mug'" in caught.value.detail
    assert "segmentation.sam3_threshold" in caught.value.detail
    assert network.objects(IMAGE_U8, ["mug"]) == []


def test_objects_of_random_weights(network: Sam3Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    found = network.objects(IMAGE_U8, ["mug", "Person"])
    assert {each.label for each in found} == {"mug", "Person"}
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    for _, _, box in found:
        assert box.dtype == np.float32
        assert (box >= 0).all()
        assert (box <= [128, 160, 128, 160]).all()
        assert (box[2:] - box[:2] >= 1).all()
    monkeypatch.setattr(network, "config", SegmentationConfig(sam3_threshold=scores[3]))
    assert [each.score for each in network.objects(IMAGE_U8, ["mug", "Person"])] == scores[:3]


def _answer(logits: list[float], boxes: list[tuple[int, int, int, int]], presence: float) -> SimpleNamespace:
    """What SAM 3 would answer for objects that fill boxes (left, top, right, bottom) of a 16×16 map."""
    masks = torch.full((1, len(boxes), 16, 16), -9.0)
    for number, (left, top, right, bottom) in enumerate(boxes):
        masks[0, number, top:bottom, left:right] = 9
    return SimpleNamespace(
        pred_logits=torch.tensor([logits]),
        presence_logits=torch.tensor([[presence]]),
        pred_masks=masks,
        pred_boxes=torch.tensor([boxes]) / 16,
    )


@pytest.mark.parametrize(
    ("logits", "presence", "product", "score"),
    [
        ([3.0, -5.0, -5.0, -5.0], 9.0, [0], 0.952),
        ([2.0, 3.0, -5.0, -5.0], 9.0, [0, 1], 0.881),  # a pair: the weaker one's score
        ([3.0, -5.0, 2.0, -5.0], 9.0, [0], 0.952),  # a small one in the background
        ([3.0, -5.0, -5.0, 5.0], 9.0, [3], 0.993),  # the best of all decides about size
        ([3.0, 3.0, 3.0, 3.0], -9.0, None, None),  # there is none in the picture
    ],
    ids=["one", "pair", "background", "best", "absent"],
)
def test_objects_of_the_same_size_are_one_product(
    logits: list[float],
    presence: float,
    product: list[int] | None,
    score: float | None,
    network: Sam3Segmenter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes = [(0, 8, 5, 16), (6, 8, 11, 16), (13, 0, 15, 3), (0, 0, 16, 16)]
    real = network._model

    class Fixed:
        config, get_vision_features = real.config, staticmethod(real.get_vision_features)

        def __call__(self, **inputs: object) -> SimpleNamespace:
            return _answer(logits, boxes, presence)

    monkeypatch.setattr(network, "_model", Fixed())
    monkeypatch.setattr(network, "config", SegmentationConfig())
    if product is None:
        with pytest.raises(RowError, match="product_not_found"):
            network.segment(IMAGE_U8, "shoes")
        return
    alpha, found = network.segment(IMAGE_U8, "shoes")
    expected = np.zeros((160, 128), bool)
    for left, top, right, bottom in (boxes[index] for index in product):
        expected[top * 10 : bottom * 10, left * 8 : right * 8] = True
    assert iou(alpha, expected) > 0.99
    assert found == pytest.approx(score, abs=1e-3)


def test_no_candidates_are_no_product() -> None:
    assert product_instances(np.zeros(0, np.float32), np.zeros((0, 8, 8), np.float32), 0.5) == []


def test_the_layout_of_the_released_checkpoint(network: Sam3Segmenter, checkpoint: str, tmp_path: Path) -> None:
    """That is a video tracker's, with the model as its detector."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint, tmp_path / "video"))
    weights = {f"detector_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights | {"tracker_model.x": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    detector = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector}))
    alpha, score = Sam3Segmenter(_config(str(folder))).segment(IMAGE_U8, "mug")
    expected = network.segment(IMAGE_U8, "mug")
    assert (alpha == expected[0]).all()
    assert score == expected[1]


def test_what_is_no_sam3_is_refused_by_name(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^segmentation\.sam3='.*none': cannot be loaded"):
        Sam3Segmenter(_config(str(tmp_path / "none")))
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(ValueError, match=r"^segmentation\.sam3=.*is a sam2 model, must be one of sam3"):
        Sam3Segmenter(_config(str(tmp_path)))
    from safetensors.torch import load_file, save_file

    for fault, message in (("missing", "1 weights are missing"), ("nan", "answers with NaN")):
        folder = Path(shutil.copytree(checkpoint, tmp_path / fault))
        weights = load_file(folder / "model.safetensors")
        name = "text_projection.weight"
        weights[name] = torch.full_like(weights[name], float("nan"))
        if fault == "missing":
            del weights[name]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"^segmentation\.sam3='.*{fault}': {message}"):
            Sam3Segmenter(_config(str(folder)))
