"""The stages that prepare a product, as Ray actors: fetch, then segment and place. One row in, one row out.

Where a run makes images for channels, the second has a row out for each canvas that the product is placed on.

A retried task repeats a stage's work on the same rows, without effect outside.
"""

import dataclasses
import hashlib
import io
from typing import Any, ClassVar

import ray
from PIL import Image

from refadgen.batch.row_stage import RowFailure, RowStage
from refadgen.catalog.categories import last_element
from refadgen.catalog.fetch import ImageFetcher
from refadgen.catalog.images import decode_image, decode_mask, encode_png
from refadgen.catalog.layout import PlacedProduct as ProductOnCanvas
from refadgen.catalog.layout import file_size, place
from refadgen.channels.canvases import ChannelCanvas, canvases_of
from refadgen.channels.placing import place_for_channels
from refadgen.config import GenerateConfig
from refadgen.errors import DOUBTS, RowError
from refadgen.generation.decisions import DecidedMasks
from refadgen.generation.doubtful import doubtful_product, write_doubtful
from refadgen.generation.encoding import encode_product, product_key
from refadgen.generation.rows import Fetched, FetchedProduct, Placed, PlacedProduct, PlannedProduct
from refadgen.segmentation.decided import decided
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.segmentation.segmenter import Segmentation
from refadgen.storage.pictures import from_png
from refadgen.storage.store import Storage


class ProductFetcher(RowStage[PlannedProduct, Fetched, FetchedProduct]):
    """Fetches and decodes the product image, and the row's own mask where it has one.

    INPUT: PlannedProduct. OUTPUT: FetchedProduct. Reads the network; needs no GPU and little CPU.
    """

    row_in, added, row_out = PlannedProduct, Fetched, FetchedProduct
    timer = "fetch_s"
    num_threads: ClassVar[int] = 16
    """Enough to hide latency, and a bound on how many photographs are decoded at once."""

    def __init__(self, config: GenerateConfig, run_id: str, catalog_uri: str) -> None:
        super().__init__(run_id)
        self._config = config.fetch
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)

    def process(self, row: PlannedProduct) -> Fetched:
        data = self._fetcher.fetch(row.image or row.image_bytes)
        photo = decode_image(data, self._config)
        own_mask = b""
        if (row.mask or row.mask_bytes) and not row.decision:
            mask_data = self._fetcher.fetch(row.mask or row.mask_bytes, field="mask")
            own_mask = encode_png(decode_mask(mask_data, self._config, photo.size))
        return Fetched(photo=encode_png(photo), own_mask=own_mask, input_sha256=hashlib.sha256(data).hexdigest())


