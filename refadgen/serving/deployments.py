"""The three deployments: ingress (HTTP), segmentation, generation. Each scales by itself."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig, LayoutConfig, ServeConfig
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import Denoiser, Event, Failed, Finished, QueueFullError, StepEngine
from refadgen.errors import RowError
from refadgen.generation.encoding import encode_ad, generation_record
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.scores import below_gate, score_fidelity
from refadgen.generation.wanted import attempt_seed
from refadgen.serving import metrics
from refadgen.serving.ads import AdService
from refadgen.serving.errors import ApiError, from_row_error
from refadgen.serving.orders import AdResult, ImageOrder, StepDone
from refadgen.serving.products import PlacedAd, ProductPlacer
from refadgen.serving.requests import ProductInput

_log = logging.getLogger("ray.serve")
_FETCHES = 8
"""Products that one segmentation replica fetches and decodes at once; the masks are made one by one."""
_LOST_AFTER = 3
"""Steps in a row that fail before a replica counts as broken and is replaced."""
_READY_S = 2.0
_GONE = (ActorDiedError, ActorUnavailableError, RayActorError, DeploymentUnavailableError)


@serve.deployment(max_ongoing_requests=2 * _FETCHES)
class ProductSegmentation:
    """Product images to placed products."""

    def __init__(self, config: ServeConfig) -> None:
        self._placer = ProductPlacer(config)
        self._threads = ThreadPoolExecutor(_FETCHES)

    async def ready(self) -> bool:
        return True

    async def place(
        self, given: ProductInput, category: str | None, layout: LayoutConfig, size: tuple[int, int]
    ) -> PlacedAd | RowError:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._placer.place, given, category, layout, size)


@serve.deployment
class AdGeneration:
    """Placed products to ad images, by the step engine on one model."""

    def __init__(self, config: ServeConfig, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._quality = config.quality
        denoiser = self._make_denoiser(config)
        self._engine = StepEngine(denoiser, max_waiting=2 * denoiser.batch_size, observe=metrics.observe_step)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="encode")

    def _make_denoiser(self, config: ServeConfig) -> Denoiser:
        """The model, warm."""
        # Only here: the controller imports this module without waiting for torch.
        from refadgen.engine.denoiser import AdDenoiser

        denoiser = AdDenoiser(config, lambda hit: metrics.count("reference_cache", hit=hit))
        denoiser.warm_up()
        return denoiser

    def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if not self._engine.alive or self._engine.consecutive_failures >= _LOST_AFTER:
            raise RuntimeError(f"{self._engine.consecutive_failures} denoising steps failed in a row")

    async def ready(self) -> AsyncIterator[bool]:
        """Answers once the model is warm. A stream, as the other method is: a handle speaks one way."""
        yield True

    async def generate(self, order: ImageOrder) -> AsyncIterator[StepDone | AdResult | RowError]:
        """Steps, where the order asks for them, then the result; the image is given up when the caller goes."""
        attempts, waited_s, started = 0, 0.0, time.monotonic()
        yield StepDone(0, None)
        while True:
            seed = attempt_seed(order.wanted.seed, attempts)
            attempts += 1
            image: np.ndarray | None = None
            async for event in self._denoise(order, seed):
                if isinstance(event, Finished):
                    image, waited_s = event.result, waited_s + event.waited_s
                elif isinstance(event, Failed):
                    yield _row_error(event.error)
                    return
                elif order.preview_every:
                    yield StepDone(event.step, event.preview)
            assert image is not None
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._threads, self._result, order, image, seed, attempts)
            if result.status == "done" or attempts >= self._quality.max_attempts:
                metrics.count_image(result.status)
                total_s = time.monotonic() - started
                yield dataclasses.replace(result, waited_s=waited_s, generate_s=total_s - waited_s)
                return

    async def _denoise(self, order: ImageOrder, seed: int) -> AsyncIterator[Event]:
        """The engine's events for one attempt."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        sampling = order.config.sampling
        wanted = AdOrder(
            canvas=order.placed.canvas,
            mask=order.placed.mask,
            product_key=order.placed.product_key,
            prompt=order.wanted.prompt,
            negative_prompt=order.facts["negative_prompt"] or None,
            seed=seed,
            fusion_scale=sampling.fusion_scale,
            guidance_scale=sampling.guidance_scale or 1.0,
            num_inference_steps=sampling.num_inference_steps,
        )
        try:
            ticket = self._engine.submit(
                wanted,
                wanted.shape,
                lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
                preview_every=order.preview_every,
            )
        except QueueFullError as error:
            yield Failed(error)
            return
        try:
            while True:
                event = await events.get()
                yield event
                if not hasattr(event, "step"):
                    return
        finally:
            ticket.cancel()

    def _result(self, order: ImageOrder, image: np.ndarray, seed: int, attempts: int) -> AdResult:
        """The image scored, and encoded where it passes the gate."""
        scores = score_fidelity(image, order.placed.canvas, order.placed.mask)
        problem = below_gate(scores, self._quality)
        record = generation_record(
            order.wanted,
            sku=order.facts["sku"],
            negative_prompt=order.facts["negative_prompt"],
            seed=seed,
            input_sha256=order.facts["input_sha256"],
            color_similarity=scores.color_similarity,
            structure_similarity=scores.structure_similarity,
            sampling=order.config.sampling,
            fingerprint=self._fingerprint,
        )
        return AdResult(
            status="failed" if problem else "done",
            reason="low_fidelity" if problem else "",
            detail=f"{problem} after {attempts} attempts" if problem else "",
            attempts=attempts,
            seed=seed,
            **dataclasses.asdict(scores),
            waited_s=0.0,
            generate_s=0.0,
            encoded=b"" if problem else encode_ad(image, record, order.config.output),
        )


