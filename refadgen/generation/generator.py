"""The stage that makes the images: placed products in, scored images out, by the step engine on one model.

Another method in RefAdGen's place (`method.class`) makes each image in a single step.
"""

import hashlib
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.actor_pools import restart_actor
from refadgen.batch.limits import EndOfRun
from refadgen.batch.metrics import count_step
from refadgen.batch.row_stage import RowFailure, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.channels.canvases import canvases_of
from refadgen.config import GenerateConfig
from refadgen.config.devices import device_kind, resolve_device
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import EngineLostError, Event, Failed, Finished, OutOfDeviceMemoryError, StepEngine
from refadgen.errors import RowError
from refadgen.generation.ladder import Judged, Ladder
from refadgen.generation.moderation import Moderation
from refadgen.generation.rows import GeneratedImage, GeneratedProduct, PlacedProduct
from refadgen.generation.same_device import require_same_device
from refadgen.generation.wanted import WantedImage
from refadgen.storage.pictures import from_png

if TYPE_CHECKING:
    from refadgen.engine.step_engine import Denoiser, Ticket

_IMAGES_PER_ROW = 8
"""Images of one product that travel in one row: at full size some 5 MB, since Ray Data wants rows under 10 MB."""
_REFERENCE_CACHE_BYTES = 2**30
"""K and V of products whose other images follow, and of prompts; an image on its way holds its own."""
_NUM_SCORERS = 2
"""Threads that score and encode finished images: a single one would be outrun by a fast device."""
_NO_END = EndOfRun()
_NOT_BEGUN = RowFailure("", "", "")
"""Of an image that the run's end has overtaken: it gets no ledger row, and the next run makes it."""


_Done: TypeAlias = "queue.SimpleQueue[tuple[_Task, GeneratedImage] | BaseException]"
"""What comes back to a call: its images, or an error that ends it."""


@dataclass(eq=False)
class _Task:
    """One wanted image on its way. Only one thread at a time works on it."""

    product: PlacedProduct
    wanted: WantedImage
    done: _Done
    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    product_key: str
    ladder: Ladder
    device: str
    generate_s: float = 0.0
    batch_size: int | None = None
    ticket: "Ticket[AdOrder, npt.NDArray[np.uint8]] | None" = None

    def finish(self, *, error: RowFailure | None = None, judged: Judged | None = None) -> None:
        """Hands the image to its call. judged: None where no image was drawn to its end."""
        attempts = self.ladder.attempts
        attempt = self.ladder.attempt if judged is None else judged.attempt
        made = GeneratedImage(
            wanted=self.wanted,
            error=error,
            ad=b"" if judged is None or judged.image is None else encode_png(judged.image),
            seed=attempt.seed,
            attempts=attempts,
            rung=attempt.rung if attempts else "",
            fusion_scale=attempt.fusion_scale if attempts else 0.0,
            scores=None if judged is None else judged.scores,
            generate_s=self.generate_s if attempts else None,
            batch_size=self.batch_size,
            device=self.device if attempts else None,
        )
        self.done.put((self, made))


