"""The method of a run (`method.class`), checked before anything starts: its class, its settings, its fingerprint."""

import dataclasses
import hashlib
import importlib
import inspect
import json
from pathlib import Path

from refadgen.config import GenerateConfig, as_dict
from refadgen.config.identity import decided
from refadgen.config.loading import build
from refadgen.config.marks import Decides, Place, Section, settings_of
from refadgen.config.paths import absolute_paths
from refadgen.generation.method import AdMethod
from refadgen.generation.model_settings import ModelIdentity, check_small_files
from refadgen.model.folder import find_model, fingerprint

_PREFIX = "method.settings."
_REFADGENS = {
    "model": ("path", "compile", "cuda_graphs", "channels_last"),
    "sampling": (
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "guidance_interval",
        "reuse_steps",
        "tuned_for",
        "fusion_scale",
        "reference_in_uncond",
    ),
    "quality": ("fusion_attempts",),
}
"""Settings that no other method has; beside their default they are refused, not ignored."""


def with_method_settings(config: GenerateConfig) -> tuple[GenerateConfig, ModelIdentity]:
    """The configuration with all settings of its method, paths absolute, and the method's identity.

    The counterpart of `with_model_settings`. Raises: ValueError naming the setting that cannot be.
    """
    check_small_files(absolute_paths(config))
    name = config.method.class_
    assert name is not None
    method = method_class(name)
    settings = absolute_paths(build(method.settings_type, dict(config.method.settings or {}), _PREFIX), _PREFIX)
    _refuse_other_settings(config, name)
    batch_size = config.sampling.batch_size
    if not method.takes_batches:
        if batch_size not in (1, type(config.sampling).batch_size):
            raise ValueError(f"sampling.batch_size={batch_size}: {name} makes one image at a time; leave it out")
        batch_size = 1
    method.check(settings)
    mark = method_fingerprint(method, settings)
    width_px, height_px = method.size
    sampling = dataclasses.replace(
        config.sampling,
        width_px=config.sampling.width_px or width_px,
        height_px=config.sampling.height_px or height_px,
        batch_size=batch_size,
    )
    resolved = dataclasses.replace(
        config, sampling=sampling, method=dataclasses.replace(config.method, settings=as_dict(settings))
    )
    identity = ModelIdentity(fingerprint=mark, label=f"{name}@{mark}", method=name, source_type=method.source_type)
    return resolved, identity


def method_class(name: str) -> type[AdMethod]:
    """The class that `method.class` names. Raises: ValueError where it cannot be imported or is no method."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does on import
        raise ValueError(
            f"method.class={name!r}: cannot be imported ({type(error).__name__}: {error}); install its package on "
            "every node, or put its folder on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, AdMethod)):
        raise ValueError(f"method.class={name!r}: must be a subclass of refadgen.generation.method.AdMethod")
    if inspect.isabstract(found):
        raise ValueError(f"method.class={name!r}: does not implement {', '.join(sorted(found.__abstractmethods__))}")
    return found


def method_of(config: GenerateConfig) -> tuple[type[AdMethod], Section]:
    """Class and settings of a configuration that `with_method_settings` has completed."""
    assert config.method.class_ is not None
    method = method_class(config.method.class_)
    return method, build(method.settings_type, dict(config.method.settings or {}), _PREFIX)


def method_fingerprint(method: type[AdMethod], settings: Section) -> str:
    """Hash of what decides a method's pixels: its name and version, its settings, the contents of their places.

    settings: paths absolute. A hub id is downloaded: the user asked for it by name. Returns: 16 hexadecimal digits.
    Raises: ValueError naming a place where nothing is.
    """
    places = {}
    for field, mark in settings_of(type(settings)).items():
        value = getattr(settings, field.name)
        if mark.place is not None and value != field.default:
            if mark.place is Place.MODEL:
                places[field.name] = fingerprint(find_model(value, field=_PREFIX + field.name))
            else:
                places[field.name] = _contents(Path(value))
    values = {name: value for name, value in decided(settings, Decides.PIXELS).items() if name not in places}
    text = json.dumps(
        {
            "method": f"{method.__module__}:{method.__qualname__}",
            "version": method.version,
            "settings": values,
            "places": places,
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _contents(place: Path) -> str:
    """Hash of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(f"{file.relative_to(place).as_posix()}\0".encode())
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _refuse_other_settings(config: GenerateConfig, name: str) -> None:
    """Raises: ValueError naming a setting of RefAdGen's own that is not at its default."""
    for section, fields in _REFADGENS.items():
        values = getattr(config, section)
        for field in fields:
            value = getattr(values, field)
            if value != getattr(type(values)(), field):
                raise ValueError(
                    f"{section}.{field}={value!r}: is RefAdGen's; {name} has its own settings, in method.settings"
                )
