"""OpenAI's images format: `POST /v1/images/edits` and the model's card, so that their client works unchanged.

Their `mask` is transparent where the image may change, so the product is the opaque part, as in our own masks.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData

from refadgen.config import ImageFormat, SamplingConfig
from refadgen.engine.previews import Previews
from refadgen.generation.encoding import resized
from refadgen.serving.ads import AdService, ImageUpdate, ProductUpdate, RequestedImages, StepUpdate, Update
from refadgen.serving.errors import ApiError
from refadgen.serving.events import sse, written_stream
from refadgen.serving.products import PlacedAd
from refadgen.serving.requests import ProductInput, parse_form, read_form, take_file
from refadgen.serving.schema import WHOLE_FLOATS, AdFields, File, ModelCard, Text, range_of

_STARTED = int(time.time())
OPENAI_SIZES = ("1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792", "512x512", "256x256")
"""Sizes that OpenAI's clients send. The image is made in the model's area at the nearest ratio, and enlarged."""
NOT_SERVED = ("/v1/images/generations", "/v1/images/variations")
"""Paths of OpenAI's that need another model than ours."""
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Their clients want the field; nothing is counted in tokens here."""


class EditForm(BaseModel):
    """The fields of an edit. Fields that only steer OpenAI's own models are accepted and ignored."""

    model_config = ConfigDict(extra="forbid")

    image: bytes | None = File
    mask: bytes | None = File
    prompt: Text
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=10), WHOLE_FLOATS] = 1
    size: Annotated[str, Field(max_length=20)] | None = Field(
        default=None, description="WIDTHxHEIGHT of /v1/options or one of OpenAI's, or auto."
    )
    response_format: Literal["b64_json"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100), WHOLE_FLOATS] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None,
        description="transparent: the placed product alone, cut out by its mask. The prompt is not used.",
    )
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), WHOLE_FLOATS] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    quality: Literal["auto", "standard", "low", "medium", "high", "xhigh", "max", "hd"] | None = None
    safety_identifier: Annotated[str, Field(max_length=1000)] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    seed: Annotated[int, range_of(SamplingConfig, "seed"), WHOLE_FLOATS] | None = Field(
        default=None, description="Seed of the first image; not OpenAI's. None: it follows from image and prompt."
    )


_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
"""The form of each event; `data` is JSON."""


def model_card(service: AdService) -> ModelCard:
    """The served model, in OpenAI's form."""
    return ModelCard(id=f"refadgen-{service.model.fingerprint[:12]}", created=_STARTED, owned_by="refadgen")


def add_routes(app: FastAPI, service: AdService, responses: dict[int | str, dict[str, Any]]) -> None:
    """Adds the edits route to `app`. responses: of its errors, for the OpenAPI document."""

    @app.post(
        "/v1/images/edits",
        responses={
            200: {
                "description": "The images; as OpenAI's events where `stream` is true.",
                "content": {"text/event-stream": {"schema": _EVENT}},
            },
            **responses,
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/EditForm"}}},
            }
        },
    )
    async def edit_image(request: Request) -> Response:
        """Ad images of the product in `image`, in OpenAI's format."""
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise ApiError(415, "unsupported_media_type", "Content-Type must be multipart/form-data")
        edit, given = _read(await read_form(request))
        size = _enlarged_size(service, edit.size)
        requested = _requested(service, edit, given, size)
        if edit.background == "transparent":
            placed = await service.place(requested, given)
            answer = _values(requested, placed, "transparent") | {"b64_json": _base64(_cut_out(placed, requested))}
            if edit.stream:
                return StreamingResponse(iter([_completed(answer)]), media_type="text/event-stream")
            return _response(requested, placed, [answer["b64_json"]], "transparent")
        if edit.stream:
            events = _edit_events(service, requested, given, edit.partial_images or 0, request.state.request_id)
            return StreamingResponse(events, media_type="text/event-stream")
        placed, images = await service.collect(requested, given)
        for served in images:
            if served.result.status != "done":
                raise ApiError(422, served.result.reason, served.result.detail, param="image")
        return _response(requested, placed, [_base64(served.result.encoded) for served in images], "opaque")


def _read(form: FormData) -> tuple[EditForm, ProductInput]:
    """The fields and the product image of an edit. Raises: ApiError naming the field."""
    names = ("image", "image[]")  # OpenAI's client sends a list of images as `image[]`
    if sum(len(form.getlist(name)) for name in names) > 1:
        message = "image: the model sees one photograph of the product; send the best one alone"
        raise ApiError(422, "two_images", message, param="image")
    image, mask = take_file(form, *names), take_file(form, "mask")
    edit = parse_form(EditForm, form, files=(*names, "mask"))
    if image is None:
        raise ApiError(422, "missing_image", "image: give the product image", param="image")
    if edit.background == "transparent" and edit.output_format == "jpeg":
        message = "background: JPEG knows no transparency; ask for output_format png or webp"
        raise ApiError(422, "no_transparency", message, param="background")
    if edit.background == "transparent" and edit.n > 1:
        raise ApiError(422, "one_image_only", "n: a product has one cut-out; ask for 1", param="n")
    return edit, ProductInput(image=image, mask=mask)


