"""Background removers that a user brings: ONNX files of every form, and transformers folders; and what is refused."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import FLOAT16, UINT8, node, red_detector, unet, write
from pictures import disk, iou, photograph
from PIL import Image

from refadgen.config import DatasetConfig, GenerateConfig, SegmentationConfig, ServeConfig, load_config
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.networks import load_networks
from refadgen.segmentation.saliency import SaliencySegmenter
from refadgen.segmentation.sam3 import Sam3Segmenter

PRODUCT = disk((60, 80), 40, (160, 128))
IMAGE_U8 = photograph(PRODUCT, (220, 40, 40), 120)


def _segmenter(file: str, **settings: Any) -> SaliencySegmenter:
    return SaliencySegmenter(SegmentationConfig(saliency_model=file, device="cpu", **settings))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"sigmoid": True},
        {"kind": FLOAT16},
        {"takes": ("n", 3, 64, 96)},
        {"takes": ("n", 3, "h", "w")},
        {"takes": ("n", "c", "h", "w"), "sigmoid": True},
    ],
    ids=["logits", "probabilities", "half", "free batch", "free size", "all free"],
)
def test_every_form_of_a_file_gives_the_same_mask(form: dict[str, Any], tmp_path: Path) -> None:
    alpha, score = _segmenter(red_detector(tmp_path / "red.onnx", **form)).segment(IMAGE_U8, "mug")
    assert (alpha.dtype, alpha.shape) == (np.uint8, (160, 128))
    assert iou(alpha, PRODUCT) > 0.93  # the smallest form sees 64 px for 160
    assert 0.95 < score <= 1


def test_a_unet_of_random_weights(tmp_path: Path) -> None:
    network = _segmenter(unet(tmp_path / "unet.onnx"))
    alpha, score = network.segment(IMAGE_U8, None)
    assert (alpha.dtype, alpha.shape) == (np.uint8, (160, 128))
    assert len(np.unique(alpha)) > 10
    assert 0 < score < 1  # random weights are never sure
    assert (network.segment(IMAGE_U8, "another name")[0] == alpha).all()


@pytest.mark.parametrize(
    ("normalization", "expected"), [("imagenet", (1 - 0.485) / 0.229), ("centered", 0.5), ("none", 1.0)]
)
def test_pixels_are_normalised_as_the_setting_says(normalization: str, expected: float, tmp_path: Path) -> None:
    """The network answers with the red channel as it gets it, less 1."""
    weights = {"w": np.float32([1, 0, 0]).reshape(1, 3, 1, 1), "b": np.float32([-1])}
    nodes = [node("Conv", ["image", "w", "b"], "mask")]
    file = write(tmp_path / "red.onnx", nodes, weights)
    network = _segmenter(file, saliency_normalization=normalization)
    answer = network._network(np.full((20, 20, 3), (255, 0, 0), np.uint8))
    assert answer.shape == (64, 64)
    np.testing.assert_allclose(answer, expected - 1, atol=1e-5)


def test_a_normalisation_without_a_file_to_use_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^segmentation\.saliency_normalization='centered': is for an ONNX file"):
        SegmentationConfig(saliency_normalization="centered", saliency_model="org/model")
    SegmentationConfig(saliency_normalization="centered", saliency_model="isnet.onnx")


def _one_by_one(file: Path, **form: Any) -> str:
    """A network of one convolution to as many channels as `channels` says."""
    channels, takes = form.pop("channels", 1), form.get("takes", (1, 3, 64, 64))
    weights = {"w": np.ones((channels, takes[1], 1, 1), np.float32)}
    return write(file, [node("Conv", ["image", "w"], "mask")], weights, gives=None, **form)


def _constant(file: Path) -> str:
    weights = {"w": np.zeros((1, 3, 1, 1), np.float32)}
    return write(file, [node("Conv", ["image", "w"], "mask")], weights)


def _nan(file: Path) -> str:
    weights = {"w": np.full((1, 3, 1, 1), np.nan, np.float32)}
    return write(file, [node("Conv", ["image", "w"], "mask")], weights)


def _bytes_out(file: Path) -> str:
    """Answers 0 to 765 where the picture is bright: neither probabilities nor logits."""
    weights = {"w": np.full((1, 3, 1, 1), 255, np.float32)}
    nodes = [node("Conv", ["image", "w"], "a"), node("Relu", ["a"], "mask")]
    return write(file, nodes, weights)


def _classifier(file: Path) -> str:
    """One number for the whole picture."""
    return write(file, [node("GlobalAveragePool", ["image"], "mask")], {}, gives=None)


def _text(file: Path) -> str:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return str(file)


def _missing(file: Path) -> str:
    return str(file)


def _no_suffix(file: Path) -> str:
    red_detector(file.with_suffix(".bin"))
    return str(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("make", "form", "message"),
    [
        (_one_by_one, {"takes": (1, 4, 64, 64)}, "takes an image of the shape"),
        (_one_by_one, {"takes": (8, 3, 64, 64)}, "takes batches of 8 images"),
        (_one_by_one, {"kind": UINT8}, "must take one image as float|is no ONNX file"),
        (_one_by_one, {"inputs": ("image", "mask_hint")}, "must take one image as float"),
        (_one_by_one, {"takes": (1, 3, 64)}, "must take one image as float|is no ONNX file"),
        (_one_by_one, {"channels": 2}, r"answers with the shape \[1, 2, 64, 64\]; must be one mask"),
        (_classifier, {}, r"answers with the shape \[1, 3, 1, 1\]; must be one mask"),
        (_constant, {}, "answers 0 everywhere"),
        (_nan, {}, "answers with NaN"),
        (_bytes_out, {"saliency_normalization": "none"}, "must be probabilities or logits"),
        (_text, {}, "is no ONNX file"),
        (_missing, {}, "there is no such file"),
        (_no_suffix, {}, "must be an ONNX file ending in .onnx"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(
    make: Any, form: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {name: form.pop(name) for name in list(form) if name.startswith("saliency")}
    file = make(tmp_path / "network.onnx", **form)
    with pytest.raises(ValueError, match=rf"^segmentation\.saliency_model='{file}': .*({message})"):
        _segmenter(file, **settings)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"^segmentation\.saliency_model='.*': .*pip install 'refadgen\[onnx\]'"):
        _segmenter(red_detector(tmp_path / "red.onnx"))


def test_a_gpu_that_onnx_runtime_cannot_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    file = red_detector(tmp_path / "red.onnx")
    with pytest.raises(ValueError, match=r"segmentation\.saliency_model=.*onnxruntime-gpu"):
        SaliencySegmenter(SegmentationConfig(saliency_model=file), gpu_expected=True)
    SaliencySegmenter(SegmentationConfig(saliency_model=file))  # a GPU that nobody gave to this stage


def test_a_photograph_without_anything_that_stands_out(tmp_path: Path) -> None:
    network = _segmenter(red_detector(tmp_path / "red.onnx"))
    with pytest.raises(RowError) as caught:
        network.segment(np.full((90, 90, 3), 120, np.uint8), None)
    assert (caught.value.status, caught.value.reason) == ("rejected", "product_not_found")
    assert "segmentation.saliency_model" in caught.value.detail


def _fails_in_the_dark(file: Path, outcome: str) -> str:
    """Gives NaN, values of no kind, or an error inside ONNX Runtime for a black photograph, not for the probe."""
    if outcome == "nan":
        weights = {"d": np.float32(0.05).reshape(1), "w": np.float32([[3, -3, 0]]).reshape(1, 3, 1, 1)}
        weights["b"] = np.float32([-0.5])
        nodes = [node("Sub", ["image", "d"], "a"), node("Sqrt", ["a"], "r"), node("Conv", ["r", "w", "b"], "mask")]
    elif outcome == "range":
        weights = {"w": np.float32([[0.3, 0.3, 0.3]]).reshape(1, 3, 1, 1), "d": np.float32(0.02).reshape(1)}
        nodes = [node("Conv", ["image", "w"], "a"), node("Sub", ["a", "d"], "b"), node("Reciprocal", ["b"], "c")]
        weights["s"] = np.float32(0.1).reshape(1)
        nodes.append(node("Mul", ["c", "s"], "mask"))
    else:
        # Gather of an index beyond 63 where all of the picture is black.
        weights = {"s": np.float32(-1000).reshape(1), "o": np.float32(50).reshape(1)}
        nodes = [
            node("ReduceMax", ["image"], "a", keepdims=0),
            node("Mul", ["a", "s"], "b"),
            node("Add", ["b", "o"], "c"),
            node("Relu", ["c"], "d"),
            node("Cast", ["d"], "e", to=7),
            node("Gather", ["image", "e"], "f", axis=1),
            node("Squeeze", ["f"], "mask"),
        ]
    return write(file, nodes, weights, gives=None)


@pytest.mark.parametrize("outcome", ["nan", "range", "error"])
def test_a_photograph_that_the_network_fails_on_costs_its_row(
    outcome: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = SegmentationConfig(
        saliency_model=_fails_in_the_dark(tmp_path / "dark.onnx", outcome), saliency_normalization="none", device="cpu"
    )
    masker = ProductMasker(config)
    assert masker.networks is not None
    for _ in range(2):
        with pytest.raises(RowError) as caught:
            masker.networks.segment(np.zeros((90, 90, 3), np.uint8), "mug")
        assert (caught.value.status, caught.value.reason) == ("failed", "network_failed")
        assert "segmentation.saliency_model" in caught.value.detail
    assert masker.find(np.zeros((90, 90, 3), np.uint8), "mug") is None
    assert capfd.readouterr().err == ""


def test_the_chain_ends_in_the_saliency_model(tmp_path: Path) -> None:
    """A photograph without a plain backdrop."""
    backdrop = np.zeros((160, 128, 3), np.uint8)
    backdrop[:, :64], backdrop[:, 64:], backdrop[100:] = (20, 90, 160), (90, 200, 90), (230, 240, 250)
    photo = Image.fromarray(photograph(PRODUCT, (220, 40, 40), backdrop))
    file = red_detector(tmp_path / "red.onnx", takes=(1, 3, 160, 128))
    found = ProductMasker(SegmentationConfig(saliency_model=file, device="cpu")).segment(photo, "mug")
    assert found.source == "saliency_model"
    assert iou(found.mask, PRODUCT) > 0.97
    assert found.score > 0.9
    with pytest.raises(RowError, match=r"segmentation\.saliency_model"):
        ProductMasker(SegmentationConfig()).segment(photo, "mug")


def _segment(file: str) -> None:
    from refadgen.generation.stages import ProductSegmenter

    words = [f"segmentation.saliency_model={file}", "stages.segment.num_cpus=3", "sampling.width_px=128"]
    ProductSegmenter(load_config(GenerateConfig, None, [*words, "sampling.height_px=160"]), "run")


def _publish(file: str) -> None:
    from refadgen.generation.model_settings import ModelIdentity
    from refadgen.generation.publisher import AdPublisher

    config = load_config(GenerateConfig, None, [f"segmentation.saliency_model={file}", "stages.publish.num_cpus=3.5"])
    AdPublisher(config, "run", "out", ModelIdentity(fingerprint="f", label="model@f"))


def _extract(file: str) -> None:
    from refadgen.dataset.stages import ProductExtractor

    words = [f"segmentation.saliency_model={file}", "stages.extract.num_cpus=3"]
    ProductExtractor(load_config(DatasetConfig, None, words), "run")


def _serve(file: str) -> None:
    from refadgen.serving.products import ProductPlacer

    words = [f"segmentation.saliency_model={file}", "deployments.segmentation.num_cpus=3"]
    ProductPlacer(load_config(ServeConfig, None, words))


def _half_a_core(file: str) -> None:
    ProductMasker(SegmentationConfig(saliency_model=file), num_cpus=0.5)


@pytest.mark.parametrize(
    ("make", "threads"), [(_segment, 3), (_publish, 3), (_extract, 3), (_serve, 3), (_half_a_core, 1)]
)
def test_onnx_runtime_has_as_many_threads_as_its_stage_has_cores(
    make: Any, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    seen: list[int] = []
    real = onnxruntime.InferenceSession

    def session(file: str, options: Any, **more: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return real(file, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    make(red_detector(tmp_path / "red.onnx"))
    assert seen == [threads]


def _segformer(folder: Path, num_labels: int, *, bias: float = 0.0) -> str:
    """Folder of a tiny random Segformer. bias: of the last label's logit."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=num_labels, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.bias.data[-1] = bias
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_transformers_segmenter_of_random_weights(num_labels: int, tmp_path: Path) -> None:
    product, backdrop = (_segformer(tmp_path / str(bias), num_labels, bias=bias) for bias in (3.0, -3.0))
    alpha, score = _segmenter(product).segment(IMAGE_U8, None)
    assert (alpha.dtype, alpha.shape) == (np.uint8, (160, 128))
    assert (alpha > 127).all()  # the last label is the product
    assert 0.7 < score < 1
    with pytest.raises(RowError, match="product_not_found"):
        _segmenter(backdrop).segment(IMAGE_U8, None)


