"""What goes over HTTP: requests, answers, errors. Field names are the catalogue's and the ledger's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from refadgen.catalog.rows import MAX_PROMPTS, MAX_SKU_CHARS
from refadgen.config import (
    Anchor,
    CatalogConfig,
    ImageFormat,
    LayoutConfig,
    OutputConfig,
    SamplingConfig,
)
from refadgen.config.marks import Section, setting_of

Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
"""Not blank."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


INTEGRAL = BeforeValidator(_whole)
"""5.0 is an integer, as in JSON Schema."""


def integer(least: int, most: int) -> type[int]:
    """Integers within bounds."""
    return Annotated[int, Field(ge=least, le=most), INTEGRAL]


def within(section: type[Section], name: str) -> Any:
    """The range of a setting as that of a field here. Serving refuses the values that the main job refuses."""
    mark = setting_of(section, name)
    # 1.0 as 1: clients compare documents, and the number is the same.
    bounds = [int(bound) if bound is not None and bound == int(bound) else bound for bound in (mark.least, mark.most)]
    return Field(ge=bounds[0], le=bounds[1])


_Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"format": "byte"})]
File = Field(None, json_schema_extra={"format": "binary"})


class Layout(BaseModel):
    """Where the product stands on the canvas; what is left out is the server's (`layout.*`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    size: Annotated[float, within(LayoutConfig, "size")] | None = Field(
        None, description="The product's larger extent relative to the canvas."
    )
    anchor: Anchor | None = Field(None, description="The side or corner of the canvas that the product stands at.")
    margin: Annotated[float, within(LayoutConfig, "margin")] | None = Field(
        None, description="Free border, a share of the canvas."
    )


class AdFields(BaseModel):
    """What may be said of the wanted images, beside the product image itself."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image_url: str | None = Field(
        None, max_length=2000, pattern=r"^https?://\S+$", description="The product image's address, where allowed."
    )
    sku: Annotated[str, Field(min_length=1, max_length=MAX_SKU_CHARS, pattern=r"\S")] | None = Field(
        None, description="The product's id. With the catalogue's sku, the image is the main job's. None: of the image."
    )
    title: Text | None = None
    category: Text | None = Field(None, description="Chooses scene templates, and what segmentation looks for.")
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] | None = Field(
        None, description="One scene, or a list of them. None: `scene`, or the category's first scene templates."
    )
    scene: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] | None = Field(
        None, description="A scene template of the category by name; see /v1/options."
    )
    negative_prompt: Text | None = None
    num_variants: Annotated[int, within(CatalogConfig, "num_variants"), INTEGRAL] = Field(
        1, description="Images of each scene."
    )
    seed: Annotated[int, within(SamplingConfig, "seed"), INTEGRAL] | None = Field(
        None, description="Of the first variant. None: from sku and scene."
    )
    size: Annotated[str, Field(max_length=20)] | None = Field(
        None, description="The canvas, WIDTHxHEIGHT; see /v1/options. None: the model's own."
    )
    layout: Layout | None = None
    fusion_scale: Annotated[float, within(SamplingConfig, "fusion_scale")] | None = Field(
        None, description="λ: how strongly the product's features fuse."
    )
    guidance_scale: Annotated[float, within(SamplingConfig, "guidance_scale")] | None = None
    num_inference_steps: Annotated[int, within(SamplingConfig, "num_inference_steps"), INTEGRAL] | None = None
    format: ImageFormat | None = None
    quality: Annotated[int, within(OutputConfig, "quality"), INTEGRAL] | None = Field(
        None, description="Of JPEG and WebP."
    )
    preview_every: integer(0, 1000) = Field(0, description="Steps between previews of an event stream; 0: none.")


class AdRequest(AdFields):
    """A request as JSON: the product image is `image_base64` or `image_url`, one of both."""

    image_base64: _Base64 | None = Field(None, description="The product image, encoded (JPEG, PNG, WebP, …).")
    mask_base64: _Base64 | None = Field(
        None, description="Its product mask: white, or opaque, is the product. None: segmentation finds it."
    )


class AdForm(AdFields):
    """A request as multipart/form-data: `image` (a file) or `image_url`; `layout` is JSON; `prompt` may repeat."""

    image: bytes | None = File
    mask: bytes | None = File


class AdImage(BaseModel):
    """One wanted image, with the facts of a ledger row."""

    image_id: str
    sku: str
    category: str | None
    scene: str
    variant: int
    status: Literal["done", "failed", "rejected"]
    reason: str
    detail: str
    attempts: int
    seed: int
    prompt: str
    negative_prompt: str
    input_sha256: str
    width_px: int
    height_px: int
    mask_source: str
    mask_score: float
    mask_area: float
    color_similarity: float | None
    structure_similarity: float | None
    fetch_s: float
    segment_s: float
    waited_s: float
    generate_s: float
    model: str
    cached: bool
    format: str
    image_base64: str | None


class AdResponse(BaseModel):
    request_id: str
    images: list[AdImage]
    product_base64: str = Field(description="The product as placed: WebP, its alpha is the mask.")


class Problem(BaseModel):
    """code: a short stable one, as in the ledger. param: the field that is wrong, where one is."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    error: Problem
    request_id: str


class SceneOption(BaseModel):
    name: str
    prompt: str


class Options(BaseModel):
    """What this server takes."""

    model: str
    sizes: list[str]
    default_size: str
    num_inference_steps: int
    max_steps: int
    fusion_scale: float
    guidance_scale: float
    max_images: int
    max_body_bytes: int
    image_urls: bool
    layout: Layout
    format: str
    formats: list[str]
    anchors: list[str]
    categories: dict[str, list[SceneOption]]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class JobRequest(BaseModel):
    """A catalogue run. settings: `section.field: value`, as of jobs/generate_catalog.py."""

    model_config = ConfigDict(extra="forbid")

    catalog: Annotated[str, Field(min_length=1, max_length=1000)]
    output: Annotated[str, Field(min_length=1, max_length=1000)]
    limit: integer(1, 2**31) | None = None
    retry_failed: bool = False
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict, max_length=100)


class Job(BaseModel):
    id: str
    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    message: str | None
    catalog: str
    output: str
    created_at: int
    counts: dict[str, int] | None = Field(None, description="Of one run that has ended, from its run.json.")


class JobList(BaseModel):
    jobs: list[Job]
