"""FLOPs of one guided denoising step at full Stable Diffusion 1.5 size: stock U-Net against RefAdGen's own step.

    python tests/benchmarks/step_flops.py

Counted on meta tensors, which have shapes and no numbers: seconds, and next to no memory. Ours is `DenoisingBatch.step`
with conditioning from the pipeline's own encoders, the product in both guidance branches, latents of 80×64. What is
done once per product or prompt is printed apart. Exit code 1 above a ratio of 1.19. The last line is JSON.
"""

import dataclasses
import json
import sys
import warnings

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from refadgen.model import RefAdGenPipeline
from refadgen.model.attention_fusion import condition, repeat_rows
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.unets import make_generation_unet, make_reference_unet, predict

WIDTH_PX, HEIGHT_PX = 512, 640
TEXT_TOKENS, TEXT_WIDTH = 77, 768
LARGEST_RATIO = 1.19


class ShapeScheduler(DDIMScheduler):
    """A scheduler for tensors without numbers. What it leaves out is elementwise, which no FLOP counter counts."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return DDIMSchedulerOutput(prev_sample=sample, pred_original_sample=sample)


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,  # heads, in spite of its name
        cross_attention_dim=TEXT_WIDTH,
    ).eval()


def make_vae() -> AutoencoderKL:
    """Stable Diffusion's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    ).eval()


def make_tokenizer() -> CLIPTokenizer:
    """Single letters: FLOPs depend on the number of tokens only, and that is always 77."""
    words = [*"abcdefghijklmnopqrstuvwxyz", *[f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]]
    vocab = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_TOKENS)


def make_text_encoder() -> CLIPTextModel:
    """CLIP ViT-L's text half, as in Stable Diffusion 1.5."""
    config = CLIPTextConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return CLIPTextModel(config).eval()


def make_image_parts() -> dict:
    """CLIP ViT-H and the Resampler of IP-Adapter Plus: the authors' context of the Reference U-Net."""
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    return {
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "image_projection": ProductImageProjection().eval(),
        "feature_extractor": CLIPImageProcessor(),
    }


def make_meta_pipeline(*, image_encoder: bool) -> RefAdGenPipeline:
    """A pipeline with shapes and no numbers."""
    with torch.device("meta"):
        scheduler = ShapeScheduler(beta_schedule="scaled_linear", steps_offset=1)
        return make_pipeline(image_encoder=image_encoder, scheduler=scheduler)


def make_pipeline(*, image_encoder: bool, scheduler: DDIMScheduler) -> RefAdGenPipeline:
    base = make_unet()
    return RefAdGenPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
        reference_unet=make_reference_unet(base),
        generation_unet=make_generation_unet(base),
        scheduler=scheduler,
        **(make_image_parts() if image_encoder else {}),
    )


def product() -> tuple[np.ndarray, np.ndarray]:
    """Any product image and mask of the right size."""
    return np.full((HEIGHT_PX, WIDTH_PX, 3), 255, np.uint8), np.full((HEIGHT_PX, WIDTH_PX), 255, np.uint8)


class Tflop:
    """Counts what runs inside the block, in TFLOP (2 for a multiply-add)."""

    def __enter__(self) -> "Tflop":
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._counter.__exit__(*exception)
        self.value = self._counter.get_total_flops() / 1e12
        self.by_kind = {str(kind): n / 1e12 for kind, n in self._counter.get_flop_counts()["Global"].items()}