def _requested(
    service: AdService, edit: EditForm, given: ProductInput, size: tuple[int, int] | None
) -> RequestedImages:
    """The images that an edit asks for. size: see `_enlarged_size`. Raises: ApiError naming OpenAI's field."""
    fields = AdFields(
        prompt=edit.prompt,
        num_variants=edit.n,
        seed=edit.seed,
        size=None if edit.size in (None, "auto") or size else edit.size,
        format=edit.output_format or "png",
        # OpenAI allows 0; our encoders start at 1.
        quality=None if edit.output_compression is None else max(1, edit.output_compression),
    )
    try:
        return service.requested_images(fields, given, size)
    except ApiError as error:
        if error.code == "unknown_size":
            error.message += f", nor of OpenAI's: {', '.join(OPENAI_SIZES)}"
        # The error names our field; OpenAI's has another name.
        error.param = {"num_variants": "n"}.get(error.param or "", error.param)
        raise


def _response(requested: RequestedImages, placed: PlacedAd, images: list[str], background: str) -> JSONResponse:
    """images: as base64."""
    data = [{"b64_json": image} for image in images]
    return JSONResponse({**_values(requested, placed, background), "created": int(time.time()), "data": data})


def _values(requested: RequestedImages, placed: PlacedAd, background: str) -> dict[str, Any]:
    """What an answer says about its images."""
    return {
        "size": _size_text(requested, placed),
        "background": background,
        "output_format": requested.config.output.format,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _cut_out(placed: PlacedAd, requested: RequestedImages) -> bytes:
    """The placed product as PNG or WebP, transparent outside its mask, in the size that is asked for."""
    output, size = requested.config.output, requested.size or placed.file_size
    pixels = resized(np.dstack([placed.canvas, placed.mask]), size)
    sink = io.BytesIO()
    if output.format == "webp":
        Image.fromarray(pixels).save(sink, "WEBP", quality=output.quality, method=4)
    else:
        Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _enlarged_size(service: AdService, size: str | None) -> tuple[int, int] | None:
    """The size of OpenAI's that a request asks for; None where the server has a canvas of it, or it is another."""
    if size not in OPENAI_SIZES or size in [f"{width}x{height}" for width, height in service.sizes]:
        return None
    width, _, height = size.partition("x")
    return int(width), int(height)


def _size_text(requested: RequestedImages, placed: PlacedAd) -> str:
    width_px, height_px = requested.size or placed.file_size
    return f"{width_px}x{height_px}"


def _edit_events(
    service: AdService, requested: RequestedImages, given: ProductInput, partial_images: int, request_id: str
) -> AsyncGenerator[str, None]:
    """The events of an edit: `image_edit.partial_image` and `image_edit.completed`; or `error`."""
    shown: Counter[int] = Counter()
    placed: PlacedAd | None = None

    def write(update: Update) -> str:
        nonlocal placed
        if isinstance(update, ProductUpdate):
            placed = update.placed
            return ""
        assert placed is not None  # `make` yields the product first
        values = _values(requested, placed, "opaque")
        if isinstance(update, StepUpdate) and update.step.preview and shown[update.index] < partial_images:
            preview = _partial_image(update.step.preview, requested, placed)
            values |= {"b64_json": _base64(preview), "partial_image_index": shown[update.index]}
            shown[update.index] += 1
            return _event("image_edit.partial_image", values)
        if isinstance(update, ImageUpdate):
            result = update.image.result
            if result.status != "done":
                raise ApiError(422, result.reason, result.detail, param="image")
            return _completed(values | {"b64_json": _base64(result.encoded)})
        return ""

    return written_stream(service, requested, given, Previews(number=partial_images), request_id, write)


def _event(name: str, values: dict[str, Any]) -> str:
    return sse(name, {"type": name, "created_at": int(time.time()), "quality": "auto", **values})


def _completed(values: dict[str, Any]) -> str:
    return _event("image_edit.completed", values | {"usage": _NO_TOKENS})


def _partial_image(preview: bytes, requested: RequestedImages, placed: PlacedAd) -> bytes:
    """A preview in the size and the format of the image that it is of."""
    with Image.open(io.BytesIO(preview)) as image:
        pixels = resized(np.asarray(image.convert("RGB")), requested.size or placed.file_size)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, requested.config.output.format)
    return sink.getvalue()
