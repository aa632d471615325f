"""Every setting of the main job, `jobs/generate_catalog.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refadgen.config.brand import BrandConfig
from refadgen.config.marks import Decides, Place, Section, setting
from refadgen.config.provenance import ProvenanceConfig
from refadgen.config.sections import (
    CatalogConfig,
    FetchConfig,
    LayoutConfig,
    LogConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    ReviewConfig,
    SamplingConfig,
    SegmentationConfig,
    StageConfig,
)
from refadgen.config.webhook import WebhookConfig


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Section, name="method"):
    """Another generator in RefAdGen's place: an `AdMethod` (`generation/method.py`)."""

    # Not hashed: the method's fingerprint stands in the identity where a model's does.
    class_: str | None = setting(None, Decides.RUN, pattern=r"\w+(\.\w+)*:\w+", rule="module:Class")
    """`module:Class`, which every node can import; None: RefAdGen."""
    settings: Mapping[str, Any] | None = setting(None, Decides.RUN)
    """The method's own settings by name. They are printed and kept in run.json: no place for secrets."""

    def check(self) -> None:
        if self.settings and self.class_ is None:
            raise ValueError("method.settings: are those of method.class; set it too")


@dataclass(frozen=True, kw_only=True)
class StagesConfig(Section, name="stages"):
    """The actor pools of the job; machine shapes in `cluster/` set them and never change pixels."""

    fetch: StageConfig = field(default_factory=StageConfig)
    segment: StageConfig = field(default_factory=StageConfig)
    generate: StageConfig = field(default_factory=lambda: StageConfig(num_cpus=1.0))
    publish: StageConfig = field(default_factory=StageConfig)
    """Give it a GPU where segmentation networks are configured: it measures `mask_iou` with them, else on the CPU."""


@dataclass(frozen=True, kw_only=True)
class CostConfig(Section, name="cost"):
    """What a run costs, for `--budget`, dry run, ledger and report."""

    per_gpu_hour: float = setting(0.0, Decides.RUN, least=0)
    """Price of one GPU for an hour, in any currency; 0: not known, and no cost is told."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """All settings of one catalogue run."""

    # An image's id holds its own canvas and files, which follow from these two.
    channels: tuple[str, ...] = setting((), Decides.ONE_IMAGE)
    """Advertising channels that get files of their own (`channels/rules.yaml`): one image a ratio of theirs, one file a
    channel. Empty: one image of `sampling.width_px` × `height_px`."""
    channels_file: str | None = setting(None, Decides.ONE_IMAGE, place=Place.PATH)
    """YAML of rules of your own channels, in the form of `channels/rules.yaml`, beside ours or in their place; all
    nodes need it at this path."""
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    brand: BrandConfig = field(default_factory=BrandConfig)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    webhook: WebhookConfig = field(default_factory=WebhookConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def check(self) -> None:
        if self.channels_file is not None and not self.channels:
            raise ValueError(f"channels_file={self.channels_file!r}: needs channels=[…]")
        if self.channels and self.layout.as_photographed:
            raise ValueError("layout.as_photographed=True: channels have ratios of their own; leave one of the two out")
        url = self.output.public_url
        if self.channels and url is not None and "{uri}" not in url and "{channel}" not in url:
            raise ValueError(f"output.public_url={url!r}: with channels it needs {{uri}} or {{channel}}")
