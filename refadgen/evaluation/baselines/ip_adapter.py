"""IP-Adapter: the product image as tokens beside the prompt's (arXiv 2308.06721)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refadgen.config.marks import Decides, Place, setting
from refadgen.evaluation.baselines.stable_diffusion import (
    PREFIX,
    StableDiffusionMethod,
    StableDiffusionSettings,
    picture,
    unet_config,
)
from refadgen.generation.method import AdRequest
from refadgen.model.folder import find_model, find_part, read_json


@dataclass(frozen=True, kw_only=True)
class IPAdapterSettings(StableDiffusionSettings, name="method.settings"):
    adapter: str = setting(
        "", Decides.RUN, pattern=r"(?s).+\.safetensors", rule="a .safetensors file", place=Place.PATH
    )
    """`ip-adapter_sd15.safetensors`, `ip-adapter-plus_sd15.safetensors` or another one for Stable Diffusion 1.5."""
    image_encoder: str = setting("", Decides.RUN, pattern=r"(?s).+", rule="a folder or a hub id", place=Place.MODEL)
    """The CLIP image encoder that the adapter was trained with, as `h94/IP-Adapter` has it."""
    scale: float = setting(1.0, Decides.PIXELS, least=0, most=10)
    """Weight of the image's tokens."""


class IPAdapter(StableDiffusionMethod):
    """IP-Adapter, or IP-Adapter Plus, on the placed product."""

    settings_type = IPAdapterSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        super().check(settings)
        from refadgen.model.base import tensor_shapes

        shapes, base = tensor_shapes(Path(settings.adapter)), unet_config(settings)
        encoder = read_json(_encoder_folder(settings) / "config.json")
        keys = [shape for name, shape in shapes.items() if name.endswith(".to_k_ip.weight")]
        # The plain adapter projects CLIP's embedding, Plus its last hidden states.
        plain, plus = shapes.get("image_proj.proj.weight"), shapes.get("image_proj.proj_in.weight")
        takes = plain or plus
        if not keys or takes is None:
            raise ValueError(f"{PREFIX}adapter={settings.adapter!r}: is no IP-Adapter, plain or Plus")
        if keys[0][1] != base.get("cross_attention_dim"):
            raise ValueError(
                f"{PREFIX}adapter={settings.adapter!r}: is for a base of width {keys[0][1]}, and {PREFIX}base has "
                f"{base.get('cross_attention_dim')}"
            )
        width = encoder.get("projection_dim" if plain else "hidden_size")
        if takes[1] != width:
            raise ValueError(
                f"{PREFIX}image_encoder={settings.image_encoder!r}: has a width of {width}, and {PREFIX}adapter takes "
                f"{takes[1]}"
            )

    def make_pipeline(self, parts: Mapping[str, Any]) -> Any:
        from diffusers import StableDiffusionPipeline
        from safetensors.torch import load_file
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        from refadgen.model.checkpoint import load_model

        encoder = load_model(_encoder_folder(self.settings), "", CLIPVisionModelWithProjection, self.dtype)
        side = encoder.config.image_size
        own = {
            "image_encoder": encoder,
            "feature_extractor": CLIPImageProcessor(size=side, crop_size=side),
        }
        pipeline = StableDiffusionPipeline(**{**parts, **own})
        state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in load_file(self.settings.adapter).items():
            part, _, key = name.partition(".")
            state.setdefault(part, {})[key] = tensor
        try:
            pipeline.load_ip_adapter(state, subfolder="", weight_name="adapter.safetensors")
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{PREFIX}adapter={self.settings.adapter!r}: does not fit the base: {error}") from error
        pipeline.set_ip_adapter_scale(self.settings.scale)
        return pipeline

    def arguments(self, request: AdRequest) -> dict[str, Any]:
        return super().arguments(request) | {"ip_adapter_image": picture(request.canvas)}


def _encoder_folder(settings: IPAdapterSettings) -> Path:
    return find_part(find_model(settings.image_encoder, field=f"{PREFIX}image_encoder"), "image_encoder")
