"""The HTTP interface: routes, content types, events. What a request means is `ads`'s and `openai_images`'s business."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from refadgen.config import Anchor
from refadgen.serving import openai_images
from refadgen.serving.access import Access
from refadgen.serving.ads import AdService, ServedImage, Update, Wanted
from refadgen.serving.catalog_runs import CatalogRuns
from refadgen.serving.document import openapi_document
from refadgen.serving.errors import ApiError
from refadgen.serving.guard import Guard
from refadgen.serving.products import PlacedAd
from refadgen.serving.requests import ProductInput, parse_json, read_ad_request
from refadgen.serving.schema import (
    AdResponse,
    ErrorResponse,
    Job,
    JobList,
    JobRequest,
    ModelList,
    Options,
)

_log = logging.getLogger("ray.serve")
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEARTBEAT_S = 10.0
_IMAGE_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The body cannot be read.",
        401: "The bearer token is missing or wrong.",
        403: "Not allowed.",
        404: "There is no such thing.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "Neither JSON nor multipart/form-data.",
        422: "A field is wrong; `param` names it.",
        429: "All places are taken; see Retry-After.",
        500: "A fault of the server.",
        503: "Try again; see Retry-After.",
        504: "The answer took too long.",
    }.items()
}


_ANY_ERROR = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)


def make_app(service: AdService, runs: CatalogRuns | None = None, *, tag_answers: bool = True) -> ASGIApp:
    """The ASGI application around `service`.

    runs: None makes one from the configuration. tag_answers: whether answers carry X-Request-ID from here.
    """
    config = service.config
    app = FastAPI(
        title="RefAdGen",
        version=version("refadgen"),
        description="An ad image for one product, faithful to it.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    _add_error_handlers(app)
    _add_ads(app, service)
    openai_images.add_routes(app, service, responses=_responses(*_ANY_ERROR))
    _add_jobs(app, runs or CatalogRuns(config))
    _add_facts(app, service)
    app.openapi = functools.cache(lambda: openapi_document(app, service))
    guarded = Guard(app, Access(config.access), config.limits, tag_answers=tag_answers)
    if config.access.allowed_origins:
        # Outside of the guard, so that a page may read why it was refused.
        return CORSMiddleware(
            guarded,
            allow_origins=config.access.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    return guarded


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _add_ads(app: FastAPI, service: AdService) -> None:
    @app.post(
        "/v1/ads",
        response_model=AdResponse,
        responses={
            200: {
                "description": "The images; as events or as the one image itself where Accept asks for it.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}},
                    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_TYPES.values()},
                },
            },
            **_responses(*_ANY_ERROR),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/AdRequest"}},
                    "multipart/form-data": {"schema": {"$ref": "#/components/schemas/AdForm"}},
                },
            }
        },
    )
    async def make_ads(request: Request) -> Response:
        """Makes the images of one product."""
        fields, given = await read_ad_request(request)
        wanted = service.wanted(fields, given)
        accept = request.headers.get("accept", "")
        request_id = request.state.request_id
        if "text/event-stream" in accept:
            events = _events(service, wanted, given, fields.preview_every, request_id)
            return StreamingResponse(_alive(events), media_type="text/event-stream")
        as_image = accept.strip().startswith("image/")
        if as_image and len(wanted.images) != 1:
            message = f"Accept: {accept[:60]}: {len(wanted.images)} images are wanted; ask for one, or for JSON"
            raise ApiError(422, "one_image_only", message, param="num_variants")
        placed, images = await service.collect(wanted, given)
        if as_image:
            return _image_response(service, wanted, placed, images[0])
        return JSONResponse(
            {
                "request_id": request_id,
                "images": [service.describe(wanted, placed, image) for image in images],
                "product_base64": base64.b64encode(placed.product).decode(),
            }
        )


def _image_response(service: AdService, wanted: Wanted, placed: PlacedAd, image: ServedImage) -> Response:
    """The one image itself, its facts in a header. Raises: ApiError where the gate refused it."""
    if image.result.status != "done":
        raise ApiError(422, image.result.reason, image.result.detail, param="image")
    texts = ("prompt", "negative_prompt", "category", "image_base64")  # too long for a header
    facts = {name: value for name, value in service.describe(wanted, placed, image).items() if name not in texts}
    return Response(
        image.result.encoded,
        media_type=_IMAGE_TYPES[wanted.config.output.format],
        headers={"X-RefAdGen-Facts": json.dumps(facts, ensure_ascii=True)},
    )


async def _events(
    service: AdService, wanted: Wanted, given: ProductInput, preview_every: int, request_id: str
) -> AsyncIterator[str]:
    """Server-sent events: `product`, then `step` and `image` as they come, then `done`; or `error`."""
    limit_s = service.config.limits.timeout_s
    placed: PlacedAd | None = None
    try:
        stream = service.make(wanted, given, preview_every=preview_every or 10**6)
        async with asyncio.timeout(limit_s), contextlib.aclosing(stream) as updates:
            async for update in updates:
                placed = update.placed or placed
                yield _event(service, wanted, placed, update)
        yield _sse("done", {"request_id": request_id})
    except TimeoutError:
        yield _error_event(ApiError(504, "timeout", f"no answer within {limit_s:g} s"), request_id)
    except ApiError as error:
        yield _error_event(error, request_id)
    except Exception:
        _log.exception("an event stream failed, id=%s", request_id)
        yield _error_event(ApiError(500, "internal_error", "a fault of this server; its log says more"), request_id)


def _event(service: AdService, wanted: Wanted, placed: PlacedAd | None, update: Update) -> str:
    if update.placed is not None:
        facts = {
            name: getattr(update.placed, name)
            for name in ("input_sha256", "mask_source", "mask_score", "mask_area", "fetch_s", "segment_s")
        }
        product = base64.b64encode(update.placed.product).decode()
        return _sse("product", facts | {"product_base64": product, "num_images": len(wanted.images)})
    if update.step is not None:
        preview = update.step.preview
        facts = {
            "index": update.index,
            "step": update.step.step,
            "num_steps": wanted.config.sampling.num_inference_steps,
            "preview_base64": base64.b64encode(preview).decode() if preview else None,
        }
        return _sse("step", facts)
    assert update.image is not None
    assert placed is not None
    return _sse("image", {"index": update.index} | service.describe(wanted, placed, update.image))


def _error_event(error: ApiError, request_id: str) -> str:
    return _sse("error", error.body(request_id) | {"status": error.status, "retry_after_s": error.retry_after_s})


def _sse(event: str, data: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


async def _alive(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """`events` with comments where nothing comes, so that nothing between closes the connection."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def drain() -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                queue.put_nowait(event)
        queue.put_nowait(None)

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


