"""The stage that makes the images: placed products in, scored images out, by the step engine on one model."""

import hashlib
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

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
    from refadgen.engine.step_engine import Denoiser, Ticket
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
    """A product on its way: its row, the images that are finished, and how many are not. Only its call changes it."""

    row: PlacedProduct
    num_open: int
    finished: list[GeneratedImage] = field(default_factory=list)

    def take_row(self) -> GeneratedProduct | None:
        """A row of the finished images, once the product has no open ones or the row is full."""
        if not self.finished or (self.num_open and len(self.finished) < _IMAGES_PER_ROW):
            return None
        images, self.finished = tuple(self.finished), []
        return GeneratedProduct.of(self.row, images)


_Done: TypeAlias = "queue.SimpleQueue[tuple[_Task, GeneratedImage] | BaseException]"
"""What comes back to a call: its images, or an error that ends it."""


@dataclass(eq=False)
class _Task:
    """One wanted image on its way. Only one thread at a time works on it."""

    product: _Product
    wanted: WantedImage
    done: _Done
    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    product_key: str
    seed: int = 0
    attempts: int = 0
    generate_s: float = 0.0
    ticket: "Ticket[AdOrder, npt.NDArray[np.uint8]] | None" = None

    def finish(
        self,
        *,
        error: RowFailure | None = None,
        image: npt.NDArray[np.uint8] | None = None,
        scores: FidelityScores | None = None,
    ) -> None:
        """Hands the image to its call. image: None where it must not be published."""
        made = GeneratedImage(
            wanted=self.wanted,
            error=error,
            ad=b"" if image is None else encode_png(image),
            seed=self.seed,
            attempts=self.attempts,
            color_similarity=None if scores is None else scores.color_similarity,
            structure_similarity=None if scores is None else scores.structure_similarity,
            generate_s=self.generate_s,
        )
        self.done.put((self, made))

    def refuse(self, error: RowFailure) -> None:
        """Hands over an image that was never begun."""
        self.done.put((self, GeneratedImage(wanted=self.wanted, error=error, seed=self.wanted.seed)))


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
        # Of one call; several at once fill the batches. What waits in the engine is bounded by both.
        self._most_in_hand = 2 * config.sampling.batch_size
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
        done: _Done = queue.SimpleQueue()
        products = [_Product(row, len(row.wanted)) for row in from_table(table, PlacedProduct)]
        waiting = (task for product in products for task in self._tasks(product, done))
        in_hand: set[_Task] = set()
        num_open = sum(product.num_open for product in products)
        try:
            while num_open:
                # Not the whole block: pictures take memory, and Ray Data may pause this call.
                while len(in_hand) < self._most_in_hand and (task := next(waiting, None)) is not None:
                    in_hand.add(task)
                task, image = self._next(done)
                in_hand.discard(task)
                num_open, task.product.num_open = num_open - 1, task.product.num_open - 1
                task.product.finished.append(image)
                # At once: a row that leaves early is published early, and a crash then costs less.
                if (row := task.product.take_row()) is not None:
                    yield to_table([row], GeneratedProduct)
        finally:
            for task in in_hand:  # of a call that ends early: nobody waits for them
                if task.ticket is not None:
                    task.ticket.cancel()

    def _next(self, done: _Done) -> tuple[_Task, GeneratedImage]:
        """The next finished image of a call. Raises: RuntimeError where none can come any more."""
        while True:
            try:
                found = done.get(timeout=_LOST_S)
            except queue.Empty:
                if not self._engine.alive:
                    raise RuntimeError("the engine's thread has ended") from None
                continue
            if isinstance(found, BaseException):
                raise RuntimeError("an image was lost on its way from the engine") from found
            return found

    def _tasks(self, product: _Product, done: _Done) -> Iterator[_Task]:
        """The product's images; those that cannot be started are finished with their error."""
        row, nothing = product.row, np.zeros((0, 0), np.uint8)
        error, canvas, mask, key = row.error, nothing, nothing, ""
        if error is None:
            try:
                canvas, mask = from_png(row.canvas), from_png(row.product_mask)
                # Of the lossless picture: features are shared by equal canvases only.
                key = hashlib.sha256(row.canvas).hexdigest()
            except Exception as problem:  # a fault of ours: the images may be tried again
                error = self._errors.failure(problem, row.label, "generation_error")
        for wanted in row.wanted:
            task = _Task(product, wanted, done, canvas, mask, key)
            if error is not None:
                task.refuse(error)
            else:
                self._order(task)
            yield task

    def _order(self, task: _Task) -> None:
        """Queues one attempt at an image."""
        task.seed = attempt_seed(task.wanted.seed, task.attempts)
        task.attempts += 1
        sampling = self._config.sampling
        assert sampling.guidance_scale is not None  # the job fills in the model's own
        order = AdOrder(
            canvas=task.canvas,
            mask=task.mask,
            product_key=task.product_key,
            prompt=task.wanted.prompt,
            negative_prompt=task.product.row.negative_prompt,
            seed=task.seed,
            fusion_scale=sampling.fusion_scale,
            guidance_scale=sampling.guidance_scale,
            num_inference_steps=sampling.num_inference_steps,
        )

        def heard(event: Event[npt.NDArray[np.uint8]]) -> None:  # on the engine's thread: the next step waits
            if not isinstance(event, Finished | Failed):
                return
            try:
                self._scorers.submit(self._end, task, event)
            except BaseException as problem:  # such as: no new thread can be started
                task.done.put(problem)
                raise

        task.ticket = self._engine.submit(order, order.shape, heard)

    def _end(self, task: _Task, event: Finished[npt.NDArray[np.uint8]] | Failed) -> None:
        """Finishes an image, or sends it back for another seed."""
        try:
            self._judge_or_fail(task, event)
        except BaseException as problem:  # the call must hear of it, or it would wait for ever
            task.done.put(problem)
            raise

    def _judge_or_fail(self, task: _Task, event: Finished[npt.NDArray[np.uint8]] | Failed) -> None:
        row = task.product.row
        if isinstance(event, Failed):
            if isinstance(event.error, RowError):
                task.refuse(RowFailure.of(RowError(event.error.reason, f"row {row.row}: {event.error.problem}")))
                return
            # Out of memory, a lost device: the images of one step fail, the others go on. Without an earlier attempt's
            # picture: only images that are done are published.
            task.finish(error=self._errors.failure(event.error, row.label, "generation_error"))
            return
        task.generate_s += event.worked_s
        try:
            self._judge(task, event.result)
        except Exception as problem:
            task.finish(error=self._errors.failure(problem, row.label, "generation_error"))

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
