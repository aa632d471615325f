"""The randomly initialised networks of the proof, made on the device, and the product that they draw.

`full` is Stable Diffusion 1.5 with the authors' image encoder at 512×640. `tiny` has the same parts and levels at a few
channels, so that every part can be tried on a CPU in seconds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import step_flops

from refadgen.model import RefAdGenPipeline
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.unets import make_generation_unet, make_reference_unet

Size = Literal["full", "tiny"]
GUIDANCE_SCALE = 7.5
_TINY_WIDTH = 32


@dataclass(frozen=True)
class Setup:
    """What all systems share: one copy of the weights, one product."""

    pipeline: RefAdGenPipeline
    device: torch.device
    dtype: torch.dtype
    num_steps: int
    """Denoising steps of an image."""
    canvas: npt.NDArray[np.uint8]
    """The placed product, H×W×3."""
    mask: npt.NDArray[np.uint8]
    """M′ before it is scaled down, H×W."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        factor = self.pipeline.vae_scale_factor
        return (4, self.canvas.shape[0] // factor, self.canvas.shape[1] // factor)


def make_setup(size: Size, device: torch.device, dtype: torch.dtype) -> Setup:
    """The pipeline with weights of seed 0, in `dtype` on `device`."""
    diffusers_logging.set_verbosity_error()  # it warns of every cast
    pipeline = make_pipeline(size)
    for network in pipeline.components.values():
        if isinstance(network, nn.Module):
            fill(network, device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    height, width = (step_flops.HEIGHT_PX, step_flops.WIDTH_PX) if size == "full" else (80, 64)
    canvas, mask = product(height, width)
    return Setup(pipeline, device, dtype, 20 if size == "full" else 3, canvas, mask)


def make_pipeline(size: Size) -> RefAdGenPipeline:
    """A pipeline of meta tensors, which have shapes and no numbers."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    with torch.device("meta"):
        if size == "full":
            full: RefAdGenPipeline = step_flops.make_pipeline(image_encoder=True, scheduler=scheduler)
            return full
        base = tiny_unet()
        return RefAdGenPipeline(
            vae=tiny_vae(),
            tokenizer=step_flops.make_tokenizer(),
            reference_unet=make_reference_unet(base),
            generation_unet=make_generation_unet(base),
            scheduler=scheduler,
            **_tiny_encoders(),
        )


def make_unet(size: Size) -> UNet2DConditionModel:
    """The base's U-Net."""
    return step_flops.make_unet() if size == "full" else tiny_unet()


def tiny_unet() -> UNet2DConditionModel:
    """Two levels of Stable Diffusion 1.5's kind."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(_TINY_WIDTH, _TINY_WIDTH),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,  # heads, in spite of its name
        cross_attention_dim=_TINY_WIDTH,
        norm_num_groups=8,
    ).eval()


def tiny_vae() -> AutoencoderKL:
    """A factor of eight, as at full size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def _tiny_encoders() -> dict[str, Any]:
    sizes = {"hidden_size": _TINY_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**sizes)).eval(),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)).eval(),
        "image_projection": ProductImageProjection(
            embed_dims=_TINY_WIDTH, output_dims=_TINY_WIDTH, hidden_dims=_TINY_WIDTH, depth=1, dim_head=16, heads=2
        ).eval(),
        "feature_extractor": CLIPImageProcessor(),
    }


@torch.no_grad()
def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a module of meta tensors its memory and random weights on the device, in place and without a second copy.

    Weights have the deviation that keeps activations at the size of their input; norms start as the identity. Drawn in
    float32, so that every number format has the same weights but for rounding.
    """
    module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device)
            parameter.copy_(drawn.normal_(0, parameter[0].numel() ** -0.5, generator=generator))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))


def product(height: int, width: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A striped box on white, and its mask."""
    canvas, mask = np.full((height, width, 3), 255, np.uint8), np.zeros((height, width), np.uint8)
    rows, columns = slice(height // 4, 7 * height // 8), slice(width // 4, 3 * width // 4)
    canvas[rows, columns] = (30, 80, 160)
    canvas[height // 2 : 5 * height // 8, columns] = (230, 200, 40)
    mask[rows, columns] = 255
    return canvas, mask
