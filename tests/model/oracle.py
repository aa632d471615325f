"""RefAdGen written down plainly, to compare the pipeline with: slow, and nothing is cached, shared or left out.

Both guidance branches run on doubled inputs through `UNet2DConditionModel.forward`; K and V of the prompt and of the
product are projected at every step; attention is two matrix products around a softmax; one scheduler serves the batch.
Only weights are taken from the pipeline under test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q Kᵀ / √d) V, head by head, on N×L×C."""
    outputs = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        outputs.append(torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v)
    return torch.cat(outputs, dim=-1)


@dataclass
class PlainAttention:
    """An attention that can record its input (Reference U-Net) or add the product's term (Generation U-Net)."""

    name: str
    recorded: dict[str, Tensor] | None = None
    reference: dict[str, Tensor] | None = None
    projections: tuple[Tensor, Tensor] | None = None
    """Weights of to_k_ref and to_v_ref."""
    row_scales: Tensor | None = None
    """λ of each network row, zero where the row does not see the product; N×1×1."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if self.recorded is not None:
            self.recorded[self.name] = hidden_states.clone()
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = hidden_states @ attn.to_q.weight.T
        output = softmax_attention(query, context @ attn.to_k.weight.T, context @ attn.to_v.weight.T, attn.heads)
        if self.reference is not None:
            hidden_ref, (to_k_ref, to_v_ref) = self.reference[self.name], self.projections
            term = softmax_attention(query, hidden_ref @ to_k_ref.T, hidden_ref @ to_v_ref.T, attn.heads)
            output = output + self.row_scales * term
        return output @ attn.to_out[0].weight.T + attn.to_out[0].bias


def plain_unet(config: dict, state: dict[str, Tensor]) -> UNet2DConditionModel:
    """A stock U-Net with the weights `state`; its input channels are the state's."""
    channels = state["conv_in.weight"].shape[1]
    unet = UNet2DConditionModel.from_config({**config, "in_channels": channels}).eval()
    unet.load_state_dict(state)
    return unet


@dataclass
class Oracle:
    """The networks of one model, as stock modules."""

    vae: nn.Module
    tokenizer: object
    text_encoder: nn.Module
    reference_unet: UNet2DConditionModel
    generation_unet: UNet2DConditionModel
    fusion: dict[str, Tensor]
    """AFM weights by `<layer>.to_k_ref.weight`, `<layer>.to_v_ref.weight`."""
    scheduler: object
    image_tokens: object = None
    """A function of a list of product images, uint8 H×W×3, to (tokens, tokens of the zero image); None: text mode."""

    @classmethod
    def of(cls, pipeline) -> "Oracle":
        """The oracle with copies of the pipeline's U-Nets."""
        state = pipeline.generation_unet.state_dict()
        fusion = {key.replace(".processor", ""): value for key, value in state.items() if ".processor." in key}
        state = {key: value for key, value in state.items() if ".processor." not in key}
        config = {key: value for key, value in pipeline.reference_unet.config.items() if not key.startswith("_")}
        image_tokens = None
        if pipeline.image_encoder is not None:
            image_tokens = ImageTokens(
                pipeline.feature_extractor, pipeline.image_encoder, pipeline.image_projection.resampler
            )
        return cls(
            vae=pipeline.vae,
            tokenizer=pipeline.tokenizer,
            text_encoder=pipeline.text_encoder,
            reference_unet=plain_unet(config, pipeline.reference_unet.state_dict()),
            generation_unet=plain_unet(config, state),
            fusion=fusion,
            scheduler=type(pipeline.scheduler).from_config(pipeline.scheduler.config),
            image_tokens=image_tokens,
        )

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states. Longer texts are cut."""
        length = self.tokenizer.model_max_length
        words = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(list(texts), **words).input_ids
        return self.text_encoder(ids).last_hidden_state

    def reference_hidden_states(self, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
        """Inputs of all self-attentions of the Reference U-Net at t = 0."""
        recorded: dict[str, Tensor] = {}
        processors = {}
        for key in self.reference_unet.attn_processors:
            name = key.removesuffix(".processor")
            processors[key] = PlainAttention(name, recorded=recorded if name.endswith("attn1") else None)
        self.reference_unet.set_attn_processor(processors)
        self.reference_unet(latents, 0, encoder_hidden_states=context)
        return recorded

    def predict(self, sample: Tensor, timestep, text: Tensor, hidden_refs: dict[str, Tensor], scales: Tensor) -> Tensor:
        """The Generation U-Net with Eq. 1 in every self-attention. scales: λ of each row of `sample`."""
        processors = {}
        for key in self.generation_unet.attn_processors:
            name = key.removesuffix(".processor")
            processors[key] = PlainAttention(name)
            if name.endswith("attn1"):
                weights = (self.fusion[f"{name}.to_k_ref.weight"], self.fusion[f"{name}.to_v_ref.weight"])
                processors[key] = PlainAttention(
                    name, reference=hidden_refs, projections=weights, row_scales=scales.view(-1, 1, 1)
                )
        self.generation_unet.set_attn_processor(processors)
        return self.generation_unet(sample, timestep, encoder_hidden_states=text).sample

    @torch.no_grad()
    def sample(
        self,
        images_u8: Sequence[np.ndarray],
        masks_u8: Sequence[np.ndarray],
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        fusion_scales: Sequence[float],
        guidance_scale: float = 7.5,
        num_inference_steps: int = 20,
        reference_in_uncond: bool = True,
        negative_prompt_context: bool = False,
    ) -> Tensor:
        """Final latents of a batch whose rows share guidance and steps."""
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 * 2 - 1 for image in images_u8])
        product_latents = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
        if self.image_tokens is None:
            tokens = self.text_states([""] * len(images_u8))
            zero_tokens = self.text_states(negative_prompts) if negative_prompt_context else tokens
        else:
            tokens, zero_tokens = self.image_tokens(images_u8)
        hidden_refs = self.reference_hidden_states(
            torch.cat([product_latents, product_latents]), torch.cat([zero_tokens, tokens])
        )
        text = torch.cat([self.text_states(negative_prompts), self.text_states(prompts)])
        scales = torch.tensor([s if reference_in_uncond else 0.0 for s in fusion_scales] + list(fusion_scales))
        factor = 8
        mask = torch.stack([torch.from_numpy(m[::factor, ::factor] > 127).float()[None] for m in masks_u8])
        noise = [torch.randn((1, 4, *mask.shape[2:]), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.cat(noise) * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, timestep)
            inputs = torch.cat([torch.cat([scaled, mask], dim=1)] * 2)
            unconditional, conditional = self.predict(inputs, timestep, text, hidden_refs, scales).chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(guided, timestep, latents).prev_sample
        return latents


@dataclass
class ImageTokens:
    """Tokens of products and of the zero image from any Resampler."""

    feature_extractor: object
    image_encoder: nn.Module
    resampler: object

    def __call__(self, images_u8: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        pixels = self.feature_extractor(images=list(images_u8), return_tensors="pt").pixel_values
        both = [self.image_encoder(x, output_hidden_states=True).hidden_states[-2] for x in (pixels, 0 * pixels)]
        return self.resampler(both[0]), self.resampler(both[1])