class AdGenerator:
    """Feeds the step engine with the images of all blocks that are in hand, and scores what comes out of it.

    INPUT: PlacedProduct. OUTPUT: GeneratedProduct, one row per product and eight of its images. One GPU, or
    `model.torch_threads` CPU threads. Several calls at once share batches, so that none is padded between two blocks.
    A retried task makes the same images again: company changes no pixel.

    An engine that is lost, with its device or by a fault, ends the actor's process; a new one retries the calls in
    hand.
    """

    def __init__(self, config: GenerateConfig, run_id: str, end: EndOfRun = _NO_END, same_device: Any = None) -> None:
        """Loads the model. end: from when on no image is begun; such images leave the stream without a trace.
        same_device: what all actors of a run ask that may not mix kinds of device (`device_choice`).

        Raises: ValueError for a model, device or number format that cannot be; MixedDevicesError.
        """
        self._device = self._kind_of_device(config)
        require_same_device(same_device, self._device)
        self._config, self._end_of_run = config, end
        self._errors = UnexpectedErrors(AdGenerator.__name__, run_id)
        # Of one call; several at once fill the batches. What waits in the engine is bounded by both.
        # Each canvas of a run's channels has a batch of its own, which enough images must be in hand to fill.
        self._most_in_hand = 2 * config.sampling.images_in_flight * max(1, len(canvases_of(config)))
        self._moderation = Moderation(config, gpu_expected=config.stages.generate.num_gpus > 0)
        self._engine = StepEngine(self._make_denoiser(), max_waiting=2**31, observe=count_step)
        self._scorers = ThreadPoolExecutor(_NUM_SCORERS, thread_name_prefix="score")

    @staticmethod
    def _kind_of_device(config: GenerateConfig) -> str:
        gpu_expected = config.stages.generate.num_gpus > 0
        return device_kind(resolve_device(config.model.device, gpu_expected=gpu_expected, field="model.device"))

    def _make_denoiser(self) -> "Denoiser[AdOrder, Any, npt.NDArray[np.uint8]]":
        # Only here: planning and the driver import this module without waiting for torch.
        if self._config.method.class_ is not None:
            from refadgen.generation.method_denoiser import MethodDenoiser

            return MethodDenoiser(self._config)
        from refadgen.engine.denoiser import AdDenoiser

        return AdDenoiser(
            self._config.model,
            self._config.sampling,
            reference_cache_bytes=_REFERENCE_CACHE_BYTES,
            gpu_expected=self._config.stages.generate.num_gpus > 0,
        )

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        done: _Done = queue.SimpleQueue()
        products = from_table(table, PlacedProduct)
        tasks = (task for product in products for task in self._tasks(product, done))
        in_hand: set[_Task] = set()
        finished: dict[tuple[int, WantedImage], GeneratedImage] = {}
        try:
            # In the block's order, whatever is finished first: should Ray split the output of a large block, it takes
            # the second part of a retried call for the second part of the call that was lost.
            for product, wanted in _rows_out(products):
                keys = [(product.row, image) for image in wanted]
                while not finished.keys() >= set(keys):
                    # Not the whole block: pictures take memory, and Ray Data may pause this call.
                    while len(in_hand) < self._most_in_hand and (task := next(tasks, None)) is not None:
                        in_hand.add(task)
                    assert in_hand, f"row {product.row} twice in a block"
                    task, image = self._next(done)
                    in_hand.discard(task)
                    if image.error not in (None, task.product.error, _NOT_BEGUN):
                        self._errors.tell(task.product, image.error)
                    finished[task.product.row, task.wanted] = image
                images = tuple(image for image in map(finished.pop, keys) if image.error is not _NOT_BEGUN)
                if images:
                    yield to_table([GeneratedProduct.of(product, images)], GeneratedProduct)
        except EngineLostError as error:
            restart_actor(error)
        finally:
            for task in in_hand:  # of a call that ends early: nobody waits for them
                if task.ticket is not None:
                    task.ticket.cancel()

    def _next(self, done: _Done) -> tuple[_Task, GeneratedImage]:
        """The next finished image of a call. Raises: EngineLostError where none can come any more."""
        found = done.get()
        if isinstance(found, EngineLostError):
            raise found
        if isinstance(found, BaseException):
            raise EngineLostError(f"an image was lost: {type(found).__name__}: {found}") from found
        return found

    def _tasks(self, row: PlacedProduct, done: _Done) -> Iterator[_Task]:
        """The product's images, each begun when it is asked for; those that cannot be are finished with their error."""
        error, nothing = row.error, np.zeros((0, 0), np.uint8)
        canvas, mask, key = nothing, nothing, ""
        if error is None:
            try:
                canvas, mask = from_png(row.canvas), from_png(row.product_mask)
                # Of the lossless picture: features are shared by equal canvases only.
                key = hashlib.sha256(row.canvas).hexdigest()
            except Exception as problem:  # a fault of ours: the images may be tried again
                error = self._errors.failure(problem, row.label, "generation_error")
        for wanted in row.wanted:
            fusion_scale = self._config.sampling.fusion_scale
            ladder = Ladder(self._config.quality, seed=wanted.seed, fusion_scale=fusion_scale)
            task = _Task(row, wanted, done, canvas, mask, key, ladder, self._device)
            if error is not None:
                task.finish(error=error)
            elif self._end_of_run.is_over:
                task.finish(error=_NOT_BEGUN)
            else:
                self._order(task)
            yield task

    def _order(self, task: _Task) -> None:
        """Queues one attempt at an image."""
        attempt = task.ladder.begin()
        sampling = self._config.sampling
        order = AdOrder(
            canvas=task.canvas,
            mask=task.mask,
            product_key=task.product_key,
            prompt=task.wanted.prompt,
            negative_prompt=task.product.negative_prompt,
            seed=attempt.seed,
            fusion_scale=attempt.fusion_scale,
            guidance_scale=sampling.guidance_scale or 1.0,  # None: of a method, which has a setting of its own
            num_inference_steps=sampling.num_steps,
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
        """Finishes an image, or sends it back for another attempt."""
        try:
            self._judge_or_fail(task, event)
        except BaseException as problem:  # the call must hear of it, or it would wait for ever
            task.done.put(problem)
            raise

    def _judge_or_fail(self, task: _Task, event: Finished[npt.NDArray[np.uint8]] | Failed) -> None:
        row = task.product
        try:
            if isinstance(event, Failed):
                task.ladder.attempts -= not event.begun
                raise event.error
            task.generate_s += event.worked_s
            task.batch_size = event.batch_size
            self._judge(task, event.result)
        except EngineLostError:
            raise
        # Without an earlier attempt's picture: only images that are done are published.
        except RowError as error:
            task.finish(error=RowFailure.of(RowError(error.reason, f"row {row.row}: {error.problem}")))
        except OutOfDeviceMemoryError as error:
            height, width = task.mask.shape
            problem = (
                f"{row.label}: no memory for a single image of {width}×{height} px "
                f"(sampling.width_px, sampling.height_px): {error}"
            )
            task.finish(error=RowFailure.of(RowError("generation_error", problem)))
        except Exception as error:  # of a step: its images fail, the others go on
            task.finish(error=self._errors.failure(error, row.label, "generation_error"))

    def _judge(self, task: _Task, image: npt.NDArray[np.uint8]) -> None:
        judged = task.ladder.judge(image, task.canvas, task.mask)
        if judged is None:
            self._order(task)
        elif judged.problem:
            task.finish(error=RowFailure.of(RowError("low_fidelity", judged.problem)), judged=judged)
        elif judged.image is not None and (unsafe := self._moderation.problem(judged.image)) is not None:
            task.finish(error=RowFailure.of(unsafe), judged=replace(judged, image=None))
        else:
            task.finish(judged=judged)


def _rows_out(products: Iterable[PlacedProduct]) -> Iterator[tuple[PlacedProduct, tuple[WantedImage, ...]]]:
    """Each product with its wanted images, as many at a time as travel in one row."""
    for product in products:
        for start in range(0, len(product.wanted), _IMAGES_PER_ROW):
            yield product, product.wanted[start : start + _IMAGES_PER_ROW]
