"""RefAdGenPipeline: a product image becomes `ReferenceFeatures`, a prompt and a mask become an ad image of the product.

    encode_reference(product_image) ─► ReferenceFeatures ─┐   once per product
    encode_prompt(prompt)           ─► PromptFeatures  ───┼─► start() ─► DenoisingRow ─► denoise() ─► decode()
    product_mask, seed, λ, guidance, steps ───────────────┘

Rows and batches are `denoising`'s, encoding is `encoders`', folders of weights are `checkpoint`'s.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from refadgen.config.sections import DEFAULT_STEPS
from refadgen.model import checkpoint
from refadgen.model.attention_fusion import (
    KeyValue,
    PromptFeatures,
    ReferenceFeatures,
    capture,
    project,
    project_prompt,
)
from refadgen.model.base import load_stable_diffusion
from refadgen.model.denoising import DenoisingBatch, DenoisingRow, RowScheduler
from refadgen.model.encoders import (
    clip_pixels,
    encode_clip_pixels,
    encode_images,
    encode_masks,
    encode_texts,
    latent_factor,
    num_tokens,
    pixels_from_u8,
    tokenize,
    u8_from_pixels,
)
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.passes import FULL_STEPS, FastMode, passes_of
from refadgen.model.step_tables import StepTable, StepTables, step_tables
from refadgen.model.unets import make_generation_unet, make_reference_unet, predict

_SETTINGS = ("prompt_suffix", "negative_prompt", "guidance_scale", "reference_in_uncond", "width_px", "height_px")
"""Entries of `model_index.json` that are no components."""
RECOMMENDATIONS = ("num_inference_steps", "gpu_dtype", "negative_prompt_context")
"""Further ones, which a model may have: without them its folder is, byte for byte, as it was before there were any."""


class RefAdGenPipeline(DiffusionPipeline):
    """Ad images of a product from its image, its mask and a scene prompt (Fig. 3).

    With `image_encoder`, `image_projection` and `feature_extractor` (all or none) the Reference U-Net's context are
    the authors' 16 image tokens; without them it is the empty prompt.

    The settings below travel with the checkpoint in `model_index.json`:
    prompt_suffix: appended to each prompt. negative_prompt: the default one. guidance_scale: the default one.
    reference_in_uncond: whether the unconditional branch sees the product. width_px, height_px: the trained canvas.
    num_inference_steps: the default number; None: `DEFAULT_STEPS`. gpu_dtype: the number format that the model is best
    run in on GPUs (float32, bfloat16, float16); None: none is.
    negative_prompt_context: without an image encoder, whether the Reference U-Net's context in the unconditional branch
    is the model's negative prompt, as in the authors' code; None or False: the empty prompt in both branches.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projection->reference_unet->generation_unet->vae"
    _optional_components = ["image_encoder", "image_projection", "feature_extractor"]  # noqa: RUF012 (diffusers' name)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        reference_unet: UNet2DConditionModel,
        generation_unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        image_projection: ProductImageProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        prompt_suffix: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 7.5,
        reference_in_uncond: bool = True,
        width_px: int = 512,
        height_px: int = 640,
        num_inference_steps: int | None = None,
        gpu_dtype: str | None = None,
        negative_prompt_context: bool | None = None,
    ) -> None:
        super().__init__()
        parts = (image_encoder, image_projection, feature_extractor)
        if any(part is None for part in parts) != all(part is None for part in parts):
            raise ValueError("image_encoder, image_projection and feature_extractor belong together: give all or none")
        if negative_prompt_context and image_encoder is not None:
            raise ValueError(
                "negative_prompt_context=True: is for models without an image encoder, and this one has one"
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            reference_unet=reference_unet,
            generation_unet=generation_unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            image_projection=image_projection,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            prompt_suffix=prompt_suffix,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            reference_in_uncond=reference_in_uncond,
            width_px=width_px,
            height_px=height_px,
            num_inference_steps=num_inference_steps,
            gpu_dtype=gpu_dtype,
            negative_prompt_context=negative_prompt_context,
        )
        self.vae_scale_factor = latent_factor(vae)
        self._predict = predict  # `optimize` compiles it
        self._tabled: Any = None  # the configuration of the scheduler that `_tables` are of
        self._tables: StepTables | None = None

    # Loading and saving: the layout is `checkpoint`'s.

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, torch_dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """A pipeline from a folder (or hub id) in our layout, strictly.

        Raises: ValueError naming the component and the keys that are missing, unexpected or of another shape.
        """
        pipeline = cls(**checkpoint.load(path_or_id, torch_dtype))
        pipeline.to(device)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Writes the pipeline in our layout: safetensors, AFM weights in a file of their own."""
        settings = {name: self.config[name] for name in _SETTINGS}
        settings |= {name: self.config[name] for name in RECOMMENDATIONS if self.config[name] is not None}
        checkpoint.save(self.components, settings, save_directory)

    @classmethod
    def from_stable_diffusion(
        cls, path_or_id: str | Path, *, torch_dtype: torch.dtype = torch.float32, **settings: Any
    ) -> Self:
        """An untrained RefAdGen from a Stable Diffusion 1.5: both U-Nets start as its `unet`.

        path_or_id: a folder, a hub id, or a single `.safetensors` file (see `base`).
        settings: components and config entries of `__init__` to set or replace, such as `image_encoder` or `scheduler`.
        Raises: ValueError when the folder is no Stable Diffusion 1.5.
        """
        parts = load_stable_diffusion(path_or_id, torch_dtype)
        base = parts.pop("unet")
        parts |= {"reference_unet": make_reference_unet(base), "generation_unet": make_generation_unet(base)}
        return cls(**{**parts, **settings})

    def optimize(self, *, channels_last: bool = False, compile: bool = False, cuda_graphs: bool = False) -> None:
        """Applies settings of speed. They may change how results are rounded, and nothing else."""
        if channels_last:
            for unet in (self.reference_unet, self.generation_unet):
                unet.to(memory_format=torch.channels_last)
        if compile:
            self._predict = torch.compile(predict, mode="reduce-overhead" if cuda_graphs else "default")

    # From inputs to features.

    @property
    def _dtype(self) -> torch.dtype:
        return self.generation_unet.dtype

    def encode_image(self, images_u8: npt.NDArray[np.uint8]) -> Tensor:
        """Scaled latents of images. uint8 N×H×W×3 → N×4×h×w."""
        pixels = pixels_from_u8(torch.from_numpy(images_u8))
        return encode_images(self.vae, pixels, scaled_in=self.vae.dtype).to(self._dtype)

    @torch.no_grad()
    def encode_reference(self, product_images: Sequence[npt.NDArray[np.uint8]]) -> ReferenceFeatures:
        """K_ref and V_ref of products, once for all their steps, scenes and seeds.

        product_images: placed on white on the ad's canvas, uint8 H×W×3, all of one size.
        """
        latents = self.encode_image(np.stack(product_images))
        if self.image_encoder is None:
            # A model without an image encoder is trained with the empty prompt as context.
            number = len(product_images)
            features = self._project_reference(latents, self._text_states([""]).expand(number, -1, -1))
            if not self.config.negative_prompt_context:
                return ReferenceFeatures(features)
            negative = self._text_states([self.config.negative_prompt]).expand(number, -1, -1)
            return ReferenceFeatures(features, self._project_reference(latents, negative))
        conditional, zero = self._image_contexts(product_images)
        return ReferenceFeatures(self._project_reference(latents, conditional), self._project_reference(latents, zero))

    def _project_reference(self, latents: Tensor, context: Tensor) -> dict[str, KeyValue]:
        return project(self.generation_unet, capture(self.reference_unet, latents, context))

    def _image_contexts(self, product_images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Context tokens of the product images and of as many zero images (zero after normalisation), N×tokens×C."""
        pixels = clip_pixels(self.feature_extractor, product_images)

        def tokens(inputs: Tensor) -> Tensor:
            states = encode_clip_pixels(self.image_encoder, inputs)
            projected: Tensor = self.image_projection(states.to(self.image_projection.dtype)).to(self._dtype)
            return projected

        return tokens(pixels), tokens(torch.zeros_like(pixels))

    def num_tokens(self, prompt: str) -> int:
        """Tokens of the prompt with the model's suffix, start and end tokens included."""
        return num_tokens(self.tokenizer, prompt + self.config.prompt_suffix)

    def _text_states(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states, N×tokens×C. Raises: ValueError for a text beyond its length."""
        limit = self.tokenizer.model_max_length
        for text in texts:
            count = num_tokens(self.tokenizer, text)
            if count > limit:
                raise ValueError(f"prompt of {count} tokens: the text encoder takes {limit}; shorten {text[:80]!r}…")
        return encode_texts(self.text_encoder, tokenize(self.tokenizer, texts)).to(self._dtype)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> PromptFeatures:
        """K and V of one prompt, with the model's suffix, and of its negative prompt (None: the model's).

        Raises: ValueError for a prompt beyond the text encoder's length; nothing is cut off in silence.
        """
        negative = self.config.negative_prompt if negative_prompt is None else negative_prompt
        states = self._text_states([prompt + self.config.prompt_suffix, negative])
        both = project_prompt(self.generation_unet, states)
        return PromptFeatures(
            {layer: (key[:1], value[:1]) for layer, (key, value) in both.items()},
            {layer: (key[1:], value[1:]) for layer, (key, value) in both.items()},
        )

    def mask_latents(self, product_mask: npt.NDArray[np.uint8]) -> Tensor:
        """M′: the mask of the placed product (uint8 H×W, threshold 0.5) at latent size, nearest; 1×1×h×w."""
        return encode_masks(product_mask[None], self.vae_scale_factor).to(self.device, self._dtype)

    # Denoising.

    def start(
        self,
        reference: ReferenceFeatures,
        product_mask: npt.NDArray[np.uint8],
        prompt: PromptFeatures,
        *,
        seed: int,
        fusion_scale: float = 1.0,
        guidance_scale: float | None = None,
        num_inference_steps: int = 20,
        fast: FastMode = FULL_STEPS,
    ) -> DenoisingRow:
        """One image at its first timestep.

        reference, prompt: features of one row. product_mask: of the placed product, uint8 H×W; its size is the
        image's. seed: of the noise, drawn on the CPU so that every device starts alike. guidance_scale None: the
        model's. fast: what saves work at its steps. Raises: ValueError for sizes that are no multiple of the VAE's
        factor, or steps that the scheduler cannot make.
        """
        height, width = product_mask.shape
        if height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise ValueError(f"canvas of {width}×{height} px: both must be multiples of {self.vae_scale_factor}")
        generator = torch.Generator("cpu").manual_seed(seed)
        mask_latents = self.mask_latents(product_mask)
        shape = (1, self.vae.config.latent_channels, *mask_latents.shape[-2:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        solver, noise_scale = self._solver(num_inference_steps, generator)
        kept_as = torch.float32 if isinstance(solver, StepTable) else self._dtype
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        timesteps = solver.timesteps if isinstance(solver, StepTable) else solver.scheduler.timesteps
        shares = [float(timestep) / self.scheduler.config.num_train_timesteps for timestep in timesteps]
        return DenoisingRow(
            latents=(noise * noise_scale).to(self.device, kept_as),
            mask_latents=mask_latents,
            prompt=prompt,
            reference=reference,
            fusion_scale=fusion_scale,
            guidance_scale=guidance_scale,
            solver=solver,
            passes=passes_of(shares, guided=guidance_scale > 1, fast=fast),
        )

    def _solver(self, num_steps: int, generator: torch.Generator) -> tuple[StepTable | RowScheduler, float]:
        """The steps of one row, and the factor of its first noise."""
        scheduler = copy.deepcopy(self.scheduler)  # some know the factor only once they know the steps
        try:
            # On the CPU, as its tables: a lookup must not wait for the device.
            scheduler.set_timesteps(num_steps, device="cpu")
        except ValueError as error:
            name = type(scheduler).__name__
            raise ValueError(f"num_inference_steps={num_steps}: the model's {name} cannot: {error}") from error
        noise_scale = float(scheduler.init_noise_sigma)
        if self._tabled is not self.scheduler.config:  # another object, too, once a setting is registered
            self._tabled, self._tables = self.scheduler.config, step_tables(self.scheduler)
        if self._tables is not None:
            return self._tables.of(num_steps), noise_scale
        return RowScheduler(scheduler, scheduler.timesteps.to(self.device), generator), noise_scale

    def batch(self, *, batch_size: int | None = None, reference_in_uncond: bool | None = None) -> DenoisingBatch:
        """An empty batch of this model's rows.

        batch_size: pad each step to this many rows, so that shapes never change; None: as many as there are.
        reference_in_uncond: whether the unconditional branch sees the product; None: the model's.
        """
        return DenoisingBatch(
            functools.partial(self._predict, self.generation_unet),
            self.config.reference_in_uncond if reference_in_uncond is None else reference_in_uncond,
            batch_size,
        )

    def denoise(
        self, rows: Sequence[DenoisingRow], *, batch_size: int | None = None, reference_in_uncond: bool | None = None
    ) -> Iterator[list[DenoisingRow]]:
        """Runs the rows to their ends in one batch, yielding the unfinished ones after each step.

        batch_size, reference_in_uncond: as of `batch`.
        """
        batch = self.batch(batch_size=batch_size, reference_in_uncond=reference_in_uncond)
        for row in rows:
            batch.add(row)
        while batch.rows:
            batch.step()
            yield list(batch.rows)

    @torch.no_grad()
    def decode(self, rows: Sequence[DenoisingRow]) -> npt.NDArray[np.uint8]:
        """The rows' images, uint8 N×H×W×3.

        One row a pass: the VAE at these sizes fills a device with one image, a pass of one shape gives the same pixels
        whoever else is finished, and rows that leave a batch one by one need no padding.

        Raises: ArithmeticError where the VAE makes NaN or infinity of numbers that are none.
        """
        images = []
        for row in rows:
            pixels = self._pixels(row.latents)
            if not pixels.isfinite().all() and row.latents.isfinite().all():
                raise ArithmeticError(f"the VAE gives NaN or infinity in {self.vae.dtype}: try another model.dtype")
            images.append(u8_from_pixels(pixels))
        return np.concatenate(images)

    @torch.no_grad()
    def preview(self, row: DenoisingRow) -> npt.NDArray[np.uint8]:
        """The last predicted x₀ of `row`, decoded, uint8 H×W×3; before the first step, its noise."""
        latents = row.latents if row.predicted_original is None else row.predicted_original
        image_u8: npt.NDArray[np.uint8] = u8_from_pixels(self._pixels(latents))[0]
        return image_u8

    def _pixels(self, latents: Tensor) -> Tensor:
        # The inverse of `encode_images`.
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        pixels: Tensor = self.vae.decode(latents).sample
        return pixels

    @torch.no_grad()
    def __call__(
        self,
        product_images: Sequence[Image.Image],
        product_masks: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        negative_prompt: str | None = None,
        fusion_scale: float = 1.0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        fast: FastMode = FULL_STEPS,
    ) -> ImagePipelineOutput:
        """Ad images of placed products, one per prompt: encodes, denoises and decodes in one call.

        product_images: RGB on white; product_masks: the same sizes, white is the product. All lists are of one length.
        num_inference_steps: None: as many as the model recommends.
        """
        num_inference_steps = num_inference_steps or self.config.num_inference_steps or DEFAULT_STEPS
        rows = []
        for image, mask, prompt, seed in zip(product_images, product_masks, prompts, seeds, strict=True):
            if image.size != mask.size:
                raise ValueError(f"product image of {image.size} px with a mask of {mask.size} px")
            rows.append(
                self.start(
                    self.encode_reference([np.asarray(image.convert("RGB"))]),
                    np.asarray(mask.convert("L")),
                    self.encode_prompt(prompt, negative_prompt),
                    seed=seed,
                    fusion_scale=fusion_scale,
                    guidance_scale=guidance_scale,
                    num_inference_steps=num_inference_steps,
                    fast=fast,
                )
            )
        for _ in self.progress_bar(self.denoise(rows), total=num_inference_steps):
            pass
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in self.decode(rows)])
