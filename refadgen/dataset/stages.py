"""The stages of the dataset job, as Ray actors. One row in, one row out.

First pass: `AdScreener`. Second pass: `AdFetcher`, `ProductExtractor`, `AdDescriber`, `TripletBuilder`. A retried task
repeats a stage's work on the same rows, without effect outside.
"""

import hashlib
import io
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from refadgen.batch.row_stage import RowFailure, RowStage, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.categories import last_element
from refadgen.catalog.fetch import ImageFetcher
from refadgen.catalog.images import decode_image, decode_mask, encode_png
from refadgen.config import DatasetConfig
from refadgen.dataset.files import triplets_key
from refadgen.dataset.ledgers import AdLedgerRow, ScreeningRow
from refadgen.dataset.near_duplicates import perceptual_hash, thumbnail
from refadgen.dataset.product_colors import product_colors
from refadgen.dataset.rows import (
    Built,
    BuiltAd,
    DescribedAd,
    Extracted,
    ExtractedAd,
    Fetched,
    FetchedAd,
    PlannedAd,
    Screened,
    ScreenedAd,
)
from refadgen.errors import RowError
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage
from refadgen.triplets.schema import SCHEMA as TRIPLET_SCHEMA
from refadgen.triplets.schema import SPLITS, Triplet, encode, original_variant, png_bytes, split_of, write_rows

if TYPE_CHECKING:
    from refadgen.dataset.sam2_masks import Sam2Masks

_FETCHING_THREADS = 8
"""Threads of one actor: enough to hide latency, and a bound on how many ads are decoded at once."""


class AdScreener(RowStage[PlannedAd, Screened, ScreenedAd]):
    """Fetches and decodes an ad, checks its size, and computes the hash and colours that near-duplicates share.

    INPUT: PlannedAd. OUTPUT: ScreeningRow. Reads the network; needs no GPU.
    """

    row_in, added, row_out = PlannedAd, Screened, ScreenedAd
    timer = "screen_s"
    num_threads: ClassVar[int] = _FETCHING_THREADS

    def __init__(self, config: DatasetConfig, run_id: str, catalog_uri: str) -> None:
        super().__init__(run_id)
        cv2.setNumThreads(1)  # Ray counts on num_cpus: OpenCV would take every core
        self._config = config
        self._run_id = run_id
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)

    def __call__(self, table: pa.Table) -> pa.Table:
        ads = self.apply(from_table(table, PlannedAd))
        return to_table([self._screening_row(ad) for ad in ads], ScreeningRow)

    def process(self, row: PlannedAd) -> Screened:
        data = self._fetcher.fetch(row.image or row.image_bytes)
        ad_u8 = as_rgb(decode_image(data, self._config.fetch))
        height, width = ad_u8.shape[:2]
        small = fitted(ad_u8, 256)  # enough for hash and colours, which average over large fields
        problem = self._problem(width, height)
        return Screened(
            input_sha256=hashlib.sha256(data).hexdigest(),
            width_px=width,
            height_px=height,
            perceptual_hash=perceptual_hash(small),
            thumbnail=thumbnail(small),
            product_colors=product_colors(small),
            error=RowFailure.of(problem) if problem else None,
        )

    def _problem(self, width: int, height: int) -> RowError | None:
        rules = self._config.filter
        shorter, longer = min(width, height), max(width, height)
        if shorter < rules.min_side_px:
            detail = f"{width}×{height} px: the shorter side is below {rules.min_side_px} px (filter.min_side_px)"
            return RowError("low_resolution", detail)
        if longer > rules.max_aspect * shorter:
            detail = f"{width}×{height} px: is longer than {rules.max_aspect:g} to 1 (filter.max_aspect)"
            return RowError("extreme_shape", detail)
        return None

    def _screening_row(self, ad: ScreenedAd) -> ScreeningRow:
        return ScreeningRow(
            row_id=ad.row_id,
            run_id=self._run_id,
            recorded_at=None,
            row=ad.row,
            ad_id=ad.ad_id,
            group=ad.group,
            category=ad.category,
            status=ad.error.status if ad.error else "done",
            reason=ad.error.reason if ad.error else "",
            detail=ad.error.detail if ad.error else "",
            image=redact_address(ad.image) if ad.image else "",
            input_sha256=ad.input_sha256,
            width_px=ad.width_px,
            height_px=ad.height_px,
            perceptual_hash=ad.perceptual_hash,
            thumbnail=ad.thumbnail,
            product_colors=ad.product_colors,
            screen_s=ad.screen_s,
        )


