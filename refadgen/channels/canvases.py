"""The canvases that a run's channels need: one for each ratio, near the area that the model was trained at.

channels ─► rules ─► one ChannelCanvas a ratio ─► one wanted image ─► one file a channel
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from refadgen.catalog.layout import SafeZone
from refadgen.channels.rules import RATIO_TOLERANCE, ChannelRule, chosen_rules, has_ratio, load_rules, ratio_of
from refadgen.config import GenerateConfig

_STEPS_PX = (64, 32, 16, 8)
"""Sides are multiples of the first of these that a ratio allows: 8 is the VAE's need; with 64 no level of Stable
Diffusion's U-Net rounds."""
_AREA_TOLERANCE = 0.15


@dataclass(frozen=True, kw_only=True)
class ChannelCanvas:
    """What one wanted image of a ratio is made on.

    safe_zone: of all channels of this ratio, chosen or not, so that a channel more moves no product.
    rules: of the channels that get a file of the image.
    """

    ratio: str
    width_px: int
    height_px: int
    safe_zone: SafeZone
    rules: tuple[ChannelRule, ...]

    def identity(self) -> dict[str, Any]:
        """What decides the image and its files, for its id."""
        zone = self.safe_zone
        return {
            "height_px": self.height_px,
            "safe_zone": [zone.top, zone.right, zone.bottom, zone.left],
            "width_px": self.width_px,
            "files": {
                rule.name: [*rule.size, rule.max_bytes, list(rule.formats), rule.composite_mark] for rule in self.rules
            },
        }

    def __str__(self) -> str:
        return f"{self.ratio} at {self.width_px}×{self.height_px} px: {', '.join(rule.name for rule in self.rules)}"


def canvases_of(config: GenerateConfig) -> Mapping[str, ChannelCanvas]:
    """The canvases of a run by ratio; none where it has no channels.

    config: with the model's own size in it. Raises: ValueError naming the channel that is unknown or has no canvas.
    """
    if not config.channels:
        return {}
    width_px, height_px = config.sampling.width_px, config.sampling.height_px
    assert width_px is not None  # the job fills in the model's own size
    assert height_px is not None
    return _canvases(config.channels, config.channels_file, width_px * height_px)


@lru_cache(maxsize=8)
def _canvases(names: tuple[str, ...], file: str | None, area: int) -> Mapping[str, ChannelCanvas]:
    canvases: dict[str, ChannelCanvas] = {}
    chosen = chosen_rules(names, file)
    for rule in chosen:
        if rule.ratio in canvases:
            continue
        zone = SafeZone()
        for other in load_rules(file).values():
            if other.ratio == rule.ratio:
                zone = zone.joined(other.safe_zone)
        width_px, height_px = canvas_size(rule.ratio, area)
        canvases[rule.ratio] = ChannelCanvas(
            ratio=rule.ratio,
            width_px=width_px,
            height_px=height_px,
            safe_zone=zone,
            rules=tuple(sorted((each for each in chosen if each.ratio == rule.ratio), key=lambda each: each.name)),
        )
    return canvases


def canvas_size(ratio: str, area: int) -> tuple[int, int]:
    """Width and height of a canvas of a ratio, px.

    The sides are multiples of 64, or of 32, 16 or 8 where the ratio needs it. area: that the model was trained at,
    px. Raises: ValueError where no such canvas has the ratio within 1 %.
    """
    wanted = ratio_of(ratio)
    for step in _STEPS_PX:
        found = []
        for height in range(step, int((area / wanted * 1.5) ** 0.5) + step, step):
            width = max(step, round(height * wanted / step) * step)
            off = abs(width * height / area - 1)
            if has_ratio((width, height), wanted) and off <= _AREA_TOLERANCE:
                found.append((off + 10 * abs(width / height / wanted - 1), width, height))
        if found:
            return min(found)[1:]
    raise ValueError(
        f"channels: no canvas of the ratio {ratio} within {RATIO_TOLERANCE:.0%} has about the model's {area} px "
        "(sampling.width_px × sampling.height_px) in sides of multiples of 8"
    )
