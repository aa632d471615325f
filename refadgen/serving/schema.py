"""HTTP requests, answers and errors. Field names are the catalogue's and the ledger's.

Fields that override a setting have the setting's own range and choices.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from refadgen.catalog.rows import MAX_PROMPTS, MAX_SKU_CHARS
from refadgen.config import Anchor, CatalogConfig, ImageFormat, LayoutConfig, OutputConfig, SamplingConfig
from refadgen.config.marks import Section, setting_of

Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"\S")]
"""Not blank."""


def _as_int(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE_FLOATS = BeforeValidator(_as_int)
"""Accepts 5.0 as the integer 5: in JSON Schema both are integers, and pydantic's strict mode knows only the second."""


def range_of(section: type[Section], name: str) -> FieldInfo:
    """The bounds of a setting, for a field that overrides it."""
    mark = setting_of(section, name)
    # 1.0 as 1: clients compare documents, and the number is the same.
    least, most = (int(x) if x is not None and x == int(x) else x for x in (mark.least, mark.most))
    bounds: FieldInfo = Field(ge=least, le=most)
    return bounds


# `byte` is OpenAPI's word for base64.
_Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"format": "byte"})]
File = Field(default=None, json_schema_extra={"format": "binary"})
ImageUrl = Annotated[
    str | None,
    Field(
        max_length=2000,
        # The two named characters are spaces in some dialects of regular expressions only.
        pattern=r"^https?://[^\s\u0085\ufeff]+$",
        description="Address of the product image, where the server allows it.",
    ),
]


class Layout(BaseModel):
    """Where the product stands on the canvas. A field that is left out has the server's value (`layout.*`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    size: Annotated[float, range_of(LayoutConfig, "size")] | None = Field(
        default=None, description="The product's larger extent, as a share of the canvas."
    )
    anchor: Anchor | None = Field(
        default=None, description="The side or corner of the canvas that the product stands at."
    )
    margin: Annotated[float, range_of(LayoutConfig, "margin")] | None = Field(
        default=None, description="Free border, as a share of the canvas."
    )
    as_photographed: bool | None = Field(
        default=None,
        description="Whether the product stays where the photograph has it; the ad has the photograph's ratio. Not "
        "with size, anchor and margin.",
    )
    long_side_px: Annotated[int, range_of(LayoutConfig, "long_side_px"), WHOLE_FLOATS] | None = Field(
        default=None,
        description="With as_photographed: the longer side of the ad's file. None: as many pixels as the canvas has.",
    )


class AdFields(BaseModel):
    """The fields of a request beside the product image itself."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image_url: ImageUrl = None
    sku: Annotated[str, Field(min_length=1, max_length=MAX_SKU_CHARS, pattern=r"\S")] | None = Field(
        default=None,
        description="The product's id. The catalogue's sku gives the image of the catalogue run. None: a hash of the "
        "product image.",
    )
    title: Text | None = None
    category: Text | None = Field(
        default=None, description="Chooses the scene templates, and the word that segmentation looks for."
    )
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] | None = Field(
        default=None, description="One scene, or a list. None: `scene`, or the first scene templates of the category."
    )
    scene: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] | None = Field(
        default=None, description="Name of a scene template of the category; see /v1/options."
    )
    negative_prompt: Text | None = None
    num_variants: Annotated[int, range_of(CatalogConfig, "num_variants"), WHOLE_FLOATS] = Field(
        default=1, description="Images of each scene."
    )
    seed: Annotated[int, range_of(SamplingConfig, "seed"), WHOLE_FLOATS] | None = Field(
        default=None, description="Seed of the first variant. None: it follows from sku and scene."
    )
    size: Annotated[str, Field(max_length=20)] | None = Field(
        default=None, description="The canvas, WIDTHxHEIGHT; see /v1/options. None: the model's own."
    )
    channel: Annotated[str, Field(max_length=64)] | None = Field(
        default=None,
        description="The advertising channel that the image is for: its ratio, its size, its safe zone; see "
        "/v1/options. Not with size and as_photographed. None: no channel.",
    )
    layout: Layout | None = None
    fusion_scale: Annotated[float, range_of(SamplingConfig, "fusion_scale")] | None = Field(
        default=None, description="λ: how strongly the product's features are fused in."
    )
    guidance_scale: Annotated[float, range_of(SamplingConfig, "guidance_scale")] | None = None
    num_inference_steps: Annotated[int, range_of(SamplingConfig, "num_inference_steps"), WHOLE_FLOATS] | None = None
    format: ImageFormat | None = None
    quality: Annotated[int, range_of(OutputConfig, "quality"), WHOLE_FLOATS] | None = Field(
        default=None, description="Quality of JPEG and WebP."
    )
    mask_decided: bool = Field(
        default=False, description="Whether a person looked at `mask`: it is then used as it is, and never doubted."
    )
    preview_every: Annotated[int, Field(ge=0, le=1000), WHOLE_FLOATS] = Field(
        default=0, description="Steps between previews of an event stream; 0: none."
    )


class AdRequest(AdFields):
    """A request as JSON. The product image is exactly one of `image_base64` and `image_url`."""

    image_base64: _Base64 | None = Field(default=None, description="The product image as a file (JPEG, PNG, WebP, …).")
    mask_base64: _Base64 | None = Field(
        default=None,
        description="The product mask: the product is white, or opaque. None: segmentation finds the product.",
    )