class AdFetcher(RowStage[PlannedAd, Fetched, FetchedAd]):
    """Fetches and decodes an ad that passed the first pass, and its own mask where it has one.

    INPUT: PlannedAd. OUTPUT: FetchedAd. Reads the network; needs no GPU.
    """

    row_in, added, row_out = PlannedAd, Fetched, FetchedAd
    timer = "fetch_s"
    num_threads: ClassVar[int] = _FETCHING_THREADS

    def __init__(self, config: DatasetConfig, run_id: str, catalog_uri: str) -> None:
        super().__init__(run_id)
        cv2.setNumThreads(1)
        self._config = config
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)

    def process(self, row: PlannedAd) -> Fetched:
        data = self._fetcher.fetch(row.image or row.image_bytes)
        photo = decode_image(data, self._config.fetch)
        max_side_px = self._config.triplet.max_side_px
        own_mask = b""
        if row.mask or row.mask_bytes:
            mask_data = self._fetcher.fetch(row.mask or row.mask_bytes, field="mask")
            own_mask = encode_png(fitted(decode_mask(mask_data, self._config.fetch, photo.size), max_side_px))
        return Fetched(
            ad=encode_png(fitted(as_rgb(photo), max_side_px)),
            own_mask=own_mask,
            input_sha256=hashlib.sha256(data).hexdigest(),
            width_px=photo.width,
            height_px=photo.height,
        )


class ProductExtractor(RowStage[FetchedAd, Extracted, ExtractedAd]):
    """Finds the product's mask in the ad, and rejects ads by their content (see `content.ContentFilter`).

    INPUT: FetchedAd. OUTPUT: ExtractedAd. A GPU only for networks.
    """

    row_in, added, row_out = FetchedAd, Extracted, ExtractedAd
    timer = "extract_s"

    def __init__(self, config: DatasetConfig, run_id: str) -> None:
        """Raises: ValueError naming the field whose weights, package or device are missing."""
        super().__init__(run_id)
        cv2.setNumThreads(1)
        from refadgen.dataset.content import ContentFilter
        from refadgen.segmentation import ProductMasker

        stage = config.stages.extract
        gpu_expected = stage.num_gpus > 0
        self._masker = ProductMasker(config.segmentation, gpu_expected=gpu_expected, num_cpus=stage.num_cpus)
        finder = None if self._masker.networks is None else self._masker.networks.finder
        self._content = ContentFilter(config.filter, finder, config.segmentation.device, gpu_expected=gpu_expected)

    def process(self, row: FetchedAd) -> Extracted:
        ad = Image.open(io.BytesIO(row.ad))
        own_mask = pixels(row.own_mask) if row.own_mask else None
        name = last_element(row.category)
        found = self._masker.segment(ad, name, own_mask)
        self._content.check(np.asarray(ad), found.mask, name)
        return Extracted(
            product_mask=encode_png(found.mask),
            mask_source=found.source,
            mask_score=found.score,
            mask_area=found.measurements.area,
        )


class AdDescriber:
    """Writes the captions of ads, in batches of all rows of a block.

    INPUT: ExtractedAd. OUTPUT: DescribedAd. A GPU where `caption.model` is set.
    """

    def __init__(self, config: DatasetConfig, run_id: str) -> None:
        """Raises: ValueError naming the field whose weights or device are missing."""
        from refadgen.dataset.captions import make_captioner

        self._config = config.caption
        self._captioner = make_captioner(config.caption, gpu_expected=bool(config.stages.describe.num_gpus))
        self._errors = UnexpectedErrors(AdDescriber.__name__, run_id)

    def __call__(self, table: pa.Table) -> pa.Table:
        ads = from_table(table, ExtractedAd)
        good = [ad for ad in ads if ad.error is None]
        started = time.monotonic()
        texts = self._describe(good)
        seconds = (time.monotonic() - started) / max(1, len(good))
        described = {ad.row: self._described(ad, each, seconds) for ad, each in zip(good, texts, strict=True)}
        rows = [described.get(ad.row) or DescribedAd.of(ad, error=ad.error) for ad in ads]
        return to_table(rows, DescribedAd)

    def _describe(self, ads: list[ExtractedAd]) -> Sequence[list[str] | Exception]:
        """Returns the candidate captions of each ad, or the captioner's error for the batch in place of each."""
        from refadgen.dataset.captions import Ad

        try:
            described = [
                Ad(
                    image_u8=pixels(ad.ad),
                    mask=pixels(ad.product_mask),
                    category=ad.category,
                    title=ad.title,
                    captions=ad.own_captions,
                )
                for ad in ads
            ]
            return self._captioner.describe(described)
        except Exception as error:  # often too little memory for this batch: failed, so another run may retry
            return [error] * len(ads)

    def _described(self, ad: ExtractedAd, texts: list[str] | Exception, seconds: float) -> DescribedAd:
        from refadgen.dataset.captions import check_captions

        captions, failure = None, None
        if isinstance(texts, Exception):
            failure = self._errors.failure(texts, ad.label, "caption_failed")
        else:
            try:
                captions = tuple(check_captions(texts, self._config))
            except RowError as error:
                failure = RowFailure.of(error)
            except Exception as error:
                failure = self._errors.failure(error, ad.label)
        if failure is not None:
            self._errors.tell(ad, failure)
        return DescribedAd.of(ad, error=failure, captions=captions, describe_s=seconds)