class ProductSegmenter(RowStage[FetchedProduct, Placed, PlacedProduct]):
    """Finds the product's mask, and places product and mask on the canvas, or on each canvas of the run's channels.

    INPUT: FetchedProduct. OUTPUT: PlacedProduct, one row a canvas. A GPU only for networks. Keeps doubtful masks for
    the review pages; a retried task writes the same bytes to the same places.
    """

    row_in, added, row_out = FetchedProduct, Placed, PlacedProduct
    timer = "segment_s"

    def __init__(
        self, config: GenerateConfig, run_id: str, output_uri: str | None = None, decided_masks: Any = None
    ) -> None:
        """output_uri: where doubtful masks are kept; None: nowhere. decided_masks: the table of
        `Decisions.masks`, or a reference to it in Ray's object store; None: there are no decisions.

        Raises: ValueError naming the field of a weights file or device that is not there.
        """
        super().__init__(run_id)
        import cv2

        from refadgen.segmentation import ProductMasker

        cv2.setNumThreads(1)  # Ray counts on num_cpus: OpenCV would take every core
        width_px, height_px = config.sampling.width_px, config.sampling.height_px
        assert width_px is not None  # the job fills in the model's own size
        assert height_px is not None
        self._size = (width_px, height_px)
        self._canvases = canvases_of(config)
        self._placed_on: dict[int, dict[str, Placed]] = {}
        """By number of row and ratio: what `apply` makes rows of."""
        stage = config.stages.segment
        self._masker = ProductMasker(config.segmentation, gpu_expected=stage.num_gpus > 0, num_cpus=stage.num_cpus)
        self._min_piece = config.segmentation.min_piece
        self._accepted_below = config.review.accepted_below
        keeps = output_uri is not None and config.review.max_masks > 0
        self._storage = Storage(output_uri) if output_uri is not None and keeps else None
        if isinstance(decided_masks, ray.ObjectRef):
            decided_masks = ray.get(decided_masks)
        self._decided = None if decided_masks is None else DecidedMasks(decided_masks)

    def apply(self, rows: list[FetchedProduct]) -> list[PlacedProduct]:
        placed = super().apply(rows)
        return placed if not self._canvases else [each for row in placed for each in self._on_canvases(row)]

    def _on_canvases(self, row: PlacedProduct) -> list[PlacedProduct]:
        """A row for each canvas, with the images that are made on it; a row that failed as it is."""
        found = self._placed_on.pop(row.row, {})
        if row.error is not None:
            return [row]
        return [
            dataclasses.replace(row, **vars(placed), wanted=tuple(each for each in row.wanted if each.ratio == ratio))
            for ratio, placed in found.items()
        ]

    def process(self, row: FetchedProduct) -> Placed:
        photo = Image.open(io.BytesIO(row.photo))
        try:
            found = self._segmented(row, photo)
        except RowError as error:
            if error.reason not in DOUBTS:
                raise
            refused = error if isinstance(error, DoubtfulMask) else None
            self._keep(row, photo, refused, error)
            source, score = (refused.source, refused.score) if refused else ("", None)
            return Placed(error=RowFailure.of(error), mask_source=source, mask_score=score)
        if found.score < self._accepted_below:
            self._keep(row, photo, found, None)
        if not self._canvases:
            return self._placed(row, photo, found)
        canvases = [self._canvases[ratio] for ratio in dict.fromkeys(image.ratio for image in row.wanted)]
        self._placed_on[row.row] = {each.ratio: self._placed_for(each, row, photo, found) for each in canvases}
        return Placed()

    def _segmented(self, row: FetchedProduct, photo: Image.Image) -> Segmentation:
        """The mask that a person decided on, or else that of the chain. Raises: RowError."""
        if row.decision:
            assert self._decided is not None
            mask = self._decided.mask(row.sku, row.input_sha256, photo.size)
            return decided(mask, photo.size, self._min_piece)
        own_mask = from_png(row.own_mask) if row.own_mask else None
        return self._masker.segment(photo, last_element(row.category), own_mask)

    def _keep(
        self, row: FetchedProduct, photo: Image.Image, found: Segmentation | DoubtfulMask | None, error: RowError | None
    ) -> None:
        """Keeps a doubtful mask for the review pages. A failure is logged: it costs a picture there, and no ad."""
        if self._storage is None:
            return
        try:
            product = doubtful_product(
                found,
                photo,
                sku=row.sku,
                row=row.row,
                category=row.category,
                image=row.image,
                input_sha256=row.input_sha256,
                reason=error.reason if error else "",
                detail=error.problem if error else "",
            )
            write_doubtful(self._storage, product)
        except Exception as fault:  # storage raises many kinds
            self._errors.failure(fault, row.label)

    def _placed_for(
        self, canvas: ChannelCanvas, row: FetchedProduct, photo: Image.Image, found: Segmentation
    ) -> Placed:
        """The product on the canvas of some channels, or the error of its images there."""
        try:
            placed = place_for_channels(photo, found.alpha, row.layout, canvas)
            return self._encoded(row, found, placed, (canvas.width_px, canvas.height_px))
        except RowError as error:
            failure = RowFailure.of(error)
        except Exception as problem:  # a fault of ours costs the images of this canvas alone
            failure = self._errors.failure(problem, row.label)
        self._errors.tell(row, failure)
        return Placed(error=failure, mask_source=found.source, mask_score=found.score)

    def _placed(self, row: FetchedProduct, photo: Image.Image, found: Segmentation) -> Placed:
        placed = place(photo, found.alpha, row.layout, *self._size)
        return self._encoded(row, found, placed, file_size(row.layout, photo.size, self._size))

    def _encoded(
        self, row: FetchedProduct, found: Segmentation, placed: ProductOnCanvas, size: tuple[int, int]
    ) -> Placed:
        """size: width and height of the ad's file, px."""
        width_px, height_px = size
        product = encode_product(placed.canvas, placed.mask, (width_px, height_px))
        return Placed(
            canvas=encode_png(placed.canvas),
            product_mask=encode_png(placed.mask),
            product=product,
            product_uri=product_key(product),
            width_px=width_px,
            height_px=height_px,
            as_photographed=row.layout.as_photographed,
            mask_source=found.source,
            mask_score=found.score,
            mask_area=found.measurements.area,
        )
