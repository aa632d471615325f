"""Rows of the dataset job between its stages: one ad, from the plan to the ledger.

    PlannedAd ─► ScreenedAd ─► ScreeningRow                                      first pass
    PlannedAd ─► FetchedAd ─► ExtractedAd ─► DescribedAd ─► AdLedgerRow          second pass

Between stages travel encoded bytes and small columns, never decoded images.
"""

from dataclasses import dataclass
from typing import Any

from refadgen.batch.planning import PlannedRow
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import Float32, Int32, UInt64, field_names
from refadgen.triplets.schema import TripletRow


@dataclass(frozen=True, kw_only=True)
class AdRow:
    """The columns that every stage passes on."""

    row_id: str
    """Hash of everything that the input's row says: 32 hexadecimal digits."""
    row: int
    """Number in the input, from 0."""
    ad_id: str
    group: str
    """The product; the ad's own id where the input names none."""
    category: str | None
    image: str
    """Address; empty: the image itself lies in the input."""
    error: RowFailure | None

    @property
    def label(self) -> str:
        return f"row {self.row}, ad {self.ad_id!r}"

    @property
    def log_facts(self) -> dict[str, Any]:
        return {"row": self.row, "ad": self.ad_id}


@dataclass(frozen=True, kw_only=True)
class PlannedAd(AdRow, PlannedRow):
    """A row of the input."""

    title: str | None = None
    own_captions: tuple[str, ...] = ()
    mask: str = ""
    """Address of the row's own mask; empty: it lies in `mask_bytes`, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The columns that the screener adds. None where the ad could not be read."""

    input_sha256: str | None = None
    """SHA-256 of the fetched bytes."""
    width_px: Int32 | None = None
    """The fetched ad's, before it is scaled down."""
    height_px: Int32 | None = None
    perceptual_hash: UInt64 | None = None
    thumbnail: bytes | None = None
    """4×4 RGB."""
    product_colors: bytes | None = None
    """From `product_colors.product_colors`: 68 bytes."""
    error: RowFailure | None = None
    """Why an ad that could be read is rejected."""


# Each stage names the columns it passes on: encoded images that later stages don't read would be copied to them.
@dataclass(frozen=True, kw_only=True)
class ScreenedAd(AdRow):
    """An ad after the first pass."""

    input_sha256: str | None
    width_px: Int32 | None
    height_px: Int32 | None
    perceptual_hash: UInt64 | None
    thumbnail: bytes | None
    product_colors: bytes | None
    screen_s: Float32


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The columns that the fetcher adds. Empty or None after an error."""

    ad: bytes = b""
    """PNG, RGB, upright, at most `triplet.max_side_px`."""
    own_mask: bytes = b""
    """PNG, L, the ad's size; empty: the row has none."""
    input_sha256: str | None = None
    """SHA-256 of the fetched bytes."""
    width_px: Int32 | None = None
    """The fetched ad's, before it is scaled down."""
    height_px: Int32 | None = None


@dataclass(frozen=True, kw_only=True)
class FetchedAd(AdRow, Fetched):
    """An ad with its picture."""

    title: str | None
    own_captions: tuple[str, ...]
    fetch_s: Float32


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """The columns that the extractor adds. Empty or None after an error."""

    product_mask: bytes = b""
    """PNG, L, 0 or 255, the ad's size."""
    mask_source: str = ""
    mask_score: Float32 | None = None
    mask_area: Float32 | None = None
    """Share of the ad."""


@dataclass(frozen=True, kw_only=True)
class ExtractedAd(AdRow, Extracted):
    """An ad with the mask of its product."""

    title: str | None
    own_captions: tuple[str, ...]
    ad: bytes
    input_sha256: str | None
    width_px: Int32 | None
    height_px: Int32 | None
    fetch_s: Float32
    extract_s: Float32


@dataclass(frozen=True, kw_only=True)
class DescribedAd(AdRow, Extracted):
    """An ad with its captions. These are None after an error."""

    ad: bytes
    input_sha256: str | None
    width_px: Int32 | None
    height_px: Int32 | None
    fetch_s: Float32
    extract_s: Float32
    captions: tuple[str, ...] | None
    describe_s: Float32 | None

    @classmethod
    def of(
        cls,
        ad: ExtractedAd,
        *,
        error: RowFailure | None,
        captions: tuple[str, ...] | None = None,
        describe_s: float | None = None,
    ) -> "DescribedAd":
        """The ad's row with these captions."""
        added = ("error", "captions", "describe_s")
        passed_on = {name: getattr(ad, name) for name in field_names(cls) if name not in added}
        return cls(**passed_on, error=error, captions=captions, describe_s=describe_s)


@dataclass(frozen=True, kw_only=True)
class Built:
    """The triplet of an ad. Empty or None after an error."""

    triplet: TripletRow | None = None
    split: str = ""
    variants: str | None = None
    """Kinds of the product images, in order."""
    views: str | None = None
    """JSON: angles, holes, stretch and tries of each novel view."""
    mask_ious: str | None = None
    """JSON: see `ledgers.AdLedgerRow`."""
    geometric_masks: tuple[bytes, ...] = ()
    """PNG, L, one for each product image. None without `triplet.sam2_masks`."""


@dataclass(frozen=True, kw_only=True)
class BuiltAd(DescribedAd, Built):
    """An ad before its triplet is written. It never travels: its triplet would be copied twice."""

    augment_s: Float32
