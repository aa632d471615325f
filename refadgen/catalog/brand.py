"""The brand file: what all ads of a brand have in common, in YAML.

    palette: [sage green, warm white]      # colours that prompts name
    wanted: [linen, dried flowers]         # words that prompts end with
    banned: [snow, spotlight]              # scene templates with one of them are not used
    negative_prompt: text, watermark       # after a row's own
    light: soft daylight from the left     # in place of the light that a template names; added to prompts of rows
    keep_free: [0, 0, 0.35, 0.15]          # left, top, right, bottom of the logo's place, as shares of the canvas
    categories:                            # what else holds for some categories; each field replaces the one above
      cup:
        light: candle light

Banned words do not touch the prompts that rows have themselves: put them into `negative_prompt` for those.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from refadgen.catalog.categories import normalized_category, path_elements
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import Scenes
from refadgen.config import LayoutConfig
from refadgen.storage.store import split_uri

KeepFree = tuple[float, float, float, float]
_WORDS = ("palette", "wanted", "banned")
_TEXTS = ("negative_prompt", "light")
_FIELDS = (*_WORDS, *_TEXTS, "keep_free")
_LIGHT = re.compile(r",(?=[^,]*\b(?:light|lighting|sun|sunlight|daylight|spotlight|lamp)\b)[^,]*$", re.IGNORECASE)
"""The last clause of a prompt, where it is about light."""


@dataclass(frozen=True, kw_only=True)
class BrandPart:
    """What holds for the products of one category. Empty: no wish."""

    palette: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    negative_prompt: str = ""
    light: str = ""
    keep_free: KeepFree | None = None

    def scenes(self, named: list[tuple[str, str]], *, own: bool, count: int) -> list[tuple[str, str]]:
        """Scenes (name, prompt) in the brand's words. own: they are the row's, and all stay; else `count` at most."""
        found = [(name, self._prompt(prompt, own=own)) for name, prompt in named]
        return found if own else [each for each in found if not self._is_banned(each[1])][:count]

    def _prompt(self, prompt: str, *, own: bool) -> str:
        scene = _LIGHT.sub("", prompt) if self.light and not own else prompt
        colors = [f"in {' and '.join(self.palette)}"] if self.palette else []
        return ", ".join([scene, *colors, *self.wanted, *([self.light] if self.light else [])])

    def _is_banned(self, prompt: str) -> bool:
        return any(re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) for word in self.banned)

    def negative(self, own: str | None) -> str | None:
        """The negative prompt of a row. own: its own; None: neither the row nor the brand has one."""
        return ", ".join(filter(None, (own, self.negative_prompt))) or own

    def layout(self, layout: LayoutConfig) -> LayoutConfig:
        """`layout` with the logo's place."""
        return layout if self.keep_free is None else replace(layout, keep_free=self.keep_free)


@dataclass(frozen=True, kw_only=True)
class Brand:
    """A brand file. categories: by normalized name. fingerprint: of its content, for ids."""

    base: BrandPart
    categories: Mapping[str, BrandPart] = field(default_factory=dict)
    fingerprint: str

    def part(self, category: str | None) -> BrandPart:
        """What holds for a row's category: of its path the last element that the file names, else the base."""
        for element in reversed(path_elements(category)):
            name = f" {normalized_category(element)}"
            for key, part in self.categories.items():
                if name.endswith(f" {key}"):
                    return part
        return self.base

    def over(self, row: CatalogRow) -> CatalogRow:
        """The row with the brand's negative prompt behind its own."""
        return row._replace(negative_prompt=self.part(row.category).negative(row.negative_prompt))

    def check(self, scenes: Scenes, count: int) -> None:
        """Raises: ValueError where the banned words leave a category fewer than `count` scenes."""
        for noun, found in scenes.by_category().items():
            named = [(scene["name"], scene["prompt"]) for scene in found]
            left = len(self.part(noun).scenes(named, own=False, count=count))
            if left < count:
                raise ValueError(
                    f"brand.file: its banned words leave {left} scenes for {noun!r}, and catalog.scenes_per_product="
                    f"{count} asks for more; ban fewer words, or add scenes (catalog.scenes_file)"
                )


@functools.lru_cache(maxsize=4)
def load_brand(file: str | None) -> Brand | None:
    """Loads a brand file, from a path or s3:// address; once in a process. Raises: ValueError naming the field."""
    if file is None:
        return None
    try:
        folder, name = split_uri(file)
        tree = yaml.safe_load(folder.read(name).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"brand.file={file!r}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"brand.file={file!r}: not YAML: {error}") from error
    try:
        return _brand(tree)
    except ValueError as error:
        raise ValueError(f"brand.file={file!r}: {error}") from error


def _brand(tree: Any) -> Brand:
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"must have some of the fields {', '.join((*_FIELDS, 'categories'))}")
    fields = dict(tree)
    categories = fields.pop("categories", {})
    if not isinstance(categories, dict):
        raise ValueError("categories: must map names of categories to fields")
    base = _part(BrandPart(), fields, "")
    parts = {}
    for key, own in categories.items():
        if not isinstance(key, str) or not normalized_category(key) or not isinstance(own, dict):
            raise ValueError(f"categories.{key}: must be a category's name with fields")
        parts[normalized_category(key)] = _part(base, own, f"categories.{key}.")
    text = json.dumps(tree, sort_keys=True, ensure_ascii=True)
    return Brand(base=base, categories=parts, fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16])


def _part(base: BrandPart, fields: Mapping[str, Any], where: str) -> BrandPart:
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _FIELDS:
            raise ValueError(f"{where}{name}: unknown; there are {', '.join(_FIELDS)}")
        if name == "keep_free":
            values[name] = _rectangle(f"{where}{name}", value)
        elif name in _TEXTS:
            if not isinstance(value, str):
                raise ValueError(f"{where}{name}={value!r}: must be text")
            values[name] = " ".join(value.split())
        else:
            if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
                raise ValueError(f"{where}{name}={value!r}: must be a list of words")
            values[name] = tuple(" ".join(word.split()) for word in value)
    return replace(base, **values)


def _rectangle(where: str, value: Any) -> KeepFree | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4 and all(type(each) in (int, float) for each in value)
    if not numbers:
        raise ValueError(f"{where}={value!r}: must be left, top, right and bottom, as shares of the canvas")
    left, top, right, bottom = (float(each) for each in value)
    try:
        LayoutConfig(keep_free=(left, top, right, bottom))
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).partition(': ')[2]}") from None
    return left, top, right, bottom
