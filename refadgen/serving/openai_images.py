"""OpenAI's images format: `POST /v1/images/edits` and the model's card, so that their client works unchanged.

Their `mask` is transparent where the image may change, so the product is the opaque part, as in our own masks.
"""

import base64
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from refadgen.config import ImageFormat
from refadgen.serving.ads import AdService, canvas_size
from refadgen.serving.errors import ApiError
from refadgen.serving.requests import ProductInput, parse_form, read_form, take_file
from refadgen.serving.schema import WHOLE_FLOATS, AdFields, File, ModelCard, Text

_STARTED = int(time.time())


class EditForm(BaseModel):
    """The fields of an edit. Fields that only steer OpenAI's own models are accepted and ignored."""

    model_config = ConfigDict(extra="forbid")

    image: bytes | None = File
    mask: bytes | None = File
    prompt: Text
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=10), WHOLE_FLOATS] = 1
    size: Annotated[str, Field(max_length=20)] | None = Field(
        default=None, description="WIDTHxHEIGHT, see /v1/options, or auto."
    )
    response_format: Literal["b64_json"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100), WHOLE_FLOATS] | None = None
    background: Literal["auto", "opaque"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    quality: Literal["auto", "standard", "low", "medium", "high"] | None = None
    safety_identifier: Annotated[str, Field(max_length=1000)] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None


def model_card(service: AdService) -> ModelCard:
    """The served model, in OpenAI's form."""
    return ModelCard(id=f"refadgen-{service.model.fingerprint[:12]}", created=_STARTED, owned_by="refadgen")


def add_routes(app: FastAPI, service: AdService, responses: dict[int | str, dict[str, Any]]) -> None:
    """Adds the edits route to `app`. responses: of its errors, for the OpenAPI document."""

    @app.post(
        "/v1/images/edits",
        responses=responses,
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
        form = await read_form(request)
        # OpenAI's client sends a list of images as `image[]`.
        image, mask = take_file(form, "image", "image[]"), take_file(form, "mask")
        edit = parse_form(EditForm, form, files=("image", "image[]", "mask"))
        if image is None:
            raise ApiError(422, "missing_image", "image: give the product image", param="image")
        fields = AdFields(
            prompt=edit.prompt,
            num_variants=edit.n,
            size=None if edit.size in (None, "auto") else edit.size,
            format=edit.output_format or "png",
            # OpenAI allows 0; our encoders start at 1.
            quality=None if edit.output_compression is None else max(1, edit.output_compression),
        )
        given = ProductInput(image=image, mask=mask)
        try:
            requested = service.requested_images(fields, given)
        except ApiError as error:
            # The error names our field; OpenAI's has another name.
            error.param = {"num_variants": "n"}.get(error.param or "", error.param)
            raise
        _, images = await service.collect(requested, given)
        for served in images:
            if served.result.status != "done":
                raise ApiError(422, served.result.reason, served.result.detail, param="image")
        data = [{"b64_json": base64.b64encode(served.result.encoded).decode()} for served in images]
        width_px, height_px = canvas_size(requested.config)
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": data,
                "output_format": requested.config.output.format,
                "size": f"{width_px}x{height_px}",
            }
        )
