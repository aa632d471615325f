"""The two ledgers of a data set: `screening/` of the first pass over the ads, and `ledger/` of their final outcome."""

from dataclasses import dataclass
from datetime import datetime

from refadgen.batch.ledger import Ledger
from refadgen.batch.rows import Float32, Int32, UInt64, schema_of
from refadgen.storage.store import Storage


@dataclass(frozen=True, kw_only=True)
class _AdOutcome:
    """The columns of both ledgers. None: never measured, because an earlier step failed."""

    row_id: str
    """Hash of everything that the input's row says: 32 hexadecimal digits."""
    run_id: str
    recorded_at: datetime | None
    """Set when the row is appended."""
    row: int
    """Number in the input, from 0."""
    ad_id: str
    group: str
    """The product; the ad's own id where the input names none."""
    category: str | None
    status: str
    """done, failed or rejected. In the screening ledger `done` means: fit for the second pass."""
    reason: str
    """A key of errors.REASONS; empty when done."""
    detail: str
    """One sentence for a person; empty when done."""
    image: str
    """Address without signatures; empty: the image itself lies in the input."""
    input_sha256: str | None
    width_px: Int32 | None
    """The fetched ad's, before it is scaled down."""
    height_px: Int32 | None


@dataclass(frozen=True, kw_only=True)
class ScreeningRow(_AdOutcome):
    """One ad after the first pass."""

    perceptual_hash: UInt64 | None
    """None where the ad could not be read."""
    thumbnail: bytes | None
    """4×4 RGB."""
    product_colors: bytes | None
    """Backdrop and product in 4×4 fields. None also in ledgers of version 0.1.0."""
    screen_s: Float32 | None


@dataclass(frozen=True, kw_only=True)
class AdLedgerRow(_AdOutcome):
    """One ad's final outcome."""

    screen_s: Float32 | None
    """Only of ads that the first pass rejected."""
    duplicate_of: str | None
    """ad_id of the ad that stays."""
    split: str
    """train or test; empty unless done."""
    captions: tuple[str, ...] | None
    mask_source: str | None
    """own_mask, plain_background, saliency_model, sam3, sam2, or vote (of several networks)."""
    mask_score: Float32 | None
    mask_area: Float32 | None
    """Share of the ad."""
    variants: str | None
    """Kinds of the product images, in order."""
    views: str | None
    """JSON: angles, holes, stretch and tries of each novel view."""
    mask_ious: str | None
    """JSON: for each product image in order the IoU of SAM2's mask and the geometric one; null for the original, of
    which SAM2 is not asked again. None without `triplet.sam2_masks`, and in ledgers of version 0.1.0."""
    file: str
    """The triplet's file, relative to the output; empty unless done."""
    fetch_s: Float32 | None
    extract_s: Float32 | None
    describe_s: Float32 | None
    augment_s: Float32 | None


SCREENING_SCHEMA = schema_of(ScreeningRow)
SCHEMA = schema_of(AdLedgerRow)

NEAR_DUPLICATE = "near_duplicate"
REPLACED = "replaced"
"""The reason for an ad that was done and whose row of the input has changed since."""


def screening_ledger(storage: Storage) -> Ledger:
    """The ledger of the first pass."""
    return Ledger(storage, ScreeningRow, "screening")


def dataset_ledger(storage: Storage) -> Ledger:
    """The ledger of the ads' final outcome."""
    return Ledger(storage, AdLedgerRow)
