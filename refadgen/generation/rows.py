"""Rows of the main job between its stages: one product with its wanted images, from the plan to the publisher.

    PlannedProduct ─► FetchedProduct ─► PlacedProduct ─► GeneratedProduct ─► AdLedgerRow (one per image)

Between stages travel encoded bytes and small columns, never decoded images. A product's own bytes travel once for all
its images.
"""

from dataclasses import dataclass, field
from typing import Any

from refadgen.batch.planning import PlannedRow
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import Float32, Int32, field_names
from refadgen.config import LayoutConfig
from refadgen.generation.scores import FidelityScores
from refadgen.generation.wanted import WantedImage


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """The fields that every stage passes on."""

    row: int
    """Number of the catalogue row, from 0."""
    sku: str
    category: str | None
    image: str
    """Address; empty: the image itself lies in the catalogue."""
    negative_prompt: str | None
    """None: the model's."""
    wanted: tuple[WantedImage, ...]
    """The images to make."""
    decision: str = ""
    """Hash of the mask that a person decided on; empty: there is none."""
    error: RowFailure | None

    @property
    def label(self) -> str:
        return f"row {self.row}, sku {self.sku!r}"

    @property
    def log_facts(self) -> dict[str, Any]:
        return {"row": self.row, "sku": self.sku}


@dataclass(frozen=True, kw_only=True)
class PlannedProduct(ProductRow, PlannedRow):
    """A catalogue row whose images are not all in the ledger."""

    mask: str = ""
    """Address of the row's own mask; empty: it lies in `mask_bytes`, or there is none."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """The job's, with the row's placement merged in."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The fields that the fetcher adds. Empty after an error."""

    photo: bytes = b""
    """PNG, RGB or RGBA, upright."""
    own_mask: bytes = b""
    """PNG, L, the photo's size; empty: the row has none."""
    input_sha256: str = ""
    """Hash of the product image as fetched."""


@dataclass(frozen=True, kw_only=True)
class FetchedProduct(ProductRow, Fetched):
    layout: LayoutConfig
    fetch_s: Float32


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The fields that the segmenter adds. Empty or None after an error; a doubted mask keeps its source and score."""

    canvas: bytes = b""
    """PNG, RGB: the product placed on white."""
    product_mask: bytes = b""
    """PNG, L, 0 or 255: M′."""
    product: bytes = b""
    """WebP of both, for people: its alpha channel is M′."""
    product_uri: str = ""
    """Where `product` is published, relative to the output."""
    width_px: Int32 | None = None
    """Of the ad's file."""
    height_px: Int32 | None = None
    as_photographed: bool = False
    """Whether the product stands where its photograph has it; canvas and M′ then have another ratio than the file."""
    mask_source: str = ""
    mask_score: Float32 | None = None
    mask_area: Float32 | None = None
    error: RowFailure | None = None


@dataclass(frozen=True, kw_only=True)
class PlacedProduct(ProductRow, Placed):
    """A product on one canvas, with the wanted images that are made on it."""

    input_sha256: str
    fetch_s: Float32
    segment_s: Float32


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One wanted image after the generator."""

    wanted: WantedImage
    error: RowFailure | None
    ad: bytes = b""
    """PNG; empty after an error."""
    seed: int
    """Seed of the attempt that is kept; the wanted image's own where none was drawn."""
    attempts: Int32 = 0
    rung: str = ""
    """Of the gate's ladder; empty where no image was drawn."""
    fusion_scale: float = 0.0
    """λ of the attempt that is kept; 0 where none was drawn."""
    scores: FidelityScores | None = None
    """None where no image was drawn."""
    generate_s: Float32 | None = None
    batch_size: Int32 | None = None
    """Of the batches that the image was made in; None where none was drawn."""
    device: str | None = None
    """The kind of device that drew it (`config/devices.device_kind`)."""


@dataclass(frozen=True, kw_only=True)
class GeneratedProduct:
    """A product with some of its images: all of them, unless they are more than one row carries."""

    row: int
    sku: str
    category: str | None
    image: str
    negative_prompt: str | None
    decision: str
    input_sha256: str
    product_mask: bytes
    product: bytes
    product_uri: str
    width_px: Int32 | None
    height_px: Int32 | None
    as_photographed: bool
    mask_source: str
    mask_score: Float32 | None
    mask_area: Float32 | None
    fetch_s: Float32
    segment_s: Float32
    images: tuple[GeneratedImage, ...]

    @property
    def label(self) -> str:
        return f"row {self.row}, sku {self.sku!r}"

    @property
    def log_facts(self) -> dict[str, Any]:
        return {"row": self.row, "sku": self.sku}

    @classmethod
    def of(cls, product: PlacedProduct, images: tuple[GeneratedImage, ...]) -> "GeneratedProduct":
        """The product's row with these images."""
        own = {name: getattr(product, name) for name in field_names(cls) if name != "images"}
        return cls(**own, images=images)
