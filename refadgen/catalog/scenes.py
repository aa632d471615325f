"""Scenes for products without a prompt of their own: templates by category, from a YAML file.

    default:                     # required: for unknown categories, and when a category has too few scenes of its own
      scenes:
        wood-white-studio: a {category} on a wooden table in front of a white wall, soft studio light
    cup:
      noun: cup                  # replaces {category}; without it, the category's name does
      also: [mug, tumbler]       # other names of the category; the row's own word then replaces {category}
      scenes:
        marble-pink-morning: a {category} on a marble slab in front of a pink wall, morning sun from the left

A template may use {category} and {product} (the row's title). The names of scenes are recorded in the ledger.
"""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from refadgen.catalog.categories import ANY_PRODUCT, as_noun, normalized, path_elements
from refadgen.storage.store import split_uri

DEFAULT = "default"

_SHIPPED = Path(__file__).with_name("scenes.yaml")
_SCENE_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene of one product: its name in the scenes file and its prompt."""

    name: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Category:
    """One entry of the scenes file.

    noun: replaces {category}. names: its name and its noun; also: its other names; all as `normalized` returns them.
    templates: by scene name, in the order of the file.
    """

    noun: str
    names: tuple[str, ...]
    also: tuple[str, ...]
    templates: dict[str, str]


class Scenes:
    """The scene templates of one file."""

    def __init__(self, categories: dict[str, Category]) -> None:
        """`categories`: by name as in the file; one of them is `default`."""
        self._default = categories[DEFAULT]
        self._by_name = {name: entry for entry in categories.values() for name in (*entry.names, *entry.also)}
        self.fewest = min(len(self._templates(category)) for category in categories.values())
        """The number of scenes that every category has, with those of `default`."""

    def check_count(self, count: int) -> None:
        """Raises: ValueError if a category has fewer scenes than `count`."""
        if count > self.fewest:
            raise ValueError(
                f"catalog.scenes_per_product={count}: catalog.scenes_file has {self.fewest} scenes for some category; "
                f"ask for at most {self.fewest}, or add scenes to its {DEFAULT}"
            )

    def by_category(self) -> dict[str, list[dict[str, str]]]:
        """All scenes (`name`, `prompt`) by the noun of their category; those of `default` under "product"."""
        entries = {entry.noun: entry for entry in (self._default, *self._by_name.values())}
        return {
            noun: [{"name": name, "prompt": text.format(category=noun, product=noun)} for name, text in found.items()]
            for noun, found in sorted((noun, self._templates(entry)) for noun, entry in entries.items())
        }

    def prompts_for(self, category: str | None, title: str | None, count: int) -> tuple[Scene, ...]:
        """Returns the first `count` scenes of the category, then of `default`; fewer if there are not as many.

        The lookup ignores case and plural. It takes the last known name among the words of the path's last element
        (`Home > Cups`), else of the elements before it. {category} becomes the known noun if the row's category ends in
        the known name ("water bottles"), else the row's own words ("bottle openers", "mugs").
        """
        found, noun = self._lookup(category)
        product = " ".join((title or "").split()) or noun
        templates = list(self._templates(found).items())[:count]
        return tuple(Scene(name=name, prompt=text.format(category=noun, product=product)) for name, text in templates)

    def _templates(self, category: Category) -> dict[str, str]:
        """The category's own scenes, then those of `default` whose names it does not have."""
        return {
            **category.templates,
            **{k: v for k, v in self._default.templates.items() if k not in category.templates},
        }

    def _lookup(self, text: str | None) -> tuple[Category, str]:
        """The entry for a row's category, and the noun that replaces {category}."""
        elements = path_elements(text)
        if not elements:
            return self._default, ANY_PRODUCT
        own = as_noun(elements[-1])
        for steps_up, element in enumerate(reversed(elements)):
            words = f" {normalized(element)} "
            # An English name ends in its noun: a "coffee mug" is a mug. Of names with the same end, the longest wins.
            places = {name: words.rfind(f" {name} ") for name in self._by_name}
            found = [(at + len(name), len(name), name) for name, at in places.items() if at >= 0]
            if found:
                end, _, name = max(found)
                category = self._by_name[name]
                names_product = steps_up == 0 and name in category.names and end == len(words) - 2
                return category, category.noun if names_product else own
        return self._default, own


