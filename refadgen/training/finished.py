"""From trained weights to a model in use: the pipeline, its export with a model card, sheets of held-out samples."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from refadgen.config import TrainConfig, to_yaml
from refadgen.config.sections import DEFAULT_STEPS
from refadgen.model import RefAdGenPipeline
from refadgen.model.pipeline import RECOMMENDATIONS
from refadgen.storage.locations import is_remote
from refadgen.storage.modes import follow_umask
from refadgen.training.checkpoints import Checkpoint
from refadgen.training.networks import Parts, TrainingModule, load_parts
from refadgen.training.parallel import put_full_tensor
from refadgen.triplets.geometry import CoverCrop
from refadgen.triplets.schema import Triplet

_PLAIN_GUIDANCE = 7.5
"""Guidance scale of text-to-image samples where the configuration has none."""
_DRAWN_AT_ONCE = 8
"""Samples in one batch: they share the device with the training."""


def put_trained(module: TrainingModule, checkpoint: Checkpoint) -> None:
    """Puts the checkpoint's averaged weights into `module`, or its last ones where there is no average."""
    weights: dict[str, Tensor] = checkpoint.average or checkpoint.weights
    for name, parameter in module.trained().items():
        put_full_tensor(parameter, weights[name])


def make_pipeline(config: TrainConfig, parts: Parts) -> RefAdGenPipeline:
    """The RefAdGen pipeline of `parts`, frozen and in evaluation mode."""
    for network in (parts.vae, parts.text_encoder, parts.reference_unet, parts.generation_unet):
        assert network is not None
        network.eval().requires_grad_(False)
    return RefAdGenPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        reference_unet=parts.reference_unet,
        generation_unet=parts.generation_unet,
        scheduler=parts.scheduler,
        image_encoder=parts.image_encoder,
        image_projection=parts.image_projection,
        feature_extractor=parts.feature_extractor,
        **_recommended(config, parts),
        width_px=config.data.width_px,
        height_px=config.data.height_px,
    )


