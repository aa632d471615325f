"""Configurations from YAML and `section.field=value` words, and back."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from refadgen.config.marks import written

T = TypeVar("T")


def load_config(cls: type[T], file: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> T:
    """The configuration from defaults, then a YAML file, then `section.field=value` words.

    Values of words are read as YAML (`true`, `0.7`, `[a, b]`, `null`).
    Raises: ValueError naming the dotted field, the value and the rule.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"--config {file}: cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--config {file}: not YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ValueError(f"--config {file}: must hold sections with fields, holds {type(loaded).__name__}")
        tree = loaded or {}
    for word in overrides:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise ValueError(f"{word!r}: a setting is written section.field=value")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            raise ValueError(f"{name}={_shown(name, text)}: not a YAML value") from None
        node = tree
        *path, last = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name}: {part} is a value, not a section")
        node[last] = value
    return build(cls, tree)


def preset_file(name: str | None, package: types.ModuleType) -> str | None:
    """The file of a preset in the package's folder `presets`; a name with a suffix is a file itself.

    Raises: ValueError for an unknown preset.
    """
    if name is None or Path(name).suffix:
        return name
    folder = Path(str(package.__file__)).parent / "presets"
    if not (folder / f"{name}.yaml").is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ValueError(f"--config {name}: no preset of that name; there are {names}, or name a .yaml file")
    return str(folder / f"{name}.yaml")


def build(cls: type[T], values: dict[str, Any], prefix: str = "", default: T | None = None) -> T:
    """A configuration dataclass from plain nested values, checked and converted.

    default: holds what `values` leaves out; None: the defaults of the class.
    Raises: ValueError naming the dotted field.
    """
    hints = typing.get_type_hints(cls)
    fields = {written(field.name): field for field in dataclasses.fields(typing.cast(Any, cls))}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.0)  # 0: one proposal, if there is any
            proposal = f"did you mean {prefix}{near[0]}?" if near else "there are none here"
            raise ValueError(f"unknown setting {prefix}{name}; {proposal}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        field = fields[name]
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"{prefix}{name}={value!r}: must be a section with fields")
            # Its defaults depend on where it stands: one generating actor needs a CPU, one that publishes half.
            factory = field.default_factory
            section = None if factory is dataclasses.MISSING else factory()
            arguments[field.name] = build(typing.cast(type, kind), value, f"{prefix}{name}.", section)
        else:
            arguments[field.name] = _convert(kind, value, f"{prefix}{name}")
    return cls(**arguments) if default is None else dataclasses.replace(typing.cast(Any, default), **arguments)


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as type `kind`. Conversions that lose or guess are refused: a text for a number, a float for an int.

    Raises: ValueError naming the setting.
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        words = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
        if value in words:
            return value
        kind = next(option for option in options if option is not type(None))
        try:
            return _convert(kind, value, name)
        except ValueError as error:
            raise ValueError(" or ".join([str(error), *words])) from None
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(typing.get_args(kind))}")
        return value
    if origin is Mapping:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name}={value!r}: must be names with values")
        return value
    if origin is tuple:
        return _convert_items(typing.get_args(kind), value, name)
    # A bool is an int in Python: `seed=yes` must not become 1.
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)  # YAML reads 1e-5 as a text: it wants 1.0e-5
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a folder named 2024 reads as a number in YAML
    if type(value) is not kind:
        raise ValueError(f"{name}={value!r}: must be {'a text' if kind is str else f'of type {kind.__name__}'}")
    return value


def _convert_items(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    """A list as a tuple: (kind, …) takes any number of items of one kind, else each item has its own kind."""
    items = [value] if isinstance(value, str) else value  # `fetch.file_roots=/a` means a list of one
    expected = "texts" if kinds[0] is not float else f"{len(kinds)} numbers"
    if not isinstance(items, list | tuple) or (kinds[0] is not float and not all(isinstance(i, str) for i in items)):
        raise ValueError(f"{name}={_shown(name, value)}: must be a list of {expected}")
    if kinds[-1] is not Ellipsis and len(items) != len(kinds):
        raise ValueError(f"{name}={value!r}: must be a list of {expected}")
    of_each = [kinds[0]] * len(items) if kinds[-1] is Ellipsis else kinds
    return tuple(_convert(kind, item, name) for kind, item in zip(of_each, items, strict=True))


def _shown(name: str, value: object) -> str:
    """A value as an error message may repeat it. A token written in the wrong form may be the secret itself."""
    return "…" if name.endswith("tokens") else repr(value)


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested values, ready for YAML or JSON."""
    plain: dict[str, Any] = dataclasses.asdict(
        config, dict_factory=lambda pairs: {written(name): value for name, value in pairs}
    )
    return plain


def as_words(config: Any) -> list[str]:
    """The configuration as `section.field=value` words that `load_config` reads back."""
    return [
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in dotted(as_dict(config))
    ]  # JSON is YAML


def dotted(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested values under their dotted names."""
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        pairs += dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(_listed(as_dict(config)), sort_keys=False, allow_unicode=True)


def _listed(value: Any) -> Any:
    """`value` with tuples as lists, which plain YAML can hold."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
