"""The three deployments: ingress (HTTP), segmentation, generation. Each scales by itself.

The classes are plain; `app.assemble` makes them deployments.
"""

import asyncio
import contextlib
import dataclasses
import io
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from refadgen.catalog.scenes import load_scenes
from refadgen.channels.canvases import ChannelCanvas
from refadgen.config import GenerateConfig, LayoutConfig, ServeConfig
from refadgen.engine.orders import AdOrder
from refadgen.engine.previews import Previews
from refadgen.engine.step_engine import (
    Denoiser,
    EngineLostError,
    Event,
    Failed,
    Finished,
    Progress,
    QueueFullError,
    StepEngine,
)
from refadgen.errors import RowError
from refadgen.generation.channel_files import encode_for_channel
from refadgen.generation.encoding import GenerationRecord, encode_ad, facts_of, resized
from refadgen.generation.ladder import Attempt, Ladder
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.moderation import Moderation
from refadgen.provenance.marks import AdMarks
from refadgen.serving import metrics
from refadgen.serving.ads import AdService
from refadgen.serving.canvases import canvas_size, channel_canvas
from refadgen.serving.errors import ApiError, from_row_error, server_fault
from refadgen.serving.fault_log import log_fault
from refadgen.serving.orders import AdResult, ImageOrder, StepDone
from refadgen.serving.products import FoundMask, PlacedAd, ProductPlacer
from refadgen.serving.requests import ProductInput

if TYPE_CHECKING:
    from refadgen.model.denoising import DenoisingRow

_log = logging.getLogger("ray.serve")
FETCHES = 8
"""Products that one segmentation replica fetches and decodes at once; the masks are made one by one."""
_LOST_AFTER = 3
"""Steps in a row that fail before a replica counts as broken and is replaced."""
_READY_S = 2.0
_GONE = (ActorDiedError, ActorUnavailableError, RayActorError, DeploymentUnavailableError)


class ReplicaFault(Exception):
    """Replaces an unexpected error where it leaves a replica, and names its type.

    Ray logs errors with their messages, and those may repeat what a request said.
    """


@contextlib.contextmanager
def _contained(what: str) -> Iterator[None]:
    """Logs an unexpected error of the body without its message. Raises: ReplicaFault in its place."""
    try:
        yield
    except Exception as error:
        log_fault(what, error)
        raise ReplicaFault(type(error).__name__) from None


class ProductSegmentation:
    """Product images to placed products."""

    def __init__(self, config: ServeConfig) -> None:
        self._placer = ProductPlacer(config)
        self._threads = ThreadPoolExecutor(FETCHES)

    async def ready(self) -> bool:
        """Answers once the constructor has loaded the networks."""
        return True

    async def place(
        self,
        given: ProductInput,
        category: str | None,
        layout: LayoutConfig,
        size: tuple[int, int],
        canvas: ChannelCanvas | None = None,
    ) -> PlacedAd | RowError:
        """See `ProductPlacer.place`."""
        loop = asyncio.get_running_loop()
        with _contained("segmentation"):
            return await loop.run_in_executor(self._threads, self._placer.place, given, category, layout, size, canvas)

    async def find_mask(self, given: ProductInput, category: str | None) -> FoundMask | RowError:
        """See `ProductPlacer.find_mask`."""
        loop = asyncio.get_running_loop()
        with _contained("segmentation"):
            return await loop.run_in_executor(self._threads, self._placer.find_mask, given, category)