class AdForm(AdFields):
    """A request as multipart/form-data: `image` (a file) or `image_url`; `layout` is JSON; `prompt` may repeat."""

    image: bytes | None = File
    mask: bytes | None = File


class MaskFields(BaseModel):
    """The fields of a request for a mask beside the product image itself, with the meaning they have for ads."""

    model_config = ConfigDict(extra="forbid")

    image_url: ImageUrl = None
    category: Text | None = Field(default=None, description="The word that segmentation looks for.")


class MaskRequest(MaskFields):
    """A request for a mask as JSON. The product image is exactly one of `image_base64` and `image_url`."""

    image_base64: _Base64 | None = Field(default=None, description="The product image as a file (JPEG, PNG, WebP, …).")
    mask_base64: _Base64 | None = Field(default=None, description="A mask of one's own, to be checked.")


class MaskForm(MaskFields):
    """A request for a mask as multipart/form-data: `image` (a file) or `image_url`."""

    image: bytes | None = File
    mask: bytes | None = File


class MaskResponse(BaseModel):
    """The mask that an ad of this product would have, or the mask that is doubted, and why."""

    request_id: str
    status: Literal["done", "rejected"]
    reason: str = Field(description="Why the mask is doubted, as in the ledger; empty when done.")
    detail: str
    input_sha256: str
    width_px: int = Field(description="The product image's, upright.")
    height_px: int
    mask_source: str = Field(description="What proposed the mask; empty: nothing did.")
    mask_score: float | None
    mask_area: float | None = Field(description="Share of the product image.")
    mask_base64: str | None = Field(
        description="PNG, the product is white; of the image's shape, at most 2048 px long. It can be sent as `mask`, "
        "painted over or not. None: nothing was proposed."
    )


class AdImage(BaseModel):
    """One wanted image, with the ledger's values. `describe` sets each field by name: mypy finds a misspelt one."""

    image_id: str
    sku: str
    category: str | None
    scene: str
    variant: int
    status: Literal["done", "failed", "rejected"]
    reason: str
    detail: str
    attempts: int
    rung: str
    digital_source_type: str
    seed: int
    prompt: str
    negative_prompt: str
    input_sha256: str
    ratio: str
    """Of the canvas, where the request names a channel; else empty."""
    width_px: int
    height_px: int
    mask_source: str
    mask_score: float
    mask_area: float
    color_similarity: float | None
    structure_similarity: float | None
    local_similarity: float | None
    hue_similarity: float | None
    fetch_s: float
    segment_s: float
    waited_s: float
    generate_s: float
    batch_size: int
    model: str
    as_photographed: bool
    cached: bool
    format: ImageFormat
    image_base64: str | None


class AdResponse(BaseModel):
    """The answer to one request."""

    request_id: str
    images: list[AdImage]
    product_base64: str = Field(description="The placed product: WebP, its alpha is the mask.")


class ProductEvent(BaseModel):
    """Data of the event `product`."""

    input_sha256: str
    mask_source: str
    mask_score: float
    mask_area: float
    fetch_s: float
    segment_s: float
    product_base64: str
    num_images: int


class StepEvent(BaseModel):
    """Data of the event `step`. index: of the image in the request. step: from 1. preview_base64: WebP."""

    index: int
    step: int
    num_steps: int
    preview_base64: str | None


class Problem(BaseModel):
    """code: short and stable, as in the ledger. param: the wrong field; null: no single field is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Every error."""

    error: Problem
    request_id: str


class SceneOption(BaseModel):
    """A scene template, filled in with the category."""

    name: str
    prompt: str


class ChannelOption(BaseModel):
    """An advertising channel, and the file that it gets."""

    name: str
    ratio: str
    width_px: int
    height_px: int


class Options(BaseModel):
    """The values that this server accepts, and its defaults."""

    model: str
    sizes: list[str]
    default_size: str
    channels: list[ChannelOption]
    num_inference_steps: int
    max_steps: int
    fusion_scale: float
    guidance_scale: float
    max_images: int
    max_body_bytes: int
    image_urls: bool
    layout: Layout
    format: ImageFormat
    formats: list[ImageFormat]
    anchors: list[Anchor]
    categories: dict[str, list[SceneOption]]


class ModelCard(BaseModel):
    """A model in OpenAI's form. created: seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """OpenAI's list of models; this server has one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class JobRequest(BaseModel):
    """A catalogue run. settings: `section.field: value`, those of jobs/generate_catalog.py."""

    model_config = ConfigDict(extra="forbid")

    catalog: Annotated[str, Field(min_length=1, max_length=1000)]
    output: Annotated[str, Field(min_length=1, max_length=1000)]
    limit: Annotated[int, Field(ge=1, le=2**31), WHOLE_FLOATS] | None = None
    retry_failed: bool = False
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict, max_length=100)


class Job(BaseModel):
    """A catalogue run and its state. created_at: seconds since 1970."""

    id: str
    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    message: str | None
    catalog: str
    output: str
    created_at: int
    counts: dict[str, int] | None = Field(
        default=None, description="Images by status, once the run has ended; from its run.json."
    )


class JobList(BaseModel):
    """Runs of one token, newest first."""

    jobs: list[Job]
