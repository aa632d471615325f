"""The three systems that are compared, over one copy of the weights.

`ours` is the project's pipeline as the generation job uses it. `authors` restates the published loop from the paper and
from what is known of its operations: the Reference U-Net runs once, K_ref and V_ref are projected again at every step,
both guidance branches run in full, and the encoders run once for each image of a batch. `plain` is diffusers'
StableDiffusionPipeline without a reference.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from proof_setup import GUIDANCE_SCALE, Setup
from torch import Tensor, nn

from refadgen.model import unets
from refadgen.model.attention_fusion import (
    capture,
    detached,
    fusion_processors,
    prompt_attention_layers,
    self_attention_layers,
)
from refadgen.model.encoders import clip_pixels, encode_clip_pixels, u8_from_pixels

Variant = Literal["eager", "blocks", "whole", "graphs"]
SYSTEMS = ("ours", "authors", "plain")
PROMPT = "a"
ImagesU8 = npt.NDArray[np.uint8]


class System(Protocol):
    """One way to make a batch of images."""

    unet: UNet2DConditionModel
    """The network that runs at every step."""

    def loop(self, num_steps: int) -> Tensor:
        """The denoising loop alone, from features to latents B×4×h×w. Nothing is encoded or decoded."""

    def whole(self, num_steps: int) -> ImagesU8:
        """From the product's picture and the prompt to pictures, uint8 B×H×W×3."""

    def compile_whole(self, mode: str, backend: str) -> None:
        """Compiles the network of a step as one graph."""


class Ours:
    """The project's pipeline: features once per product and prompt, padded batches, one row a pass when decoding."""

    def __init__(self, setup: Setup, batch: int) -> None:
        self._setup, self._batch = setup, batch
        self._pipeline = setup.pipeline
        self.unet = setup.pipeline.generation_unet
        self._pipeline._predict = unets.predict
        self._reference = self._pipeline.encode_reference([setup.canvas])
        self._prompt = self._pipeline.encode_prompt(PROMPT)

    def loop(self, num_steps: int) -> Tensor:
        rows = [
            self._pipeline.start(
                self._reference,
                self._setup.mask,
                self._prompt,
                seed=seed,
                guidance_scale=GUIDANCE_SCALE,
                num_inference_steps=num_steps,
            )
            for seed in range(self._batch)
        ]
        for _ in self._pipeline.denoise(rows, batch_size=self._batch, reference_in_uncond=True):
            pass
        self._rows = rows
        return torch.cat([row.latents for row in rows])

    def whole(self, num_steps: int) -> ImagesU8:
        self._reference = self._pipeline.encode_reference([self._setup.canvas])
        self._prompt = self._pipeline.encode_prompt(PROMPT)
        self.loop(num_steps)
        images: ImagesU8 = self._pipeline.decode(self._rows)
        return images

    def compile_whole(self, mode: str, backend: str) -> None:
        if backend == "inductor":
            self._pipeline.optimize(compile=True, cuda_graphs=mode == "reduce-overhead")  # as `model.compile` does
        else:
            self._pipeline._predict = torch.compile(unets.predict, backend=backend)


