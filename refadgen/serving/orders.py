"""Records that travel between the ingress and the generation replicas."""

from dataclasses import dataclass
from typing import Literal

from refadgen.config import GenerateConfig
from refadgen.engine.previews import Previews
from refadgen.generation.scores import FidelityScores
from refadgen.generation.wanted import WantedImage
from refadgen.serving.products import PlacedAd


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """One image for a generation replica."""

    wanted: WantedImage
    config: GenerateConfig
    """Includes the request's own settings."""
    placed: PlacedAd
    sku: str
    negative_prompt: str | None
    """None: the request gave none."""
    size: tuple[int, int] | None = None
    """The file's size in px, where it is another than the canvas's."""
    previews: Previews | None = None
    """Which steps have one; None: no step events either."""


@dataclass(frozen=True, kw_only=True)
class AdResult:
    """The outcome of one order; names and units as in the ledger."""

    status: Literal["done", "failed", "rejected"]
    reason: str
    """A key of `REASONS`; empty when done."""
    detail: str
    """One sentence for a person; empty when done."""
    attempts: int
    rung: str
    """Of the gate's ladder, where the image was kept or given up."""
    seed: int
    """Seed of the attempt that is kept, or of the last one."""
    scores: FidelityScores
    """Of the image that is kept, or of the last one."""
    waited_s: float
    """From the order to the first step, over all attempts."""
    generate_s: float
    batch_size: int
    """Of the last attempt; less than `sampling.batch_size` where the device's memory did not suffice."""
    encoded: bytes
    """The image file; empty unless `status` is done."""


@dataclass(frozen=True)
class StepDone:
    """step: from 1; 0: the image has a place in the queue, and no step is done yet. num_steps: of this
    image. preview: WebP; None: not due."""

    step: int
    num_steps: int
    preview: bytes | None
