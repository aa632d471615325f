"""The ledger of the main job: one row per wanted image (see refadgen/batch/ledger.py)."""

from dataclasses import dataclass
from datetime import datetime

from refadgen.batch.ledger import Ledger
from refadgen.batch.rows import Float32, Int32, schema_of
from refadgen.generation.channel_files import ChannelFile
from refadgen.storage.store import Storage


@dataclass(frozen=True, kw_only=True)
class AdLedgerRow:
    """One wanted image and its outcome. None: never measured, because an earlier stage failed."""

    image_id: str
    """Hash of everything that decides the picture: 32 hexadecimal digits."""
    run_id: str
    recorded_at: datetime | None
    """Set when the row is appended."""
    row: int
    """Number of the catalogue row, from 0."""
    sku: str
    category: str | None
    scene: str
    variant: Int32
    """From 0."""
    status: str
    """done, failed or rejected."""
    reason: str
    """A key of errors.REASONS; empty when done."""
    detail: str
    """One sentence for a person; empty when done."""
    attempts: Int32
    """Images drawn."""
    uri: str
    """The image file, relative to the output; empty unless done."""
    product_uri: str
    """Picture of the placed product (its alpha channel is the mask), relative to the output; empty: never placed."""
    image: str
    """The product image's address, without signatures."""
    input_sha256: str
    """Hash of the product image's bytes."""
    prompt: str
    negative_prompt: str
    seed: int
    width_px: Int32 | None
    """Of the image file."""
    height_px: Int32 | None
    mask_source: str
    """own_mask, alpha, plain_background, saliency_model, sam3, sam2, vote (of several networks), or review: a person
    decided."""
    mask_score: Float32 | None
    mask_area: Float32 | None
    """Share of the product photograph."""
    color_similarity: Float32 | None
    """Inside the mask, to the placed product, 0 to 1."""
    structure_similarity: Float32 | None
    """SSIM inside the mask, to the placed product."""
    mask_iou: Float32 | None
    """Overlap of M′ with the mask found in the ad; None without networks, or where they fail or disagree."""
    fetch_s: Float32
    segment_s: Float32
    generate_s: Float32 | None
    """The image's share of its batches."""
    publish_s: Float32
    model: str
    """Path and fingerprint; of another method (`method.class`) its class and fingerprint."""
    decision: str | None = None
    """Hash of the mask that a person decided on; empty: nobody did."""
    batch_size: Int32 | None = None
    """Images denoised at once when this one was made: `sampling.batch_size`, or less where the device's memory did not
    suffice. Pictures are the same byte for byte at one batch size only."""
    rung: str | None = None
    """Of the gate's ladder, where the image was kept or given up: first, seed, fusion_scale, product_pixels
    (`generation/ladder.py`); empty: none was drawn."""
    digital_source_type: str | None = None
    """IPTC's: trainedAlgorithmicMedia, or compositeWithTrainedAlgorithmicMedia where the product's own pixels stand in
    the image; another method may say another type; empty unless done."""
    as_photographed: bool | None = None
    """Whether the product stands where its photograph has it (`layout.as_photographed`)."""
    local_similarity: Float32 | None = None
    """Inside the mask, where the ad differs most from the placed product after its light is taken out, 0 to 1."""
    hue_similarity: Float32 | None = None
    """1 − the mean turn of the product's hue / 30°, after the light is taken out."""
    cost: Float32 | None = None
    """Of the image's `generate_s` on its actor's GPUs, at `cost.per_gpu_hour`; None: no price was set, or none was
    drawn. Starts, waiting and other stages are in the run's cost (`run.json`) only."""
    device: str | None = None
    """The kind of device that made it, such as "NVIDIA H100 80GB HBM3" or "cpu x86_64 AVX2"; None: none was drawn.
    Pictures are the same byte for byte on one kind only."""
    ratio: str | None = None
    """Of its canvas, where the run made images for channels; empty: the canvas of `sampling`."""
    channel_files: tuple[ChannelFile, ...] | None = None
    """The channels' files of the image; None: the run had no channels, or the image is not done."""
    lint: str | None = None
    """`clean`: the channels would take all these files as read back; else what is wrong with which of them."""
    unsigned_sha256: str | None = None
    """Hash of the image file without its signature, which is another in each run; empty unless done."""
    signed_by: str | None = None
    """Name and serial number of the certificate that signed the file (C2PA); empty: none."""
    watermark: str | None = None
    """`provenance.watermark` of the file, whether or not it can be read from it; empty: it has none."""


SCHEMA = schema_of(AdLedgerRow)


class AdLedger(Ledger):
    """The ledger of one output folder."""

    def __init__(self, storage: Storage, writer: str = "") -> None:
        super().__init__(storage, AdLedgerRow, writer=writer)
