"""Methods as users bring them, and things that are none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refadgen.config.marks import Decides, Place, Section, setting
from refadgen.generation.method import AdMethod, AdRequest


@dataclass(frozen=True, kw_only=True)
class ShadeSettings(Section, name="method.settings"):
    shade: int = setting(0, Decides.PIXELS, least=0, most=255)
    threads: int = setting(1, Decides.RUN)
    weights: str = setting("", Decides.RUN, place=Place.PATH)
    needs: str = setting("", Decides.RUN)


class Shade(AdMethod):
    """The canvas, made darker; a prompt may ask for a failure."""

    settings_type = ShadeSettings
    takes_batches = True
    size = (64, 80)
    asked: list[list[str]] = []  # noqa: RUF012 (the tests read it)

    @classmethod
    def check(cls, settings: ShadeSettings) -> None:
        if settings.needs:
            raise ValueError(f"method.settings.needs={settings.needs!r}: is not installed")

    def generate(self, requests: Sequence[AdRequest]) -> list[np.ndarray]:
        prompts = [request.prompt for request in requests]
        self.asked.append(prompts)
        if "broken" in prompts:
            raise RuntimeError("this product breaks it")
        if "missing" in prompts:
            return []
        images = [np.maximum(request.canvas.astype(int) - self.settings.shade, 0) for request in requests]
        for index, request in enumerate(requests):
            if request.seed == 13:  # an unlucky one
                images[index] = np.zeros_like(images[index])
            if request.prompt == "small":
                images[index] = images[index][:10]
        return [
            image.astype(np.float32 if prompt == "floats" else np.uint8)
            for image, prompt in zip(images, prompts, strict=True)
        ]


class OneByOne(Shade):
    takes_batches = False


class Unfinished(AdMethod):
    """Lacks `generate`."""


class Other:
    """No AdMethod."""