class AuthorsFusion:
    """Self-attention and λ = 1 times attention to the product, whose K and V are projected here, at every step."""

    def __init__(self, layer: str, to_k_ref: nn.Linear, to_v_ref: nn.Linear) -> None:
        self._layer, self._to_k_ref, self._to_v_ref = layer, to_k_ref, to_v_ref
        self._scale = 1.0

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: dict[str, Tensor] | None = None,
    ) -> Tensor:
        assert reference is not None

        def heads(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        h = reference[self._layer]
        query = heads(attn.to_q(hidden_states))
        own = F.scaled_dot_product_attention(query, heads(attn.to_k(hidden_states)), heads(attn.to_v(hidden_states)))
        other = F.scaled_dot_product_attention(query, heads(self._to_k_ref(h)), heads(self._to_v_ref(h)))
        joined = (own + self._scale * other).transpose(1, 2).flatten(2)
        output: Tensor = attn.to_out[1](attn.to_out[0](joined))
        return output


class AuthorsPrompt(AttnProcessor2_0):
    """diffusers' attention. It only names the keyword, which diffusers gives to all layers."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: dict[str, Tensor] | None = None,
    ) -> Tensor:
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


@contextmanager
def authors_processors(unet: UNet2DConditionModel) -> Iterator[None]:
    """Inside the block the Generation U-Net attends as the published code does, with its own weights."""
    own = {f"{layer}.processor": unet.get_submodule(layer).processor for layer in self_attention_layers(unet)}
    own |= {f"{layer}.processor": unet.get_submodule(layer).processor for layer in prompt_attention_layers(unet)}
    theirs: dict[str, object] = {
        f"{layer}.processor": AuthorsFusion(layer, afm.to_k_ref, afm.to_v_ref)
        for layer, afm in fusion_processors(unet).items()
    }
    theirs |= {f"{layer}.processor": AuthorsPrompt() for layer in prompt_attention_layers(unet)}
    unet.set_attn_processor(theirs)
    try:
        yield
    finally:
        unet.set_attn_processor(own)


class Authors:
    """The published loop. Use inside `authors_processors`."""

    def __init__(self, setup: Setup, batch: int) -> None:
        self._setup, self._batch = setup, batch
        self._pipeline = setup.pipeline
        self.unet = setup.pipeline.generation_unet
        self._encode()

    @torch.no_grad()
    def _encode(self) -> None:
        """Text, product image and reference pass of both branches, each for all images of the batch."""
        pipeline, count = self._pipeline, self._batch
        text = pipeline._text_states([""] * count + [PROMPT] * count)
        pixels = clip_pixels(pipeline.feature_extractor, [self._setup.canvas] * count)
        tokens = []
        for inputs in (torch.zeros_like(pixels), pixels):
            states = encode_clip_pixels(pipeline.image_encoder, inputs)
            tokens.append(pipeline.image_projection(states).to(self._setup.dtype))
        latents = pipeline.encode_image(np.stack([self._setup.canvas] * count))
        self._text = text
        self._reference = capture(pipeline.reference_unet, torch.cat([latents] * 2), torch.cat(tokens))
        self._mask = pipeline.mask_latents(self._setup.mask).expand(2 * count, -1, -1, -1).contiguous()

    @torch.no_grad()
    def loop(self, num_steps: int) -> Tensor:
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(num_steps, device=self._setup.device)
        latents = noise(self._setup, self._batch) * scheduler.init_noise_sigma
        kwargs = {"reference": self._reference}
        for timestep in scheduler.timesteps:
            inputs = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            inputs = torch.cat([inputs, self._mask], dim=1)
            predicted = self.unet(inputs, timestep, self._text, cross_attention_kwargs=kwargs, return_dict=False)[0]
            unconditional, conditional = predicted.chunk(2)
            predicted = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def whole(self, num_steps: int) -> ImagesU8:
        self._encode()
        vae = self._pipeline.vae
        return u8_from_pixels(vae.decode(self.loop(num_steps) / vae.config.scaling_factor).sample)

    def compile_whole(self, mode: str, backend: str) -> None:
        compile_unet(self.unet, mode, backend)


class Plain:
    """StableDiffusionPipeline on the Reference U-Net, which has the base's architecture. Use inside `detached`."""

    def __init__(self, setup: Setup, batch: int) -> None:
        self._setup, self._batch = setup, batch
        pipeline = setup.pipeline
        self.unet = pipeline.reference_unet
        self._pipeline = StableDiffusionPipeline(
            vae=pipeline.vae,
            text_encoder=pipeline.text_encoder,
            tokenizer=pipeline.tokenizer,
            unet=self.unet,
            scheduler=copy.deepcopy(pipeline.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._text = pipeline._text_states(["", PROMPT])

    def loop(self, num_steps: int) -> Tensor:
        latents: Tensor = self._pipeline(
            prompt_embeds=self._text[1:],
            negative_prompt_embeds=self._text[:1],
            latents=noise(self._setup, self._batch),
            output_type="latent",
            **self._options(num_steps),
        ).images
        return latents

    def whole(self, num_steps: int) -> ImagesU8:
        options = self._options(num_steps)
        made = self._pipeline(PROMPT, negative_prompt="", latents=noise(self._setup, self._batch), **options).images
        return np.stack([np.asarray(image) for image in made])

    def _options(self, num_steps: int) -> dict[str, int | float]:
        height, width = self._setup.canvas.shape[:2]
        return {
            "num_images_per_prompt": self._batch,
            "num_inference_steps": num_steps,
            "guidance_scale": GUIDANCE_SCALE,
            "height": height,
            "width": width,
        }

    def compile_whole(self, mode: str, backend: str) -> None:
        compile_unet(self.unet, mode, backend)


def noise(setup: Setup, batch: int) -> Tensor:
    """z_T of seed 0, drawn on the CPU as ours is: B×4×h×w."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn((batch, *setup.latent_shape), generator=generator).to(setup.device, setup.dtype)


@contextmanager
def installed(name: str, setup: Setup, batch: int, variant: Variant) -> Iterator[System]:
    """The system of that name, compiled as `variant` says. After the block the networks attend as before.

    A compiled network stays compiled: run such a case in a process of its own.
    """
    system: System
    if name == "ours":
        system = Ours(setup, batch)
        compile_system(system, variant, setup.device)
        yield system
        setup.pipeline._predict = unets.predict
    elif name == "authors":
        with authors_processors(setup.pipeline.generation_unet):
            system = Authors(setup, batch)
            compile_system(system, variant, setup.device)
            yield system
    else:
        with detached(setup.pipeline.reference_unet):
            system = Plain(setup, batch)
            compile_system(system, variant, setup.device)
            yield system


def compile_system(system: System, variant: Variant, device: torch.device) -> None:
    """Compiles the network of a step: by block, whole, or whole and as a CUDA graph."""
    # On the CPU the graph is traced and run as it is: generating its C++ takes minutes.
    backend = "inductor" if device.type == "cuda" else "eager"
    # Each block of its own width, and in ours of its own layer's name, is a graph. The default limit is 8.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 1024
    if variant == "blocks":
        for module in system.unet.modules():
            if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
                module.compile(backend=backend, dynamic=False)
    elif variant != "eager":
        system.compile_whole("reduce-overhead" if variant == "graphs" else "default", backend)


def compile_unet(unet: UNet2DConditionModel, mode: str, backend: str) -> None:
    """Compiles a U-Net's forward in place, in the mode that `model.compile` would choose."""
    if backend == "inductor":
        unet.compile(mode=mode)
    else:
        unet.compile(backend=backend)
