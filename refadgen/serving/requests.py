"""Request bodies: multipart or JSON in, checked fields and encoded images out. No image is decoded here."""

import base64
import binascii
import dataclasses
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
from refadgen.serving.schema import AdFields, AdForm, AdRequest, MaskFields, MaskForm, MaskRequest

T = TypeVar("T", bound=BaseModel)
_STANDARD_BASE64 = str.maketrans("-_", "+/")
_MAX_PARTS = 150
"""Fields that are no files in one form: 100 prompts, and every other field."""
_MAX_FILES = 20
"""Files in one form. OpenAI's clients send up to 16 images and a mask, which the edits route refuses in words."""
_PART_BYTES = 1_000_000
"""Largest part that is not a file."""


@dataclass(frozen=True, kw_only=True)
class ProductInput:
    """The product image of a request. mask: an encoded image; None: segmentation finds the product."""

    image: bytes | str
    """An encoded image, or its http(s) address."""
    mask: bytes | None = None
    decided: bool = False
    """Whether a person decided on the mask, so that nothing doubts it."""

    @property
    def image_field(self) -> str:
        """The field that errors about the image name."""
        return "image_url" if isinstance(self.image, str) else "image"


async def read_ad_request(request: Request) -> tuple[AdFields, ProductInput]:
    """The fields and the product image of `POST /v1/ads`. Raises: ApiError naming the field."""
    if _is_json(request):
        fields = parse_json(AdRequest, await request.body())
        return fields, _decided(fields, _json_product(fields))
    form = await read_form(request)
    image, mask = take_file(form, "image"), take_file(form, "mask")
    ad = parse_form(AdForm, form, lists=("prompt",), documents=("layout",), files=("image", "mask"))
    return ad, _decided(ad, _product(ad.image_url, image, mask, "image"))


async def read_mask_request(request: Request) -> tuple[MaskFields, ProductInput]:
    """The fields and the product image of `POST /v1/masks`. Raises: ApiError naming the field."""
    if _is_json(request):
        fields = parse_json(MaskRequest, await request.body())
        return fields, _json_product(fields)
    form = await read_form(request)
    image, mask = take_file(form, "image"), take_file(form, "mask")
    wanted = parse_form(MaskForm, form, files=("image", "mask"))
    return wanted, _product(wanted.image_url, image, mask, "image")


def _decided(fields: AdFields, given: ProductInput) -> ProductInput:
    """The product image with `mask_decided`. Raises: ApiError where there is no mask to decide on."""
    if fields.mask_decided and given.mask is None:
        raise ApiError(422, "missing_mask", "mask_decided: is about `mask`; give one", param="mask_decided")
    return dataclasses.replace(given, decided=fields.mask_decided)


def _is_json(request: Request) -> bool:
    """Whether the body is JSON; else it is a multipart form. Raises: ApiError where it is neither."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", f"Content-Type {kind!r}: must be multipart/form-data or JSON")
    return kind == "application/json"


def _json_product(fields: AdRequest | MaskRequest) -> ProductInput:
    image, mask = _decoded(fields.image_base64, "image_base64"), _decoded(fields.mask_base64, "mask_base64")
    return _product(fields.image_url, image, mask, "image_base64")


def _product(url: str | None, image: bytes | None, mask: bytes | None, name: str) -> ProductInput:
    """The product image of a request. name: the field that would hold the image. Raises: ApiError."""
    source = url if image is None else image
    if source is None or (image is not None and url is not None):
        code = "missing_image" if source is None else "two_images"
        raise ApiError(422, code, f"image: give exactly one of {name} or image_url", param="image")
    return ProductInput(image=source, mask=mask)


async def read_form(request: Request) -> FormData:
    """The parsed multipart form. Raises: ApiError where the body is no multipart form, or breaks off."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    end = b"--" + options.get(b"boundary", b"") + b"--"
    # The parser takes a body that breaks off for a complete one, and its last file for a complete image.
    if not (await request.body()).rstrip().endswith(end):
        raise ApiError(400, "bad_multipart", "the multipart body does not end with its boundary")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        # The parser decodes on the event loop with any codec of Python's: punycode takes minutes for a megabyte.
        raise ApiError(415, "unsupported_charset", "Content-Type: charset must be utf-8")
    try:
        return await request.form(max_files=_MAX_FILES, max_fields=_MAX_PARTS, max_part_size=_PART_BYTES)
    except (HTTPException, ValueError, KeyError) as error:  # KeyError: the header names no boundary
        detail = getattr(error, "detail", None) or "the multipart body cannot be read"
        raise ApiError(400, "bad_multipart", str(detail)) from None


def take_file(form: FormData, *names: str) -> bytes | None:
    """The content of the one file under one of `names`; None: there is none.

    Raises: ApiError for two files, an empty one, or a part that is not a file.
    """
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
    """The form's fields as `model`, without `files`.

    lists: fields that may repeat. documents: fields that hold JSON. Raises: ApiError naming the field.
    """
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
    """The fields of a JSON body. Strict: "5" is not a number here. Raises: ApiError naming the field."""
    if not isinstance(_json(body, None), dict):
        raise ApiError(422, "wrong_type", "the body must be a JSON object")
    return _validated(lambda: model.model_validate_json(body, strict=True))


def _json(text: bytes, field: str | None) -> Any:
    """Parsed JSON. field: for the error; None: the body itself. Raises: ApiError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: thousands of open brackets
        where = f"{field}: " if field else "the body "
        raise ApiError(422 if field else 400, "bad_json", f"{where}is not JSON", param=field) from None


def _validated(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValidationError as error:
        # Without the input: an error must not repeat a client's text into logs and other answers.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = [str(part)[:100] for part in first["loc"]]
        param = place[0] if place else None
        rule = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise ApiError(422, "invalid_field", f"{'.'.join(place) or 'body'}: {rule}", param=param) from None


def _decoded(text: str | None, field: str) -> bytes | None:
    """The bytes of base64 text or of a `data:` URL; None for None. Raises: ApiError.

    Line breaks, as `base64 FILE` writes them, and the URL-safe alphabet without padding are taken too.
    """
    if text is None:
        return None
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split())
    if "-" in text or "_" in text:
        text = text.translate(_STANDARD_BASE64) + "=" * (-len(text) % 4)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "bad_base64", f"{field}: is not base64", param=field) from None
    if not data:
        raise ApiError(422, "not_an_image", f"{field}: is empty", param=field)
    return data
