"""Trains the small VAE of the built-in model on random crops of product photographs and ads."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from refadgen.model.encoders import pixels_from_u8

LATENT_WEIGHT = 1e-3
LATENT_NOISE = 0.1
THUMBNAIL_SCALE = 2.0


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The VAE's loss: L1 and L2 of pixels, and L1 of the differences between neighbouring pixels (edges).

    pixels: N×3×H×W in −1…1. dtype: of the networks' arithmetic (autocast). Two terms help a network this small. The
    first three latent channels are pulled to the picture's own thumbnail: without it, each axis of colour is learned
    hundreds of steps after the one before. And in place of the posterior's KL term, latents are kept near unit scale
    and decoded with a little noise.
    """
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        latents = vae.encode(pixels).latent_dist.mean.float()
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample.float()
    loss = F.l1_loss(decoded, pixels) + 2 * F.mse_loss(decoded, pixels)
    for axis in (-1, -2):
        loss = loss + F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis))
    thumbnail = THUMBNAIL_SCALE * F.adaptive_avg_pool2d(pixels, latents.shape[-2:])
    return loss + F.mse_loss(latents[:, :3], thumbnail) + LATENT_WEIGHT * latents.square().mean()


def train_autoencoder(
    vae: AutoencoderKL,
    images_u8: np.ndarray,
    *,
    num_steps: int,
    centers_yx: np.ndarray | None = None,
    batch_size: int = 8,
    crop_px: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] = print,
) -> None:
    """Trains `vae` in place, then sets `shift_factor` and `scaling_factor` so that latents have mean 0 and deviation 1.

    images_u8: uint8 n×H×W×3. centers_yx: int n×2, the product's centre in each image. Half of the crops lie around it,
    because print is finer than backdrops; None: all crops are anywhere. crop_px: side of the square crops. dtype: of
    the arithmetic; bfloat16 is faster only where the processor has instructions for it. report: gets a line of progress
    every 100 steps.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.05)
    height, width = images_u8.shape[1:3]
    started = time.monotonic()
    mean_loss = 0.0
    vae.train()
    for step in range(num_steps):
        crops = []
        for index in rng.integers(len(images_u8), size=batch_size):
            top, left = rng.integers(height - crop_px + 1), rng.integers(width - crop_px + 1)
            if centers_yx is not None and rng.random() < 0.5:
                # The crop's centre is up to half a crop away from the product's.
                near = centers_yx[index] + rng.integers(-crop_px // 2, crop_px // 2 + 1, 2) - crop_px // 2
                top, left = np.clip(near, 0, [height - crop_px, width - crop_px])
            crop = images_u8[index, top : top + crop_px, left : left + crop_px]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        pixels = pixels_from_u8(torch.from_numpy(np.stack(crops)))
        loss = reconstruction_loss(vae, pixels, dtype)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 50)
        if (step + 1) % 100 == 0:
            report(f"vae step {step + 1}/{num_steps} loss {mean_loss:.4f} {time.monotonic() - started:.0f} s")
    vae.eval()
    # About 256 images are enough for two numbers, and they must not be the first ones: those are of few products.
    _set_latent_scale(vae, images_u8[:: max(1, len(images_u8) // 256)])


@torch.no_grad()
def _set_latent_scale(vae: AutoencoderKL, images_u8: np.ndarray) -> None:
    """Measures mean and deviation of the latents of some images and stores them in the VAE's configuration."""
    latents = encode_images(vae, images_u8)
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 5), scaling_factor=round(1 / latents.std().item(), 5)
    )


@torch.no_grad()
def encode_images(
    vae: AutoencoderKL, images_u8: np.ndarray, batch_size: int = 16, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Unscaled latents of images: the means of the VAE's distribution. uint8 n×H×W×3 → float32 n×C×h×w.

    dtype: of the arithmetic.
    """
    parts = []
    for start in range(0, len(images_u8), batch_size):
        pixels = pixels_from_u8(torch.from_numpy(images_u8[start : start + batch_size]))
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            parts.append(vae.encode(pixels).latent_dist.mean.float())
    return torch.cat(parts)
