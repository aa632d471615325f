"""Stable Diffusion 1.5's architecture at tiny width, with random weights, and pipelines and inputs made of it.

The U-Net has all of its four levels and sixteen self-attentions. Weights are seeded, so that every test sees the same.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from refadgen.model import RefAdGenPipeline
from refadgen.model.attention_fusion import fusion_processors
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.unets import make_generation_unet, make_reference_unet

TEXT_WIDTH = 16
MAX_TOKENS = 24
WIDTH_PX, HEIGHT_PX = 72, 88  # latents of 9×11: odd at every level of the U-Net
CROSS_BLOCKS = (
    ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
LOW_BLOCKS = (
    ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)


def make_unet(seed: int = 0, blocks: tuple[tuple[str, ...], tuple[str, ...]] = CROSS_BLOCKS) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    down, up = blocks
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32, 32)[: len(down)],
        down_block_types=down,
        up_block_types=up,
        layers_per_block=2 if blocks is CROSS_BLOCKS else 1,
        attention_head_dim=2,  # heads, in spite of its name
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    ).eval()


def make_vae(seed: int = 1) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def make_tokenizer() -> CLIPTokenizer:
    """Letters, with and without the end-of-word mark, and one merged word."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!-'"
    merges = ["c u", "cu p</w>"]
    words = [*letters, *[f"{letter}</w>" for letter in letters], "cu", "cup</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges], model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer, seed: int = 2) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _spread(CLIPTextModel(config)).eval()


def make_image_encoder(seed: int = 3) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=8,
    )
    return _spread(CLIPVisionModelWithProjection(config)).eval()


def make_feature_extractor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _spread(model):
    """CLIP's initial weights are so small that all texts look alike; larger ones tell them apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_pipeline(*, image_encoder: bool, blocks=CROSS_BLOCKS, trained: bool = True, **settings) -> RefAdGenPipeline:
    """A tiny pipeline. trained: nothing is zero or equal to the base by accident; else as made from the base."""
    base, tokenizer = make_unet(blocks=blocks), make_tokenizer()
    reference_unet, generation_unet = make_reference_unet(base), make_generation_unet(base)
    if trained:
        perturb(reference_unet, generation_unet)
    parts = {}
    if image_encoder:
        torch.manual_seed(4)
        parts["image_encoder"] = make_image_encoder()
        parts["image_projection"] = ProductImageProjection(
            embed_dims=24, output_dims=TEXT_WIDTH, hidden_dims=TEXT_WIDTH, depth=2, dim_head=8, heads=2, num_queries=5
        ).eval()
        parts["feature_extractor"] = make_feature_extractor()
    defaults = {
        "prompt_suffix": ", hq",
        "negative_prompt": "ugly",
        "width_px": WIDTH_PX,
        "height_px": HEIGHT_PX,
        "scheduler": make_scheduler(),
    }
    return RefAdGenPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        reference_unet=reference_unet,
        generation_unet=generation_unet,
        **{**defaults, **parts, **settings},
    )


def perturb(reference_unet: UNet2DConditionModel, generation_unet: UNet2DConditionModel, seed: int = 5) -> None:
    """Moves everything that trains away from its start, in place."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for parameter in reference_unet.parameters():
            parameter.add_(noise(parameter, 0.05))
        for afm in fusion_processors(generation_unet).values():
            for parameter in afm.parameters():
                parameter.add_(noise(parameter, 0.1))
        weight = generation_unet.conv_in.weight
        weight[:, 4:] = noise(weight[:, 4:], 0.1)


def write_base(folder: Path) -> Path:
    """A Stable Diffusion folder in diffusers' layout; its index names more than we read, as real ones do."""
    tokenizer = make_tokenizer()
    parts = {
        "unet": make_unet(),
        "vae": make_vae(),
        "text_encoder": make_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": make_scheduler(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], "unet": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def states(pipeline) -> dict[str, torch.Tensor]:
    """All weights of a pipeline by full name."""
    return {
        f"{name}.{key}": tensor
        for name, component in pipeline.components.items()
        if isinstance(component, torch.nn.Module)
        for key, tensor in component.state_dict().items()
    }


def product(seed: int, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> tuple[np.ndarray, np.ndarray]:
    """A product of noise on white and its mask: uint8 H×W×3 and H×W."""
    rng = np.random.default_rng(seed)
    image_u8 = np.full((height_px, width_px, 3), 255, np.uint8)
    mask_u8 = np.zeros((height_px, width_px), np.uint8)
    top, left = height_px // 4 + 8 * (seed % 3), width_px // 5 + 8 * (seed % 2)
    box = (slice(top, top + height_px // 2), slice(left, left + width_px // 2))
    image_u8[box] = rng.integers(0, 256, (height_px // 2, width_px // 2, 3))
    mask_u8[box] = 255
    return image_u8, mask_u8


def start(pipeline: RefAdGenPipeline, seed: int, prompt: str, *, size_px: tuple[int, int] | None = None, **settings):
    """A row of `pipeline` for product number `seed`."""
    image_u8, mask_u8 = product(seed, *(size_px or (WIDTH_PX, HEIGHT_PX)))
    return pipeline.start(
        pipeline.encode_reference([image_u8]), mask_u8, pipeline.encode_prompt(prompt), seed=seed, **settings
    )


def run(pipeline: RefAdGenPipeline, rows, **settings) -> list[torch.Tensor]:
    """The rows' final latents."""
    for _ in pipeline.denoise(rows, **settings):
        pass
    return [row.latents for row in rows]


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return ((one - other).abs().max() / other.abs().max()).item()
