"""The HTTP interface without Ray: real requests, segmentation and step engine, on loopback, in this process."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import uvicorn

from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig, ServeConfig, load_config
from refadgen.errors import RowError
from refadgen.generation.model_settings import with_model_settings
from refadgen.provenance.marks import AdMarks
from refadgen.serving.ads import AdService
from refadgen.serving.api import make_app
from refadgen.serving.deployments import AdGeneration
from refadgen.serving.errors import ApiError, from_row_error
from refadgen.serving.orders import AdResult, ImageOrder, StepDone
from refadgen.serving.products import FoundMask, PlacedAd, ProductPlacer
from refadgen.serving.requests import ProductInput

PROJECT = Path(__file__).resolve().parents[2]


class QuickDenoiser:
    """Replaces the model. A step takes `step_s`; the image is the canvas, tinted a little by the seed."""

    batch_size = 4
    num_kinds = 1

    def __init__(self, step_s: float = 0.0, extra_steps: int = 0) -> None:
        """extra_steps: that images take beyond those that are asked for, as with solvers of second order."""
        self.step_s = step_s
        self.extra_steps = extra_steps
        self.steps_made = 0

    def start(self, order):
        if "far too long" in order.prompt:
            raise RowError("prompt_too_long", "prompt: too long")
        num_steps = order.num_inference_steps + self.extra_steps
        return {"order": order, "left": num_steps, "num_steps": num_steps}

    def kind(self, row):
        return 0

    def num_steps(self, row):
        return row["num_steps"]

    def step(self, rows, batch_size):
        time.sleep(self.step_s)
        self.steps_made += 1
        for row in rows:
            row["left"] -= 1
        return [row for row in rows if not row["left"]]

    def finish(self, order, row):
        tint = np.array([order.seed % 7, order.seed % 11, order.seed % 13], np.int16)
        return np.clip(order.canvas.astype(np.int16) - tint, 0, 255).astype(np.uint8)

    def check_device(self):
        pass

    def preview(self, row):
        import io

        from PIL import Image

        sink = io.BytesIO()
        Image.fromarray(row["order"].canvas).save(sink, "WEBP")
        return sink.getvalue()


class LocalBackend:
    """The work of both deployments, in this process."""

    def __init__(self, config: ServeConfig, denoiser: QuickDenoiser, mark: str) -> None:
        from refadgen.engine.step_engine import StepEngine

        self._placer = ProductPlacer(config)
        self.denoiser = denoiser
        # The deployment's own class without its model, so that the tests run the production code.
        generation = AdGeneration.__new__(AdGeneration)
        generation._fingerprint, generation._quality = mark, config.quality
        generation._marks = AdMarks(config.provenance)
        generation._engine = StepEngine(denoiser, max_waiting=config.limits.max_queued_images)
        generation._threads = None
        self.generation = generation

    async def ready(self) -> bool:
        return True

    async def place(self, given: ProductInput, category: str | None, config: GenerateConfig) -> PlacedAd:
        size = (config.sampling.width_px, config.sampling.height_px)
        found = await asyncio.to_thread(self._placer.place, given, category, config.layout, size)
        if isinstance(found, RowError):
            raise from_row_error(found, image_field=given.image_field, mask_given=given.mask is not None)
        return found

    async def find_mask(self, given: ProductInput, category: str | None) -> FoundMask:
        found = await asyncio.to_thread(self._placer.find_mask, given, category)
        if isinstance(found, RowError):
            raise from_row_error(found, image_field=given.image_field, mask_given=given.mask is not None)
        return found

    async def generate(self, order: ImageOrder) -> AsyncIterator[StepDone | AdResult]:
        async with contextlib.aclosing(self.generation.generate(order)) as events:
            async for event in events:
                if isinstance(event, RowError):
                    if event.reason == "queue_full":
                        raise ApiError(429, "busy", "the queue is full", retry_after_s=1)
                    raise from_row_error(event)
                yield event


@dataclasses.dataclass
class LocalServer:
    url: str
    service: AdService
    backend: LocalBackend


def make_service(
    *words: str, denoiser: QuickDenoiser | None = None, model: str = "mini"
) -> tuple[AdService, LocalBackend]:
    config = load_config(ServeConfig, None, [f"model.path={model}", "sampling.num_inference_steps=4", *words])
    resolved, identity = with_model_settings(config.generation())
    config = dataclasses.replace(config, sampling=resolved.sampling)
    backend = LocalBackend(config, denoiser or QuickDenoiser(), identity.fingerprint)
    service = AdService(config, identity, load_scenes(None), backend)
    return service, backend


@contextlib.contextmanager
def serving(*words: str, denoiser: QuickDenoiser | None = None) -> Iterator[LocalServer]:
    """A server on loopback with these settings."""
    service, backend = make_service(*words, denoiser=denoiser)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield LocalServer(f"http://127.0.0.1:{port}", service, backend)
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":  # a server to try things on by hand, with a step of 0.1 s
    with serving(denoiser=QuickDenoiser(0.1)) as local:
        print(local.url, flush=True)
        threading.Event().wait()
