"""Local paths of settings made absolute: actors and replicas work in other folders than the driver."""

import dataclasses
import os
import re
from typing import Any, TypeVar

from refadgen.config.marks import Place, Section, sections_of, settings_of
from refadgen.config.sections import ONNX_SUFFIX
from refadgen.storage.locations import is_remote, local_path

S = TypeVar("S", bound=Section)


def absolute_paths(config: S, prefix: str = "") -> S:
    """The configuration with every local path absolute. URIs and hub ids stay as they are.

    prefix: of names in errors. Ids come from the configuration as the user wrote it, so make them from that one.
    Raises: ValueError naming the dotted field, its value and the absolute path where nothing is.
    """
    return _absolute(config, prefix)


def _absolute(config: S, prefix: str) -> S:
    # Errors name the field from the root of the tree, so the prefix grows on the way down.
    changes: dict[str, Any] = {name: _absolute(section, f"{prefix}{name}.") for name, section in sections_of(config)}
    for field, mark in settings_of(type(config)).items():
        value = getattr(config, field.name)
        if mark.place is None or value is None or value == field.default:
            # A default is no place that the user gave: "" would become the current folder. The job itself refuses ""
            # where it needs a place.
            continue
        name = f"{prefix}{field.name}"
        if isinstance(value, tuple):
            changes[field.name] = tuple(_place(name, each, mark.place) for each in value)
        else:
            changes[field.name] = _place(name, value, mark.place)
    return dataclasses.replace(config, **changes)


def _place(field: str, value: str, place: Place) -> str:
    """One value, absolute. Raises: ValueError naming `field`."""
    if place is Place.MODEL or (place is Place.MODEL_OR_FILE and not _is_file(value)):
        return _model(field, value)
    if place is not Place.PATH and is_remote(value):
        return value
    found = local_path(value)
    if place is not Place.NEW_PATH_OR_URI and not os.path.exists(found):
        raise ValueError(f"{field}={value!r}: there is nothing at {found}")
    return found


def _is_file(value: str) -> bool:
    # `models/isnet.onnx` has the form of a hub id too.
    return value.endswith(ONNX_SUFFIX) or os.path.isfile(os.path.expanduser(value))


def _model(field: str, value: str) -> str:
    # What is there wins over a hub id of the same name, as in `model.folder.find_model`; a base may be a single file.
    if os.path.exists(os.path.expanduser(value)):
        return local_path(value)
    # `mini`, the built-in model, has the form of a hub id without an owner.
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value):
        raise ValueError(
            f"{field}={value!r}: there is no such folder ({local_path(value)}), and it is no hub id (owner/name)"
        )
    return value
