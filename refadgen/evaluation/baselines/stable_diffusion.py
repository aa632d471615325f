"""What the methods on a Stable Diffusion 1.5 share, settings and loading; and the plainest of them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from refadgen.config.marks import Decides, Place, Section, setting
from refadgen.errors import RowError
from refadgen.generation.method import AdMethod, AdRequest, ImageU8
from refadgen.model.folder import find_model, read_json

if TYPE_CHECKING:
    import torch

PREFIX = "method.settings."


@dataclass(frozen=True, kw_only=True)
class StableDiffusionSettings(Section, name="method.settings"):
    base: str = setting("", Decides.RUN, pattern=r"(?s).+", rule="a folder, a file or a hub id", place=Place.MODEL)
    """A Stable Diffusion 1.5: a folder in diffusers' layout, a single `.safetensors` file beside its configurations, or
    a hub id."""
    num_inference_steps: int = setting(20, Decides.PIXELS, least=1, most=1000)
    """Denoising steps."""
    guidance_scale: float = setting(7.5, Decides.PIXELS, least=1, most=50)
    """Classifier-free guidance."""
    negative_prompt: str = setting("", Decides.PIXELS)
    """For products without one of their own."""


class StableDiffusionMethod(AdMethod):
    """A method whose images a pipeline of Stable Diffusion 1.5 makes."""

    settings_type = StableDiffusionSettings
    channels_in: ClassVar[int] = 4
    """Of the U-Net: the latents and what the method puts beside them."""

    @classmethod
    def check(cls, settings: Any) -> None:
        config = unet_config(settings)
        if config.get("in_channels", 4) != cls.channels_in:
            raise ValueError(
                f"{PREFIX}base={settings.base!r}: its U-Net takes {config.get('in_channels')} channels, and "
                f"{cls.__name__} needs {cls.channels_in}"
            )

    def __init__(self, settings: Any, device: "torch.device", dtype: "torch.dtype") -> None:
        super().__init__(settings, device, dtype)
        from refadgen.model.base import load_stable_diffusion

        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        parts = load_stable_diffusion(settings.base, dtype)
        self.pipeline = self.make_pipeline({**parts, **unused}).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    @abstractmethod
    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        """The pipeline. parts: keywords of it, the base's. Raises: ValueError naming the setting."""

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        """Arguments of the pipeline for one image."""
        width_px, height_px = request.size
        return {**self._own_arguments(request), "width": width_px, "height": height_px}

    def _own_arguments(self, request: AdRequest) -> dict[str, Any]:
        settings = self.settings
        return {
            "prompt": request.prompt,
            "negative_prompt": settings.negative_prompt if request.negative_prompt is None else request.negative_prompt,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
        }

    def generate(self, requests: Sequence[AdRequest]) -> list[ImageU8]:
        return [self._image(request) for request in requests]

    def _image(self, request: AdRequest) -> ImageU8:
        arguments = self.arguments(request)
        for field in ("prompt", "negative_prompt"):
            self._require_short(field, arguments[field])
        return run(self.pipeline, arguments, request.seed)

    def _require_short(self, field: str, text: str) -> None:
        """Raises: RowError for a prompt whose end the pipeline would leave out."""
        tokenizer = self.pipeline.tokenizer
        if len(tokenizer(text).input_ids) > tokenizer.model_max_length:
            limit = tokenizer.model_max_length
            raise RowError(f"{field}_too_long", f"{field}: too long: the model takes {limit} tokens")


class TextToImage(StableDiffusionMethod):
    """The base alone: what the prompt says, and nothing of the product."""

    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(**parts)


def run(pipeline: Any, arguments: Mapping[str, Any], seed: int) -> ImageU8:
    """The image of a diffusers pipeline, uint8 H×W×3. Raises: RowError `not_finite` where NaN or infinity come out."""
    import torch

    # Drawn on the CPU: the same noise on every device.
    generator = torch.Generator().manual_seed(seed)
    image = np.asarray(pipeline(**arguments, generator=generator, output_type="np").images[0])
    if not np.isfinite(image).all():
        raise RowError("not_finite", f"{type(pipeline).__name__} gives NaN or infinity: try another model.dtype")
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)


def unet_config(settings: StableDiffusionSettings) -> dict[str, Any]:
    """The configuration of the base's U-Net. Raises: ValueError naming the setting."""
    return part_config(settings.base, "base", "unet", "UNet2DConditionModel")


def part_config(place: str, field: str, name: str, class_name: str) -> dict[str, Any]:
    """The configuration of the part `name` in a model; "": the model itself.

    place: of the setting `field`. Raises: ValueError naming it, unless the part is a `class_name`.
    """
    found = find_model(place, field=PREFIX + field)
    folder: Path = found.parent if found.is_file() else found
    try:
        config = read_json(folder / name / "config.json")
    except ValueError as error:
        raise ValueError(f"{PREFIX}{field}={place!r}: holds no {class_name} ({error})") from error
    if config.get("_class_name", class_name) != class_name:
        raise ValueError(f"{PREFIX}{field}={place!r}: holds a {config['_class_name']}, not a {class_name}")
    return config


def picture(image_u8: ImageU8) -> Image.Image:
    """As pipelines take it."""
    return Image.fromarray(image_u8)