def load_scenes(file: str | None = None) -> Scenes:
    """Loads a scenes file, from a path or s3:// address; None: the one that ships with the package.

    Raises: ValueError naming the file and the key.
    """
    uri = str(_SHIPPED) if file is None else file
    try:
        folder, name = split_uri(uri)
        tree = yaml.load(folder.read(name).decode("utf-8"), _StrictLoader)
    except (OSError, ValueError) as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: not YAML: {error}") from error
    try:
        return Scenes(_categories(tree))
    except ValueError as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: {error}") from error


def _categories(tree: object) -> dict[str, Category]:
    """Checks the content of a scenes file and returns its entries. Raises: ValueError naming the key."""
    if not isinstance(tree, dict) or DEFAULT not in tree:
        raise ValueError(f"must map categories to scenes, and have the category {DEFAULT!r}")
    categories = {}
    owner: dict[str, str] = {}
    for key, entry in tree.items():
        if not isinstance(key, str) or not normalized(key):
            raise ValueError(f"{key!r}: a category's name must be text")
        category = _category(key, entry)
        for name in (*category.names, *category.also):
            if name in owner:
                raise ValueError(f"{key}: the name {name!r} belongs to {owner[name]} already")
            owner[name] = key
        categories[key] = category
    return categories


def _category(key: str, entry: object) -> Category:
    if not isinstance(entry, dict):
        raise ValueError(f"{key}: must be a section with scenes")
    for field in entry:
        if field not in ("noun", "also", "scenes"):
            raise ValueError(f"{key}.{field}: unknown; a category has noun, also and scenes")
    noun, also, scenes = entry.get("noun", as_noun(key)), entry.get("also", []), entry.get("scenes")
    if not isinstance(noun, str) or not noun.strip():
        raise ValueError(f"{key}.noun: must be text")
    if not isinstance(also, list) or not all(isinstance(name, str) and normalized(name) for name in also):
        raise ValueError(f"{key}.also: must be a list of names")
    if not isinstance(scenes, dict) or not scenes:
        raise ValueError(f"{key}.scenes: must map names of scenes to templates, at least one")
    if key == DEFAULT:
        noun, also = ANY_PRODUCT, []
    for name, template in scenes.items():
        _check_template(f"{key}.scenes.{name}", name, template)
    names = [] if key == DEFAULT else list(dict.fromkeys(normalized(name) for name in (key, noun)))
    others = [name for name in dict.fromkeys(normalized(name) for name in also) if name not in names]
    return Category(noun=noun, names=tuple(names), also=tuple(others), templates=dict(scenes))


def _check_template(where: str, name: object, template: object) -> None:
    if not isinstance(name, str) or not _SCENE_NAME.match(name):
        raise ValueError(f"{where}: a scene's name is lower-case letters, digits, - and _, at most 64")
    if not isinstance(template, str) or not template.strip():
        raise ValueError(f"{where}: must be text")
    try:
        fields = list(_placeholders(template))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write {{{{ and }}}} for braces") from error
    for field in fields:
        if field not in ("category", "product"):
            raise ValueError(f"{where}: unknown {{{field}}}; a template may use {{category}} and {{product}}")


def _placeholders(template: str) -> Iterator[str]:
    """Yields the contents of all braces."""
    # With conversion and format spec, so that the check refuses these.
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is not None:
            yield field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a duplicate key is an error. PyYAML keeps the later value, and a category would vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice")
        return super().construct_mapping(node, deep)
