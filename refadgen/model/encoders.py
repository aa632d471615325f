"""The frozen encoders: pictures to latents, captions to embeddings, product images to image states.

Used by the precomputing actors and, where nothing is precomputed, by the training workers: the same functions, so both
train on the same numbers but for the crop.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection


@dataclass(frozen=True)
class Encoders:
    """The networks of a base that training never changes. The text encoder only where it is frozen."""

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
        if self.device.type == "cpu":
            self.vae.to(memory_format=torch.channels_last)
        return self

    @property
    def vae_scale_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def latents(self, images_u8: np.ndarray) -> Tensor:
        """Scaled latents, the means of the VAE's distribution. uint8 n×H×W×3 → n×C×h×w on the device."""
        pixels = torch.from_numpy(np.ascontiguousarray(images_u8)).to(self.device)
        pixels = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(self.dtype)
        mean = self.vae.encode(pixels).latent_dist.mean.float()
        return (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def mask_latents(self, masks_u8: np.ndarray) -> Tensor:
        """M′ at latent size, nearest, 0 or 1. uint8 n×H×W → n×1×h×w on the device."""
        masks = torch.from_numpy((masks_u8 > 127).astype(np.float32))[:, None].to(self.device)
        size = [side // self.vae_scale_factor for side in masks_u8.shape[1:]]
        return F.interpolate(masks, size=size, mode="nearest")

    def token_ids(self, texts: list[str]) -> Tensor:
        """Padded and, unlike in the pipeline, cut to the encoder's length: n×tokens. A long caption still teaches."""
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def text_states(self, token_ids: Tensor) -> Tensor:
        """The frozen text encoder's last hidden states, n×tokens×channels."""
        assert self.text_encoder is not None
        return self.text_encoder(token_ids.to(self.device).long())[0].float()

    def clip_pixels(self, images_u8: np.ndarray) -> Tensor:
        """What the image encoder takes, n×3×s×s."""
        assert self.feature_extractor is not None
        extracted: Any = self.feature_extractor(images=[Image.fromarray(image) for image in images_u8])
        return torch.stack([torch.as_tensor(image) for image in extracted["pixel_values"]])

    @torch.no_grad()
    def image_states(self, clip_pixels: Tensor) -> Tensor:
        """The image encoder's second-last hidden states, n×patches×channels."""
        assert self.image_encoder is not None
        inputs = clip_pixels.to(self.device, self.dtype)
        return self.image_encoder(inputs, output_hidden_states=True).hidden_states[-2].float()