class AdGeneration:
    """Placed products to ad images, by the step engine on one model."""

    def __init__(self, config: ServeConfig, fingerprint: str) -> None:
        """fingerprint: of the model; goes into each image's generation record."""
        self._fingerprint = fingerprint
        self._quality = config.quality
        self._moderation = Moderation(config.generation(), gpu_expected=config.deployments.generation.num_gpus > 0)
        self._marks = AdMarks(config.provenance)
        self._engine = StepEngine(
            self._make_denoiser(config),
            max_waiting=config.sampling.images_in_flight + config.sampling.batch_size,
            observe=metrics.observe_step,
        )
        # Scoring and encoding beside the engine's thread, so that the next step does not wait for them.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="encode")

    def _make_denoiser(self, config: ServeConfig) -> "Denoiser[AdOrder, DenoisingRow, npt.NDArray[np.uint8]]":
        """The model, loaded and warmed up."""
        # Imported here: Ray Serve's controller loads this module too, and need not load torch.
        from refadgen.engine.denoiser import AdDenoiser

        denoiser = AdDenoiser(
            config.model,
            config.sampling,
            reference_cache_bytes=config.limits.reference_cache_bytes,
            gpu_expected=config.deployments.generation.num_gpus > 0,
            count_reference=lambda hit: metrics.count("reference_cache", hit=hit),
        )
        denoiser.warm_up()
        return denoiser

    def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if not self._engine.alive or self._engine.consecutive_failures >= _LOST_AFTER:
            raise RuntimeError(f"{self._engine.consecutive_failures} denoising steps failed in a row")

    async def ready(self) -> AsyncGenerator[bool, None]:
        """Yields True once the model is warm. A stream because `generate` is: a Ray handle streams always or never."""
        yield True

    async def generate(self, order: ImageOrder) -> AsyncGenerator[StepDone | AdResult | RowError, None]:
        """Yields steps where the order asks for them, then the result. Closing the generator cancels the image."""
        waited_s, started = 0.0, time.monotonic()
        fusion_scale = order.config.sampling.fusion_scale
        ladder = Ladder(self._quality, seed=order.wanted.seed, fusion_scale=fusion_scale)
        yield StepDone(0, 0, None)
        with _contained("generation"):
            while True:
                finished: Finished[npt.NDArray[np.uint8]] | None = None
                async with contextlib.aclosing(self._denoise(order, ladder.begin())) as events:
                    async for event in events:
                        if isinstance(event, Finished):
                            finished, waited_s = event, waited_s + event.waited_s
                        elif isinstance(event, Failed):
                            yield _row_error(event.error)
                            return
                        else:
                            yield StepDone(event.step, event.num_steps, _in_shape(event.preview, order.placed))
                assert finished is not None
                loop = asyncio.get_running_loop()
                result = await loop.run_in_executor(self._threads, self._result, order, finished, ladder)
                if result is not None:
                    metrics.count_image(result.status)
                    total_s = time.monotonic() - started
                    yield dataclasses.replace(result, waited_s=waited_s, generate_s=total_s - waited_s)
                    return

    async def _denoise(self, order: ImageOrder, attempt: Attempt) -> AsyncGenerator[Event[npt.NDArray[np.uint8]], None]:
        """Yields the engine's events for one attempt, steps where the order asks for them; last Finished or Failed."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event[npt.NDArray[np.uint8]]] = asyncio.Queue()

        def hear(event: Event[npt.NDArray[np.uint8]]) -> None:
            if order.previews is None and isinstance(event, Progress):
                return  # nobody listens: each event would wake the event loop
            # Called from the engine's thread, and an asyncio queue is not thread-safe.
            loop.call_soon_threadsafe(events.put_nowait, event)

        denoising = _denoising_order(order, attempt)
        try:
            ticket = self._engine.submit(denoising, denoising.shape, hear, previews=order.previews or Previews())
        except (QueueFullError, EngineLostError) as error:
            yield Failed(error)
            return
        try:
            while True:
                event = await events.get()
                yield event
                if not isinstance(event, Progress):
                    return
        finally:
            ticket.cancel()

    def _result(self, order: ImageOrder, finished: Finished[npt.NDArray[np.uint8]], ladder: Ladder) -> AdResult | None:
        """Scores the image, and encodes it where it passes the gate. None: another attempt is due."""
        judged = ladder.judge(finished.result, order.placed.canvas, order.placed.mask)
        if judged is None:
            return None
        error = RowError("low_fidelity", judged.problem) if judged.problem else None
        if judged.image is not None and error is None:
            error = self._moderation.problem(judged.image)
        record = GenerationRecord.of(
            order.wanted,
            sku=order.sku,
            negative_prompt=order.negative_prompt,
            seed=judged.attempt.seed,
            input_sha256=order.placed.input_sha256,
            scores=judged.scores,
            rung=judged.attempt.rung,
            fusion_scale=judged.attempt.fusion_scale,
            as_photographed=order.config.layout.as_photographed,
            sampling=order.config.sampling,
            fingerprint=self._fingerprint,
        )
        encoded = b""
        if judged.image is not None and error is None:
            encoded = _encoded(judged.image, record, order, self._marks)
        return AdResult(
            status="done" if error is None else error.status,
            reason="" if error is None else error.reason,
            detail="" if error is None else error.problem,
            attempts=ladder.attempts,
            rung=judged.attempt.rung,
            seed=judged.attempt.seed,
            scores=judged.scores,
            waited_s=0.0,
            generate_s=0.0,
            batch_size=finished.batch_size,
            encoded=encoded,
        )


def _encoded(image_u8: npt.NDArray[np.uint8], record: GenerationRecord, order: ImageOrder, marks: AdMarks) -> bytes:
    """The marked file of an image, uint8 H×W×3 of the canvas: the channel's, where it is for one."""
    canvas, output = channel_canvas(order.config), order.config.output
    if canvas is None:
        image_u8 = marks.watermarked(resized(image_u8, order.size or order.placed.file_size), record.image_id)
        return marks.signed(encode_ad(image_u8, record, output), output.format, facts_of(record)).data
    (rule,) = canvas.rules
    # The answer has said its format: a file that is too large becomes no other one.
    rule = dataclasses.replace(rule, formats=(output.format,))
    return encode_for_channel(image_u8, record, rule, output, marks)[0].data


