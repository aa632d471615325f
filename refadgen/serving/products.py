"""The segmentation deployment's work: fetch, decode, mask and place one product image."""

import hashlib
import threading
import time
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.catalog.categories import last_element
from refadgen.catalog.images import decode_image, decode_mask
from refadgen.catalog.layout import place
from refadgen.catalog.web import WebReader
from refadgen.config import LayoutConfig, ServeConfig
from refadgen.errors import RowError
from refadgen.generation.encoding import encode_product
from refadgen.segmentation import ProductMasker
from refadgen.serving.requests import ProductInput


@dataclass(frozen=True, kw_only=True)
class PlacedAd:
    """A product on its canvas, and how its mask was found; names and units as in the ledger."""

    canvas: npt.NDArray[np.uint8]
    """H×W×3, the product on white."""
    mask: npt.NDArray[np.uint8]
    """H×W, M′: 255 where the product is, else 0."""
    product: bytes
    """WebP of canvas and mask (its alpha), for people."""
    product_key: str
    """Hash of canvas and mask: equal keys share their reference features."""
    input_sha256: str
    mask_source: str
    mask_score: float
    mask_area: float
    fetch_s: float
    segment_s: float

    @property
    def num_bytes(self) -> int:
        """Size in a cache."""
        return self.canvas.nbytes + self.mask.nbytes + len(self.product)


class ProductPlacer:
    """Places products by the same functions as the catalogue job's stages. Safe to share between threads."""

    def __init__(self, config: ServeConfig) -> None:
        cv2.setNumThreads(1)  # parallelism comes from several products at once, not from within one
        self._fetch = config.fetch
        self._web = WebReader(config.fetch)
        replica = config.deployments.segmentation
        self._masker = ProductMasker(config.segmentation, gpu_expected=replica.num_gpus > 0, num_cpus=replica.num_cpus)
        self._turn = threading.Lock()  # SAM2's predictor keeps the current image as its state

    def place(
        self, given: ProductInput, category: str | None, layout: LayoutConfig, size: tuple[int, int]
    ) -> PlacedAd | RowError:
        """The product on a canvas of `size` (width, height; px).

        Returns a RowError instead of raising it: Ray would wrap a raised one, and log it as a fault of the replica.
        """
        started = time.monotonic()
        try:
            data = self._web.read(given.image) if isinstance(given.image, str) else given.image
            photo = decode_image(data, self._fetch)
            own_mask = None if given.mask is None else decode_mask(given.mask, self._fetch, photo.size)
            fetched = time.monotonic()
            with self._turn:
                found = self._masker.segment(photo, last_element(category), own_mask)
            placed = place(photo, found.alpha, layout, *size)
        except RowError as error:
            return error
        # With the shape below: canvases of two shapes may have the same bytes.
        key = hashlib.sha256(placed.canvas.tobytes() + placed.mask.tobytes()).hexdigest()
        return PlacedAd(
            canvas=placed.canvas,
            mask=placed.mask,
            product=encode_product(placed.canvas, placed.mask),
            product_key=f"{placed.canvas.shape}-{key}",
            input_sha256=hashlib.sha256(data).hexdigest(),
            mask_source=found.source,
            mask_score=found.score,
            mask_area=found.measurements.area,
            fetch_s=fetched - started,
            segment_s=time.monotonic() - fetched,
        )
