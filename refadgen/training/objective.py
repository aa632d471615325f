"""Eq. 2: the denoising loss of the two U-Nets together, row by row, so that it splits over workers and passes."""

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


def draw_noise(seeds: list[int], shape: tuple[int, ...], noise_offset: float) -> Tensor:
    """ε ~ N(0, 1) plus `noise_offset` times one number per row and channel (Table 2: 0.05).

    seeds: one of each row, drawn on the CPU so that every device trains on the same noise. shape: C×h×w.
    Returns: float32 B×C×h×w.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator)
        rows.append(noise + noise_offset * torch.randn((shape[0], 1, 1), generator=generator))
    return torch.stack(rows)


def target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is to predict, ε or v, as the scheduler's `prediction_type` says. Raises: ValueError."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type={scheduler.config.prediction_type!r}: must be epsilon or v_prediction")


def min_snr_weights(scheduler: DDIMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights (arXiv 2303.09556, Sec. 3.4): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v. B."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    clipped = snr.clamp(max=gamma)
    return clipped / snr if scheduler.config.prediction_type == "epsilon" else clipped / (snr + 1)


def diffusion_losses(
    reference_unet: UNet2DConditionModel,
    generation_unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    batch: TrainingBatch,
    *,
    product_weight: float = 1.0,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Eq. 2 of each row, B. product_weight: of errors inside of M′ relative to those outside; 1 is the paper's."""
    captured = capture(reference_unet, batch.reference_latents, batch.reference_context)
    conditioning = condition(
        [PromptFeatures(project_prompt(generation_unet, batch.prompt_embeds))],
        [ReferenceFeatures(project(generation_unet, captured))],
        batch.fusion_scale,
        guidance=False,
        reference_in_uncond=True,
    )
    noisy_latents = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    predicted = predict(generation_unet, noisy_latents, batch.mask_latents, batch.timesteps, conditioning)
    wanted = target(scheduler, batch.latents, batch.noise, batch.timesteps)
    losses = weighted_mean_square(predicted.float() - wanted.float(), batch.mask_latents, product_weight)
    if min_snr_gamma is not None:
        losses = losses * min_snr_weights(scheduler, batch.timesteps, min_snr_gamma)
    return losses


def weighted_mean_square(errors: Tensor, mask_latents: Tensor, product_weight: float) -> Tensor:
    """Each row's mean of squared errors B×C×h×w that count `product_weight` times where `mask_latents` is 1. B."""
    weights = 1 + (product_weight - 1) * mask_latents.expand_as(errors)
    return (weights * errors.square()).flatten(1).sum(1) / weights.flatten(1).sum(1)
