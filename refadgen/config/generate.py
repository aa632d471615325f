"""Every setting of the main job: its name, default, check and documentation."""

import typing
from dataclasses import dataclass, field
from typing import Literal

from refadgen.config.loading import require, require_device


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """How catalogue rows become wanted images."""

    scenes_file: str | None = None
    """YAML of scene templates by category; None: the one that ships with the package."""
    scenes_per_product: int = 2
    """Scene templates taken for a product without prompts of its own."""
    num_variants: int = 1
    """Images of each scene, where the row does not say."""
    rows_per_block: int = 4
    """Catalogue rows in one block of the stream; work in an unwritten block is lost in a crash."""

    def __post_init__(self) -> None:
        require(1 <= self.scenes_per_product <= 100, "catalog.scenes_per_product", self.scenes_per_product, "1 to 100")
        require(1 <= self.num_variants <= 100, "catalog.num_variants", self.num_variants, "1 to 100")
        require(1 <= self.rows_per_block <= 4096, "catalog.rows_per_block", self.rows_per_block, "1 to 4096")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How product images are read, and what a foreign catalogue may reach."""

    timeout_s: float = 20.0
    """For connecting and between two received bytes."""
    total_timeout_s: float = 60.0
    """For one attempt as a whole: a server that drips bytes ends here."""
    num_retries: int = 3
    """Further attempts after timeouts, connection errors and the statuses 408, 425, 429 and 5xx."""
    backoff_s: float = 0.5
    """Wait before the first retry; doubles each time; Retry-After is honoured up to `timeout_s`."""
    max_per_host: int = 4
    """Simultaneous requests to one host, in one actor."""
    max_bytes: int = 50_000_000
    """Largest encoded image."""
    max_pixels: int = 50_000_000
    """Largest decoded image, width times height: a bound against decompression bombs."""
    min_side_px: int = 16
    """Smallest width and height that can show a product."""
    file_roots: tuple[str, ...] = ()
    """Folders besides the catalogue's own below which `file:` images may lie."""
    allow_private_addresses: bool = False
    """Whether http(s) images may come from private, loopback or link-local addresses."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "total_timeout_s"):
            require(0 < getattr(self, name) <= 3600, f"fetch.{name}", getattr(self, name), "above 0, at most 3600")
        require(0 <= self.num_retries <= 10, "fetch.num_retries", self.num_retries, "0 to 10")
        require(0 <= self.backoff_s <= 60, "fetch.backoff_s", self.backoff_s, "0 to 60")
        require(1 <= self.max_per_host <= 256, "fetch.max_per_host", self.max_per_host, "1 to 256")
        for name in ("max_bytes", "max_pixels", "min_side_px"):
            require(getattr(self, name) >= 1, f"fetch.{name}", getattr(self, name), "at least 1")


Anchor = Literal["top", "center", "bottom", "left", "right", "bottom-left", "bottom-right", "top-left", "top-right"]


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Where the product stands on the canvas, where the row's `placement` does not say."""

    size: float = 0.6
    """The product's larger extent relative to the canvas: of the height for tall products, of the width for wide."""
    anchor: Anchor = "bottom"
    """The side or corner of the canvas (inside the margin) that the product stands at."""
    margin: float = 0.12
    """Free border, a share of the canvas's width and height."""

    def __post_init__(self) -> None:
        require(0.05 <= self.size <= 1.0, "layout.size", self.size, "0.05 to 1.0")
        require(0.0 <= self.margin <= 0.4, "layout.margin", self.margin, "0.0 to 0.4")
        require(
            self.anchor in typing.get_args(Anchor), "layout.anchor", self.anchor, f"one of {typing.get_args(Anchor)}"
        )


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """The chain alpha channel, plain background, Grounding DINO + SAM2; and what makes a mask weak."""

    background_tolerance: float = 12.0
    """Largest distance of a plain background's border pixels from their median, in CIE Lab units (ΔE*ab)."""
    grounding_dino: str | None = None
    """Path or hub id of a transformers Grounding DINO checkpoint; None: this link of the chain is off."""
    sam2_checkpoint: str | None = None
    """Path of a SAM2 weights file; needs `sam2_config`."""
    sam2_config: str = "configs/sam2.1/sam2.1_hiera_l.yaml"
    """The SAM2 configuration the weights belong to, by its name in the sam2 package."""
    box_threshold: float = 0.35
    """Least score of a Grounding DINO box."""
    text_threshold: float = 0.25
    """Least score of the words of a Grounding DINO box."""
    device: str = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:1, …"""
    min_area: float = 0.005
    """Least share of the image that a product covers."""
    max_area: float = 0.95
    """Largest share of the image that a product covers."""
    max_edge_contact: float = 0.2
    """Largest share of the product's extent along one side of the image that may touch it; more means it is cut off."""
    max_pieces: int = 8
    """Largest number of separate pieces, each at least `min_piece` of the whole."""
    min_piece: float = 0.02
    """Share of the product's area from which a piece counts as one."""
    min_score: float = 0.5
    """Least score of the mask: SAM2's own predicted IoU; for a plain background its separation."""

    def __post_init__(self) -> None:
        require(
            0 < self.background_tolerance <= 100,
            "segmentation.background_tolerance",
            self.background_tolerance,
            "above 0, at most 100",
        )
        for name in (
            "box_threshold",
            "text_threshold",
            "min_area",
            "max_area",
            "max_edge_contact",
            "min_piece",
            "min_score",
        ):
            require(0 <= getattr(self, name) <= 1, f"segmentation.{name}", getattr(self, name), "0 to 1")
        require_device("segmentation.device", self.device)
        require(self.min_area < self.max_area, "segmentation.min_area", self.min_area, "below segmentation.max_area")
        require(self.max_pieces >= 1, "segmentation.max_pieces", self.max_pieces, "at least 1")
        if (self.grounding_dino is None) != (self.sam2_checkpoint is None):
            raise ValueError(
                "segmentation.grounding_dino and segmentation.sam2_checkpoint belong together: set both, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it runs."""

    path: str = "mini"
    """`mini` (built in), a folder, or a hub id."""
    device: str = "auto"
    """auto (CUDA where there is a GPU, else CPU), cpu, cuda, cuda:1, …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, float16 on others, float32 on CPU."""
    compile: bool = False
    """Compile the denoising step with torch.compile: minutes at the first step, worth it for long runs."""
    cuda_graphs: bool = False
    """With `compile`: capture the step as a CUDA graph (mode reduce-overhead)."""
    channels_last: bool = False
    """Memory format of the convolutions; faster on GPUs, no gain measured on CPU."""
    torch_threads: int = 1
    """CPU threads of one actor. Fixed, since sums in another order give other pixels."""

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path", self.path, "mini, a folder or a hub id")
        require_device("model.device", self.device)
        allowed = ("auto", "float32", "bfloat16", "float16")
        require(self.dtype in allowed, "model.dtype", self.dtype, f"one of {allowed}")
        require(1 <= self.torch_threads <= 256, "model.torch_threads", self.torch_threads, "1 to 256")
        if self.cuda_graphs and not self.compile:
            raise ValueError("model.cuda_graphs=True: needs model.compile=true")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How one image is sampled. None: what the checkpoint recommends."""

    num_inference_steps: int = 20
    """Denoising steps (Fig. 9: about 20 suffice)."""
    guidance_scale: float | None = None
    """Classifier-free guidance."""
    fusion_scale: float = 1.0
    """λ of the Attention Fusion Module (Sec. 5.5)."""
    reference_in_uncond: bool | None = None
    """Whether the unconditional branch sees the product too."""
    width_px: int | None = None
    """Canvas width, a multiple of 8."""
    height_px: int | None = None
    """Canvas height, a multiple of 8."""
    seed: int = 0
    """Seed of the job, from which each image's own seed derives where the row gives none."""
    batch_size: int = 8
    """Images denoised at once; short batches are padded, so that results do not depend on how rows fall together."""

    def __post_init__(self) -> None:
        require(
            1 <= self.num_inference_steps <= 1000, "sampling.num_inference_steps", self.num_inference_steps, "1 to 1000"
        )
        if self.guidance_scale is not None:
            require(1 <= self.guidance_scale <= 50, "sampling.guidance_scale", self.guidance_scale, "1 to 50")
        require(0 <= self.fusion_scale <= 10, "sampling.fusion_scale", self.fusion_scale, "0 to 10")
        for name in ("width_px", "height_px"):
            value = getattr(self, name)
            require(
                value is None or (64 <= value <= 4096 and value % 8 == 0),
                f"sampling.{name}",
                value,
                "a multiple of 8, 64 to 4096",
            )
        require(0 <= self.seed < 2**63, "sampling.seed", self.seed, "0 to 2^63 - 1")
        require(1 <= self.batch_size <= 256, "sampling.batch_size", self.batch_size, "1 to 256")


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """The fidelity gate: what an image must reach before it is published."""

    min_color_similarity: float = 0.0
    """Least in-mask colour similarity to the placed product, 0 to 1."""
    min_structure_similarity: float = 0.0
    """Least in-mask structure similarity (SSIM) to the placed product, 0 to 1."""
    max_attempts: int = 1
    """Images drawn for one wanted image, each with a seed of its own, before the last one is given up as failed."""

    def __post_init__(self) -> None:
        for name in ("min_color_similarity", "min_structure_similarity"):
            require(0 <= getattr(self, name) <= 1, f"quality.{name}", getattr(self, name), "0 to 1")
        require(1 <= self.max_attempts <= 10, "quality.max_attempts", self.max_attempts, "1 to 10")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is written."""

    format: Literal["jpeg", "png", "webp"] = "jpeg"
    """Encoding of the ad images."""
    quality: int = 92
    """Of JPEG and WebP, 1 to 100."""

    def __post_init__(self) -> None:
        require(self.format in ("jpeg", "png", "webp"), "output.format", self.format, "jpeg, png or webp")
        require(1 <= self.quality <= 100, "output.quality", self.quality, "1 to 100")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The size of one stage's actor pool."""

    num_actors: int = 1
    """Actors of the pool; fixed."""
    num_cpus: float = 0.5
    """Logical CPUs of one actor."""
    num_gpus: float = 0.0
    """GPUs of one actor."""

    def __post_init__(self) -> None:
        require(1 <= self.num_actors <= 10_000, "stages.*.num_actors", self.num_actors, "1 to 10000")
        require(self.num_cpus >= 0, "stages.*.num_cpus", self.num_cpus, "0 or more")
        require(self.num_gpus >= 0, "stages.*.num_gpus", self.num_gpus, "0 or more")


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """The actor pools of the job; machine shapes in `cluster/` set them and never change pixels."""

    fetch: StageConfig = field(default_factory=StageConfig)
    segment: StageConfig = field(default_factory=StageConfig)
    generate: StageConfig = field(default_factory=lambda: StageConfig(num_cpus=1.0))
    publish: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where segmentation networks are configured: it measures `mask_iou` with them, else on the CPU."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The whole configuration of `jobs/generate_catalog.py`."""

    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
