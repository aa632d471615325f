"""What travels between the ingress, the generation replicas and their step engines."""

from dataclasses import dataclass
from typing import Any

from refadgen.config import GenerateConfig
from refadgen.generation.wanted import WantedImage
from refadgen.serving.products import PlacedAd


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """One image for a generation replica."""

    wanted: WantedImage
    config: GenerateConfig
    placed: PlacedAd
    facts: dict[str, Any]
    """sku, category, negative_prompt, input_sha256: what the image's record says beside `wanted`."""
    preview_every: int = 0


@dataclass(frozen=True, kw_only=True)
class AdResult:
    """What became of one order. encoded: the file; empty unless `status` is done."""

    status: str
    reason: str
    detail: str
    attempts: int
    seed: int
    color_similarity: float | None
    structure_similarity: float | None
    waited_s: float
    generate_s: float
    encoded: bytes


@dataclass(frozen=True)
class StepDone:
    """step: from 1; 0: the image has a place, and no step was done yet."""

    step: int
    preview: bytes | None
