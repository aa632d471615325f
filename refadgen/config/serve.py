"""Every setting of the endpoint.

The sections that the main job has too mean the same: with the same settings, the endpoint makes the job's images.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from refadgen.config.generate import (
    CatalogConfig,
    FetchConfig,
    GenerateConfig,
    LayoutConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    SamplingConfig,
    SegmentationConfig,
)
from refadgen.config.loading import require

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}:[0-9a-f]{64}")
_SIZE = re.compile(r"\d{2,4}x\d{2,4}")


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may ask, and from where."""

    tokens: tuple[str, ...] = ()
    """Bearer tokens as `name:sha256`, the token's SHA-256 in hexadecimal (`python -m refadgen.serving.token NAME` makes
    one). None: only this machine is served, through loopback."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of pages elsewhere that may call the endpoint (CORS), such as https://shop.example."""
    allow_image_urls: bool = False
    """Whether product images may be given as http(s) addresses, which this server then fetches."""

    def __post_init__(self) -> None:
        for token in self.tokens:
            # Never the value: whoever gets the form wrong may have written the token itself.
            require(bool(_TOKEN.fullmatch(token)), "access.tokens", "…", "name:sha256, see refadgen.serving.token")
        names = [token.partition(":")[0] for token in self.tokens]
        require(len(set(names)) == len(names), "access.tokens", names, "of different names")
        for origin in self.allowed_origins:
            ok = re.fullmatch(r"https?://[^/*\s]+", origin)
            require(bool(ok), "access.allowed_origins", origin, "scheme://host[:port], without * or a path")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one request may cost."""

    max_body_bytes: int = 20_000_000
    """Largest request."""
    body_timeout_s: float = 30.0
    """For a request's body to arrive as a whole: a client that drips bytes ends here."""
    timeout_s: float = 300.0
    """For an answer, waiting included."""
    max_images: int = 8
    """Images (scenes × variants) of one request."""
    max_steps: int = 100
    """Denoising steps of one image."""
    max_queued_images: int = 32
    """Images that wait for a place in a batch, over all replicas; beyond: 429 and Retry-After."""
    sizes: tuple[str, ...] = ()
    """Canvases besides the model's own, as `512x640`; none: a square of its width, and its own turned."""
    result_cache_bytes: int = 256_000_000
    """Finished images kept for exact repeats, in each ingress replica."""
    product_cache_bytes: int = 128_000_000
    """Placed products kept, so that the same photograph is not segmented again, in each ingress replica."""
    reference_cache_bytes: int = 1_000_000_000
    """K_ref and V_ref of products kept in each generation replica, in its device's memory."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_images", "max_steps", "max_queued_images"):
            require(getattr(self, name) >= 1, f"limits.{name}", getattr(self, name), "at least 1")
        require(self.max_images <= 100, "limits.max_images", self.max_images, "at most 100")
        for name in ("body_timeout_s", "timeout_s"):
            require(0 < getattr(self, name) <= 86_400, f"limits.{name}", getattr(self, name), "above 0, at most 86400")
        for name in ("result_cache_bytes", "product_cache_bytes", "reference_cache_bytes"):
            require(getattr(self, name) >= 0, f"limits.{name}", getattr(self, name), "0 or more")
        for size in self.sizes:
            sides = [int(side) for side in size.split("x")] if _SIZE.fullmatch(size) else [0]
            ok = all(64 <= side <= 4096 and side % 8 == 0 for side in sides)
            require(ok, "limits.sizes", size, "WIDTHxHEIGHT, multiples of 8, 64 to 4096")


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """How many replicas a deployment has, and what each takes."""

    min_replicas: int = 1
    max_replicas: int = 1
    """More than `min_replicas`: Ray Serve scales between them by the requests under way."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        require(self.min_replicas >= 1, "deployments.*.min_replicas", self.min_replicas, "at least 1")
        ok = self.max_replicas >= self.min_replicas
        require(ok, "deployments.*.max_replicas", self.max_replicas, "at least min_replicas")
        require(self.num_cpus >= 0, "deployments.*.num_cpus", self.num_cpus, "0 or more")
        require(self.num_gpus >= 0, "deployments.*.num_gpus", self.num_gpus, "0 or more")


@dataclass(frozen=True, kw_only=True)
class DeploymentsConfig:
    """The three deployments; each scales by itself."""

    ingress: ReplicasConfig = field(default_factory=lambda: ReplicasConfig(num_cpus=0.5))
    segmentation: ReplicasConfig = field(default_factory=lambda: ReplicasConfig(num_cpus=0.5))
    generation: ReplicasConfig = field(default_factory=ReplicasConfig)


@dataclass(frozen=True, kw_only=True)
class CatalogRunsConfig:
    """Catalogue runs over HTTP (`/v1/jobs`)."""

    catalog_prefixes: tuple[str, ...] = ()
    """Folders and s3:// prefixes that catalogues may lie under. None: no run can be started."""
    output_prefixes: tuple[str, ...] = ()
    """Folders and s3:// prefixes that outputs may lie under."""
    jobs_address: str | None = None
    """Of Ray's Jobs API, such as http://127.0.0.1:8265; None: that of the Ray this runs in."""
    max_running: int = 4
    """Runs that one token may have under way."""
    settings: tuple[str, ...] = ()
    """Settings of the main job for every run, as `section.field=value`, over those that the endpoint shares with it:
    `stages.generate.num_gpus=1` for instance."""

    def __post_init__(self) -> None:
        for name in ("catalog_prefixes", "output_prefixes"):
            for prefix in getattr(self, name):
                ok = prefix.startswith(("/", "s3://"))
                require(ok, f"catalog_runs.{name}", prefix, "a path from the root, or s3://bucket/prefix")
        require(self.max_running >= 1, "catalog_runs.max_running", self.max_running, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All settings of the endpoint."""

    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    deployments: DeploymentsConfig = field(default_factory=DeploymentsConfig)
    catalog_runs: CatalogRunsConfig = field(default_factory=CatalogRunsConfig)

    def generation(self) -> GenerateConfig:
        """The same settings as the main job takes them."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("catalog", "fetch", "layout", "segmentation", "model", "sampling", "quality", "output")
        }
        return GenerateConfig(**shared)