def _row_error(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    if isinstance(error, QueueFullError):
        return RowError("queue_full", str(error))
    _log.error("an image failed: %s", type(error).__name__)
    return RowError("generation_error", f"the image could not be made ({type(error).__name__}); try again")


class DeploymentBackend:
    """The deployments behind their handles, and their failures as answers."""

    def __init__(self, segmentation: DeploymentHandle, generation: DeploymentHandle) -> None:
        self._segmentation = segmentation
        self._generation = generation.options(stream=True)
        self._image_s = 1.0  # what an image takes lately: how long to stay away when all places are taken

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(_READY_S):
                async for _ in self._generation.ready.remote():
                    pass
                return bool(await self._segmentation.ready.remote())
        except (TimeoutError, BackPressureError, *_GONE):
            return False

    async def place(self, given: ProductInput, category: str | None, config: GenerateConfig) -> PlacedAd:
        size = (config.sampling.width_px, config.sampling.height_px)
        with self._answers():
            found = await self._segmentation.place.remote(given, category, config.layout, size)
        if isinstance(found, RowError):
            raise from_row_error(found, image_field=given.image_field, mask_given=given.mask is not None)
        return found

    async def generate(self, order: ImageOrder) -> AsyncIterator[StepDone | AdResult]:
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
                events.cancel()

    @contextlib.contextmanager
    def _answers(self) -> Any:
        """Failures of Ray Serve as ApiErrors."""
        try:
            yield
        except BackPressureError:
            raise self._busy() from None
        except _GONE as error:
            _log.warning("a replica is gone: %s", type(error).__name__)
            message = "the replica that worked on this is gone; the same request will work again"
            raise ApiError(503, "replica_lost", message, retry_after_s=1) from None
        except RayTaskError as error:
            _log.error("a replica failed: %s", type(error.cause).__name__)
            raise ApiError(500, "internal_error", "a fault of this server; its log says more") from None

    def _busy(self) -> ApiError:
        return ApiError(429, "busy", "all places are taken; try again later", retry_after_s=self._image_s)


@serve.deployment
@serve.ingress()
class AdIngress:
    """HTTP. The ASGI application is built in each replica, from the configuration."""

    def __init__(
        self, config: ServeConfig, model: ModelIdentity, segmentation: DeploymentHandle, generation: DeploymentHandle
    ) -> None:
        scenes = load_scenes(config.catalog.scenes_file)
        self._service = AdService(config, model, scenes, DeploymentBackend(segmentation, generation))

    def __serve_build_asgi_app__(self) -> Any:
        from refadgen.serving.api import make_app

        return make_app(self._service, tag_answers=False)  # Ray Serve's proxy does
