"""The model of a run, checked before anything starts: its identity, and the settings that it recommends.

The catalogue job and the endpoint both start here, so that the same settings mean the same images in both.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refadgen.catalog.brand import load_brand
from refadgen.catalog.request_headers import load_headers
from refadgen.catalog.scenes import load_scenes
from refadgen.config import GenerateConfig
from refadgen.config.paths import absolute_paths
from refadgen.config.sections import DEFAULT_STEPS
from refadgen.generation.encoding import TRAINED
from refadgen.model.folder import (
    find_model,
    fingerprint,
    read_index,
    recommended_dtype,
    recommended_steps,
    require_refadgen,
    scheduler_config,
    step_bounds,
)
from refadgen.provenance.content_credentials import check_signing
from refadgen.provenance.watermarks import load_watermark


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The name of a model in ids and ledgers."""

    fingerprint: str
    """Hash of the model's files (16 hexadecimal digits): part of every image_id."""
    label: str
    """`path@fingerprint`, the ledger's `model` column."""
    fewest_steps: int = 1
    """That the model's scheduler takes an order of one image for."""
    most_steps: int = 1000
    """The same."""
    gpu_dtype: str | None = None
    """The number format that the model recommends on GPUs: `model.dtype=auto` there. Ids hold it by the fingerprint."""
    method: str = ""
    """The class that makes the images, `module:Class`; empty: RefAdGen's own."""
    source_type: str = TRAINED
    """IPTC's digital source type of its images, before the gate's ladder."""


def with_model_settings(config: GenerateConfig) -> tuple[GenerateConfig, ModelIdentity]:
    """The configuration with the model's recommended settings, and the model's identity.

    config: paths as the user wrote them, since the label repeats the model's. Raises: ValueError naming the setting of
    a path where nothing is, of a scene file or of a model that cannot be used.
    """
    local = absolute_paths(config)
    check_small_files(local)
    folder = find_model(local.model.path)
    index = read_index(folder)
    require_refadgen(folder, index)
    resolved = with_model_defaults(config, index, folder)
    steps, scheduler = resolved.sampling.num_steps, scheduler_config(folder)
    own = str(scheduler.get("_class_name")) if config.sampling.scheduler == "model" else config.sampling.scheduler
    fewest, most = step_bounds(own, scheduler)
    if not fewest <= steps <= most:
        raise ValueError(f"sampling.num_inference_steps={steps}: the model's scheduler makes {fewest} to {most} steps")
    mark = fingerprint(folder)
    if config.sampling.tuned_for not in ("", mark):
        raise ValueError(
            f"sampling.tuned_for={config.sampling.tuned_for!r}: these settings were measured for another model; "
            f"model.path={config.model.path!r} is {mark}: measure it (jobs/tune_sampling.py), or set this to ''"
        )
    identity = ModelIdentity(
        fingerprint=mark,
        label=f"{config.model.path}@{mark}",
        fewest_steps=fewest,
        most_steps=most,
        gpu_dtype=recommended_dtype(index, folder),
    )
    return resolved, identity


def check_small_files(config: GenerateConfig) -> None:
    """Looks at headers, scenes, brand and marks: a mistake is reported before a model of some gigabytes is hashed.

    config: with absolute paths. Raises: ValueError naming the setting.
    """
    load_headers(config.fetch.headers_file)
    scenes = load_scenes(config.catalog.scenes_file, config.catalog.taxonomy_file)
    scenes.check_count(config.catalog.scenes_per_product)
    if (brand := load_brand(config.brand.file)) is not None:
        brand.check(scenes, config.catalog.scenes_per_product)
    check_signing(config.provenance)
    load_watermark(config.provenance)


def with_model_defaults(config: GenerateConfig, index: Mapping[str, Any], folder: Path) -> GenerateConfig:
    """Fills sampling settings that are None from the checkpoint's `model_index.json`.

    index: the entries of that file. folder: only for the error. Raises: ValueError naming a setting that both lack.
    """
    names = ("guidance_scale", "reference_in_uncond", "width_px", "height_px")
    own: dict[str, Any] = {name: index.get(name) for name in names if getattr(config.sampling, name) is None}
    for name, value in own.items():
        if value is None:
            raise ValueError(f"sampling.{name}: neither set nor in {folder / 'model_index.json'}")
    if config.sampling.num_inference_steps is None:
        own["num_inference_steps"] = recommended_steps(index, folder) or DEFAULT_STEPS
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **own))