def _add_jobs(app: FastAPI, runs: CatalogRuns) -> None:
    errors = _responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)

    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model=Job,
        responses=errors,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
            }
        },
    )
    async def start_job(request: Request) -> Job:
        """Starts a catalogue run."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "unsupported_media_type", "Content-Type must be application/json")
        wanted = parse_json(JobRequest, await request.body())
        return await asyncio.to_thread(runs.start, wanted, request.state.owner)

    @app.get("/v1/jobs", response_model=JobList, responses=errors)
    async def list_jobs(request: Request) -> JobList:
        """The token's own runs, newest first."""
        return JobList(jobs=await asyncio.to_thread(runs.list, request.state.owner))

    @app.get("/v1/jobs/{job_id}", response_model=Job, responses=errors)
    async def read_job(request: Request, job_id: str) -> Job:
        """One of the token's runs."""
        return await asyncio.to_thread(runs.get, job_id, request.state.owner)

    @app.delete("/v1/jobs/{job_id}", response_model=Job, responses=errors)
    async def cancel_job(request: Request, job_id: str) -> Job:
        """Cancels one of the token's runs; what it has published stays, and the same run again continues."""
        return await asyncio.to_thread(runs.cancel, job_id, request.state.owner)


def _add_facts(app: FastAPI, service: AdService) -> None:
    config = service.config
    errors = _responses(401, 403)

    @app.get("/v1/models", response_model=ModelList, responses=errors)
    async def list_models() -> dict[str, Any]:
        """The served model, as OpenAI lists models."""
        return {"object": "list", "data": [openai_images.model_card(service)]}

    @app.get("/v1/models/{model_id}", responses=_responses(401, 403, 404))
    async def read_model(model_id: str) -> dict[str, Any]:
        card = openai_images.model_card(service)
        if model_id != card["id"]:
            raise ApiError(404, "model_not_found", f"model: the one served here is {card['id']}", param="model")
        return card

    @app.get("/v1/options", response_model=Options, responses=errors)
    async def options() -> dict[str, Any]:
        """What this server takes: sizes, scenes, limits, defaults."""
        sampling = config.sampling
        sizes = [f"{width}x{height}" for width, height in service.sizes]
        return {
            "model": service.model.label,
            "sizes": sizes,
            "default_size": sizes[0],
            "num_inference_steps": sampling.num_inference_steps,
            "max_steps": config.limits.max_steps,
            "fusion_scale": sampling.fusion_scale,
            "guidance_scale": sampling.guidance_scale,
            "max_images": config.limits.max_images,
            "max_body_bytes": config.limits.max_body_bytes,
            "image_urls": config.access.allow_image_urls,
            "layout": dataclasses.asdict(config.layout),
            "format": config.output.format,
            "formats": list(_IMAGE_TYPES),
            "anchors": list(get_args(Anchor)),
            "categories": service.scenes.by_category(),
        }

    @app.get("/healthz", include_in_schema=False)
    async def healthy() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> dict[str, str]:
        if not await service.ready():
            raise ApiError(503, "not_ready", "the model is not loaded yet", retry_after_s=5)
        return {"status": "ready"}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return app.openapi()

    for path, (name, kind) in _PAGE.items():
        app.add_api_route(path, _page(name, kind), methods=["GET"], include_in_schema=False)


def _page(name: str, kind: str) -> Callable[[], Any]:
    text = files("refadgen.serving").joinpath("page", name).read_text(encoding="utf-8")

    async def page() -> Response:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)

    return page


def _methods_at(app: FastAPI, path: str) -> list[str]:
    routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    return sorted({method for route in routes for method in route.methods or ()})


def _add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(request.state.request_id), error.status, headers=error.headers())

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = answer(request, ApiError(error.status_code, code, str(error.detail)))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of one route only
            response.headers["Allow"] = ", ".join(_methods_at(app, request.url.path))
        return response

    @app.exception_handler(Exception)  # the framework raises it again, for the guard to log
    async def unknown(request: Request, error: Exception) -> Response:
        return answer(request, ApiError(500, "internal_error", "a fault of this server; its log says more"))

    @app.exception_handler(RequestValidationError)
    async def of_a_parameter(request: Request, error: RequestValidationError) -> Response:
        place = error.errors()[0]["loc"]
        message = f"{place[-1]}: {error.errors()[0]['msg']}"
        return answer(request, ApiError(422, "invalid_field", message, param=str(place[-1])))
