"""Doubtful masks on their way to a person: what the segmenter keeps of each, and where it lies in the output.

One small parquet file for each product, written by the stage itself: nothing is collected in the driver. A later run
overwrites the file of the same product. `review.py` makes the pages of them.
"""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from refadgen.batch.rows import Float32, Int32, from_table, to_table
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.segmenter import Segmentation
from refadgen.storage.addresses import redact_address
from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage

MASK_MOST_PX = 2048
"""Longest side of a kept mask. A canvas is smaller, so that no edge becomes coarser by it."""
_PHOTO_MOST_PX = 768
_FOLDER = "review"


@dataclass(frozen=True, kw_only=True)
class DoubtfulProduct:
    """A product whose mask a person should see."""

    sku: str
    row: int
    category: str | None
    image: str
    """The photograph's address, without signatures; empty: it lies in the catalogue."""
    input_sha256: str
    """Hash of the photograph's bytes as fetched."""
    reason: str
    """A key of errors.REASONS; empty: the mask was accepted, with a low score."""
    detail: str
    mask_source: str
    """The link of the chain that proposed the mask; empty: none did."""
    mask_score: Float32 | None
    photo_width_px: Int32
    photo_height_px: Int32
    photo: bytes
    """WebP, RGB or RGBA, its longest side at most 768 px."""
    mask: bytes
    """PNG, L: the proposed mask, of the photograph's size or of `bounded_size`. Empty: nothing was proposed."""


def bounded_size(size: tuple[int, int], most: int = MASK_MOST_PX) -> tuple[int, int]:
    """`size` (width, height), made smaller in its shape until no side is longer than `most`."""
    longest = max(size)
    if longest <= most:
        return size
    return max(1, round(size[0] * most / longest)), max(1, round(size[1] * most / longest))


def doubtful_product(
    found: Segmentation | DoubtfulMask | None,
    photo: Image.Image,
    *,
    sku: str,
    row: int,
    category: str | None,
    image: str,
    input_sha256: str,
    reason: str,
    detail: str,
) -> DoubtfulProduct:
    """What is kept of a doubtful mask. found: the mask, accepted or refused; None: nothing was proposed."""
    shown, sink = photo.resize(bounded_size(photo.size, _PHOTO_MOST_PX), Image.Resampling.LANCZOS), io.BytesIO()
    shown.save(sink, "WEBP", quality=85, method=2)
    return DoubtfulProduct(
        sku=sku,
        row=row,
        category=category,
        image=redact_address(image) if image else "",
        input_sha256=input_sha256,
        reason=reason,
        detail=detail,
        mask_source="" if found is None else found.source,
        mask_score=None if found is None else found.score,
        photo_width_px=photo.width,
        photo_height_px=photo.height,
        photo=sink.getvalue(),
        mask=b"" if found is None else _mask_png(found.alpha),
    )


def _mask_png(alpha: npt.NDArray[np.uint8]) -> bytes:
    mask = Image.fromarray(alpha)
    size = bounded_size(mask.size)
    return to_png(mask if size == mask.size else mask.resize(size, Image.Resampling.BOX), compress_level=6)


def write_doubtful(storage: Storage, product: DoubtfulProduct) -> None:
    """Writes the product's file, in place of an earlier one. Raises: the errors of writing."""
    sink = pa.BufferOutputStream()
    # Pictures are compressed already.
    pq.write_table(to_table([product], DoubtfulProduct), sink, compression="none")
    storage.write(doubtful_key(product.sku), sink.getvalue().to_pybytes())


def read_doubtful(storage: Storage, sku: str) -> DoubtfulProduct | None:
    """What the latest run that doubted this product's mask has kept; None: nothing that can be read."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(doubtful_key(sku))))
        (product,) = from_table(table, DoubtfulProduct)
    except (OSError, ValueError, TypeError, pa.ArrowException):  # written by no version of ours, or not at all
        return None
    return product


def doubtful_key(sku: str) -> str:
    """The key of a product's file: spread over folders, as images are."""
    name = hashlib.sha256(sku.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{_FOLDER}/{name[:2]}/{name}.parquet"
