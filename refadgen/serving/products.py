"""The segmentation deployment's work: fetch, decode, mask and place one product image; or find its mask alone."""

import hashlib
import threading
import time
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from refadgen.catalog.categories import last_element
from refadgen.catalog.images import decode_image, decode_mask, decode_soft_mask
from refadgen.catalog.layout import file_size, place
from refadgen.catalog.web import WebReader
from refadgen.channels.canvases import ChannelCanvas
from refadgen.channels.placing import place_for_channels
from refadgen.config import LayoutConfig, ServeConfig
from refadgen.errors import DOUBTS, RowError
from refadgen.generation.doubtful import bounded_size
from refadgen.generation.encoding import encode_product
from refadgen.segmentation import ProductMasker
from refadgen.segmentation.decided import decided
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.serving.requests import ProductInput
from refadgen.storage.pictures import to_png


@dataclass(frozen=True, kw_only=True)
class PlacedAd:
    """A product on its canvas, and how its mask was found; names and units as in the ledger."""

    canvas: npt.NDArray[np.uint8]
    """H×W×3, the product on white."""
    mask: npt.NDArray[np.uint8]
    """H×W, M′: 255 where the product is, else 0."""
    file_size: tuple[int, int]
    """Width and height of the ad's file in px: the canvas's, or those of the photograph's ratio."""
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


@dataclass(frozen=True, kw_only=True)
class FoundMask:
    """A product's mask before anything is made, or the doubtful one; names and units as in the ledger."""

    reason: str
    """A key of `REASONS`: why a person should look at it. Empty: the mask is accepted."""
    detail: str
    input_sha256: str
    width_px: int
    """The photograph's, upright."""
    height_px: int
    mask_source: str
    """Empty: nothing proposed a mask."""
    mask_score: float | None
    mask_area: float | None
    mask: bytes | None
    """PNG, L: of the photograph's size or of `bounded_size`. None: nothing proposed one."""


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
        self,
        given: ProductInput,
        category: str | None,
        layout: LayoutConfig,
        size: tuple[int, int],
        canvas: ChannelCanvas | None = None,
    ) -> PlacedAd | RowError:
        """The product on a canvas of `size` (width, height; px); where the ad is for a channel, on its `canvas`.

        Returns a RowError instead of raising it: Ray would wrap a raised one, and log it as a fault of the replica.
        """
        started = time.monotonic()
        try:
            data, photo, own_mask = self._read(given)
            fetched = time.monotonic()
            if given.decided:
                assert own_mask is not None
                found = decided(own_mask, photo.size, self._masker.config.min_piece)
            else:
                with self._turn:
                    found = self._masker.segment(photo, last_element(category), own_mask)
            if canvas is None:
                placed = place(photo, found.alpha, layout, *size)
            else:
                placed = place_for_channels(photo, found.alpha, layout, canvas)
        except RowError as error:
            return error
        size_px = file_size(layout, photo.size, size)
        # With the shape below: canvases of two shapes may have the same bytes.
        key = hashlib.sha256(placed.canvas.tobytes() + placed.mask.tobytes()).hexdigest()
        return PlacedAd(
            canvas=placed.canvas,
            mask=placed.mask,
            file_size=size_px,
            product=encode_product(placed.canvas, placed.mask, size_px),
            product_key=f"{placed.canvas.shape}-{key}",
            input_sha256=hashlib.sha256(data).hexdigest(),
            mask_source=found.source,
            mask_score=found.score,
            mask_area=found.measurements.area,
            fetch_s=fetched - started,
            segment_s=time.monotonic() - fetched,
        )

    def find_mask(self, given: ProductInput, category: str | None) -> FoundMask | RowError:
        """The mask that `place` would use, or the one that it would refuse as doubtful.

        Returns a RowError where the product image itself is wrong, for the reason that `place` returns it.
        """
        try:
            data, photo, own_mask = self._read(given)
        except RowError as error:
            return error
        alpha: npt.NDArray[np.uint8] | None = None
        source, score, reason, detail = "", None, "", ""
        try:
            with self._turn:
                found = self._masker.segment(photo, last_element(category), own_mask)
            alpha, source, score = found.alpha, found.source, found.score
        except DoubtfulMask as error:
            alpha, source, score, reason, detail = error.alpha, error.source, error.score, error.reason, error.problem
        except RowError as error:
            if error.reason not in DOUBTS:
                return error
            reason, detail = error.reason, error.problem
        return FoundMask(
            reason=reason,
            detail=detail,
            input_sha256=hashlib.sha256(data).hexdigest(),
            width_px=photo.width,
            height_px=photo.height,
            mask_source=source,
            mask_score=score,
            mask_area=None if alpha is None else float((alpha > 127).mean()),
            mask=None if alpha is None else _mask_png(alpha),
        )

    def _read(self, given: ProductInput) -> tuple[bytes, Image.Image, npt.NDArray[np.uint8] | None]:
        """The encoded photograph, the decoded one, and its own mask (uint8 H×W), as `segment` or `decided` takes it.

        Raises: RowError.
        """
        data = self._web.read(given.image) if isinstance(given.image, str) else given.image
        photo = decode_image(data, self._fetch)
        if given.mask is None:
            return data, photo, None
        # The batch job, too, keeps the soft edge of a mask that a person decided on, and no other.
        decode = decode_soft_mask if given.decided else decode_mask
        own_mask = decode(given.mask, self._fetch, photo.size)
        return data, photo, own_mask


def _mask_png(alpha: npt.NDArray[np.uint8]) -> bytes:
    height, width = alpha.shape
    size = bounded_size((width, height))
    if size != (width, height):
        alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA), np.uint8)
    return to_png(alpha, compress_level=6)
