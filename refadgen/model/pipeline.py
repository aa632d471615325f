"""RefAdGenPipeline: a product image becomes `ReferenceFeatures`, a prompt and a mask become an ad image of the product.

    encode_reference(product_image) ─► ReferenceFeatures ─┐   once per product
    encode_prompt(prompt)           ─► PromptFeatures  ───┼─► start() ─► DenoisingRow ─► denoise() ─► decode()
    product_mask, seed, λ, guidance, steps ───────────────┘

A `DenoisingRow` is one image on its way, with timesteps and scheduler state of its own, so that a batch may mix
products, prompts, seeds, λ, guidance and steps, and rows may join and leave it between two steps (`DenoisingBatch`).
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from refadgen.model import checkpoint
from refadgen.model.attention_fusion import (
    Conditioning,
    PromptFeatures,
    ReferenceFeatures,
    capture,
    condition,
    project,
    project_prompt,
)
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.unets import make_generation_unet, make_reference_unet, predict


def pixels_from_u8(image_u8: np.ndarray) -> Tensor:
    """uint8 H×W×3 → float32 1×3×H×W in −1…1."""
    return torch.from_numpy(np.array(image_u8)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def u8_from_pixels(pixels: Tensor) -> np.ndarray:
    """float N×3×H×W in −1…1 → uint8 N×H×W×3."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@dataclass
class DenoisingRow:
    """One image being denoised. `step_index` counts the steps done; `finished` when none is left."""

    latents: Tensor
    """z_t, 1×4×h×w."""
    mask_latents: Tensor
    """M′ at latent size, 1×1×h×w, 0 or 1."""
    prompt: PromptFeatures
    reference: ReferenceFeatures
    fusion_scale: float
    guidance_scale: float
    scheduler: Any
    """The row's own copy: multi-step schedulers keep a history."""
    generator: torch.Generator
    step_index: int = 0
    predicted_original: Tensor | None = None
    """x₀ as of the last step, 1×4×h×w, where the scheduler tells it."""

    @property
    def finished(self) -> bool:
        return self.step_index >= len(self.scheduler.timesteps)