def _denoising_order(order: ImageOrder, attempt: Attempt) -> AdOrder:
    """One attempt at `order`, as the step engine's denoiser takes it."""
    sampling = order.config.sampling
    return AdOrder(
        canvas=order.placed.canvas,
        mask=order.placed.mask,
        product_key=order.placed.product_key,
        prompt=order.wanted.prompt,
        negative_prompt=order.negative_prompt,
        seed=attempt.seed,
        fusion_scale=attempt.fusion_scale,
        guidance_scale=sampling.guidance_scale or 1.0,
        num_inference_steps=sampling.num_steps,
    )


def _in_shape(preview: bytes | None, placed: PlacedAd) -> bytes | None:
    """A preview in the shape of the ad's file, where that has another ratio than the canvas."""
    height_px, width_px = placed.mask.shape
    if preview is None or placed.file_size == (width_px, height_px):
        return preview
    with Image.open(io.BytesIO(preview)) as image:
        longest = max(image.size) / max(placed.file_size)
        width_px, height_px = (max(1, round(side * longest)) for side in placed.file_size)
        shown, sink = image.resize((width_px, height_px)), io.BytesIO()
    shown.save(sink, "WEBP", quality=70, method=0)
    return sink.getvalue()


def _row_error(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    if isinstance(error, QueueFullError):
        return RowError("queue_full", str(error))
    log_fault("denoising", error)
    return RowError("generation_error", f"the image could not be made ({type(error).__name__}); try again")


class DeploymentBackend:
    """The deployments behind their handles, with their failures as ApiErrors."""

    def __init__(self, segmentation: DeploymentHandle, generation: DeploymentHandle) -> None:
        self._segmentation = segmentation
        self._generation = generation.options(stream=True)
        self._image_s = 1.0  # moving average of an image's time: Retry-After when the queue is full

    async def ready(self) -> bool:
        """Whether both deployments answer within `_READY_S`."""
        try:
            async with asyncio.timeout(_READY_S):
                async for _ in self._generation.ready.remote():
                    pass
                return bool(await self._segmentation.ready.remote())
        except (TimeoutError, BackPressureError, *_GONE):
            return False

    async def place(self, given: ProductInput, category: str | None, config: GenerateConfig) -> PlacedAd:
        """See `Backend.place`."""
        with self._answers():
            found: PlacedAd | RowError = await self._segmentation.place.remote(
                given, category, config.layout, canvas_size(config), channel_canvas(config)
            )
        if isinstance(found, RowError):
            raise from_row_error(found, image_field=given.image_field, mask_given=given.mask is not None)
        return found

    async def find_mask(self, given: ProductInput, category: str | None) -> FoundMask:
        """See `Backend.find_mask`."""
        with self._answers():
            found: FoundMask | RowError = await self._segmentation.find_mask.remote(given, category)
        if isinstance(found, RowError):
            raise from_row_error(found, image_field=given.image_field, mask_given=given.mask is not None)
        return found

    async def generate(self, order: ImageOrder) -> AsyncGenerator[StepDone | AdResult, None]:
        """See `Backend.generate`."""
        started = time.monotonic()
        with self._answers():
            events = self._generation.generate.remote(order)
            try:
                async for event in events:
                    if isinstance(event, RowError):
                        raise self._busy() if event.reason == "queue_full" else from_row_error(event)
                    if isinstance(event, AdResult):
                        self._image_s += 0.2 * (time.monotonic() - started - self._image_s)
                    yield event
            finally:
                events.cancel()  # the replica works on until it is told

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns failures of Ray Serve into ApiErrors."""
        try:
            yield
        except BackPressureError:
            raise self._busy() from None
        except _GONE as error:
            # No traceback: it would show Ray's own code only.
            _log.warning("a replica is gone: %s", type(error).__name__)
            message = "the replica that worked on this is gone; send the same request again"
            raise ApiError(503, "replica_lost", message, retry_after_s=1) from None
        except RayTaskError as error:
            # The replica has logged the traceback; an error that crossed processes carries it only as text.
            cause = error.cause
            name = str(cause) if isinstance(cause, ReplicaFault) else type(cause).__name__
            _log.error("a replica failed: %s; the replica's log has the traceback", name)
            raise server_fault() from None

    def _busy(self) -> ApiError:
        return ApiError(429, "busy", "the queue is full; try again later", retry_after_s=self._image_s)


class AdIngress:
    """HTTP. Each replica builds the ASGI application from the configuration."""

    def __init__(
        self, config: ServeConfig, model: ModelIdentity, segmentation: DeploymentHandle, generation: DeploymentHandle
    ) -> None:
        scenes = load_scenes(config.catalog.scenes_file, config.catalog.taxonomy_file)
        self._service = AdService(config, model, scenes, DeploymentBackend(segmentation, generation))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray Serve calls this after the constructor."""
        # Imported here: replicas of the other deployments load this module too, and need no FastAPI.
        from refadgen.serving.api import make_app

        return make_app(self._service, tag_answers=False)  # Ray Serve's proxy sets X-Request-ID itself
