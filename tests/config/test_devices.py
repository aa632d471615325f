"""A GPU that was asked for and is missing is an error that names the setting, in every stage that loads networks."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refadgen.config import DatasetConfig, GenerateConfig, ServeConfig, load_config
from refadgen.config.devices import num_cores, resolve_device, resolve_dtype

NETWORKS = ["segmentation.grounding_dino=a-folder", "segmentation.sam2_checkpoint=a-file.pt"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask for a GPU that is not there, on machines with one too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def product_segmenter() -> None:
    from refadgen.generation.stages import ProductSegmenter

    size = ["sampling.width_px=128", "sampling.height_px=160"]
    ProductSegmenter(load_config(GenerateConfig, None, [*NETWORKS, *size, "stages.segment.num_gpus=1"]), "run")


def ad_publisher() -> None:
    from refadgen.generation.model_settings import ModelIdentity
    from refadgen.generation.publisher import AdPublisher

    config = load_config(GenerateConfig, None, [*NETWORKS, "stages.publish.num_gpus=0.5"])
    AdPublisher(config, "run", "out", ModelIdentity(fingerprint="f", label="model@f"))


def product_extractor() -> None:
    from refadgen.dataset.stages import ProductExtractor

    ProductExtractor(load_config(DatasetConfig, None, [*NETWORKS, "stages.extract.num_gpus=1"]), "run")


def product_placer() -> None:
    from refadgen.serving.products import ProductPlacer

    ProductPlacer(load_config(ServeConfig, None, [*NETWORKS, "deployments.segmentation.num_gpus=1"]))


def unsafe_classifier() -> None:
    from refadgen.dataset.content import ContentFilter

    config = load_config(DatasetConfig, None, ["filter.unsafe_model=a-folder"])
    ContentFilter(config.filter, None, gpu_expected=True)


@pytest.mark.parametrize(
    "make_stage", [product_segmenter, ad_publisher, product_extractor, product_placer, unsafe_classifier]
)
def test_a_segmentation_stage_with_a_gpu_does_not_fall_to_the_cpu(make_stage: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match=r"^segmentation\.device=auto: num_gpus asks for a GPU"):
        make_stage()


def test_a_novel_view_stage_with_a_gpu_does_not_fall_to_the_cpu() -> None:
    from refadgen.dataset.variants import VariantMaker

    words = ["stages.augment.num_gpus=1", "triplet.variants=[original, novel_view]"]
    with pytest.raises(ValueError, match=r"^multi_view\.device=auto: num_gpus asks for a GPU"):
        VariantMaker(load_config(DatasetConfig, None, words))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "x.device='cuda': PyTorch sees no GPU here"),
        ("cuda:77", "x.device='cuda:77': PyTorch sees no GPU here"),
        ("gpu", "x.device='gpu': must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        resolve_device(name, gpu_expected=False, field="x.device")


def test_a_gpu_beyond_those_of_this_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto", gpu_expected=True, field="x.device") == torch.device("cuda")
    assert resolve_device("cuda:0", gpu_expected=True, field="x.device") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"^x\.device='cuda:1': PyTorch sees 1 GPU here$"):
        resolve_device("cuda:1", gpu_expected=True, field="x.device")


@pytest.mark.parametrize(
    ("bfloat16", "sampling", "training"), [(True, "bfloat16", "bfloat16"), (False, "float16", "float32")]
)
def test_the_number_format_follows_the_device(
    bfloat16: bool, sampling: str, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cuda) == getattr(torch, sampling)
    assert resolve_dtype("auto", cuda, for_training=True) == getattr(torch, training)
    assert resolve_dtype("auto", cpu) == resolve_dtype("auto", cpu, for_training=True) == torch.float32
    assert resolve_dtype("float16", cpu) == torch.float16


@pytest.mark.parametrize(("limit", "expected"), [("max 100000", None), ("50000 100000", 1), ("1 100", 1), ("", None)])
def test_a_container_has_the_cores_of_its_share(limit: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert num_cores(tmp_path) == (expected or len(os.sched_getaffinity(0)))
