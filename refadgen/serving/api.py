"""The HTTP interface: routes, content types, errors. `ads` gives requests their meaning."""

import asyncio
import base64
import functools
import json
from collections.abc import Awaitable, Callable
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

from refadgen.config import Anchor, ImageFormat
from refadgen.engine.previews import Previews
from refadgen.serving import openai_images
from refadgen.serving.access import Access
from refadgen.serving.ads import AdService, RequestedImages, ServedImage
from refadgen.serving.catalog_runs import CatalogRuns
from refadgen.serving.document import openapi_document
from refadgen.serving.errors import ApiError, server_fault
from refadgen.serving.events import event_stream
from refadgen.serving.guard import Guard
from refadgen.serving.products import PlacedAd
from refadgen.serving.requests import parse_json, read_ad_request, read_mask_request
from refadgen.serving.schema import (
    AdResponse,
    ChannelOption,
    ErrorResponse,
    Job,
    JobList,
    JobRequest,
    Layout,
    MaskResponse,
    ModelCard,
    ModelList,
    Options,
    SceneOption,
)

_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/mask.js": ("mask.js", "text/javascript"),
}
# data: and blob: are previews and finished images; nothing is loaded from elsewhere.
_PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_IMAGE_TYPES: dict[ImageFormat, str] = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The body cannot be read.",
        401: "The bearer token is missing or wrong.",
        403: "Not allowed.",
        404: "Not found.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "Neither JSON nor multipart/form-data.",
        422: "A field is wrong; `param` names it.",
        429: "The queue is full; see Retry-After.",
        500: "The server failed; its log has the details.",
        503: "Send the same request again; see Retry-After.",
        504: "The answer took too long.",
    }.items()
}
_ANY_ERROR = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)


def make_app(service: AdService, runs: CatalogRuns | None = None, *, tag_answers: bool = True) -> ASGIApp:
    """The ASGI application around `service`.

    runs: None makes one from the configuration. tag_answers: whether to set X-Request-ID; Ray Serve's proxy sets its
    own.
    """
    config = service.config
    app = FastAPI(
        title="RefAdGen",
        version=version("refadgen"),
        description="An ad image for one product, faithful to it.",
        # FastAPI's own pages load scripts from a CDN, and its document lacks this server's limits (see `document`).
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    _add_error_handlers(app)
    _add_ads(app, service)
    _add_masks(app, service)
    openai_images.add_routes(app, service, responses=_responses(*_ANY_ERROR))
    _add_jobs(app, runs or CatalogRuns(config))
    _add_descriptions(app, service)
    _add_plain_routes(app, service)
    guarded = Guard(app, Access(config.access), config.limits, tag_answers=tag_answers)
    if config.access.allowed_origins:
        # Outside the guard: without CORS headers on a 401 the page's script could not read why it was refused.
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
        requested = service.requested_images(fields, given)
        accept = request.headers.get("accept", "")
        request_id = request.state.request_id
        if "text/event-stream" in accept:
            events = event_stream(service, requested, given, Previews(every=fields.preview_every), request_id)
            return StreamingResponse(events, media_type="text/event-stream")
        as_image = accept.strip().startswith("image/")
        if as_image and len(requested.images) != 1:
            num_images = len(requested.images)
            message = f"Accept: {accept[:60]}: the request is for {num_images} images; ask for one image, or for JSON"
            raise ApiError(422, "one_image_only", message, param="num_variants")
        placed, images = await service.collect(requested, given)
        if as_image:
            return _image_response(service, requested, placed, images[0])
        answer = AdResponse(
            request_id=request_id,
            images=[service.describe(requested, placed, image) for image in images],
            product_base64=base64.b64encode(placed.product).decode(),
        )
        # A finished response: FastAPI would check and copy the images once more.
        return JSONResponse(answer.model_dump())


def _add_masks(app: FastAPI, service: AdService) -> None:
    schemas = {"application/json": "MaskRequest", "multipart/form-data": "MaskForm"}

    @app.post(
        "/v1/masks",
        response_model=MaskResponse,
        responses=_responses(*_ANY_ERROR),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in schemas.items()
                },
            }
        },
    )
    async def find_mask(request: Request) -> Response:
        """Finds the product's mask, and makes nothing. A doubtful mask comes with what is doubted."""
        fields, given = await read_mask_request(request)
        found = await service.find_mask(fields, given)
        answer = MaskResponse(
            request_id=request.state.request_id,
            status="rejected" if found.reason else "done",
            reason=found.reason,
            detail=found.detail,
            input_sha256=found.input_sha256,
            width_px=found.width_px,
            height_px=found.height_px,
            mask_source=found.mask_source,
            mask_score=found.mask_score,
            mask_area=found.mask_area,
            mask_base64=None if found.mask is None else base64.b64encode(found.mask).decode(),
        )
        return JSONResponse(answer.model_dump())


