"""What each advertising channel asks of an image: read from `rules.yaml`, or from a file of the user's own rules."""

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from refadgen.catalog.layout import NO_SAFE_ZONE, SafeZone
from refadgen.config import ImageFormat

_FORMATS: tuple[str, ...] = typing.get_args(ImageFormat)
_OWN = Path(__file__).with_name("rules.yaml")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
RATIO_TOLERANCE = 0.01
"""By how much a file's ratio may differ from its channel's. Google Ads says ±1 %, the others say nothing."""
_LEAST_SIDE_PX, _MOST_SIDE_PX = 64, 8192


@dataclass(frozen=True, kw_only=True)
class ChannelRule:
    """The rules of one channel. size: width and height of the file that we write, px; least: the smallest it takes.

    formats: those of ours that it takes. overlay_text: whether text may stand beside the product. composite_mark:
    whether an image with the product's own pixels is marked as a composite, or like every other. The meaning of the
    others is in `rules.yaml`.
    """

    name: str
    ratio: str
    size: tuple[int, int]
    least: tuple[int, int]
    formats: tuple[ImageFormat, ...]
    max_bytes: int
    source: str
    read_on: str
    safe_zone: SafeZone = field(default=NO_SAFE_ZONE)
    overlay_text: bool = True
    composite_mark: bool = True

    def __post_init__(self) -> None:
        """Raises: ValueError with the fault."""
        if not _NAME.fullmatch(self.name):
            raise ValueError("a name has small letters, digits and hyphens")
        if not self.formats or not set(self.formats) <= set(_FORMATS):
            raise ValueError(f"formats={list(self.formats)}: must be some of {', '.join(_FORMATS)}")
        for name, (width, height) in (("size", self.size), ("least", self.least)):
            if not all(_LEAST_SIDE_PX <= side <= _MOST_SIDE_PX for side in (width, height)):
                raise ValueError(f"{name}=[{width}, {height}]: sides must be {_LEAST_SIDE_PX} to {_MOST_SIDE_PX} px")
        if not has_ratio(self.size, ratio_of(self.ratio)):
            raise ValueError(f"size={list(self.size)}: has not the ratio {self.ratio} within {RATIO_TOLERANCE:.0%}")
        if self.size[0] < self.least[0] or self.size[1] < self.least[1]:
            raise ValueError(f"size={list(self.size)}: is below least={list(self.least)}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes={self.max_bytes}: must be at least 1")

    def format(self, preferred: ImageFormat) -> ImageFormat:
        """The format of its files: `output.format` where it takes it."""
        return preferred if preferred in self.formats else self.formats[0]


def ratio_of(text: str) -> float:
    """Width over height of a ratio such as `1.91:1`. Raises: ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if not found or not all(map(float, found.groups())):
        raise ValueError(f"ratio={text!r}: is written width:height, such as 4:5")
    return float(found[1]) / float(found[2])


def has_ratio(size: tuple[int, int], ratio: float) -> bool:
    """Whether a width and height have a ratio, within the tolerance."""
    return abs(size[0] / size[1] / ratio - 1) <= RATIO_TOLERANCE


def load_rules(file: str | None = None) -> Mapping[str, ChannelRule]:
    """The rules of all channels by name; those of `file` (YAML) beside or in place of ours.

    Raises: ValueError naming file, channel and field.
    """
    return _load(file)


@lru_cache(maxsize=4)
def _load(file: str | None) -> Mapping[str, ChannelRule]:
    rules = {} if file is None else dict(_load(None))
    place = _OWN if file is None else Path(file)
    try:
        tree = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"channels_file={file!r}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"channels_file={file!r}: must hold channels with their rules")
    for name, values in tree.items():
        try:
            rules[str(name)] = _rule(str(name), values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"channels_file={file!r}: {name}: {error}") from error
    return rules


def _rule(name: str, values: Any) -> ChannelRule:
    """One channel's rule. Raises: ValueError, TypeError with the fault."""
    if not isinstance(values, dict):
        raise ValueError("must be a mapping of its rules")
    values = {str(key): value for key, value in values.items()}
    for pair in ("size", "least"):
        sides = values.get(pair)
        if not (isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides)):
            raise ValueError(f"{pair}={sides!r}: must be [width, height] in px")
        values[pair] = tuple(sides)
    zone, formats = values.pop("safe_zone", {}), values.get("formats")
    if not isinstance(formats, list):
        raise ValueError(f"formats={formats!r}: must be a list")
    for key in ("overlay_text", "composite_mark"):
        if not isinstance(values.get(key, True), bool):
            raise ValueError(f"{key}={values[key]!r}: must be true or false")
    known = ChannelRule.__dataclass_fields__.keys() - {"name"}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown {unknown[0]!r}; there are {', '.join(sorted(known))}")
    texts = {key: str(values[key]) for key in ("ratio", "source", "read_on") if key in values}
    return ChannelRule(name=name, safe_zone=SafeZone(**zone), **{**values, **texts, "formats": tuple(formats)})


def chosen_rules(names: Iterable[str], file: str | None = None) -> tuple[ChannelRule, ...]:
    """The rules of the named channels, each once, in their order. Raises: ValueError for an unknown one."""
    rules = load_rules(file)
    for name in names:
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"channels: unknown channel {name!r}; {meant}there are {', '.join(sorted(rules))}")
    return tuple(rules[name] for name in dict.fromkeys(names))
