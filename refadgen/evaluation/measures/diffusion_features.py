"""Features of a Stable Diffusion, as DIFT (Tang et al. 2023) takes them: of one noisy step, from within its U-Net.

MP-LPIPS matches points by them: t = 41, the third block on the way up, a mean over draws of noise.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from refadgen.evaluation.measures.picture import ImageU8
from refadgen.evaluation.measures.table import licensed

_TIMESTEP = 41
_UP_BLOCK = 2


class DiffusionFeatures:
    """Pictures, uint8 H×W×3 (sides multiples of 8), to features, channels×h×w."""

    def __init__(self, path_or_id: str, prompt: str, ensemble: int, device: torch.device) -> None:
        """Raises: ValueError naming `mp_lpips.features` where there is no complete Stable Diffusion."""
        from diffusers import StableDiffusionPipeline

        try:
            pipeline: Any = StableDiffusionPipeline.from_pretrained(
                path_or_id, torch_dtype=torch.float32, safety_checker=None, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"mp_lpips.features={path_or_id!r}: no Stable Diffusion of diffusers: {error}") from error
        if len(pipeline.unet.up_blocks) <= _UP_BLOCK:
            raise ValueError(
                f"mp_lpips.features={path_or_id!r}: its U-Net has {len(pipeline.unet.up_blocks)} blocks on the way up, "
                f"{_UP_BLOCK + 1} are needed"
            )
        self._vae, self._unet = pipeline.vae.eval().to(device), pipeline.unet.eval().to(device)
        self._ensemble, self._device = ensemble, device
        self._noise_share = 1 - pipeline.scheduler.alphas_cumprod[_TIMESTEP]
        with torch.inference_mode():
            encoder = pipeline.text_encoder.to(device)
            self._states = pipeline.encode_prompt(prompt, device, 1, do_classifier_free_guidance=False)[0]
            del encoder
        how = f"DIFT, t = {_TIMESTEP}, block {_UP_BLOCK}, {ensemble} draws, prompt {prompt!r}"
        self.label = f"{licensed(path_or_id)}, {how}"

    def __call__(self, image_u8: ImageU8) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image_u8)).permute(2, 0, 1)[None].float() / 127.5 - 1
        kept: list[Tensor] = []
        hook = self._unet.up_blocks[_UP_BLOCK].register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            with torch.inference_mode():
                latents = self._vae.encode(pixels.to(self._device)).latent_dist.mean * self._vae.config.scaling_factor
                shape = (self._ensemble, *latents.shape[1:])
                # The same noise for every picture: a number must not depend on company.
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._device)
                noisy = (1 - self._noise_share) ** 0.5 * latents + self._noise_share**0.5 * noise
                self._unet(noisy, _TIMESTEP, encoder_hidden_states=self._states.expand(self._ensemble, -1, -1))
        finally:
            hook.remove()
        return kept[0].mean(0)
