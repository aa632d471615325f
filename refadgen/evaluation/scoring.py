"""The stage that scores images. Features for FID are too large for the ledger of scores: they lie in `features/`."""

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.batch.row_stage import RowFailure, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.categories import last_element
from refadgen.config import EvaluateConfig
from refadgen.evaluation.measures.load import load_scorers
from refadgen.evaluation.measures.picture import AdPicture, on_white
from refadgen.evaluation.measures.pixels import Candidates, Floats, signature
from refadgen.evaluation.rows import ImageScores, ImageToScore
from refadgen.storage.store import Storage


class ImageScorer:
    """Reads images and asks all scorers.

    INPUT: ImageToScore. OUTPUT: ImageScores, one row an image. A retried block writes the same features to the same
    file.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        run_id: str,
        output_uri: str,
        skipped: Mapping[str, str],
        candidates: Candidates,
    ) -> None:
        """skipped, candidates: as `load_scorers` takes them. Raises: ValueError of a network."""
        gpu_expected = config.stages.score.num_gpus > 0
        self._loaded = load_scorers(config, skipped, candidates, gpu_expected=gpu_expected)
        self._batch_size = config.score.batch_size
        self._storage, self._run_id = Storage(output_uri), run_id
        self._runs: dict[str, Storage] = {}
        self._errors = UnexpectedErrors(ImageScorer.__name__, run_id)

    def __call__(self, table: pa.Table) -> pa.Table:
        images = from_table(table, ImageToScore)
        rows: list[ImageScores] = []
        features = []
        for start in range(0, len(images), self._batch_size):
            scored, found = self._batch(images[start : start + self._batch_size])
            rows += scored
            features += found
        if features:
            digest = hashlib.sha256("".join(image.score_id for image in images).encode()).hexdigest()[:32]
            key = f"features/{digest}.npy"
            sink = io.BytesIO()
            np.save(sink, np.stack(features))
            self._storage.write(key, sink.getvalue())
            done = [index for index, row in enumerate(rows) if row.status == "done"]
            for place, index in enumerate(done):
                rows[index] = dataclasses.replace(rows[index], features=key, feature_row=place)
        return to_table(rows, ImageScores)

    def _batch(self, images: Sequence[ImageToScore]) -> tuple[list[ImageScores], list[np.ndarray]]:
        """The rows of a batch, and the features of those that are done."""
        pictures: list[AdPicture] = []
        failures: dict[int, RowFailure] = {}
        for index, image in enumerate(images):
            try:
                pictures.append(self._read(image))
            except Exception as error:  # storage and Pillow raise many kinds
                failures[index] = self._errors.failure(error, f"{image.run}/{image.uri}")
        values = {
            name: list(found) for scorer in self._loaded.scorers for name, found in scorer(pictures).items() if pictures
        }
        inception = self._loaded.inception
        features = [] if inception is None or not pictures else list(inception([each.ad_u8 for each in pictures]))
        places = iter(range(len(pictures)))
        rows = []
        for index, image in enumerate(images):
            failure = failures.get(index)
            place = None if failure else next(places)
            own = {} if place is None else {name: found[place] for name, found in values.items()}
            rows.append(self._row(image, failure, own))
        return rows, features

    def _row(self, image: ImageToScore, failure: RowFailure | None, values: Mapping[str, float | None]) -> ImageScores:
        row = ImageScores(
            score_id=image.score_id,
            run_id=self._run_id,
            recorded_at=None,
            status=failure.status if failure else "done",
            reason=failure.reason if failure else "",
            detail=failure.detail if failure else "",
            run=image.run,
            image_id=image.image_id,
            sku=image.sku,
            scene=image.scene,
            variant=image.variant,
            uri=image.uri,
            product_uri=image.product_uri,
            color_similarity=image.color_similarity,
            structure_similarity=image.structure_similarity,
        )
        own: dict[str, Any] = dict(values)
        return dataclasses.replace(row, **own)

    def _read(self, image: ImageToScore) -> AdPicture:
        storage = self._runs.setdefault(image.run, Storage(image.run))
        ad = Image.open(io.BytesIO(storage.read(image.uri))).convert("RGB")
        canvas_u8, mask_u8 = read_product(storage, image.product_uri, ad.size)
        return AdPicture(
            ad_u8=np.asarray(ad),
            canvas_u8=canvas_u8,
            mask_u8=mask_u8,
            prompt=image.prompt,
            run=image.run,
            sku=image.sku,
            name=last_element(image.category),
        )


def read_product(storage: Storage, key: str, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The placed product of a run on white, uint8 H×W×3, and M′, H×W, at a size (width, height) or its own."""
    product = Image.open(io.BytesIO(storage.read(key))).convert("RGBA")
    if size is not None and product.size != size:
        product = product.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(product)
    mask_u8 = pixels[..., 3]
    return on_white(pixels[..., :3], mask_u8 >= 128), mask_u8


def product_signatures(run_uri: str, products: Sequence[tuple[str, str]]) -> dict[str, Floats]:
    """The signatures of (sku, product_uri) of a run, by sku."""
    storage = Storage(run_uri)
    return {sku: signature(*read_product(storage, key)) for sku, key in products}
