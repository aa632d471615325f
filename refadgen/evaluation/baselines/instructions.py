"""Methods that edit the image of the placed product by an instruction: InstructPix2Pix, and any newer editor."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refadgen.config.marks import Decides, Place, Section, setting
from refadgen.config.weights import require_all_weights
from refadgen.evaluation.baselines.stable_diffusion import (
    PREFIX,
    StableDiffusionMethod,
    StableDiffusionSettings,
    picture,
    run,
)
from refadgen.generation.method import AdMethod, AdRequest, ImageU8
from refadgen.model.folder import find_model, read_index

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_INSTRUCTION = "{prompt}"
_INSTRUCTION_RULE: dict[str, Any] = {"pattern": r"(?s).*\{prompt\}.*", "rule": "a text with {prompt} in it"}
_GIVEN = (
    "image",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "max_area",
    "num_inference_steps",
    "generator",
    "output_type",
)
"""Arguments of the pipeline that do not come from `arguments`."""


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixSettings(StableDiffusionSettings, name="method.settings"):
    image_guidance_scale: float = setting(1.5, Decides.PIXELS, least=1, most=50)
    """How close the result keeps to the product image."""
    instruction: str = setting(_INSTRUCTION, Decides.PIXELS, **_INSTRUCTION_RULE)
    """What the model is told: `Put the product into this scene: {prompt}`."""


class InstructPix2Pix(StableDiffusionMethod):
    """InstructPix2Pix (arXiv 2211.09800). base: its own model, whose U-Net takes the image beside the latents."""

    settings_type = InstructPix2PixSettings
    channels_in = 8

    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        from diffusers import StableDiffusionInstructPix2PixPipeline

        return StableDiffusionInstructPix2PixPipeline(**parts)

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        # The image's own size is the result's.
        return self._own_arguments(request) | {
            "prompt": self.settings.instruction.replace("{prompt}", request.prompt),
            "image": picture(request.canvas),
            "image_guidance_scale": self.settings.image_guidance_scale,
        }


@dataclass(frozen=True, kw_only=True)
class InstructionEditorSettings(Section, name="method.settings"):
    model: str = setting("", Decides.RUN, pattern=r"(?s).+", rule="a folder or a hub id", place=Place.MODEL)
    """A diffusers pipeline that takes an image and a prompt: `black-forest-labs/FLUX.1-Kontext-dev` (non-commercial),
    `black-forest-labs/FLUX.2-klein-4B` (Apache-2.0), `Qwen/Qwen-Image-Edit` (Apache-2.0), …"""
    num_inference_steps: int | None = setting(None, Decides.PIXELS, least=1, most=1000)
    """Denoising steps; None: as many as the pipeline makes by itself."""
    instruction: str = setting(_INSTRUCTION, Decides.PIXELS, **_INSTRUCTION_RULE)
    """What the model is told: `Put the product into this scene: {prompt}`."""
    arguments: Mapping[str, Any] | None = setting(None, Decides.PIXELS)
    """Further arguments of the pipeline: `method.settings.arguments.true_cfg_scale=4`."""


class InstructionEditor(AdMethod):
    """Any pipeline of diffusers that edits an image by an instruction."""

    settings_type = InstructionEditorSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        folder = find_model(settings.model, field=f"{PREFIX}model")
        pipeline = _pipeline_class(settings.model, folder)
        takes = inspect.signature(pipeline.__call__).parameters
        lacks = [name for name in ("image", "prompt") if name not in takes]
        if lacks:
            raise ValueError(f"{PREFIX}model={settings.model!r}: {pipeline.__name__} takes no {' and no '.join(lacks)}")
        for name in settings.arguments or {}:
            if name in _GIVEN or name not in takes:
                raise ValueError(
                    f"{PREFIX}arguments.{name}: "
                    + ("is the job's to give" if name in _GIVEN else f"{pipeline.__name__} takes no such argument")
                )

    def __init__(self, settings: Any, device: "torch.device", dtype: "torch.dtype") -> None:
        super().__init__(settings, device, dtype)
        folder = find_model(settings.model, field=f"{PREFIX}model")
        pipeline = _pipeline_class(settings.model, folder)
        try:
            self.pipeline = pipeline.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, **_models(folder, dtype)
            ).to(device)
        except OSError as error:  # pickled weights, or a part that is not there
            raise ValueError(f"{PREFIX}model={settings.model!r}: cannot be loaded: {error}") from error
        self.pipeline.set_progress_bar_config(disable=True)
        self._takes = inspect.signature(pipeline.__call__).parameters

    def generate(self, requests: Sequence[AdRequest]) -> list[ImageU8]:
        return [run(self.pipeline, self.arguments(request), request.seed) for request in requests]

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        """Arguments of the pipeline for one image."""
        width_px, height_px = request.size
        where_taken = {
            "negative_prompt": request.negative_prompt,
            "width": width_px,
            "height": height_px,
            "max_area": width_px * height_px,  # FLUX Kontext scales width and height to it
            "num_inference_steps": self.settings.num_inference_steps,
        }
        return {
            "image": picture(request.canvas),
            "prompt": self.settings.instruction.replace("{prompt}", request.prompt),
            **{name: value for name, value in where_taken.items() if value is not None and name in self._takes},
            **(self.settings.arguments or {}),
        }


def _pipeline_class(place: str, folder: "Path") -> Any:
    """The pipeline that `model_index.json` names. Raises: ValueError unless it is one of diffusers' own."""
    import diffusers

    name = read_index(folder).get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(f"{PREFIX}model={place!r}: its pipeline {name!r} is none of this diffusers' own")
    return found


def _models(folder: "Path", dtype: "torch.dtype") -> dict[str, Any]:
    """The networks of a pipeline, loaded one by one: the pipeline would make up weights that are missing.

    Raises: ValueError naming the part.
    """
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    found = {}
    for name, value in read_index(folder).items():
        library, class_name = value if isinstance(value, list) and len(value) == 2 else ("", "")
        cls: Any = getattr(libraries.get(library), str(class_name), None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin | transformers.PreTrainedModel)):
            continue
        try:
            model, report = cls.from_pretrained(  # type: ignore[attr-defined] # of either library's models
                folder / name, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{PREFIX}model: {folder / name}: cannot be loaded: {error}") from error
        require_all_weights(f"{PREFIX}model: {folder / name}", report)
        found[name] = model.eval()
    return found
