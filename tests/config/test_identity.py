"""Identities: later settings leave old ids as they are, and a version that was raised changes them."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from refadgen.config import (
    DatasetConfig,
    GenerateConfig,
    LayoutConfig,
    SamplingConfig,
    TrainConfig,
    TripletConfig,
    load_config,
)
from refadgen.config.identity import (
    ABSENT,
    ALGORITHM_VERSIONS,
    differences,
    layout_identity,
    pixel_identity,
    training_identity,
    triplet_identity,
)
from refadgen.config.marks import Decides, Section, sections_of, setting, settings_of
from refadgen.config.train import ObjectiveConfig

# Sections as a developer would leave them who adds a setting in the ordinary way.


@dataclass(frozen=True, kw_only=True)
class _Sampling(SamplingConfig, name="sampling"):
    sharpness: float = setting(0.0, Decides.PIXELS)
    threads: int = setting(1, Decides.RUN)


@dataclass(frozen=True, kw_only=True)
class _Tone(Section, name="tone"):
    gamma: float = setting(1.0, Decides.PIXELS | Decides.TRIPLETS)


@dataclass(frozen=True, kw_only=True)
class _Generate(GenerateConfig):
    sampling: _Sampling = field(default_factory=_Sampling)
    tone: _Tone = field(default_factory=_Tone)


@dataclass(frozen=True, kw_only=True)
class _Layout(LayoutConfig, name="layout"):
    tilt: float = setting(0.0, Decides.ONE_IMAGE)


@dataclass(frozen=True, kw_only=True)
class _Triplet(TripletConfig, name="triplet"):
    views: int | None = setting(3, Decides.TRIPLETS)


@dataclass(frozen=True, kw_only=True)
class _Dataset(DatasetConfig):
    triplet: _Triplet = field(default_factory=_Triplet)
    tone: _Tone = field(default_factory=_Tone)


@dataclass(frozen=True, kw_only=True)
class _Objective(ObjectiveConfig, name="objective"):
    bands: tuple[str, ...] = setting((), Decides.STEPS)


@dataclass(frozen=True, kw_only=True)
class _Train(TrainConfig):
    objective: _Objective = field(default_factory=_Objective)


def test_a_later_setting_changes_ids_only_beside_its_default() -> None:
    old = pixel_identity(GenerateConfig(), "f")
    assert pixel_identity(_Generate(), "f") == old
    assert pixel_identity(_Generate(sampling=_Sampling(threads=4)), "f") == old
    sharp = pixel_identity(_Generate(sampling=_Sampling(sharpness=0.5)), "f")
    assert sharp == old | {"sampling": {**old["sampling"], "sharpness": 0.5}}
    assert pixel_identity(_Generate(tone=_Tone(gamma=2.0)), "f") == old | {"tone": {"gamma": 2.0}}


def test_a_later_setting_of_the_layout_changes_ids_only_beside_its_default() -> None:
    assert layout_identity(_Layout()) == layout_identity(LayoutConfig())
    assert layout_identity(_Layout(tilt=1.0)) == {**layout_identity(LayoutConfig()), "tilt": 1.0}


def test_a_later_setting_of_the_data_set_and_of_training() -> None:
    old = triplet_identity(DatasetConfig())
    assert triplet_identity(_Dataset()) == old
    # None is a value beside the default here; an identity without the setting differs from it.
    changed = triplet_identity(_Dataset(triplet=_Triplet(views=None)))
    assert changed["triplet"] == {**old["triplet"], "views": None}
    assert differences(old["triplet"], changed["triplet"]) == [("views", ABSENT, None)]
    assert differences(changed["triplet"], old["triplet"]) == [("views", None, ABSENT)]
    assert repr(ABSENT) == "its default"
    assert training_identity(_Train()) == training_identity(TrainConfig())
    more = training_identity(_Train(objective=_Objective(bands=("low",))))
    assert more == {**training_identity(TrainConfig()), "objective.bands": ["low"]}


def test_a_later_model_setting_stands_in_a_place_of_its_own() -> None:
    """`dtype` is lifted out of its section: one of a later name could meet a section's."""

    @dataclass(frozen=True, kw_only=True)
    class _Model(type(GenerateConfig().model), name="model"):  # type: ignore[misc] # its base is known at run time only
        output: str = setting("", Decides.PIXELS)

    config = GenerateConfig()
    found = pixel_identity(replace(config, model=_Model(output="x")), "f")
    assert found == pixel_identity(config, "f") | {"model_settings": {"output": "x"}}