def _image_response(service: AdService, requested: RequestedImages, placed: PlacedAd, image: ServedImage) -> Response:
    """The one image as a file, with its values in a header. Raises: ApiError where the gate refused it."""
    if image.result.status != "done":
        raise ApiError(422, image.result.reason, image.result.detail, param="image")
    described = service.describe(requested, placed, image)
    # Texts of a client's choice may be longer than proxies allow for a header.
    values = described.model_dump(exclude={"prompt", "negative_prompt", "category", "image_base64"})
    return Response(
        image.result.encoded,
        media_type=_IMAGE_TYPES[requested.config.output.format],
        # ASCII with escapes: HTTP headers hold Latin-1 only.
        headers={"X-RefAdGen-Facts": json.dumps(values, ensure_ascii=True)},
    )


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
        job_request = parse_json(JobRequest, await request.body())
        # Threads here and below: Ray's job client and S3 block, and this loop serves all requests.
        return await asyncio.to_thread(runs.start, job_request, request.state.owner)

    @app.get("/v1/jobs", response_model=JobList, responses=errors)
    async def list_jobs(request: Request) -> JobList:
        """The runs of this token, newest first."""
        return JobList(jobs=await asyncio.to_thread(runs.list, request.state.owner))

    @app.get("/v1/jobs/{job_id}", response_model=Job, responses=errors)
    async def read_job(request: Request, job_id: str) -> Job:
        """One run of this token."""
        return await asyncio.to_thread(runs.get, job_id, request.state.owner)

    @app.delete("/v1/jobs/{job_id}", response_model=Job, responses=errors)
    async def cancel_job(request: Request, job_id: str) -> Job:
        """Cancels one run of this token. Its images stay; the same request again resumes it."""
        return await asyncio.to_thread(runs.cancel, job_id, request.state.owner)


def _add_descriptions(app: FastAPI, service: AdService) -> None:
    """Routes that describe the model and the settings."""
    config = service.config
    errors = _responses(401, 403)

    @app.get("/v1/models", response_model=ModelList, responses=errors)
    async def list_models() -> ModelList:
        """The served model, in the form of OpenAI's list of models."""
        return ModelList(data=[openai_images.model_card(service)])

    @app.get("/v1/models/{model_id}", responses=_responses(401, 403, 404))
    async def read_model(model_id: str) -> ModelCard:
        """The served model."""
        card = openai_images.model_card(service)
        if model_id != card.id:
            raise ApiError(404, "model_not_found", f"model: this server has only {card.id}", param="model")
        return card

    @app.get("/v1/options", response_model=Options, responses=errors)
    async def options() -> Options:
        """What a request may ask for: sizes, scenes, limits, defaults."""
        sampling, layout = config.sampling, config.layout
        assert sampling.guidance_scale is not None  # the model's own is filled in
        sizes = [f"{width}x{height}" for width, height in service.sizes]
        return Options(
            model=service.model.label,
            sizes=sizes,
            default_size=sizes[0],
            channels=[
                ChannelOption(name=rule.name, ratio=rule.ratio, width_px=rule.size[0], height_px=rule.size[1])
                for rule in service.channels.values()
            ],
            num_inference_steps=sampling.num_steps,
            max_steps=config.limits.max_steps,
            fusion_scale=sampling.fusion_scale,
            guidance_scale=sampling.guidance_scale,
            max_images=config.limits.max_images,
            max_body_bytes=config.limits.max_body_bytes,
            image_urls=config.access.allow_image_urls,
            layout=Layout(**{name: getattr(layout, name) for name in Layout.model_fields}),
            format=config.output.format,
            formats=list(_IMAGE_TYPES),
            anchors=list(get_args(Anchor)),
            categories={
                noun: [SceneOption.model_validate(scene) for scene in scenes]
                for noun, scenes in service.scenes.by_category().items()
            },
        )


def _add_plain_routes(app: FastAPI, service: AdService) -> None:
    """Health, the OpenAPI document and the page: none of them needs a token (see `guard.OPEN_PATHS`)."""
    # Once for all requests, and not before the first: every route must be there.
    document = functools.cache(lambda: openapi_document(app, service))

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
        return document()

    for path, (name, kind) in _PAGE.items():
        app.add_api_route(path, _page(name, kind), methods=["GET"], include_in_schema=False)


def _page(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    text = files("refadgen.serving").joinpath("page", name).read_text(encoding="utf-8")

    async def page() -> Response:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)

    return page


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """The methods of all routes at `path`, for the Allow header."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    return sorted({method for route in routes for method in route.methods or ()})


def _add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(request.state.request_id), error.status, headers=error.headers())

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        message = str(error.detail)
        if error.status_code == 404 and request.url.path in openai_images.NOT_SERVED:
            message = "this server makes ads of a product: send its photograph to /v1/images/edits"
        response = answer(request, ApiError(error.status_code, code, message))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of the first matching route only
            response.headers["Allow"] = ", ".join(_methods_at(app, request.url.path))
        return response

    @app.exception_handler(Exception)  # the framework raises it again afterwards, and the guard logs it
    async def on_any_other_error(request: Request, error: Exception) -> Response:
        return answer(request, server_fault())

    @app.exception_handler(RequestValidationError)
    async def on_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        place = error.errors()[0]["loc"]
        message = f"{place[-1]}: {error.errors()[0]['msg']}"
        return answer(request, ApiError(422, "invalid_field", message, param=str(place[-1])))
