"""The frozen encoders: pictures to latents, masks to M′, texts and product images to hidden states.

The functions are the only code that encodes. `RefAdGenPipeline` calls them when it samples; `Encoders` calls them for
training, in the actors that precompute and, where nothing is precomputed, in the training workers. So a model is
sampled with the same arithmetic that it was trained on. The caller chooses the number format of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection


def pixels_from_u8(images_u8: Tensor) -> Tensor:
    """uint8 N×H×W×3 → float32 N×3×H×W in −1…1, contiguous, on the same device."""
    # On channels-last tensors PyTorch's group norm loses three digits on the CPU: latents would be off by 8e-3.
    return images_u8.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1.0


def u8_from_pixels(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """float N×3×H×W in −1…1 → uint8 N×H×W×3; values beyond the range are clipped."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    images_u8: npt.NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return images_u8


def latent_factor(vae: AutoencoderKL) -> int:
    """Pixels to a side of one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor, *, scaled_in: torch.dtype) -> Tensor:
    """Scaled latents of images: the mean of the VAE's distribution, since a reference must be deterministic.

    pixels: N×3×H×W in −1…1. scaled_in: number format of the result, and of the shift and the scaling.
    Returns: N×C×h×w on the VAE's device.
    """
    mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean.to(scaled_in)
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def encode_masks(masks_u8: npt.NDArray[np.uint8], factor: int) -> Tensor:
    """M′: masks at latent size, nearest, threshold 0.5. uint8 N×H×W → float32 N×1×h×w, 0 or 1, on the CPU."""
    masks = torch.from_numpy((masks_u8 >= 128).astype(np.float32))[:, None]
    size = [side // factor for side in masks_u8.shape[1:]]
    return F.interpolate(masks, size=size, mode="nearest")


def num_tokens(tokenizer: CLIPTokenizer, text: str) -> int:
    """Tokens of a text, start and end tokens included."""
    return len(tokenizer(text, truncation=False).input_ids)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids padded, and cut, to the text encoder's length. int64 N×tokens on the CPU."""
    ids: Tensor = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


@torch.no_grad()
def encode_texts(text_encoder: CLIPTextModel, token_ids: Tensor) -> Tensor:
    """The text encoder's last hidden states, N×tokens×channels, in its own number format. token_ids: N×tokens."""
    states: Tensor = text_encoder(token_ids.to(text_encoder.device).long())[0]
    return states


def clip_pixels(feature_extractor: CLIPImageProcessor, images_u8: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """The image encoder's input: images resized, cropped and normalised. uint8 H×W×3 each → float32 N×3×s×s."""
    extracted: Any = feature_extractor(images=[Image.fromarray(image) for image in images_u8])
    return torch.stack([torch.as_tensor(image) for image in extracted["pixel_values"]])


@torch.no_grad()
def encode_clip_pixels(image_encoder: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    """The image encoder's second-last hidden states, N×patches×channels, in its own number format.

    pixels: as from `clip_pixels`; zeros stand for no product.
    """
    inputs = pixels.to(image_encoder.device, image_encoder.dtype)
    states: Tensor = image_encoder(inputs, output_hidden_states=True).hidden_states[-2]
    return states


@dataclass(frozen=True)
class Encoders:
    """The networks of a base that training never changes. The text encoder only where it is frozen.

    All results are float32, on `device` where a network made them.
    """

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel | None
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None
    device: torch.device
    dtype: torch.dtype

    def prepared(self) -> "Encoders":
        """Moved to the device, in the dtype, in evaluation mode, without gradients."""
        for network in (self.vae, self.text_encoder, self.image_encoder):
            if network is not None:
                network.to(self.device, self.dtype).eval().requires_grad_(False)
        return self

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to a side of one latent."""
        return latent_factor(self.vae)

    def latents(self, images_u8: npt.NDArray[np.uint8]) -> Tensor:
        """Scaled latents. uint8 n×H×W×3 → float32 n×C×h×w on the device."""
        # To the device as bytes: a quarter of the transfer.
        pixels = pixels_from_u8(torch.from_numpy(np.ascontiguousarray(images_u8)).to(self.device))
        # Scaled in float32 whatever the VAE's format: the cache keeps these numbers for all epochs.
        return encode_images(self.vae, pixels, scaled_in=torch.float32)

    def mask_latents(self, masks_u8: npt.NDArray[np.uint8]) -> Tensor:
        """M′ at latent size, nearest, 0 or 1. uint8 n×H×W → n×1×h×w on the device."""
        return encode_masks(masks_u8, self.vae_scale_factor).to(self.device)

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """Padded and cut to the encoder's length: n×tokens. The pipeline refuses long prompts instead."""
        return tokenize(self.tokenizer, texts)  # a long caption still teaches by its beginning

    def text_states(self, token_ids: Tensor) -> Tensor:
        """The frozen text encoder's last hidden states, n×tokens×channels."""
        assert self.text_encoder is not None
        return encode_texts(self.text_encoder, token_ids).float()

    def clip_pixels(self, images_u8: npt.NDArray[np.uint8]) -> Tensor:
        """The image encoder's input, n×3×s×s on the CPU. images_u8: uint8 n×H×W×3."""
        assert self.feature_extractor is not None
        return clip_pixels(self.feature_extractor, list(images_u8))

    def image_states(self, clip_pixels: Tensor) -> Tensor:
        """The image encoder's second-last hidden states, n×patches×channels."""
        assert self.image_encoder is not None
        return encode_clip_pixels(self.image_encoder, clip_pixels).float()
