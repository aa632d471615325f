"""The last stage: encode, write, and only then the ledger row."""

import dataclasses
import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.row_stage import RowFailure, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.categories import last_element
from refadgen.config import GenerateConfig
from refadgen.generation.channel_files import ChannelFile, ChannelFiles, lint_of
from refadgen.generation.encoding import (
    GenerationRecord,
    digital_source_type,
    encode_ad,
    facts_of,
    image_key,
    resized,
)
from refadgen.generation.ledger import AdLedgerRow
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.rows import GeneratedImage, GeneratedProduct
from refadgen.provenance.marks import AdMarks, MarkedFile
from refadgen.storage.addresses import redact_address
from refadgen.storage.pictures import from_png
from refadgen.storage.store import Storage


@dataclasses.dataclass(frozen=True)
class _Published:
    """What became of one image."""

    failure: RowFailure | None
    uri: str = ""
    file: MarkedFile | None = None
    mask_iou: float | None = None
    channel_files: tuple[ChannelFile, ...] | None = None


class AdPublisher:
    """Writes images and placed products, and makes the ledger rows.

    INPUT: GeneratedProduct. OUTPUT: AdLedgerRow, one row per image. A retried task writes the same bytes to the same
    places, but for signatures.
    """

    def __init__(self, config: GenerateConfig, run_id: str, output_uri: str, model: ModelIdentity) -> None:
        self._config = config
        self._storage = Storage(output_uri)
        self._run_id = run_id
        self._model = model
        self._errors = UnexpectedErrors(AdPublisher.__name__, run_id)
        self._marks = AdMarks(config.provenance)
        self._masker = None
        self._last_product_uri = ""
        self._channel_files = ChannelFiles(config, self._storage, self._marks)
        if config.segmentation.has_networks:
            from refadgen.segmentation import ProductMasker

            # On the CPU unless this stage has a GPU of its own: the segment stage's is another actor's.
            has_gpu = config.stages.publish.num_gpus > 0
            device = config.segmentation.device if has_gpu else "cpu"
            segmentation = dataclasses.replace(config.segmentation, device=device)
            self._masker = ProductMasker(segmentation, gpu_expected=has_gpu, num_cpus=config.stages.publish.num_cpus)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [row for product in from_table(table, GeneratedProduct) for row in self._product(product)]
        return to_table(rows, AdLedgerRow)

    def _product(self, product: GeneratedProduct) -> list[AdLedgerRow]:
        """Publishes a product's picture once, then its images."""
        rows = []
        for image in product.images:
            started = time.monotonic()
            try:
                self._publish_product(product)
                published = self._publish(product, image)
            except Exception as error:  # storage raises many kinds; the image can be made and written again
                failure = self._errors.failure(error, product.label, "publish_failed")
                self._errors.tell(product, failure)
                published = _Published(failure)
            rows.append(self._ledger_row(product, image, published, time.monotonic() - started))
        return rows

    def _publish_product(self, product: GeneratedProduct) -> None:
        """Writes the picture of the placed product, unless it is the one written last."""
        # The images of a product come together, so one name remembered saves nearly all repeated writes.
        if product.product and product.product_uri != self._last_product_uri:
            self._storage.write(product.product_uri, product.product)
            self._last_product_uri = product.product_uri

    def _publish(self, product: GeneratedProduct, image: GeneratedImage) -> _Published:
        if not image.ad:
            return _Published(None)
        assert image.scores is not None  # it was drawn
        assert product.width_px is not None  # it was placed
        assert product.height_px is not None
        ad_u8 = resized(from_png(image.ad), (product.width_px, product.height_px))
        mask_iou = self._mask_iou(ad_u8, product)
        record = GenerationRecord.of(
            image.wanted,
            sku=product.sku,
            negative_prompt=product.negative_prompt,
            seed=image.seed,
            input_sha256=product.input_sha256,
            scores=image.scores,
            rung=image.rung,
            fusion_scale=image.fusion_scale,
            as_photographed=product.as_photographed,
            sampling=self._config.sampling,
            fingerprint=self._model.fingerprint,
            method=self._model.method,
            source_type=self._model.source_type,
        )
        # The file before its ledger row: a crash in between costs the work, never leaves a row without a picture.
        uri = image_key(image.wanted.image_id, self._config.output.format)
        marked_u8 = self._marks.watermarked(ad_u8, image.wanted.image_id)
        encoded = encode_ad(marked_u8, record, self._config.output)
        file = self._marks.signed(encoded, self._config.output.format, facts_of(record))
        self._storage.write(uri, file.data)
        files = self._channel_files.publish(ad_u8, record, image.wanted.ratio)
        return _Published(None, uri, file, mask_iou, files)

    def _mask_iou(self, ad_u8: npt.NDArray[np.uint8], product: GeneratedProduct) -> float | None:
        """Overlap of M′ with the product that the networks find in the ad; None where there are none or they fail."""
        found = None if self._masker is None else self._masker.find(ad_u8, last_element(product.category))
        if found is None:
            return None
        expected = resized(from_png(product.product_mask), (found.shape[1], found.shape[0])) >= 128
        found = found >= 128
        return float((found & expected).sum() / max(1, (found | expected).sum()))

    def _ledger_row(
        self, product: GeneratedProduct, image: GeneratedImage, published: _Published, seconds: float
    ) -> AdLedgerRow:
        failure, scores = image.error or published.failure, image.scores
        return AdLedgerRow(
            image_id=image.wanted.image_id,
            run_id=self._run_id,
            recorded_at=None,
            row=product.row,
            sku=product.sku,
            category=product.category,
            scene=image.wanted.scene,
            variant=image.wanted.variant,
            status=failure.status if failure else "done",
            reason=failure.reason if failure else "",
            detail=failure.detail if failure else "",
            attempts=image.attempts,
            uri=published.uri,
            product_uri=product.product_uri if product.product_uri == self._last_product_uri else "",
            image=redact_address(product.image) if product.image else "",
            input_sha256=product.input_sha256,
            prompt=image.wanted.prompt,
            negative_prompt=product.negative_prompt or "",
            seed=image.seed,
            width_px=product.width_px,
            height_px=product.height_px,
            mask_source=product.mask_source,
            mask_score=product.mask_score,
            mask_area=product.mask_area,
            color_similarity=scores.color_similarity if scores else None,
            structure_similarity=scores.structure_similarity if scores else None,
            mask_iou=published.mask_iou,
            fetch_s=product.fetch_s,
            segment_s=product.segment_s,
            generate_s=image.generate_s,
            publish_s=seconds,
            model=self._model.label,
            decision=product.decision,
            batch_size=image.batch_size,
            rung=image.rung,
            digital_source_type=digital_source_type(image.rung, self._model.source_type) if published.uri else "",
            as_photographed=product.as_photographed,
            local_similarity=scores.local_similarity if scores else None,
            hue_similarity=scores.hue_similarity if scores else None,
            cost=self._cost(image.generate_s),
            device=image.device,
            ratio=image.wanted.ratio,
            channel_files=published.channel_files,
            lint=lint_of(published.channel_files),
            unsigned_sha256=published.file.unsigned_sha256 if published.file else "",
            signed_by=published.file.signed_by if published.file else "",
            watermark=published.file.watermark if published.file else "",
        )

    def _cost(self, generate_s: float | None) -> float | None:
        price = self._config.cost.per_gpu_hour * self._config.stages.generate.num_gpus
        return generate_s / 3600 * price if price and generate_s is not None else None


def refused_images(table: pa.Table, failure: RowFailure) -> pa.Table:
    """GeneratedProduct rows whose images all have this failure, or an earlier one: the publisher only records them."""
    rows = [
        dataclasses.replace(
            product,
            product=b"",
            images=tuple(dataclasses.replace(image, ad=b"", error=image.error or failure) for image in product.images),
        )
        for product in from_table(table, GeneratedProduct)
    ]
    return to_table(rows, GeneratedProduct)
