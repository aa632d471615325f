"""Rows of an evaluation, and its ledger of scores: an evaluation that is run again goes on where it was."""

from dataclasses import dataclass
from datetime import datetime

from refadgen.batch.ledger import Ledger
from refadgen.batch.rows import Float32, Int32
from refadgen.storage.store import Storage


@dataclass(frozen=True, kw_only=True)
class ImageToScore:
    """One ad on its way to the scorers."""

    score_id: str
    """Hash of what its scores depend on: run, image, settings."""
    run: str
    """The run's address."""
    image_id: str
    sku: str
    scene: str
    variant: Int32
    category: str | None
    prompt: str
    uri: str
    product_uri: str
    width_px: Int32 | None
    height_px: Int32 | None
    color_similarity: Float32 | None
    structure_similarity: Float32 | None


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One scored ad. A measure is None where it is off, or has no value for this ad."""

    score_id: str
    run_id: str
    recorded_at: datetime | None
    status: str
    """done or failed."""
    reason: str
    detail: str
    run: str
    """Address of the run."""
    image_id: str
    sku: str
    scene: str
    variant: Int32
    uri: str
    product_uri: str
    features: str = ""
    """The file of features for FID; empty: none."""
    feature_row: Int32 | None = None
    color_similarity: Float32 | None = None
    structure_similarity: Float32 | None = None
    clip_score: Float32 | None = None
    mp_lpips: Float32 | None = None
    lpips: Float32 | None = None
    lpips_product: Float32 | None = None
    dino: Float32 | None = None
    character_error_rate: Float32 | None = None
    nearest_product: Float32 | None = None
    mask_iou: Float32 | None = None
    object_expansion: Float32 | None = None
    shift: Float32 | None = None
    scale_error: Float32 | None = None
    color_drift: Float32 | None = None
    judge_identity: Float32 | None = None
    judge_realism: Float32 | None = None
    judge_no_answer: Float32 | None = None


class ScoreLedger(Ledger):
    """The ledger of an evaluation's output."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, ImageScores, "scores")
