"""Stable Diffusion 1.5 as a base: a folder in diffusers' layout, or one `.safetensors` file as Civitai hands it out.

A single file has the original key names and holds weights only. Configurations and tokenizer are taken from its folder,
which holds them as the folder of Stable Diffusion 1.5 does. diffusers does the conversion; what it would leave out or
fill with random numbers is an error here.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from refadgen.model.checkpoint import has_processor, load_model, load_processor, load_scheduler
from refadgen.model.folder import SINGLE_FILE_CONFIGS, find_model, read_index

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}


def load_stable_diffusion(path_or_id: str | Path, dtype: torch.dtype) -> dict[str, Any]:
    """`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler` of a Stable Diffusion 1.5. Raises: ValueError."""
    place = find_model(path_or_id)
    if place.is_file():
        return load_single_file(place, dtype)
    read_index(place)
    parts: dict[str, Any] = {
        "unet": load_model(place, "unet", UNet2DConditionModel, dtype, pickled=True),
        "vae": load_model(place, "vae", AutoencoderKL, dtype, pickled=True),
        "text_encoder": load_model(place, "text_encoder", CLIPTextModel, dtype, pickled=True),
        "tokenizer": load_processor(place, "tokenizer"),
        "scheduler": load_scheduler(place),
    }
    return parts


def load_single_file(file: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The same of a single file, without the network. Raises: ValueError naming what does not fit or is missing."""
    _check_single_file(file)
    own = {
        "tokenizer": load_processor(file.parent, "tokenizer"),
        "scheduler": load_scheduler(file.parent),
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
    }
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(file), config=str(file.parent), local_files_only=True, torch_dtype=dtype, **own
        )
    except Exception as error:  # of shapes and names that do not fit: KeyError, AttributeError, ValueError …
        raise ValueError(f"{file}: does not fit the configurations beside it: {error}") from error
    return {name: getattr(pipeline, name) for name in (*_PREFIXES, "tokenizer", "scheduler")}


def _check_single_file(file: Path) -> None:
    """Raises: ValueError unless `file` is a Stable Diffusion 1.5 beside its configurations."""
    missing = [name for name in SINGLE_FILE_CONFIGS if not (file.parent / name).is_file()]
    if not has_processor(file.parent, "tokenizer"):
        missing.append("tokenizer/")
    if missing:
        raise ValueError(
            f"{file}: a single file holds no configurations and no tokenizer, and beside it are no "
            f"{', '.join(missing)}; get them by: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 "
            f"--include '*.json' --include '*.txt' --local-dir {file.parent}"
        )
    shapes = tensor_shapes(file)
    counts = {part: _count(shapes, prefix) for part, prefix in _PREFIXES.items()}
    conv_in = shapes.get("model.diffusion_model.input_blocks.0.0.weight")
    if conv_in is None or not counts["text_encoder"]:
        raise ValueError(
            f"{file}: not a Stable Diffusion 1.5 file: it lacks model.diffusion_model.input_blocks.0.0.weight or "
            f"{_PREFIXES['text_encoder']}…, as other models do (Stable Diffusion 2, SDXL, a LoRA, a VAE)"
        )
    if not counts["vae"]:
        raise ValueError(f"{file}: holds no VAE ({_PREFIXES['vae']}…); take the file that has it baked in")
    if conv_in[1] != 4:
        raise ValueError(
            f"{file}: its unet takes {conv_in[1]} channels, not the 4 of latents, as models for inpainting (9), depth "
            "(5) or instructions (8) do; take the plain model"
        )
    for part, takes in _described(file.parent).items():
        if takes != counts[part]:
            given = f"{counts[part]} tensors {_PREFIXES[part]}…"
            raise ValueError(f"{file}: {given}, but {part}/config.json beside it describes {takes}")


def _described(folder: Path) -> dict[str, int]:
    """How many tensors the configurations in `folder` describe, by component."""
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        }
    return {part: len(model.state_dict()) for part, model in models.items()}


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, which is not loaded. Raises: ValueError."""
    try:
        with safe_open(file, framework="pt") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from error


def _count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    # `position_ids` are numbers that old files keep and no network learns.
    return sum(key.startswith(prefix) and not key.endswith(".position_ids") for key in shapes)
