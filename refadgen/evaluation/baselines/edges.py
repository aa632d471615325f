"""ControlNet and T2I-Adapter: the edges of the placed product steer the base."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from refadgen.config.marks import Decides, Place, setting
from refadgen.evaluation.baselines.stable_diffusion import (
    PREFIX,
    StableDiffusionMethod,
    StableDiffusionSettings,
    part_config,
    unet_config,
)
from refadgen.generation.method import AdRequest, ImageU8
from refadgen.model.folder import find_model

_THRESHOLDS = 100, 200
"""Of the Canny filter; those that ControlNet's authors trained with."""
_MODEL: dict[str, Any] = {"pattern": r"(?s).+", "rule": "a folder or a hub id", "place": Place.MODEL}


@dataclass(frozen=True, kw_only=True)
class ControlNetSettings(StableDiffusionSettings, name="method.settings"):
    controlnet: str = setting("", Decides.RUN, **_MODEL)
    """A ControlNet for Canny edges."""
    scale: float = setting(1.0, Decides.PIXELS, least=0, most=10)
    """How much it steers."""


class ControlNet(StableDiffusionMethod):
    """ControlNet on the product's edges (arXiv 2302.05543)."""

    settings_type = ControlNetSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        super().check(settings)
        own = part_config(settings.controlnet, "controlnet", "", "ControlNetModel")
        base = unet_config(settings)
        for name in ("cross_attention_dim", "block_out_channels"):
            _require_same("controlnet", settings.controlnet, name, own.get(name), base.get(name))

    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

        from refadgen.model.checkpoint import load_model

        folder = find_model(self.settings.controlnet)
        controlnet = load_model(folder, "", ControlNetModel, self.dtype)
        return StableDiffusionControlNetPipeline(**parts, controlnet=controlnet)

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        own = {"image": edges(request), "controlnet_conditioning_scale": self.settings.scale}
        return super().arguments(request) | own


@dataclass(frozen=True, kw_only=True)
class T2IAdapterSettings(StableDiffusionSettings, name="method.settings"):
    adapter: str = setting("", Decides.RUN, **_MODEL)
    """A T2I-Adapter for Canny edges."""
    scale: float = setting(1.0, Decides.PIXELS, least=0, most=10)
    """How much it steers."""


class T2IAdapter(StableDiffusionMethod):
    """T2I-Adapter on the product's edges (arXiv 2302.08453)."""

    settings_type = T2IAdapterSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        super().check(settings)
        own, base = part_config(settings.adapter, "adapter", "", "T2IAdapter"), unet_config(settings)
        last = list(own.get("channels", ()))[-1:]
        _require_same("adapter", settings.adapter, "channels", last, list(base.get("block_out_channels", ()))[-1:])

    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        from diffusers import StableDiffusionAdapterPipeline
        from diffusers import T2IAdapter as Adapter

        from refadgen.model.checkpoint import load_model

        adapter = load_model(find_model(self.settings.adapter), "", Adapter, self.dtype)
        return StableDiffusionAdapterPipeline(**parts, adapter=adapter)

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        factor = self.pipeline.adapter.total_downscale_factor
        if any(side % factor for side in request.size):
            raise ValueError(f"sampling.width_px, height_px: this T2I-Adapter takes multiples of {factor}")
        image = edges(request)
        if self.pipeline.adapter.config.in_channels == 1:
            image = image.convert("L")
        return super().arguments(request) | {"image": image, "adapter_conditioning_scale": self.settings.scale}


def edges(request: AdRequest) -> Image.Image:
    """Canny edges of the placed product, white on black, RGB. The canvas is white, so its outline is one of them."""
    found: ImageU8 = np.asarray(cv2.Canny(request.canvas, *_THRESHOLDS), np.uint8)
    return Image.fromarray(np.dstack([found] * 3))


def _require_same(field: str, place: str, name: str, own: Any, base: Any) -> None:
    if own != base:
        raise ValueError(
            f"{PREFIX}{field}={place!r}: is for another base: its {name} is {own}, that of {PREFIX}base {base}"
        )