@pytest.mark.parametrize(
    ("algorithm", "pixels", "triplets"),
    [
        ("segmentation", True, True),
        ("layout", True, False),
        ("denoising", True, False),
        ("fidelity", True, False),
        ("screening", False, True),
        ("novel_view", False, True),
        ("degradation", False, True),
    ],
)
def test_a_raised_version_changes_the_identity(
    algorithm: str, pixels: bool, triplets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both() -> tuple[dict[str, Any], dict[str, Any]]:
        return pixel_identity(GenerateConfig(), "f"), triplet_identity(DatasetConfig())

    assert algorithm in ALGORITHM_VERSIONS
    for name in ALGORITHM_VERSIONS:
        monkeypatch.setitem(ALGORITHM_VERSIONS, name, 1)
    before = both()
    assert not any("algorithms" in each for each in before)
    monkeypatch.setitem(ALGORITHM_VERSIONS, algorithm, 2)
    raised = {"algorithms": {algorithm: 2}}
    assert both() == (before[0] | (raised if pixels else {}), before[1] | (raised if triplets else {}))


def test_places_and_execution_settings_are_in_no_identity() -> None:
    words = ["model.path=org/other", "model.device=cpu", "stages.generate.num_actors=4", "fetch.num_retries=9"]
    changed = load_config(GenerateConfig, None, [*words, "segmentation.device=cpu"])
    assert pixel_identity(changed, "f") == pixel_identity(GenerateConfig(), "f")
    words = ["data.path=elsewhere", "data.cache=c", "model.base=b", "run.num_workers=2", "optimizer.learning_rate=1e-3"]
    assert training_identity(load_config(TrainConfig, None, words)) == training_identity(TrainConfig())


def test_identities_are_plain_json() -> None:
    identity = training_identity(TrainConfig())
    assert json.loads(json.dumps(identity)) == identity
    assert json.dumps(pixel_identity(GenerateConfig(), "f"))


def test_every_first_setting_is_hashed_at_its_default_too() -> None:
    """Until a later one comes: then this names it, and the author confirms that it is to stay out at its default."""
    later: list[str] = []
    for config in (GenerateConfig(), DatasetConfig(), TrainConfig()):
        for name, value in sections_of(config):
            section = type(value)
            for each, mark in settings_of(section).items():
                hashed = mark.decides & (Decides.PIXELS | Decides.TRIPLETS | Decides.STEPS)
                if hashed and Decides.ALWAYS_HASHED not in mark.decides:
                    later.append(f"{name}.{each.name}")
    added = (
        "saliency_model",
        "saliency_normalization",
        "sam3",
        "sam3_threshold",
        "min_agreement",
        "second_opinion",
        "min_probability",
    )
    of_segmentation = [f"segmentation.{name}" for name in added]
    of_sampling = [f"sampling.{name}" for name in ("scheduler", "guidance_interval", "reuse_steps", "batch_size")]
    of_quality = ["min_local_similarity", "min_hue_similarity"]
    of_quality += ["fusion_attempts", "stronger_fusion_scale", "product_pixels", "product_tone"]
    of_quality += ["unsafe_model", "unsafe_labels", "max_unsafe_score"]
    of_filters = ["watermarks", "max_lattice", "watermark_model", "watermark_labels", "max_watermark_score"]
    of_filters += ["occluders", "max_hidden", "depth_model"]
    of_training = ["data.epoch_counts", "data.crop", "objective.authors_noise"]
    assert later == [
        *of_segmentation,
        *of_sampling,
        *(f"quality.{name}" for name in of_quality),
        *("provenance.watermark", "provenance.watermark_weights"),
        "filter.duplicate_product_color",
        *(f"filter.{name}" for name in of_filters),
        *of_segmentation,
        *(f"triplet.{name}" for name in ("one_view", "sam2_masks", "min_sam2_iou")),
        *of_training,
    ]
