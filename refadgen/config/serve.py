"""Every setting of the endpoint.

It shares ten sections with the main job; with the same settings there, both make the same images.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from refadgen.config.brand import BrandConfig
from refadgen.config.generate import GenerateConfig
from refadgen.config.marks import Decides, Section, require, setting
from refadgen.config.provenance import ProvenanceConfig
from refadgen.config.sections import (
    CatalogConfig,
    FetchConfig,
    LayoutConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    SamplingConfig,
    SegmentationConfig,
)

_RUN = Decides.RUN
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}:[0-9a-f]{64}")
_SIZE = re.compile(r"\d{2,4}x\d{2,4}")


@dataclass(frozen=True, kw_only=True)
class AccessConfig(Section, name="access"):
    """Who may ask, and from where."""

    tokens: tuple[str, ...] = setting((), _RUN)
    """Bearer tokens as `name:sha256`, the token's SHA-256 in hexadecimal (`python -m refadgen.serving.token NAME` makes
    one). Empty: only this machine is served, through loopback."""
    allowed_origins: tuple[str, ...] = setting((), _RUN)
    """Origins of pages elsewhere that may call the endpoint (CORS), such as https://shop.example."""
    allow_image_urls: bool = setting(False, _RUN)
    """Whether product images may be given as http(s) addresses, which this server then fetches."""

    def check(self) -> None:
        for token in self.tokens:
            # Never the value: whoever gets the form wrong may have written the token itself.
            require(bool(_TOKEN.fullmatch(token)), "access.tokens", "…", "name:sha256, see refadgen.serving.token")
        # The name of a token owns runs; two tokens of one name would see each other's.
        names = [token.partition(":")[0] for token in self.tokens]
        require(len(set(names)) == len(names), "access.tokens", names, "of different names")
        for origin in self.allowed_origins:
            ok = re.fullmatch(r"https?://[^/*\s]+", origin)
            require(bool(ok), "access.allowed_origins", origin, "scheme://host[:port], without * or a path")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig(Section, name="limits"):
    """The most that one request may cost."""

    max_body_bytes: int = setting(20_000_000, _RUN, least=1)
    """Largest request."""
    body_timeout_s: float = setting(30.0, _RUN, above=0, most=86_400)
    """For a complete request body to arrive, against slow-loris clients that drip bytes."""
    timeout_s: float = setting(300.0, _RUN, above=0, most=86_400)
    """For an answer, waiting included."""
    max_images: int = setting(8, _RUN, least=1, most=100)
    """Images (scenes × variants) of one request."""
    # Below what `sampling` allows: a stranger pays nothing for the steps that a request asks for.
    max_steps: int = setting(100, _RUN, least=1)
    """Denoising steps of one image."""
    max_queued_images: int = setting(32, _RUN, least=1)
    """Images that wait for a place in a batch, over all replicas; beyond: 429 and Retry-After."""
    sizes: tuple[str, ...] = setting((), _RUN)
    """Canvases besides the model's own, as `512x640`; empty: a square of its width, and its own with sides swapped."""
    result_cache_bytes: int = setting(256_000_000, _RUN, least=0)
    """Finished images kept for exact repeats, in each ingress replica."""
    product_cache_bytes: int = setting(128_000_000, _RUN, least=0)
    """Placed products kept, so that the same photograph is not segmented again, in each ingress replica."""
    reference_cache_bytes: int = setting(1_000_000_000, _RUN, least=0)
    """K and V of products and prompts kept in each generation replica, in its device's memory."""

    def check(self) -> None:
        for size in self.sizes:
            sides = [int(side) for side in size.split("x")] if _SIZE.fullmatch(size) else [0]
            ok = all(64 <= side <= 4096 and side % 8 == 0 for side in sides)
            require(ok, "limits.sizes", size, "WIDTHxHEIGHT, multiples of 8, 64 to 4096")


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig(Section, name="deployments.*"):
    """How many replicas a deployment has, and the resources of each."""

    min_replicas: int = setting(1, _RUN, least=1)
    max_replicas: int = setting(1, _RUN)
    """More than `min_replicas`: Ray Serve scales between them by the requests under way."""
    num_cpus: float = setting(1.0, _RUN, least=0)
    num_gpus: float = setting(0.0, _RUN, least=0)

    def check(self) -> None:
        ok = self.max_replicas >= self.min_replicas
        require(ok, "deployments.*.max_replicas", self.max_replicas, "at least min_replicas")


@dataclass(frozen=True, kw_only=True)
class DeploymentsConfig(Section, name="deployments"):
    """The three deployments; each scales by itself."""

    ingress: ReplicasConfig = field(default_factory=lambda: ReplicasConfig(num_cpus=0.5))
    segmentation: ReplicasConfig = field(default_factory=lambda: ReplicasConfig(num_cpus=0.5))
    generation: ReplicasConfig = field(default_factory=ReplicasConfig)


@dataclass(frozen=True, kw_only=True)
class CatalogRunsConfig(Section, name="catalog_runs"):
    """Catalogue runs over HTTP (`/v1/jobs`)."""

    catalog_prefixes: tuple[str, ...] = setting((), _RUN)
    """Folders and s3:// prefixes that catalogues may lie under. Empty: no run can be started."""
    output_prefixes: tuple[str, ...] = setting((), _RUN)
    """Folders and s3:// prefixes that outputs may lie under."""
    jobs_address: str | None = setting(None, _RUN)
    """Address of Ray's Jobs API, such as http://127.0.0.1:8265; None: that of the Ray this runs in."""
    max_running: int = setting(4, _RUN, least=1)
    """Runs that one token may have running at a time."""
    settings: tuple[str, ...] = setting((), _RUN)
    """Settings of the main job for every run, as `section.field=value`, such as `stages.generate.num_gpus=1`. They
    override the settings that the endpoint shares with the job."""

    def check(self) -> None:
        for name in ("catalog_prefixes", "output_prefixes"):
            for prefix in getattr(self, name):
                # No relative ones: they would depend on the folder in which a replica was started.
                ok = prefix.startswith(("/", "s3://"))
                require(ok, f"catalog_runs.{name}", prefix, "an absolute path, or s3://bucket/prefix")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Section):
    """All settings of the endpoint."""

    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    brand: BrandConfig = field(default_factory=BrandConfig)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    deployments: DeploymentsConfig = field(default_factory=DeploymentsConfig)
    catalog_runs: CatalogRunsConfig = field(default_factory=CatalogRunsConfig)

    def generation(self) -> GenerateConfig:
        """The shared sections as a configuration of the main job."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "catalog",
                "fetch",
                "layout",
                "segmentation",
                "model",
                "sampling",
                "quality",
                "output",
                "provenance",
                "brand",
            )
        }
        return GenerateConfig(**shared)
