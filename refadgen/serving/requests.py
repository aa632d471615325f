"""Bodies of requests: multipart or JSON in, checked fields and encoded images out. Nothing is decoded here."""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from refadgen.serving.errors import ApiError
from refadgen.serving.schema import AdFields, AdForm, AdRequest

T = TypeVar("T", bound=BaseModel)
_MAX_PARTS = 150
_PART_BYTES = 1_000_000
"""Largest part that is not a file."""


@dataclass(frozen=True, kw_only=True)
class ProductInput:
    """The product image as it was given: encoded bytes, or the address in `image_url`. mask: encoded; None: none."""

    image: bytes | None
    image_url: str | None
    mask: bytes | None = None

    @property
    def image_field(self) -> str:
        """What errors about the image name."""
        return "image_url" if self.image is None else "image"


async def read_ad_request(request: Request) -> tuple[AdFields, ProductInput]:
    """The fields and the product image of `POST /v1/ads`. Raises: ApiError naming the field."""
    kind = _content_type(request)
    if kind == "application/json":
        fields = parse_json(AdRequest, await request.body())
        image, mask = _decoded(fields.image_base64, "image_base64"), _decoded(fields.mask_base64, "mask_base64")
        given = {"image_base64": image is not None, "image_url": fields.image_url is not None}
    elif kind == "multipart/form-data":
        form = await read_form(request)
        image, mask = take_file(form, "image"), take_file(form, "mask")
        fields = parse_form(AdForm, form, lists=("prompt",), documents=("layout",), files=("image", "mask"))
        given = {"image": image is not None, "image_url": fields.image_url is not None}
    else:
        raise ApiError(415, "unsupported_media_type", f"Content-Type {kind!r}: must be multipart/form-data or JSON")
    if sum(given.values()) != 1:
        names = " or ".join(given)
        what = "missing_image" if not any(given.values()) else "two_images"
        raise ApiError(422, what, f"image: give exactly one of {names}", param="image")
    return fields, ProductInput(image=image, image_url=fields.image_url, mask=mask)


async def read_form(request: Request) -> FormData:
    """Raises: ApiError where the body is no multipart form, or ends before its end."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    end = b"--" + options.get(b"boundary", b"") + b"--"
    if not (await request.body()).rstrip().endswith(end):
        raise ApiError(400, "bad_multipart", "the multipart body does not end with its boundary")
    _, options = parse_options_header(request.headers.get("content-type"))
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        # Others would be tried here, on the event loop: punycode takes minutes for a megabyte.
        raise ApiError(415, "unsupported_charset", "Content-Type: charset must be utf-8")
    try:
        return await request.form(max_files=8, max_fields=_MAX_PARTS, max_part_size=_PART_BYTES)
    except (HTTPException, ValueError, KeyError) as error:  # KeyError: no boundary
        detail = getattr(error, "detail", None) or "the multipart body cannot be read"
        raise ApiError(400, "bad_multipart", str(detail)) from None


def take_file(form: FormData, *names: str) -> bytes | None:
    """The one file under one of `names`; None: there is none, or an empty one. Raises: ApiError for two."""
    parts = [(name, part) for name in names for part in form.getlist(name)]
    if len(parts) > 1:
        raise ApiError(422, f"two_{names[0]}s", f"{names[0]}: given {len(parts)} times; give one", param=names[0])
    if not parts:
        return None
    name, part = parts[0]
    if not isinstance(part, UploadFile):
        raise ApiError(422, "wrong_type", f"{name}: must be a file, with a filename", param=name)
    data = part.file.read()
    if not data:
        raise ApiError(422, "not_an_image", f"{name}: the file is empty", param=name)
    return data


def parse_form(
    model: type[T],
    form: FormData,
    *,
    lists: tuple[str, ...] = (),
    documents: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
) -> T:
    """The fields of a form that are not files. lists: may repeat; documents: hold JSON. Raises: ApiError."""
    values: dict[str, Any] = {}
    for name in form:
        if name in files:
            continue
        given = form.getlist(name)
        if not all(isinstance(value, str) for value in given):
            raise ApiError(422, "wrong_type", f"{name}: must be text, not a file", param=name)
        if len(given) > 1 and name not in lists:
            raise ApiError(422, "given_twice", f"{name}: given {len(given)} times; give it once", param=name)
        value: Any = list(given) if len(given) > 1 else given[0]
        values[name] = _json(value.encode(), name) if name in documents else value
    return _validated(lambda: model.model_validate(values))


def parse_json(model: type[T], body: bytes) -> T:
    """The fields of a JSON body; numbers must be numbers. Raises: ApiError."""
    if not isinstance(_json(body, None), dict):
        raise ApiError(422, "wrong_type", "the body must be a JSON object")
    return _validated(lambda: model.model_validate_json(body, strict=True))


def _json(text: bytes, field: str | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        where = f"{field}: " if field else "the body "
        raise ApiError(422 if field else 400, "bad_json", f"{where}is not JSON", param=field) from None


def _validated(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = [str(part)[:100] for part in first["loc"]]
        param = place[0] if place else None
        rule = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise ApiError(422, "invalid_field", f"{'.'.join(place) or 'body'}: {rule}", param=param) from None


def _decoded(text: str | None, field: str) -> bytes | None:
    """Base64, also as a `data:` address. Raises: ApiError."""
    if text is None:
        return None
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "bad_base64", f"{field}: is not base64", param=field) from None
    if not data:
        raise ApiError(422, "not_an_image", f"{field}: is empty", param=field)
    return data


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