def _recommended(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    """Settings that travel with the model: the configuration's value, else the base's, else left out."""
    names = ("prompt_suffix", "negative_prompt", "guidance_scale", "reference_in_uncond", "negative_prompt_context")
    chosen = dict.fromkeys(RECOMMENDATIONS) | {name: getattr(config.model, name) for name in names}
    return {
        name: parts.settings[name] if value is None else value
        for name, value in chosen.items()
        if value is not None or name in parts.settings
    }


def make_text_to_image_pipeline(parts: Parts) -> StableDiffusionPipeline:
    """A text-to-image base as diffusers' pipeline, which saves Stable Diffusion's layout."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(config: TrainConfig, parts: Parts, folder: Path, card: str) -> None:
    """Writes the finished model, with its card as README.md, into a local folder.

    parts: with the trained weights in place; they are cast to `model.save_dtype`, frozen and in evaluation mode after.
    """
    dtype: torch.dtype = getattr(torch, config.model.save_dtype)
    pipeline = make_text_to_image_pipeline(parts) if parts.unet is not None else make_pipeline(config, parts)
    for component in pipeline.components.values():
        if hasattr(component, "register_to_config"):
            component.register_to_config(_name_or_path="")  # diffusers would publish the folder it was read from
    # diffusers warns of float16 on the CPU, where nothing is going to run.
    pipeline.to(dtype=dtype, silence_dtype_warnings=True).save_pretrained(folder)
    follow_umask(folder)  # diffusers' own pipeline does not
    index = folder / "model_index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)  # the pipeline's own, which register_to_config does not reach
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


@dataclass(frozen=True)
class HeldOut:
    """One held-out row on the canvas."""

    product_image: np.ndarray
    """uint8 H×W×3."""
    mask: np.ndarray
    """uint8 H×W, 0 or 255."""
    ad_image: np.ndarray
    """uint8 H×W×3."""
    prompt: str


def held_out(config: TrainConfig, triplet: Triplet) -> HeldOut:
    """A row for samples: its first product image that is not cut from the ad, if there is one; crops are centred."""
    # From the ad's own pixels, copying them would look like a perfect sample.
    variant = next((each for each in triplet.variants if each.kind != "original"), triplet.variants[0])
    crop = CoverCrop(config.data.width_px, config.data.height_px, 0.5, 0.5)
    return HeldOut(crop(variant.image), crop(variant.mask), crop(triplet.ad_image), triplet.captions[0])


@torch.no_grad()
def draw_samples(
    config: TrainConfig, checkpoint: Checkpoint, rows: Sequence[HeldOut], device: torch.device, num_steps: int | None
) -> list[np.ndarray]:
    """An ad for each row, uint8 H×W×3. num_steps: of denoising; None: as many as the base recommends."""
    # The base is loaded again each time. The worker's own networks cannot draw it: they are sharded, or in the
    # arithmetic's dtype. A spare float32 copy would hold as much host memory as the base for as long as it trains.
    parts = load_parts(config)
    put_trained(TrainingModule(parts, config), checkpoint)
    steps = num_steps or parts.settings.get("num_inference_steps", DEFAULT_STEPS)
    # Seeds are the rows' indices, so a row has the same noise at every checkpoint, and samples can be compared.
    if parts.unet is not None:
        plain = make_text_to_image_pipeline(parts).to(device)
        plain.set_progress_bar_config(disable=True)
        return [
            np.asarray(
                plain(
                    row.prompt,
                    num_inference_steps=steps,
                    guidance_scale=_PLAIN_GUIDANCE
                    if config.model.guidance_scale is None
                    else config.model.guidance_scale,
                    generator=torch.Generator("cpu").manual_seed(index),
                    width=config.data.width_px,
                    height=config.data.height_px,
                ).images[0]
            )
            for index, row in enumerate(rows)
        ]
    pipeline = make_pipeline(config, parts).to(device)
    drawn: list[np.ndarray] = []
    for first in range(0, len(rows), _DRAWN_AT_ONCE):
        started = [
            pipeline.start(
                pipeline.encode_reference([row.product_image]),
                row.mask,
                pipeline.encode_prompt(_cut(pipeline, row.prompt)),
                seed=index,
                num_inference_steps=steps,
            )
            for index, row in enumerate(rows[first : first + _DRAWN_AT_ONCE], first)
        ]
        for _ in pipeline.denoise(started):
            pass
        drawn.extend(pipeline.decode(started))
    return drawn


def _cut(pipeline: RefAdGenPipeline, caption: str) -> str:
    """The words of a caption that the text encoder takes: steps cut long captions too, where a prompt is refused."""
    words = caption.split()
    while len(words) > 1 and pipeline.num_tokens(" ".join(words)) > pipeline.tokenizer.model_max_length:
        words.pop()
    return " ".join(words)


def sample_sheet(config: TrainConfig, checkpoint: Checkpoint, rows: list[HeldOut], device: torch.device) -> Image.Image:
    """Draws a sample for each row. One line per row: product, mask, sample, true ad; for text-to-image: sample, ad."""
    lines = []
    drawn = draw_samples(config, checkpoint, rows, device, config.run.sample_steps)
    for row, ad in zip(rows, drawn, strict=True):
        given = [row.product_image, np.repeat(row.mask[..., None], 3, 2)]
        lines.append([*(given if config.model.trains != "text_to_image" else []), ad, row.ad_image])
    return Image.fromarray(np.concatenate([np.concatenate(line, axis=1) for line in lines]))


def _without_folders(config: TrainConfig) -> TrainConfig:
    """The configuration with names in place of local paths, because a model card is published."""

    def name(path: str | None) -> str | None:
        return path if path is None or is_remote(path) else PurePath(path).name

    data = dataclasses.replace(config.data, path=name(config.data.path) or "", cache=None)
    is_folder = PurePath(config.model.base).is_absolute()  # a hub id, owner/name, stays as it is
    model = dataclasses.replace(
        config.model,
        base=name(config.model.base) or "" if is_folder else config.model.base,
        image_encoder=name(config.model.image_encoder),
        image_projection=name(config.model.image_projection),
    )
    return dataclasses.replace(config, data=data, model=model)


def model_card(
    config: TrainConfig, checkpoint: Checkpoint, *, data: str, trained: str, commit: str, loss: float
) -> str:
    """The model card as Markdown.

    data, trained, commit: texts about the data set, the networks and the code. loss: mean of the last 100 steps.
    """
    return "\n".join(
        [
            "# RefAdGen, trained by jobs/train.py",
            "",
            f"* steps: {checkpoint.step}; mean loss of the last 100: {loss:.4f}",
            f"* data: {data}",
            f"* code: {commit}",
            "* seeds: each image has noise of its own; the paper's authors draw a batch from one seed",
            "",
            "```",
            trained,
            "```",
            "",
            "## Settings",
            "",
            "```yaml",
            to_yaml(_without_folders(config)).rstrip(),
            "```",
            "",
        ]
    )