def test_a_transformers_model_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^segmentation\.saliency_model=.*with 5 labels, must be"):
        _segmenter(_segformer(tmp_path / "labels", 5))
    folder = tmp_path / "matting"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vitmatte", "architectures": ["VitMatteForImageMatting"]}')
    with pytest.raises(ValueError, match=r"^segmentation\.saliency_model=.*is VitMatteForImageMatting .*must be"):
        _segmenter(str(folder))


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "BiRefNet_config.py").write_text(f"open({str(ran)!r}, 'w')")
    classes = {"AutoConfig": "BiRefNet_config.C", "AutoModelForImageSegmentation": "birefnet.B"}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BiRefNet"], "auto_map": classes}))
    with pytest.raises(ValueError, match=r"^segmentation\.saliency_model=.*code from a model is never run; give"):
        _segmenter(str(tmp_path))
    with pytest.raises(ValueError, match=r"^segmentation\.sam3=.*code from a model is never run"):
        Sam3Segmenter(SegmentationConfig(sam3=str(tmp_path), device="cpu"))
    assert not ran.exists()


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that it does not give out."""

    def do_GET(self) -> None:
        code, fault = {"gated": (401, "GatedRepo"), "refused": (403, "GatedRepo")}.get(
            self.path.split("/")[2], (401, "RepoNotFound")
        )
        self.send_response(code)
        self.send_header("X-Error-Code", fault)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("field", ["saliency_model", "sam3", "grounding_dino"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/gated", "asks for a licence to be accepted first: accept it .* HF_TOKEN"),
        ("org/refused", "asks for a licence to be accepted first"),
        ("org/missing", r"no model of that name, or it is private \(status 401\)"),
    ],
)
def test_a_licence_gate_says_what_to_do(field: str, name: str, message: str, hub: None) -> None:
    more = {"sam2_checkpoint": "sam2.pt"} if field == "grounding_dino" else {}
    config = SegmentationConfig(**{field: name}, **more, device="cpu")
    with pytest.raises(ValueError, match=rf"^segmentation\.{field}='{name}': .*{message}"):
        load_networks(config, gpu_expected=False, num_threads=1)
