"""Eq. 2: the denoising loss of the two U-Nets together. It is computed per row, so that workers can share a batch."""

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
    """B rows of Eq. 2. All random values are drawn already."""

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

    seeds: one for each row. shape: C×h×w. Noise is drawn on the CPU: a GPU's generator gives other numbers.
    Returns: float32 B×C×h×w.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator)
        rows.append(noise + noise_offset * torch.randn((shape[0], 1, 1), generator=generator))
    return torch.stack(rows)


def target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The target of the prediction by the scheduler's `prediction_type`: ε or v, B×C×h×w. Raises: ValueError."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type={scheduler.config.prediction_type!r}: must be epsilon or v_prediction")


def min_snr_weights(scheduler: DDIMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights, B (arXiv 2303.09556, Sec. 3.4): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    clipped = snr.clamp(max=gamma)
    # SNR is 0 at the last timestep of a zero terminal SNR; the settings refuse that together with ε.
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
    """Eq. 2 for each row, B.

    product_weight: weight of errors inside M′ relative to those outside; the paper's is 1. min_snr_gamma: γ of
    `min_snr_weights`; None: rows have equal weights, as in the paper.
    """
    captured = capture(reference_unet, batch.reference_latents, batch.reference_context)
    conditioning = condition(
        [PromptFeatures(project_prompt(generation_unet, batch.prompt_embeds))],
        [ReferenceFeatures(project(generation_unet, captured))],
        batch.fusion_scale,
        guidance=False,
        reference_in_uncond=True,
    )
    noisy_latents = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    predicted, _ = predict(generation_unet, noisy_latents, batch.mask_latents, batch.timesteps, conditioning)
    # Squares and sums in float32: under autocast the prediction is bfloat16.
    targets = target(scheduler, batch.latents, batch.noise, batch.timesteps)
    losses = weighted_mean_square(predicted.float() - targets.float(), batch.mask_latents, product_weight)
    if min_snr_gamma is not None:
        losses = losses * min_snr_weights(scheduler, batch.timesteps, min_snr_gamma)
    return losses


def weighted_mean_square(errors: Tensor, mask_latents: Tensor, product_weight: float) -> Tensor:
    """The weighted mean of squared errors of each row, B.

    errors: B×C×h×w. mask_latents: B×1×h×w; the weight is `product_weight` where it is 1, and 1 where it is 0.
    """
    weights = 1 + (product_weight - 1) * mask_latents.expand_as(errors)
    return (weights * errors.square()).flatten(1).sum(1) / weights.flatten(1).sum(1)
