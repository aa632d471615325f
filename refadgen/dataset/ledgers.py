"""What the dataset job remembers: of its first pass over the ads (`screening/`), and of every ad in the end."""

from dataclasses import dataclass
from datetime import datetime

from refadgen.batch.ledger import Ledger
from refadgen.batch.rows import Float32, Int32, UInt64, schema_of
from refadgen.errors import retried_reasons
from refadgen.storage.store import Storage


@dataclass(frozen=True, kw_only=True)
class _AdRow:
    """What both ledgers have. None: never measured, because an earlier stage failed."""

    row_id: str
    """Hash of everything that the input's row says: 32 hexadecimal digits."""
    run_id: str
    recorded_at: datetime | None
    """Set when the row is appended."""
    row: int
    """Of the input, from 0."""
    ad_id: str
    group: str
    """The product; the ad's own id where the input names none."""
    category: str | None
    status: str
    """done, failed or rejected. In the screening ledger done means: fit for the second pass."""
    reason: str
    detail: str
    image: str
    """Address without signatures; empty: it lies in the input itself."""
    input_sha256: str | None
    width_px: Int32 | None
    height_px: Int32 | None


@dataclass(frozen=True, kw_only=True)
class ScreeningRow(_AdRow):
    """One ad after the first pass."""

    perceptual_hash: UInt64 | None
    """None where the ad could not be read."""
    thumbnail: bytes | None
    """4×4 RGB."""
    screen_s: Float32 | None


@dataclass(frozen=True, kw_only=True)
class AdLedgerRow(_AdRow):
    """One ad in the end."""

    screen_s: Float32 | None
    duplicate_of: str | None
    """ad_id of the ad that stays."""
    split: str
    """train or test; empty unless done."""
    captions: tuple[str, ...] | None
    mask_source: str | None
    """own_mask, plain_background or sam2."""
    mask_score: Float32 | None
    mask_area: Float32 | None
    """Share of the ad."""
    variants: str | None
    """Kinds of the product images, in order."""
    views: str | None
    """JSON: angles, holes, stretch and tries of each novel view."""
    file: str
    """Of the triplet, relative to the output; empty unless done."""
    fetch_s: Float32 | None
    extract_s: Float32 | None
    describe_s: Float32 | None
    augment_s: Float32 | None


SCREENING_SCHEMA = schema_of(ScreeningRow)
SCHEMA = schema_of(AdLedgerRow)

NEAR_DUPLICATE = "near_duplicate"
REPLACED = "replaced"
"""An ad that was done, and whose row of the input says something else now."""


def screening_ledger(storage: Storage) -> Ledger:
    """Of the first pass."""
    return Ledger(storage, ScreeningRow, "screening", retried=retried_reasons(new_files=True))


def dataset_ledger(storage: Storage) -> Ledger:
    """Of every ad."""
    return Ledger(storage, AdLedgerRow, retried=retried_reasons(new_files=True))