@torch.no_grad()
def count_plain() -> float:
    """A guided step of the stock U-Net: one forward pass on a batch of two."""
    with torch.device("meta"):
        unet = make_unet()
        inputs = (torch.empty(2, 4, HEIGHT_PX // 8, WIDTH_PX // 8), torch.empty(2), torch.empty(2, TEXT_TOKENS, 768))
    with Tflop() as tflop:
        unet(*inputs)
    return tflop.value


def count_ours(pipeline: RefAdGenPipeline) -> tuple[float, dict[str, float]]:
    """RefAdGen's guided step, and the costs that arise once per product and once per prompt."""
    image_u8, mask_u8 = product()
    with Tflop() as reference_tflop:
        reference = pipeline.encode_reference([image_u8])
    with Tflop() as prompt_tflop:
        prompt = pipeline.encode_prompt("a")
    row = pipeline.start(reference, mask_u8, prompt, seed=0, guidance_scale=7.5, num_inference_steps=20)
    batch = pipeline.batch(reference_in_uncond=True)
    batch.add(row)
    with Tflop() as step_tflop:
        batch.step()
    assert row.step_index == 1
    assert row.latents.shape == (1, 4, HEIGHT_PX // 8, WIDTH_PX // 8)
    return step_tflop.value, {"reference": reference_tflop.value, "prompt": prompt_tflop.value}


@torch.no_grad()
def count_sharing(pipeline: RefAdGenPipeline, *, reference_in_uncond: bool) -> tuple[float, float]:
    """A guided pass of the Generation U-Net: by `predict`, and by diffusers' own forward on doubled inputs."""
    image_u8, _ = product()
    reference, prompt = pipeline.encode_reference([image_u8]), pipeline.encode_prompt("a")
    with torch.device("meta"):
        latents, mask = (
            torch.empty(1, 4, HEIGHT_PX // 8, WIDTH_PX // 8),
            torch.empty(1, 1, HEIGHT_PX // 8, WIDTH_PX // 8),
        )
        timesteps, fusion_scale = torch.empty(1), torch.empty(1)
    conditioning = condition(
        [prompt], [reference], fusion_scale, guidance=True, reference_in_uncond=reference_in_uncond
    )
    with Tflop() as shared:
        predict(pipeline.generation_unet, latents, mask, timesteps, conditioning)
    twice = dict(conditioning.reference)
    layer = conditioning.shared_layer
    if reference_in_uncond:  # K_ref and V_ref for both branches in the shared layer too
        key, value = twice[layer]
        twice[layer] = (repeat_rows(key, 2), repeat_rows(value, 2))
    plain = dataclasses.replace(conditioning, reference=twice, shared_layer=None)
    inputs = repeat_rows(torch.cat([latents, mask], dim=1), 2), repeat_rows(timesteps, 2), None
    with Tflop() as doubled:
        pipeline.generation_unet(*inputs, cross_attention_kwargs={"conditioning": plain})
    return shared.value, doubled.value


def measure() -> dict[str, float]:
    """All numbers of the last line."""
    plain = count_plain()
    with_encoder, without = make_meta_pipeline(image_encoder=True), make_meta_pipeline(image_encoder=False)
    ours, once = count_ours(with_encoder)
    no_encoder, once_no_encoder = count_ours(without)
    for name, step, apart in (("image encoder", ours, once), ("no image encoder", no_encoder, once_no_encoder)):
        print(f"{name}: step {step:.4f} TFLOP, {step / plain:.4f} of the stock U-Net's {plain:.4f}")
        print(f"  once per product: {apart['reference']:.4f} TFLOP (VAE, context, Reference U-Net, K_ref and V_ref)")
        print(f"  once per prompt:  {apart['prompt']:.4f} TFLOP (text encoder, K and V of both branches)")
    saved: dict[str, float] = {}
    for name, pipeline, in_uncond in (
        ("saved_both_branches", with_encoder, True),
        ("saved_both_branches_no_encoder", without, True),
        ("saved_one_branch", with_encoder, False),
    ):
        shared, doubled = count_sharing(pipeline, reference_in_uncond=in_uncond)
        saved[name] = round(1 - shared / doubled, 5)
        print(f"{name}: predict {shared:.4f} TFLOP, {saved[name]:.2%} less than a forward pass on doubled inputs")
    return {
        "plain_tflop": round(plain, 6),
        "ours_tflop": round(ours, 6),
        "ours_no_encoder_tflop": round(no_encoder, 6),
        "ratio": round(ours / plain, 5),
        "ratio_no_encoder": round(no_encoder / plain, 5),
        "reference_once_tflop": round(once["reference"], 4),
        "reference_once_no_encoder_tflop": round(once_no_encoder["reference"], 4),
        "prompt_once_tflop": round(once["prompt"], 4),
        **saved,
    }


def main() -> int:
    warnings.filterwarnings("ignore")
    numbers = measure()
    print(json.dumps(numbers))
    return 1 if max(numbers["ratio"], numbers["ratio_no_encoder"]) > LARGEST_RATIO else 0


if __name__ == "__main__":
    sys.exit(main())
