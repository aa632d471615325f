"""Every setting: its name, default, check and documentation.

A configuration is a tree of frozen dataclasses, one module a job. `load_config` builds it from the defaults, a YAML
file and `section.field=value` words, in that order; `as_dict` gives it back as plain values. Unknown names are errors
that propose the nearest valid one. No other module gives a setting a default.
"""

from refadgen.config.dataset import (
    CaptionConfig,
    DatasetConfig,
    DegradationConfig,
    FilterConfig,
    MultiViewConfig,
    TripletConfig,
)
from refadgen.config.evaluate import EvaluateConfig
from refadgen.config.generate import GenerateConfig, StagesConfig
from refadgen.config.loading import as_dict, as_words, dotted, load_config, to_yaml
from refadgen.config.sections import (
    Anchor,
    CatalogConfig,
    FetchConfig,
    ImageFormat,
    LayoutConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    SamplingConfig,
    SegmentationConfig,
    StageConfig,
)
from refadgen.config.serve import ServeConfig
from refadgen.config.study import StudyConfig
from refadgen.config.train import TrainConfig

__all__ = [
    "Anchor",
    "CaptionConfig",
    "CatalogConfig",
    "DatasetConfig",
    "DegradationConfig",
    "EvaluateConfig",
    "FetchConfig",
    "FilterConfig",
    "GenerateConfig",
    "ImageFormat",
    "LayoutConfig",
    "ModelConfig",
    "MultiViewConfig",
    "OutputConfig",
    "QualityConfig",
    "SamplingConfig",
    "SegmentationConfig",
    "ServeConfig",
    "StageConfig",
    "StagesConfig",
    "StudyConfig",
    "TrainConfig",
    "TripletConfig",
    "as_dict",
    "as_words",
    "dotted",
    "load_config",
    "to_yaml",
]