class TripletBuilder(RowStage[DescribedAd, Built, BuiltAd]):
    """Makes the product images of each ad, writes a block's triplets to one file per split, and makes ledger rows.

    INPUT: DescribedAd. OUTPUT: AdLedgerRow. A file's name derives from its rows: a retried task writes the same bytes
    to the same place. A GPU only where `multi_view.device` needs one.
    """

    row_in, added, row_out = DescribedAd, Built, BuiltAd
    timer = "augment_s"

    def __init__(self, config: DatasetConfig, run_id: str, output_uri: str) -> None:
        """Raises: ValueError naming the field whose weights, package or device are missing."""
        super().__init__(run_id)
        cv2.setNumThreads(1)
        from refadgen.dataset.variants import VariantMaker

        self._config = config.triplet
        self._schema = TRIPLET_SCHEMA
        self._sam2: Sam2Masks | None = None
        if config.triplet.sam2_masks:
            from refadgen.dataset import sam2_masks  # torch only where it is used

            self._sam2 = sam2_masks.Sam2Masks(config)
            self._schema = TRIPLET_SCHEMA.append(pa.field("geometric_masks", pa.list_(pa.binary())))
        self._storage = Storage(output_uri)
        self._run_id = run_id
        self._maker = VariantMaker(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        ads = self.apply(from_table(table, DescribedAd))
        # A file before its ledger rows: a crash between them leaves an orphan, never a row without its triplet.
        files = {split: self._write([ad for ad in ads if ad.split == split], split) for split in ("", *SPLITS)}
        return to_table([self._ledger_row(ad, files[ad.split]) for ad in ads], AdLedgerRow)

    def process(self, row: DescribedAd) -> Built:
        assert row.captions is not None  # an ad without captions has an error
        ad_u8, mask = pixels(row.ad), pixels(row.product_mask)
        variants, views = self._maker.make(original_variant(ad_u8, mask), row.row_id)
        masked = None
        if self._sam2 is not None:
            masked = self._sam2.masked(variants)
            variants = masked.variants
        split = split_of(row.group, self._config.test_percent)
        triplet = Triplet(
            row_id=row.row_id,
            product_id=row.group,
            category=row.category or "",
            split=split,
            captions=list(row.captions),
            ad_image=ad_u8,
            variants=variants,
            facts=json.dumps({"ad_id": row.ad_id, "input_sha256": row.input_sha256, "views": views}),
        )
        return Built(
            triplet=encode(triplet),
            split=split,
            variants=", ".join(each.kind for each in variants),
            views=json.dumps(views),
            mask_ious=json.dumps(masked.ious) if masked else None,
            geometric_masks=tuple(map(png_bytes, masked.geometric)) if masked else (),
        )

    def _write(self, ads: list[BuiltAd], split: str) -> str | Exception:
        """Writes the triplets of one split. Returns their file's key, or the error of writing.

        split: empty for ads that failed: nothing is written, and the key is empty.
        """
        if not split or not ads:
            return ""
        try:
            key = triplets_key(split, [ad.row_id for ad in ads])
            rows = [{**(ad.triplet or {}), "geometric_masks": ad.geometric_masks} for ad in ads]
            write_rows(self._storage, key, pa.Table.from_pylist(rows, schema=self._schema))
            return key
        except Exception as error:  # storage raises many kinds; the triplets can be made and written again
            return error

    def _ledger_row(self, ad: BuiltAd, file: str | Exception) -> AdLedgerRow:
        failure = ad.error
        if isinstance(file, Exception):
            failure, file = self._errors.failure(file, ad.label, "publish_failed"), ""
            self._errors.tell(ad, failure)
        return AdLedgerRow(
            row_id=ad.row_id,
            run_id=self._run_id,
            recorded_at=None,
            row=ad.row,
            ad_id=ad.ad_id,
            group=ad.group,
            category=ad.category,
            status=failure.status if failure else "done",
            reason=failure.reason if failure else "",
            detail=failure.detail if failure else "",
            image=redact_address(ad.image) if ad.image else "",
            input_sha256=ad.input_sha256,
            width_px=ad.width_px,
            height_px=ad.height_px,
            screen_s=None,
            duplicate_of=None,
            split="" if failure else ad.split,
            captions=ad.captions,
            mask_source=ad.mask_source,
            mask_score=ad.mask_score,
            mask_area=ad.mask_area,
            variants=ad.variants,
            views=ad.views,
            mask_ious=ad.mask_ious,
            file=file,
            fetch_s=ad.fetch_s,
            extract_s=ad.extract_s,
            describe_s=ad.describe_s,
            augment_s=ad.augment_s,
        )


def as_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Returns uint8 H×W×3; transparent parts lie on white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def fitted(pixels_u8: npt.NDArray[np.uint8], max_side_px: int) -> npt.NDArray[np.uint8]:
    """Returns uint8 H×W or H×W×3, scaled down where its longer side is above `max_side_px`. Masks keep their values."""
    height, width = pixels_u8.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return pixels_u8
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_NEAREST if pixels_u8.ndim == 2 else cv2.INTER_AREA
    resized: npt.NDArray[np.uint8] = np.asarray(cv2.resize(pixels_u8, size, interpolation=interpolation), np.uint8)
    return resized


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Returns the array that `encode_png` was given."""
    return np.asarray(Image.open(io.BytesIO(data)))
