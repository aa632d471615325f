"""The stage that makes the images: placed products in, scored images out, by the step engine on one model."""

import hashlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.row_stage import RowFailure, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import Event, Failed, Finished, StepEngine
from refadgen.errors import RowError
from refadgen.generation.rows import GeneratedImage, GeneratedProduct, PlacedProduct
from refadgen.generation.scores import FidelityScores, below_gate, score_fidelity
from refadgen.generation.wanted import WantedImage, attempt_seed
from refadgen.storage.pictures import from_png

if TYPE_CHECKING:
    from refadgen.engine.step_engine import Denoiser
    from refadgen.model.denoising import DenoisingRow

_IMAGES_PER_ROW = 8
"""Images of one product that travel in one row: at full size some 5 MB, since Ray Data wants rows under 10 MB."""
_REFERENCE_CACHE_BYTES = 2**30
"""K_ref and V_ref of products whose other images follow; an image on its way holds its own product's."""
_NUM_SCORERS = 2
"""Threads that score and encode finished images: a single one would be outrun by a fast device."""
_LOST_S = 5.0
"""After so long without an image, the engine is asked whether it still lives."""


@dataclass(eq=False)
class _Product:
    """A product on its way: its row, the images that are finished, and how many are not."""

    row: PlacedProduct
    num_open: int
    rows_out: "queue.SimpleQueue[GeneratedProduct]"
    """Takes a row of finished images as soon as the product has no open ones or the row is full."""
    finished: list[GeneratedImage] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, image: GeneratedImage) -> None:
        with self.lock:
            self.finished.append(image)
            self.num_open -= 1
            if self.num_open and len(self.finished) < _IMAGES_PER_ROW:
                return
            images, self.finished = tuple(self.finished), []
        self.rows_out.put(GeneratedProduct.of(self.row, images))


@dataclass(eq=False)
class _Task:
    """One wanted image on its way. Only one thread at a time works on it."""

    product: _Product
    wanted: WantedImage
    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    seed: int = 0
    attempts: int = 0
    generate_s: float = 0.0

    def finish(
        self,
        *,
        error: RowFailure | None = None,
        image: npt.NDArray[np.uint8] | None = None,
        scores: FidelityScores | None = None,
    ) -> None:
        """Hands the image to its product. image: None where it must not be published."""
        self.product.finish(
            GeneratedImage(
                wanted=self.wanted,
                error=error,
                ad=b"" if image is None else encode_png(image),
                seed=self.seed,
                attempts=self.attempts,
                color_similarity=None if scores is None else scores.color_similarity,
                structure_similarity=None if scores is None else scores.structure_similarity,
                generate_s=self.generate_s,
            )
        )


class AdGenerator:
    """Feeds the step engine with the images of all blocks that are in hand, and scores what comes out of it.

    INPUT: PlacedProduct. OUTPUT: GeneratedProduct, one row per product and eight of its images. One GPU, or
    `model.torch_threads` CPU threads. Several calls at once share batches, so that none is padded between two blocks.
    A retried task makes the same images again: company changes no pixel.
    """

    def __init__(self, config: GenerateConfig, run_id: str) -> None:
        """Loads the model. Raises: ValueError for a model, device or number format that cannot be."""
        self._config = config
        self._errors = UnexpectedErrors(AdGenerator.__name__, run_id)
        # What waits is bounded by the calls that Ray Data makes at once, and by their blocks.
        self._engine = StepEngine(self._make_denoiser(), max_waiting=2**31)
        self._scorers = ThreadPoolExecutor(_NUM_SCORERS, thread_name_prefix="score")

    def _make_denoiser(self) -> "Denoiser[AdOrder, DenoisingRow, npt.NDArray[np.uint8]]":
        # Only here: planning and the driver import this module without waiting for torch.
        from refadgen.engine.denoiser import AdDenoiser

        return AdDenoiser(
            self._config.model,
            self._config.sampling,
            reference_cache_bytes=_REFERENCE_CACHE_BYTES,
            gpu_expected=self._config.stages.generate.num_gpus > 0,
        )

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        rows_out: queue.SimpleQueue[GeneratedProduct] = queue.SimpleQueue()
        products = [_Product(row, len(row.wanted), rows_out) for row in from_table(table, PlacedProduct)]
        for product in products:
            self._start(product)
        num_open = sum(len(product.row.wanted) for product in products)
        while num_open:
            try:
                row = rows_out.get(timeout=_LOST_S)
            except queue.Empty:
                if not self._engine.alive:
                    raise RuntimeError("the engine's thread has ended") from None
                continue
            num_open -= len(row.images)
            # At once: a row that leaves early is published early, and a crash then costs less.
            yield to_table([row], GeneratedProduct)

    def _start(self, product: _Product) -> None:
        """Orders the product's images; those that cannot be started are finished with their error."""
        row = product.row
        error = row.error
        if error is None:
            try:
                canvas, mask = from_png(row.canvas), from_png(row.product_mask)
            except Exception as problem:  # a fault of ours: the images may be tried again
                error = self._errors.failure(problem, row.label, "generation_error")
        for wanted in row.wanted:
            if error is None:
                self._order(_Task(product, wanted, canvas, mask))
            else:
                product.finish(GeneratedImage(wanted=wanted, error=error, seed=wanted.seed))

    def _order(self, task: _Task) -> None:
        """Queues one attempt at an image."""
        task.seed = attempt_seed(task.wanted.seed, task.attempts)
        task.attempts += 1
        sampling = self._config.sampling
        assert sampling.guidance_scale is not None  # the job fills in the model's own
        order = AdOrder(
            canvas=task.canvas,
            mask=task.mask,
            # Of the lossless picture: features are shared by equal canvases only.
            product_key=hashlib.sha256(task.product.row.canvas).hexdigest(),
            prompt=task.wanted.prompt,
            negative_prompt=task.product.row.negative_prompt,
            seed=task.seed,
            fusion_scale=sampling.fusion_scale,
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.num_inference_steps,
        )

        def heard(event: Event[npt.NDArray[np.uint8]]) -> None:  # on the engine's thread: the next step waits
            if isinstance(event, Finished | Failed):
                self._scorers.submit(self._end, task, event)

        self._engine.submit(order, order.shape, heard)

    def _end(self, task: _Task, event: Finished[npt.NDArray[np.uint8]] | Failed) -> None:
        """Finishes an image, or sends it back for another seed."""
        try:
            if isinstance(event, Failed):
                # Without an earlier attempt's picture: only images that are done are published.
                task.finish(error=self._failure(event.error, task))
                return
            task.generate_s += event.worked_s
            self._judge(task, event.result)
        except Exception as problem:
            task.finish(error=self._errors.failure(problem, task.product.row.label, "generation_error"))

    def _failure(self, error: Exception, task: _Task) -> RowFailure:
        """What the ledger says of an image that the engine could not make."""
        row = task.product.row
        if isinstance(error, RowError):
            return RowFailure.of(RowError(error.reason, f"row {row.row}: {error.problem}"))
        # Out of memory, a lost device: the images of one step fail, the others go on.
        return self._errors.failure(error, row.label, "generation_error")

    def _judge(self, task: _Task, image: npt.NDArray[np.uint8]) -> None:
        scores = score_fidelity(image, task.canvas, task.mask)
        problem = below_gate(scores, self._config.quality)
        if not problem:
            task.finish(image=image, scores=scores)
        elif task.attempts < self._config.quality.max_attempts:
            self._order(task)
        else:
            failure = RowError("low_fidelity", f"{problem} after {task.attempts} attempts")
            task.finish(error=RowFailure.of(failure), scores=scores)
