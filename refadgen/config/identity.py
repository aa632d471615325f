"""The identities that outputs keep: which settings are hashed into ids, and which must stay for a run to be resumed.

They follow from the marks at the fields (see `marks.Decides`) and the versions below. An identity must not change for
settings that an output was made with, or its images are made again and its training cannot be resumed.
"""

from collections.abc import Mapping
from typing import Any

from refadgen.config.dataset import DatasetConfig
from refadgen.config.generate import GenerateConfig
from refadgen.config.loading import dotted
from refadgen.config.marks import Decides, Section, sections_of, settings_of
from refadgen.config.sections import LayoutConfig
from refadgen.config.train import TrainConfig

ALGORITHM_VERSIONS = {
    "segmentation": 4,  # product image to product mask
    "layout": 2,  # mask and placement to canvas and M′
    "denoising": 2,  # features, noise and M′ to latents
    "fidelity": 2,  # the scores that the gate compares
    "screening": 2,  # which ads are kept
    "novel_view": 1,  # multi-view augmentation
    "degradation": 1,  # degradation augmentation
}
"""Raise the number where a change of the code moves pixels or triplets while all settings stay: ids then change, so
that old and new results are never taken for each other."""
_OF_PIXELS = ("segmentation", "layout", "denoising", "fidelity")
_OF_TRIPLETS = ("segmentation", "screening", "novel_view", "degradation")


class _Absent:
    """Stands for a setting that an identity does not hold. None would not do: it is a value too."""

    def __repr__(self) -> str:
        return "its default"


ABSENT = _Absent()


def pixel_identity(config: GenerateConfig, fingerprint: str) -> dict[str, Any]:
    """The settings and versions that decide the pixels of every image of a run. fingerprint: of the model's files."""
    tree = decided(config, Decides.PIXELS)
    # `dtype` stood beside the sections in the first ids, and so it stays there.
    model = tree.pop("model", {})
    tree["sampling"]["num_inference_steps"] = config.sampling.num_steps  # a number from the first ids on
    top = {"model": fingerprint, "dtype": model.pop("dtype")}
    return top | ({"model_settings": model} if model else {}) | tree | _versions(_OF_PIXELS)


def layout_identity(layout: LayoutConfig) -> dict[str, Any]:
    """The layout of one image as its id holds it."""
    return decided(layout, Decides.ONE_IMAGE)


def triplet_identity(config: DatasetConfig) -> dict[str, Any]:
    """The settings and versions that decide the triplets of a data set; `dataset.json` keeps them."""
    return decided(config, Decides.TRIPLETS) | _versions(_OF_TRIPLETS)


def training_identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the steps of a training, by dotted name; its checkpoints keep them, as JSON."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dotted(decided(config, Decides.STEPS))
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value before, value now) of each setting in which two identities differ; by dotted name.

    A setting that only one of them holds is `ABSENT` in the other: it had its default there.
    """
    names = sorted(before.keys() | now.keys())
    found = [(name, before.get(name, ABSENT), now.get(name, ABSENT)) for name in names]
    return [each for each in found if each[1] != each[2]]


def decided(config: Section, mark: Decides) -> dict[str, Any]:
    """The values of the settings with `mark`, in their sections; a section without any is left out.

    A setting that came later is left out at its default: ids made before it stay as they are.
    """
    values: dict[str, Any] = {}
    for field, found in settings_of(type(config)).items():
        value = getattr(config, field.name)
        if mark in found.decides and (Decides.ALWAYS_HASHED in found.decides or value != field.default):
            values[field.name] = value
    inner = {name: decided(section, mark) for name, section in sections_of(config)}
    return values | {name: each for name, each in inner.items() if each}


def _versions(names: tuple[str, ...]) -> dict[str, Any]:
    """`algorithms` with the versions that differ from 1; nothing while all are 1, as the first ids have it."""
    changed = {name: ALGORITHM_VERSIONS[name] for name in names if ALGORITHM_VERSIONS[name] != 1}
    return {"algorithms": changed} if changed else {}
