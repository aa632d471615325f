"""The OpenAPI document: FastAPI's, plus the bodies that we parse ourselves, plus this server's own limits."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from refadgen.serving.ads import AdService
from refadgen.serving.openai_images import EditForm
from refadgen.serving.schema import AdForm, AdRequest, JobRequest, MaskForm, MaskRequest


def openapi_document(app: FastAPI, service: AdService) -> dict[str, Any]:
    """The document of `app`, with the limits of `service`'s configuration."""
    config = service.config
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    sizes = [f"{width}x{height}" for width, height in service.sizes]
    for model in (AdRequest, AdForm, MaskRequest, MaskForm, JobRequest, EditForm):
        _add(schemas, model)
    for name in ("AdRequest", "AdForm"):
        fields = schemas[name]["properties"]
        fields["size"]["anyOf"][0]["enum"] = sizes
        fields["channel"]["anyOf"][0]["enum"] = list(service.channels)
        fields["num_variants"]["maximum"] = config.limits.max_images
        fields["num_inference_steps"]["anyOf"][0]["maximum"] = config.limits.max_steps
    # The classes allow null where a field may be left out; a field of a form cannot be null.
    for form in ("AdForm", "MaskForm", "EditForm"):
        for field, rule in schemas[form]["properties"].items():
            schemas[form]["properties"][field] = _not_null(rule)
    if config.access.allow_image_urls:
        # Exactly one of the two: a rule between two fields, which the classes do not express.
        for name in ("AdRequest", "MaskRequest"):
            schemas[name]["oneOf"] = [
                {"required": [one], "properties": {one: {"type": "string"}, other: {"type": "null"}}}
                for one, other in (("image_base64", "image_url"), ("image_url", "image_base64"))
            ]
    else:
        fields_of = {"AdRequest": "image_base64", "AdForm": "image", "MaskRequest": "image_base64", "MaskForm": "image"}
        for name, field in fields_of.items():
            del schemas[name]["properties"]["image_url"]
            schemas[name]["properties"][field] = _not_null(schemas[name]["properties"][field])
            schemas[name]["required"] = [field]
    schemas["EditForm"]["required"] = ["image", "prompt"]
    schemas["EditForm"]["properties"]["size"] = {"enum": ["auto", *sizes]}
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    if config.access.tokens:
        document["security"] = [{"token": []}]
    return document


def _add(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds a body that FastAPI does not know, since its route parses it itself."""
    found = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= found.pop("$defs", {})
    schemas[model.__name__] = found


def _not_null(rule: dict[str, Any]) -> dict[str, Any]:
    """`rule` without null."""
    options = [option for option in rule.get("anyOf", []) if option.get("type") != "null"]
    rest = {name: value for name, value in rule.items() if name not in ("anyOf", "default")}
    return rest | (options[0] if len(options) == 1 else {"anyOf": options} if options else {})
