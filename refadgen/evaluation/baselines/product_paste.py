"""The product's own pixels on a background: on a scene of the base, or on a plain colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refadgen.config.marks import Decides, Section, setting
from refadgen.evaluation.baselines.stable_diffusion import StableDiffusionSettings, TextToImage
from refadgen.generation.encoding import COMPOSITE
from refadgen.generation.method import AdMethod, AdRequest, ImageU8
from refadgen.generation.product_pixels import with_product_pixels


@dataclass(frozen=True, kw_only=True)
class PixelPasteSettings(StableDiffusionSettings, name="method.settings"):
    tone: float = setting(0.0, Decides.PIXELS, least=0, most=1)
    """How far the pixels take on the lightness of what the base drew there; 0: not at all."""


class PixelPaste(TextToImage):
    """The placed product laid into the base's image of the prompt."""

    settings_type = PixelPasteSettings
    source_type = COMPOSITE

    def generate(self, requests: Sequence[AdRequest]) -> list[ImageU8]:
        scenes = super().generate(requests)
        return [
            with_product_pixels(scene, request.canvas, request.mask, self.settings.tone)
            for scene, request in zip(scenes, requests, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class PlainPasteSettings(Section, name="method.settings"):
    color: str = setting("#e6e6e6", Decides.PIXELS, pattern=r"#[0-9a-f]{6}", rule="#rrggbb, in small letters")
    """Of the background."""


class PlainPaste(AdMethod):
    """The placed product on a plain colour: needs no weights, and knows nothing of the prompt."""

    settings_type = PlainPasteSettings
    source_type = "composite"

    def generate(self, requests: Sequence[AdRequest]) -> list[ImageU8]:
        color = np.frombuffer(bytes.fromhex(self.settings.color[1:]), np.uint8)
        return [
            with_product_pixels(np.broadcast_to(color, each.canvas.shape).copy(), each.canvas, each.mask)
            for each in requests
        ]
