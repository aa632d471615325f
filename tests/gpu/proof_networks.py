"""The other networks at their real sizes, randomly initialised: latency of one picture."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from proof_measure import median_s
from proof_record import Record, Values
from proof_setup import Size
from torch import Tensor, nn

_REPEATS = 10


def run_networks(record: Record, size: Size, device: torch.device) -> None:
    """Depth Anything, SAM 2 and Grounding DINO in both number formats, float32 first."""
    networks: dict[str, Callable[[Size], tuple[nn.Module, dict[str, Any]]]] = {
        "sam2.1-hiera-large": _sam2_large,
        "grounding-dino-tiny": _grounding_dino,
        "depth-anything-small": _depth_anything,
        "sam2.1-hiera-tiny": _sam2_tiny,
    }
    for name, make in networks.items():
        for dtype in (torch.float32, torch.float16):
            record.run(
                f"networks/{name}/{str(dtype).removeprefix('torch.')}",
                lambda make=make, dtype=dtype: _latency(make, size, device, dtype),  # type: ignore[misc]
                needs_s=5.0,
            )
    name = "networks/gsplat"
    if importlib.util.find_spec("gsplat") is None:
        record.skipped(name, "gsplat is not installed here")
    else:
        record.skipped(name, "gsplat is installed, but nothing compares it with our rasterizer yet")


@torch.no_grad()
def _latency(
    make: Callable[[Size], tuple[nn.Module, dict[str, Any]]], size: Size, device: torch.device, dtype: torch.dtype
) -> Values:
    torch.manual_seed(0)
    with torch.device(device):
        network, inputs = make(size)
    network = network.to(dtype).eval()
    ready = {
        key: value.to(device, dtype if isinstance(value, Tensor) and value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    network(**ready)
    repeats = _REPEATS if device.type == "cuda" else 1
    if device.type == "cuda":
        network(**ready)
        torch.cuda.reset_peak_memory_stats(device)
    seconds, spread = median_s(lambda: network(**ready), device, repeats)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "ms": round(1000 * seconds, 2),
        "spread": round(spread, 3),
        "parameters_m": round(parameters / 1e6, 1),
        "peak_gb": round(peak, 2),
    }


def _sam2_large(size: Size) -> tuple[nn.Module, dict[str, Any]]:
    """The authors' segmentation network, one box."""
    large = {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
        "window_positional_embedding_background_size": [7, 7],
    }
    return _sam2(large, [1152, 576, 288, 144]) if size == "full" else _sam2_small()


def _sam2_tiny(size: Size) -> tuple[nn.Module, dict[str, Any]]:
    """transformers' default configuration."""
    return _sam2({}, None) if size == "full" else _sam2_small()


def _sam2(backbone: dict[str, Any], channels: list[int] | None) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    options: dict[str, Any] = {} if channels is None else {"backbone_channel_list": channels}
    vision = Sam2VisionConfig(backbone_config=Sam2HieraDetConfig(**backbone), **options)
    config = Sam2Config(vision_config=vision)
    boxes = torch.tensor([[[200.0, 200.0, 800.0, 900.0]]])
    return Sam2Model(config), {"pixel_values": torch.randn(1, 3, 1024, 1024), "input_boxes": boxes}


def _sam2_small() -> tuple[nn.Module, dict[str, Any]]:
    """Not the network: its imports and its inputs, at a size for a CPU."""
    from transformers import Sam2HieraDetConfig
    from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

    config = Sam2HieraDetConfig(
        hidden_size=8,
        embed_dim_per_stage=[8, 16, 32, 64],
        blocks_per_stage=[1, 2, 2, 1],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        num_attention_heads=1,
        global_attention_blocks=[4],
        image_size=[128, 128],
    )
    return Sam2HieraDetModel(config), {"pixel_values": torch.randn(1, 3, 128, 128)}


def _grounding_dino(size: Size) -> tuple[nn.Module, dict[str, Any]]:
    """transformers' default configuration, Swin-T: a picture at the processor's size and four tokens of text."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    config = (
        GroundingDinoConfig()
        if size == "full"
        else GroundingDinoConfig(encoder_layers=1, decoder_layers=2, num_queries=10)
    )
    height, width = (800, 640) if size == "full" else (64, 64)
    if size != "full":
        config.backbone_config.depths = [1, 1, 1, 1]
        config.text_config.num_hidden_layers, config.text_config.vocab_size = 1, 5000
    ids = torch.tensor([[101, 1037, 4031, 1012, 102]])
    return GroundingDinoForObjectDetection(config), {
        "pixel_values": torch.randn(1, 3, height, width),
        "pixel_mask": torch.ones(1, height, width, dtype=torch.long),
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
    }


def _depth_anything(size: Size) -> tuple[nn.Module, dict[str, Any]]:
    """transformers' default configuration with DINOv2-small, a portrait picture at the processor's size."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    height, width = (686, 546) if size == "full" else (56, 42)
    config = DepthAnythingConfig()
    return DepthAnythingForDepthEstimation(config), {"pixel_values": torch.randn(1, 3, height, width)}
