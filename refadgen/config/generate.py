"""Every setting of the main job, `jobs/generate_catalog.py`."""

from dataclasses import dataclass, field

from refadgen.config.marks import Decides, Section, setting
from refadgen.config.sections import (
    CatalogConfig,
    FetchConfig,
    LayoutConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    ReviewConfig,
    SamplingConfig,
    SegmentationConfig,
    StageConfig,
)


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

    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    cost: CostConfig = field(default_factory=CostConfig)
