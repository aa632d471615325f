"""Eq. 2: the denoising loss of the two U-Nets together."""

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from refadgen.model.attention_fusion import (
    PromptFeatures,
    ReferenceFeatures,
    capture,
    condition,
    project,
    project_prompt,
)
from refadgen.model.unets import predict


@dataclass(frozen=True)
class TrainingBatch:
    """B rows of Eq. 2, everything random already drawn."""

    latents: Tensor
    """z_0 of the ads, scaled, B×C×h×w."""
    reference_latents: Tensor
    """z_ref of the product images, scaled, B×C×h×w."""
    mask_latents: Tensor
    """M′, B×1×h×w, 0 or 1."""
    prompt_embeds: Tensor
    """c_text, B×tokens×channels."""
    reference_context: Tensor
    """The Reference U-Net's encoder hidden states, B×tokens×channels."""
    noise: Tensor
    """ε with its offset, B×C×h×w."""
    timesteps: Tensor
    """B, integers."""
    fusion_scale: Tensor
    """λ, B: 1, or 0 where the reference is dropped."""


def draw_noise(shape: tuple[int, ...], noise_offset: float, generator: torch.Generator) -> Tensor:
    """ε ~ N(0, 1) plus `noise_offset` times one number per row and channel (Table 2: 0.05)."""
    noise = torch.randn(shape, generator=generator)
    return noise + noise_offset * torch.randn((*shape[:2], 1, 1), generator=generator)


def diffusion_loss(
    reference_unet: UNet2DConditionModel,
    generation_unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    batch: TrainingBatch,
    *,
    product_weight: float = 1.0,
) -> Tensor:
    """Eq. 2, mean over the batch; the target is ε or v, as the scheduler's `prediction_type` says.

    product_weight: of the errors inside of M′ relative to those outside; 1 is the paper's.
    Raises: ValueError for another prediction type.
    """
    noisy_latents = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    if scheduler.config.prediction_type == "epsilon":
        target = batch.noise
    elif scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    else:
        raise ValueError(f"prediction_type={scheduler.config.prediction_type!r}: must be epsilon or v_prediction")
    captured = capture(reference_unet, batch.reference_latents, batch.reference_context)
    conditioning = condition(
        [PromptFeatures(project_prompt(generation_unet, batch.prompt_embeds))],
        [ReferenceFeatures(project(generation_unet, captured))],
        batch.fusion_scale,
        guidance=False,
        reference_in_uncond=True,
    )
    predicted = predict(generation_unet, noisy_latents, batch.mask_latents, batch.timesteps, conditioning)
    return weighted_mean_square(predicted.float() - target.float(), batch.mask_latents, product_weight)


def weighted_mean_square(errors: Tensor, mask_latents: Tensor, product_weight: float) -> Tensor:
    """Mean of squared errors B×C×h×w that count `product_weight` times where `mask_latents` (B×1×h×w) is 1."""
    weights = 1 + (product_weight - 1) * mask_latents.expand_as(errors)
    return (weights * errors.square()).sum() / weights.sum()