class RefAdGenPipeline(DiffusionPipeline):
    """Ad images of a product from its image, its mask and a scene prompt (Fig. 3).

    With `image_encoder`, `image_projection` and `feature_extractor` (all or none) the Reference U-Net's context are
    the authors' 16 image tokens; without them it is the empty prompt.

    The settings below travel with the checkpoint in `model_index.json`:
    prompt_suffix: appended to each prompt. negative_prompt: the default one. guidance_scale: the default one.
    reference_in_uncond: whether the unconditional branch sees the product. width_px, height_px: the trained canvas.
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
    ) -> None:
        super().__init__()
        parts = (image_encoder, image_projection, feature_extractor)
        if any(part is None for part in parts) != all(part is None for part in parts):
            raise ValueError("image_encoder, image_projection and feature_extractor belong together: give all or none")
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
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._predict = predict

    # Loading and saving: the layout is `checkpoint`'s.

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, torch_dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """A pipeline from a folder (or hub id) in our layout, strictly.

        Raises: ValueError naming the component and the keys that are missing, left over or of another shape.
        """
        return cls(**checkpoint.load(path_or_id, torch_dtype)).to(device)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Writes the pipeline in our layout: safetensors, AFM weights in a file of their own."""
        checkpoint.save(self, save_directory)

    @classmethod
    def from_stable_diffusion(
        cls, path_or_id: str | Path, *, torch_dtype: torch.dtype = torch.float32, **settings: Any
    ) -> Self:
        """An untrained RefAdGen from a Stable Diffusion 1.5 folder or hub id: both U-Nets start as its `unet`.

        settings: components and config entries of `__init__` to set or replace, such as `image_encoder` or `scheduler`.
        Raises: ValueError when the folder is no Stable Diffusion 1.5.
        """
        parts = checkpoint.load_stable_diffusion(path_or_id, torch_dtype)
        base = parts.pop("unet")
        parts |= {"reference_unet": make_reference_unet(base), "generation_unet": make_generation_unet(base)}
        return cls(**{**parts, **settings})

    def optimize(self, *, channels_last: bool = False, compile: bool = False, cuda_graphs: bool = False) -> None:
        """Settings of speed; the arithmetic stays the same, its rounding may not."""
        if channels_last:
            for unet in (self.reference_unet, self.generation_unet):
                unet.to(memory_format=torch.channels_last)
        if compile:
            self._predict = torch.compile(predict, mode="reduce-overhead" if cuda_graphs else "default")

    # From inputs to features.

    @property
    def _dtype(self) -> torch.dtype:
        return self.generation_unet.dtype

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Scaled latents of images: the mean of the VAE's distribution, since a reference must be deterministic.

        pixels: N×3×H×W in −1…1. Returns: N×4×h×w.
        """
        mean = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist.mean
        return ((mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor).to(self._dtype)

    @torch.no_grad()
    def encode_reference(self, product_images: Sequence[np.ndarray]) -> ReferenceFeatures:
        """K_ref and V_ref of products, once for all their steps, scenes and seeds.

        product_images: placed on white on the ad's canvas, uint8 H×W×3, all of one size.
        """
        latents = self.encode_image(torch.cat([pixels_from_u8(image) for image in product_images]))
        if self.image_encoder is None:
            context = self._text_states([""]).expand(len(product_images), -1, -1)
            return ReferenceFeatures(self._project_reference(latents, context))
        conditional, zero = self._image_contexts(product_images)
        return ReferenceFeatures(self._project_reference(latents, conditional), self._project_reference(latents, zero))

    def _project_reference(self, latents: Tensor, context: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return project(self.generation_unet, capture(self.reference_unet, latents, context))

    def _image_contexts(self, product_images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Context tokens of the product images and of as many zero images (zero after normalisation), N×tokens×C."""
        extracted = self.feature_extractor(images=[Image.fromarray(image) for image in product_images])
        clip_pixels = torch.stack([torch.as_tensor(image) for image in extracted["pixel_values"]])
        clip_pixels = clip_pixels.to(self.device, self.image_encoder.dtype)

        def tokens(inputs: Tensor) -> Tensor:
            states = self.image_encoder(inputs, output_hidden_states=True).hidden_states[-2]
            return self.image_projection(states.to(self.image_projection.dtype)).to(self._dtype)

        return tokens(clip_pixels), tokens(torch.zeros_like(clip_pixels))

    def num_tokens(self, prompt: str) -> int:
        """Tokens of the prompt with the model's suffix, start and end tokens included."""
        return len(self.tokenizer(prompt + self.config.prompt_suffix, truncation=False).input_ids)

    def _text_states(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states, N×tokens×C. Raises: ValueError for a text beyond its length."""
        for text in texts:
            count = len(self.tokenizer(text, truncation=False).input_ids)
            if count > self.tokenizer.model_max_length:
                limit = self.tokenizer.model_max_length
                raise ValueError(f"prompt of {count} tokens: the text encoder takes {limit}; shorten {text[:80]!r}…")
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.device))[0].to(self._dtype)

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

    def mask_latents(self, product_mask: np.ndarray) -> Tensor:
        """M′: the mask of the placed product (uint8 H×W, threshold 0.5) at latent size, nearest; 1×1×h×w."""
        mask = torch.from_numpy((product_mask >= 128).astype(np.float32))[None, None]
        size = [side // self.vae_scale_factor for side in product_mask.shape]
        return F.interpolate(mask, size=size, mode="nearest").to(self.device, self._dtype)

    # Denoising.

    def start(
        self,
        reference: ReferenceFeatures,
        product_mask: np.ndarray,
        prompt: PromptFeatures,
        *,
        seed: int,
        fusion_scale: float = 1.0,
        guidance_scale: float | None = None,
        num_inference_steps: int = 20,
    ) -> DenoisingRow:
        """One image at its first timestep.

        reference, prompt: features of one row. product_mask: of the placed product, uint8 H×W; its size is the
        image's. seed: of the noise, drawn on the CPU so that every device starts alike. guidance_scale None: the
        model's. Raises: ValueError for sizes that are no multiple of the VAE's factor.
        """
        height, width = product_mask.shape
        if height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise ValueError(f"canvas of {width}×{height} px: both must be multiples of {self.vae_scale_factor}")
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        generator = torch.Generator("cpu").manual_seed(seed)
        mask_latents = self.mask_latents(product_mask)
        shape = (1, self.vae.config.latent_channels, *mask_latents.shape[-2:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.device, self._dtype)
        return DenoisingRow(
            latents=noise * scheduler.init_noise_sigma,
            mask_latents=mask_latents,
            prompt=prompt,
            reference=reference,
            fusion_scale=fusion_scale,
            guidance_scale=self.config.guidance_scale if guidance_scale is None else guidance_scale,
            scheduler=scheduler,
            generator=generator,
        )

    def denoise(
        self, rows: Sequence[DenoisingRow], *, batch_size: int | None = None, reference_in_uncond: bool | None = None
    ) -> Iterator[list[DenoisingRow]]:
        """Runs the rows to their ends in one batch, yielding the unfinished ones after each step.

        batch_size: pad each step to this many rows, so that shapes never change; None: as many as are left.
        """
        batch = DenoisingBatch(self, batch_size=batch_size, reference_in_uncond=reference_in_uncond)
        for row in rows:
            batch.add(row)
        while batch.rows:
            batch.step()
            yield list(batch.rows)

    @torch.no_grad()
    def decode(self, rows: Sequence[DenoisingRow]) -> np.ndarray:
        """The rows' images, uint8 N×H×W×3.

        One row a pass: the VAE at these sizes fills a device with one image, a pass of one shape gives the same pixels
        whoever else is finished, and rows that leave a batch one by one need no padding.
        """
        return np.concatenate([self._decode(row.latents) for row in rows])

    @torch.no_grad()
    def preview(self, row: DenoisingRow) -> np.ndarray:
        """What `row` is on its way to: its last predicted x₀ decoded, uint8 H×W×3; the noise before the first step."""
        return self._decode(row.latents if row.predicted_original is None else row.predicted_original)[0]

    def _decode(self, latents: Tensor) -> np.ndarray:
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return u8_from_pixels(self.vae.decode(latents).sample)

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
        num_inference_steps: int = 20,
    ) -> ImagePipelineOutput:
        """Ad images of placed products, one per prompt: the whole way in one call.

        product_images: RGB on white; product_masks: the same sizes, white is the product. All lists are of one length.
        """
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
                )
            )
        for _ in self.progress_bar(self.denoise(rows), total=num_inference_steps):
            pass
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in self.decode(rows)])


def _padded(rows: Sequence[DenoisingRow], batch_size: int | None) -> list[DenoisingRow]:
    """The rows, with the first repeated up to `batch_size`."""
    if batch_size is not None and len(rows) > batch_size:
        raise ValueError(f"{len(rows)} rows in a batch of {batch_size}")
    return [*rows, *[rows[0]] * ((batch_size or 0) - len(rows))]


@dataclass
class DenoisingBatch:
    """Rows that are denoised together; they may join (`add`) and leave (`remove`) between two steps."""

    pipeline: RefAdGenPipeline
    batch_size: int | None = None
    """Each step runs this many rows, padded; None: as many as there are."""
    reference_in_uncond: bool | None = None
    """None: the model's."""
    rows: list[DenoisingRow] = field(default_factory=list)
    _conditioning: Conditioning | None = None
    """Of the rows as they are; None after a change."""

    def add(self, row: DenoisingRow) -> None:
        """Takes `row` in from the next step on. Raises: ValueError when it has another size or the batch is full."""
        if self.rows and row.latents.shape != self.rows[0].latents.shape:
            raise ValueError(f"latents of {tuple(row.latents.shape)} in a batch of {tuple(self.rows[0].latents.shape)}")
        if self.batch_size is not None and len(self.rows) >= self.batch_size:
            raise ValueError(f"the batch is full: {self.batch_size} rows")
        self.rows.append(row)
        self._conditioning = None

    def remove(self, row: DenoisingRow) -> None:
        """Drops `row`, finished or not."""
        self.rows = [other for other in self.rows if other is not row]
        self._conditioning = None

    @torch.no_grad()
    def step(self) -> list[DenoisingRow]:
        """Advances each row by its own next timestep; returns the rows that are finished by it and drops them."""
        rows = _padded(self.rows, self.batch_size)
        timesteps = [row.scheduler.timesteps[row.step_index] for row in rows]
        scaled = [row.scheduler.scale_model_input(row.latents, t) for row, t in zip(rows, timesteps, strict=True)]
        if self._conditioning is None:
            self._conditioning = self._condition(rows)
        predicted = self.pipeline._predict(
            self.pipeline.generation_unet,
            torch.cat(scaled),
            torch.cat([row.mask_latents for row in rows]),
            torch.stack(timesteps),
            self._conditioning,
        )
        if self._conditioning.num_branches == 2:
            unconditional, conditional = predicted.chunk(2)
            scale = torch.tensor([row.guidance_scale for row in rows]).to(predicted).view(-1, 1, 1, 1)
            predicted = unconditional + scale * (conditional - unconditional)
        for index, row in enumerate(self.rows):
            _scheduler_step(row, predicted[index : index + 1], timesteps[index])
        done = [row for row in self.rows if row.finished]
        for row in done:
            self.remove(row)
        return done

    def _condition(self, rows: list[DenoisingRow]) -> Conditioning:
        default = self.pipeline.config.reference_in_uncond
        return condition(
            [row.prompt for row in rows],
            [row.reference for row in rows],
            torch.tensor([row.fusion_scale for row in rows]).to(rows[0].latents),
            guidance=any(row.guidance_scale > 1 for row in rows),
            reference_in_uncond=default if self.reference_in_uncond is None else self.reference_in_uncond,
        )


def _scheduler_step(row: DenoisingRow, predicted: Tensor, timestep: Tensor) -> None:
    """Takes `row` one step of its own scheduler on, with the row's generator where the scheduler draws."""
    takes_generator = "generator" in inspect.signature(row.scheduler.step).parameters
    kwargs = {"generator": row.generator} if takes_generator else {}
    stepped = row.scheduler.step(predicted, timestep, row.latents, return_dict=True, **kwargs)
    row.latents, row.predicted_original = stepped.prev_sample, getattr(stepped, "pred_original_sample", None)
    row.step_index += 1
