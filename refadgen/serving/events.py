"""Server-sent events of one request: `product`, then `step` and `image` as they come, then `done`; or `error`."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from refadgen.serving.ads import AdService, ProductUpdate, RequestedImages, StepUpdate, Update
from refadgen.serving.errors import ApiError, server_fault
from refadgen.serving.fault_log import log_fault
from refadgen.serving.products import PlacedAd
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import ProductEvent, StepEvent

_HEARTBEAT_S = 10.0
_NO_PREVIEWS = 10**6
"""More steps than an image has: step events come, and no preview is ever due."""


def event_stream(
    service: AdService, requested: RequestedImages, given: ProductInput, preview_every: int, request_id: str
) -> AsyncGenerator[str, None]:
    """Yields the events of one request as text, with comments while none comes.

    preview_every: steps between previews; 0: none.
    """
    placed: PlacedAd | None = None

    def write(update: Update) -> str:
        nonlocal placed
        if isinstance(update, ProductUpdate):
            placed = update.placed
        return _event(service, requested, placed, update)

    done = sse("done", {"request_id": request_id})
    return written_stream(service, requested, given, preview_every, request_id, write, done)


def written_stream(
    service: AdService,
    requested: RequestedImages,
    given: ProductInput,
    preview_every: int,
    request_id: str,
    write: Callable[[Update], str],
    last: str = "",
) -> AsyncGenerator[str, None]:
    """As `event_stream`, in the form of another interface. write: the text of one update. last: after the images."""
    return _with_heartbeat(_events(service, requested, given, preview_every, request_id, write, last))


async def _events(
    service: AdService,
    requested: RequestedImages,
    given: ProductInput,
    preview_every: int,
    request_id: str,
    write: Callable[[Update], str],
    last: str,
) -> AsyncGenerator[str, None]:
    limit_s = service.config.limits.timeout_s
    try:
        stream = service.make(requested, given, preview_every=preview_every or _NO_PREVIEWS)
        async with asyncio.timeout(limit_s), contextlib.aclosing(stream) as updates:
            async for update in updates:
                yield write(update)
        yield last
    except TimeoutError:
        yield _error(ApiError(504, "timeout", f"no answer within {limit_s:g} s (limits.timeout_s)"), request_id)
    except ApiError as error:
        yield _error(error, request_id)
    except Exception as error:
        # Status and headers are sent already, so the error becomes the last event.
        log_fault("an event stream", error, request_id=request_id)
        yield _error(server_fault(), request_id)


def _event(service: AdService, requested: RequestedImages, placed: PlacedAd | None, update: Update) -> str:
    if isinstance(update, ProductUpdate):
        product = ProductEvent(
            input_sha256=update.placed.input_sha256,
            mask_source=update.placed.mask_source,
            mask_score=update.placed.mask_score,
            mask_area=update.placed.mask_area,
            fetch_s=update.placed.fetch_s,
            segment_s=update.placed.segment_s,
            product_base64=base64.b64encode(update.placed.product).decode(),
            num_images=len(requested.images),
        )
        return sse("product", product.model_dump())
    if isinstance(update, StepUpdate):
        preview = update.step.preview
        step = StepEvent(
            index=update.index,
            step=update.step.step,
            num_steps=requested.config.sampling.num_steps,
            preview_base64=base64.b64encode(preview).decode() if preview else None,
        )
        return sse("step", step.model_dump())
    assert placed is not None  # `make` yields the product first
    image = service.describe(requested, placed, update.image)
    return sse("image", {"index": update.index, **image.model_dump()})


def _error(error: ApiError, request_id: str) -> str:
    return sse("error", error.body(request_id) | {"status": error.status, "retry_after_s": error.retry_after_s})


def sse(event: str, data: Mapping[str, Any]) -> str:
    """One event as text."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


async def _with_heartbeat(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """`events`, with a comment after each `_HEARTBEAT_S` of silence: proxies close connections that stay silent."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def drain() -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                queue.put_nowait(event)
        queue.put_nowait(None)

    # A task of its own: a timeout around the generator's own `anext` would cancel the work inside it.
    task = asyncio.create_task(drain())
    try:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), _HEARTBEAT_S)
            except TimeoutError:
                yield ": still working\n\n"
                continue
            if event is None:
                return
            yield event
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
