"""The networks of a training: loaded from a base, frozen in part, and joined in one module whose forward is the loss.

`model.trains` decides which parameters train (see TrainModelConfig); `product` is the paper's set. A parameter that
gets no gradient is frozen: DDP expects a gradient of every parameter that requires one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from refadgen.config import TrainConfig
from refadgen.config.train import RANDOM
from refadgen.model import checkpoint
from refadgen.model.base import load_stable_diffusion
from refadgen.model.encoders import Encoders
from refadgen.model.folder import find_model, find_part, part_folders, read_index
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.ip_adapter import load_ip_adapter
from refadgen.model.unets import (
    make_generation_unet,
    make_reference_unet,
    parameters_without_gradient,
    trainable_parameters,
)
from refadgen.training.objective import TrainingBatch, diffusion_losses, min_snr_weights, target, weighted_mean_square


@dataclass
class Parts:
    """The components of a base: those of `RefAdGenPipeline`, or a plain `unet` for text-to-image."""

    vae: nn.Module
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    unet: UNet2DConditionModel | None = None
    reference_unet: UNet2DConditionModel | None = None
    generation_unet: UNet2DConditionModel | None = None
    image_encoder: CLIPVisionModelWithProjection | None = None
    image_projection: ProductImageProjection | None = None
    feature_extractor: CLIPImageProcessor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Entries of `model_index.json` that are not components."""
    base_prediction_type: str | None = None
    """Of the base's own scheduler; None where that has none."""

    def encoders(self, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> Encoders:
        """The encoders that stay frozen. They share their weights with these parts; the caller casts and moves them."""
        frozen_text = self.text_encoder if config.model.trains == "product" else None
        with_images = config.model.trains != "text_to_image"
        return Encoders(
            self.vae,
            self.tokenizer,
            frozen_text,
            self.image_encoder if with_images else None,
            self.feature_extractor if with_images else None,
            device,
            dtype,
        )


def make_scheduler(base: Any, config: TrainConfig, *, zero: bool) -> DDIMScheduler:
    """The base's noise schedule with the objective's prediction type. zero: with a zero terminal SNR."""
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    settings = {name: base.config[name] for name in kept if name in base.config}
    # With a zero terminal SNR the last timestep is pure noise, and sampling must start there: "trailing" does, while
    # "leading" skips it.
    return DDIMScheduler(
        **settings,
        prediction_type=config.objective.prediction_type,
        rescale_betas_zero_snr=zero,
        timestep_spacing="trailing" if zero else "leading",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def load_parts(config: TrainConfig, dtype: torch.dtype = torch.float32) -> Parts:
    """The parts of `model.base`. From a Stable Diffusion's one U-Net both of ours are made.

    Raises: ValueError naming `model.base`, `model.image_encoder` or another setting of `model`.
    """
    if not config.model.base:
        raise ValueError("model.base: name a Stable Diffusion 1.5 folder, file or hub id, or a RefAdGen one")
    folder = find_model(config.model.base, field="model.base")
    with _errors_name("model.base", config.model.base):
        parts = _load_base(config, folder, dtype)
    if config.model.image_encoder is not None:
        folder = find_image_encoder(config.model.image_encoder)
        with _errors_name("model.image_encoder", config.model.image_encoder):
            _add_image_encoder(parts, folder, dtype)
        _add_image_projection(parts, config.model.image_projection)
        with _errors_name("model.image_encoder", config.model.image_encoder):
            _check_widths(parts)
    if parts.image_encoder is not None:
        if config.model.negative_prompt_context:
            raise ValueError("model.negative_prompt_context=True: is for models without an image encoder; leave it out")
        parts.settings.pop("negative_prompt_context", None)  # of a base that had none yet
    # Kept for a note to the user: the next line replaces the base's scheduler.
    parts.base_prediction_type = parts.scheduler.config.get("prediction_type")
    parts.scheduler = make_scheduler(parts.scheduler, config, zero=config.objective.zero_terminal_snr)
    return parts


def find_image_encoder(path_or_id: str) -> Path:
    """The folder of `model.image_encoder` itself, also where the setting names one around it. Raises: ValueError."""
    return find_part(
        find_model(path_or_id, part_folders("image_encoder"), field="model.image_encoder"), "image_encoder"
    )


@contextmanager
def _errors_name(setting: str, value: str) -> Iterator[None]:
    """Puts a setting and its value before the text of a ValueError: folders know their path, not who asked for them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{setting}={value!r}: {error}") from error


def _load_base(config: TrainConfig, folder: Path, dtype: torch.dtype) -> Parts:
    if folder.is_dir() and read_index(folder).get("_class_name") == "RefAdGenPipeline":
        if config.model.trains == "text_to_image":
            raise ValueError("is a RefAdGen; model.trains=text_to_image needs a Stable Diffusion folder")
        loaded = checkpoint.load(folder, dtype)
        names = Parts.__dataclass_fields__.keys() - {"settings", "base_prediction_type"}
        parts = Parts(**{name: value for name, value in loaded.items() if name in names})
        parts.settings = {name: value for name, value in loaded.items() if name not in names}
        return parts
    parts = Parts(**load_stable_diffusion(folder, dtype))
    assert parts.unet is not None
    takes, given = parts.unet.config.in_channels, parts.vae.config.latent_channels
    if takes != given:
        raise ValueError(f"its unet takes {takes} channels, not the {given} of its vae's latents")
    if config.model.trains != "text_to_image":
        parts.reference_unet = make_reference_unet(parts.unet)
        parts.generation_unet = make_generation_unet(parts.unet)
        parts.unet = None
    return parts


def _add_image_encoder(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Adds a CLIP vision model."""
    encoder = checkpoint.load_model(folder.parent, folder.name, CLIPVisionModelWithProjection, dtype, pickled=True)
    parts.image_encoder = encoder
    size = encoder.config.image_size
    # The class's own mean and deviation are CLIP's; only the size depends on the encoder.
    parts.feature_extractor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)


def _add_image_projection(parts: Parts, start: str | None) -> None:
    """Adds a projection to the U-Nets' width where the base has none. start: see `model.image_projection`."""
    if parts.image_projection is not None:
        if start not in (None, RANDOM):
            raise ValueError(f"model.image_projection={start!r}: model.base has a Resampler of its own; leave it out")
        return
    if start is None:
        raise ValueError(
            "model.image_projection: name the file of IP-Adapter-Plus that the Resampler starts from "
            "(ip-adapter-plus_sd15.safetensors or .bin, as the authors do), or random"
        )
    assert parts.reference_unet is not None
    assert parts.image_encoder is not None
    width = parts.reference_unet.config.cross_attention_dim
    torch.manual_seed(0)  # all workers must start from the same weights: DDP copies rank 0's, FSDP2 does not
    parts.image_projection = ProductImageProjection(
        embed_dims=parts.image_encoder.config.hidden_size,
        output_dims=width,
        hidden_dims=width,
        heads=max(1, width // 64),
    )
    if start != RANDOM:
        with _errors_name("model.image_projection", start):
            load_ip_adapter(start, parts.image_projection)


def _check_widths(parts: Parts) -> None:
    assert parts.image_projection is not None
    assert parts.image_encoder is not None
    takes, given = parts.image_projection.config.embed_dims, parts.image_encoder.config.hidden_size
    if takes != given:
        raise ValueError(f"its states have {given} channels, model.base projects from {takes}")


class TrainingModule(nn.Module):
    """All networks that gradients pass through, as one module. Its forward is the loss of each row.

    DDP and FSDP2 attach to the forward of a module. One module with one forward covers everything, including the AFM
    projections, which run outside the forward of the layers that own them.
    """

    def __init__(self, parts: Parts, config: TrainConfig) -> None:
        super().__init__()
        self.trains = config.model.trains
        self.objective = config.objective
        # One scheduler trains and samples, except in the authors' training.
        authors = config.objective.authors_noise
        self.scheduler = make_scheduler(parts.scheduler, config, zero=True) if authors else parts.scheduler
        self.unet = parts.unet
        self.reference_unet = parts.reference_unet
        self.generation_unet = parts.generation_unet
        self.image_projection = parts.image_projection if self.trains != "text_to_image" else None
        self.text_encoder = parts.text_encoder if self.trains != "product" else None
        self._freeze()
        if config.run.gradient_checkpointing:
            for unet in (self.unet, self.reference_unet, self.generation_unet):
                if unet is not None:
                    unet.enable_gradient_checkpointing()

    def _freeze(self) -> None:
        """Requires gradients of the parameters that train, and of no others."""
        self.requires_grad_(self.trains != "product")
        if self.trains == "text_to_image":
            return
        assert self.reference_unet is not None
        assert self.generation_unet is not None
        if self.trains == "product":
            for parameter in trainable_parameters(self.reference_unet, self.generation_unet).values():
                parameter.requires_grad_(True)
            if self.image_projection is not None:
                self.image_projection.requires_grad_(True)
        # Parameters behind the last captured layer do not reach the loss.
        without = parameters_without_gradient(self.reference_unet)
        for name, parameter in self.reference_unet.named_parameters():
            if name in without:
                parameter.requires_grad_(False)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by full name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def architecture(self) -> dict[str, list[int]]:
        """The shapes of the parameters that train, by full name."""
        return {name: list(parameter.shape) for name, parameter in self.trained().items()}

    def describe(self) -> str:
        """Counts of trained and frozen parameters, in total and by network, as text."""
        lines = []
        for name, network in self.named_children():
            counts = [sum(p.numel() for p in network.parameters() if p.requires_grad is grad) for grad in (True, False)]
            lines.append(f"  {name}: {counts[0]:,} trained, {counts[1]:,} frozen")
            if name == "generation_unet":
                of_conv = sum(p.numel() for p in network.conv_in.parameters() if p.requires_grad)
                of_afm = sum(p.numel() for n, p in network.named_parameters() if "_ref." in n and p.requires_grad)
                lines.append(f"    of these conv_in: {of_conv:,}, AFM projections: {of_afm:,}")
        trained = sum(parameter.numel() for parameter in self.trained().values())
        frozen = sum(parameter.numel() for parameter in self.parameters()) - trained
        return "\n".join(
            [f"trained parameters: {trained:,} in {len(self.trained())} tensors; frozen: {frozen:,}", *lines]
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of each row, B.

        batch: latents, noise B×C×h×w; timesteps B; mask_latents B×1×h×w.
        Where the text encoder trains: token_ids B×tokens, empty_token_ids 1×tokens; else text_states
        B×tokens×channels, empty_text_states 1×tokens×channels.
        Except for text-to-image: reference_latents B×C×h×w; fusion_scale B; with an image encoder image_states
        B×patches×channels.
        """
        count = len(batch["latents"])
        if self.text_encoder is not None:
            states = self.text_encoder(torch.cat([batch["token_ids"], batch["empty_token_ids"]]).long())[0]
            prompt_embeds, empty = states[:count], states[count:]
        else:
            prompt_embeds, empty = batch["text_states"], batch["empty_text_states"]
        if self.unet is not None:
            return self._text_to_image(batch, prompt_embeds)
        if self.image_projection is not None:
            context = self.image_projection(batch["image_states"])
        else:
            context = empty.expand(count, -1, -1)
        assert self.reference_unet is not None
        assert self.generation_unet is not None
        return diffusion_losses(
            self.reference_unet,
            self.generation_unet,
            self.scheduler,
            TrainingBatch(
                latents=batch["latents"],
                reference_latents=batch["reference_latents"],
                mask_latents=batch["mask_latents"],
                prompt_embeds=prompt_embeds,
                reference_context=context,
                noise=batch["noise"],
                timesteps=batch["timesteps"],
                fusion_scale=batch["fusion_scale"],
            ),
            product_weight=self.objective.product_weight,
            min_snr_gamma=self.objective.min_snr_gamma,
        )

    def _text_to_image(self, batch: dict[str, Tensor], prompt_embeds: Tensor) -> Tensor:
        assert self.unet is not None
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        predicted = self.unet(noisy_latents, timesteps, prompt_embeds, return_dict=False)[0]
        errors = predicted.float() - target(self.scheduler, latents, noise, timesteps).float()
        losses = weighted_mean_square(errors, batch["mask_latents"], self.objective.product_weight)
        if self.objective.min_snr_gamma is not None:
            losses = losses * min_snr_weights(self.scheduler, timesteps, self.objective.min_snr_gamma)
        return losses
