"""Scenes for products without a prompt of their own: templates by category, from a YAML file.

    default:                     # required: for unknown categories, and when a category has too few scenes of its own
      scenes:
        wood-white-studio: a {category} on a wooden table in front of a white wall, soft studio light
      also: [egg cup]            # names that only sound like one of another category, and are of none
    cup:
      noun: cup                  # replaces {category}; without it, the category's name does
      also: [mug, tumbler]       # other names of the category; the row's own word then replaces {category}
      scenes:
        marble-pink-morning: a {category} on a marble slab in front of a pink wall, morning sun from the left

A template may use {category} and {product} (the row's title). "a" before them becomes "an", or goes, as the word needs
it. The names of scenes are recorded in the ledger.
"""

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from refadgen.catalog.categories import ANY_PRODUCT, names_thing, normalized_category, path_elements
from refadgen.catalog.english import Noun
from refadgen.catalog.language import is_foreign, is_latin
from refadgen.catalog.nouns import element_noun, member_in_title, things_in, title_noun
from refadgen.catalog.taxonomy import Taxonomy, load_taxonomy
from refadgen.storage.store import split_uri

DEFAULT = "default"

_SHIPPED = Path(__file__).with_name("scenes.yaml")
_SCENE_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")
_ANY = Noun(text=ANY_PRODUCT)
_MOST_REMEMBERED = 100_000
_ARTICLE = re.compile(r"\b[Aa]n? $")
NounSource = Literal["category", "category above", "list", "title", "nothing"]
"""Where the noun of a row comes from: the last element of its path, one before it, a list of things, its title."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene of one product: its name in the scenes file and its prompt."""

    name: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class RowNoun:
    """What the prompts of a row call its product. category: the entry of the scenes file whose scenes it gets."""

    noun: Noun
    source: NounSource
    category: "Category"


@dataclass(frozen=True, kw_only=True)
class _OfCategory:
    """What a row's category says of its noun, whatever its title.

    entry: the scenes of the category. listed: its element, where that lists several things and the title may choose.
    foreign: whether it is of another language than the templates. found: the noun; None: the title gives it, if any.
    """

    entry: "Category"
    listed: str | None = None
    foreign: bool = False
    found: RowNoun | None = None


@dataclass(frozen=True, kw_only=True)
class Category:
    """One entry of the scenes file.

    noun: replaces {category}. names: its name and its noun; also: its other names; all as
    `normalized_category` returns them.
    templates: by scene name, in the order of the file.
    """

    noun: str
    names: tuple[str, ...]
    also: tuple[str, ...]
    templates: dict[str, str]


class Scenes:
    """The scene templates of one file."""

    def __init__(self, categories: dict[str, Category], taxonomy: Taxonomy) -> None:
        """categories: by name as in the file; one of them is `default`. taxonomy: reads Google's numbers."""
        self._taxonomy = taxonomy
        self._default = categories[DEFAULT]
        self._by_name = {name: entry for entry in categories.values() for name in (*entry.names, *entry.also)}
        self._compounds = frozenset(name for name in (*self._by_name, *self._default.also) if " " in name)
        # In templates of another language, words of that language are right.
        texts = " ".join(text for entry in categories.values() for text in entry.templates.values())
        self._is_english = not is_foreign(re.sub(r"\{\w*\}", "", texts))
        self.fewest = min(len(self._templates(category)) for category in categories.values())
        """The number of scenes that every category has, with those of `default`."""
        self._names_titles = any(
            "product" in _placeholders(text) for entry in categories.values() for text in entry.templates.values()
        )
        # Rows share their categories: each is read once.
        self._of_category: dict[tuple[str | None, str | None], _OfCategory] = {}
        self._prompts: dict[tuple[int, str, bool, str, int], tuple[Scene, ...]] = {}

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
            noun: [{"name": name, "prompt": _filled(text, Noun(text=noun), None)} for name, text in found.items()]
            for noun, found in sorted((noun, self._templates(entry)) for noun, entry in entries.items())
        }

    def prompts_for(
        self, category: str | None, title: str | None, count: int, brand: str | None = None
    ) -> tuple[Scene, ...]:
        """Returns the first `count` scenes of the category, then of `default`; fewer if there are not as many.

        The lookup ignores case and plural. It takes the last known name among the words of the path's last element
        (`Home > Cups`), else of the elements before it.
        """
        return self.prompts_of(self.noun_of(category, title, brand), title, count)

    def prompts_of(self, found: RowNoun, title: str | None, count: int) -> tuple[Scene, ...]:
        """As `prompts_for`, for a row whose noun is found."""
        if self._names_titles:
            return self._scenes(found, " ".join((title or "").split()), count)
        return self._without_title(found, count)

    def _without_title(self, found: RowNoun, count: int) -> tuple[Scene, ...]:
        noun = found.noun
        key = (id(found.category), noun.text, noun.bare, noun.spelling, count)  # `self` keeps the entries
        if key not in self._prompts:
            _forget(self._prompts)
            self._prompts[key] = self._scenes(found, None, count)
        return self._prompts[key]

    def _scenes(self, found: RowNoun, product: str | None, count: int) -> tuple[Scene, ...]:
        templates = list(self._templates(found.category).items())[:count]
        return tuple(Scene(name=name, prompt=_filled(text, found.noun, product)) for name, text in templates)

    def example(self, found: RowNoun) -> str:
        """The first prompt of a row with this noun, as if it had no title."""
        return self._without_title(found, 1)[0].prompt

    def noun_of(self, category: str | None, title: str | None, brand: str | None = None) -> RowNoun:
        """What replaces {category}, and the entry whose scenes are used.

        It is the known noun if the row's category ends in the known name ("water bottles"), else the row's own words
        ("bottle openers", "mugs"). A sale, an audience or a brand names nothing: the element before it does, else the
        title. Of a list ("Coats & Jackets") the title decides on one, else a noun that all have in common does. In
        English templates, what is not English names nothing: not the category, nor then a title.
        """
        key = (category, brand)
        if key not in self._of_category:
            _forget(self._of_category)
            self._of_category[key] = self._read_category(category, brand)
        read = self._of_category[key]
        if read.listed and (by_title := self._of_list(read.listed, read.entry, title, brand)):
            return by_title
        if read.found:
            return read.found
        if read.foreign and is_foreign(title or ""):
            title = None
        return self._by_title(title, brand) or RowNoun(noun=_ANY, source="nothing", category=read.entry)

    def _read_category(self, category: str | None, brand: str | None) -> _OfCategory:
        elements = path_elements(self._taxonomy.category(category))
        entry, name = self._entry(elements)
        naming = [element for element in elements if names_thing(element, brand)]
        english = self._english(naming)
        if not english:
            return _OfCategory(entry=entry, foreign=bool(naming))
        own = english[-1]
        things = things_in(own)
        listed = own if len(things) > 1 else None
        is_known = len(things) == 1 and name in entry.names and f" {normalized_category(own)}".endswith(f" {name}")
        noun = Noun(text=entry.noun) if is_known else element_noun(own)
        if noun is None:
            return _OfCategory(entry=entry, listed=listed)
        source: NounSource = "list" if listed else "category" if own is elements[-1] else "category above"
        return _OfCategory(entry=entry, listed=listed, found=RowNoun(noun=noun, source=source, category=entry))

    def _english(self, elements: list[str]) -> list[str]:
        """Those of a path's elements that prompts may use: the English ones, or all in templates that are not."""
        if not self._is_english:
            return elements
        # A word alone may be one of both languages, as "teller" is: the others of the path tell.
        path = " ".join(filter(is_latin, elements))
        return [] if is_foreign(path) else [each for each in elements if not is_foreign(each)]

    def _by_title(self, title: str | None, brand: str | None) -> RowNoun | None:
        """The noun of the title's head, with the scenes of its category; None where the title does not tell it."""
        noun = title_noun(title, brand, self._compounds)
        return RowNoun(noun=noun, source="title", category=self._entry([noun.text])[0]) if noun else None

    def _of_list(self, own: str, entry: Category, title: str | None, brand: str | None) -> RowNoun | None:
        """The noun that a title gives to an element that lists several things; None where it gives none."""
        if member := member_in_title(own, title or ""):
            return RowNoun(noun=member, source="title", category=entry)
        by_title = self._by_title(title, brand)
        return by_title if by_title and by_title.category is not self._default else None

    def _templates(self, category: Category) -> dict[str, str]:
        """The category's own scenes, then those of `default` whose names it does not have."""
        return {
            **category.templates,
            **{k: v for k, v in self._default.templates.items() if k not in category.templates},
        }

    def _entry(self, elements: Sequence[str]) -> tuple[Category, str]:
        """The entry for a path, and the name of it that was found; `default` and "" where none was."""
        path = " ".join(normalized_category(element) for element in elements)
        if any(f" {path}".endswith(f" {name}") for name in self._default.also):
            return self._default, ""
        for element in reversed(elements):
            words = f" {normalized_category(element)} "
            # An English name ends in its noun: a "coffee mug" is a mug. Of names with the same end, the longest wins.
            places = {name: words.rfind(f" {name} ") for name in self._by_name}
            found = [(at + len(name), len(name), name) for name, at in places.items() if at >= 0]
            if found:
                name = max(found)[2]
                return self._by_name[name], name
        return self._default, ""


def _forget(known: dict[Any, Any]) -> None:
    """Empties what is remembered where it outgrows a catalogue's usual number of categories."""
    if len(known) >= _MOST_REMEMBERED:
        known.clear()


def _filled(template: str, noun: Noun, product: str | None) -> str:
    """The prompt of a template. product: the row's title; None or blank: the noun stands for it."""

    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        named = noun if field == "category" or not product else Noun(text=product, spelling=product)
        before = _ARTICLE.search(literal) if field else None
        parts.append(literal[: before.start()] if before else literal)
        if field:
            parts.append(named.with_article(capital=before[0][0] == "A") if before else named.text)
    return "".join(parts)


def load_scenes(file: str | None = None, taxonomy_file: str | None = None) -> Scenes:
    """Loads a scenes file, from a path or s3:// address; None: the one that ships with the package.

    taxonomy_file: as in CatalogConfig. Raises: ValueError naming the file and the key.
    """
    taxonomy = load_taxonomy(taxonomy_file)
    uri = str(_SHIPPED) if file is None else file
    try:
        folder, name = split_uri(uri)
        tree = yaml.load(folder.read(name).decode("utf-8"), _StrictLoader)
    except (OSError, ValueError) as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: not YAML: {error}") from error
    try:
        return Scenes(_categories(tree), taxonomy)
    except ValueError as error:
        raise ValueError(f"catalog.scenes_file={uri!r}: {error}") from error


def _categories(tree: object) -> dict[str, Category]:
    """Checks the content of a scenes file and returns its entries. Raises: ValueError naming the key."""
    if not isinstance(tree, dict) or DEFAULT not in tree:
        raise ValueError(f"must map categories to scenes, and have the category {DEFAULT!r}")
    categories = {}
    owner: dict[str, str] = {}
    for key, entry in tree.items():
        if not isinstance(key, str) or not normalized_category(key):
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
    noun, also, scenes = entry.get("noun", _default_noun(key)), entry.get("also", []), entry.get("scenes")
    if not isinstance(noun, str) or not noun.strip():
        raise ValueError(f"{key}.noun: must be text")
    if not isinstance(also, list) or not all(isinstance(name, str) and normalized_category(name) for name in also):
        raise ValueError(f"{key}.also: must be a list of names")
    if not isinstance(scenes, dict) or not scenes:
        raise ValueError(f"{key}.scenes: must map names of scenes to templates, at least one")
    if key == DEFAULT:
        noun = ANY_PRODUCT
    for name, template in scenes.items():
        _check_template(f"{key}.scenes.{name}", name, template)
    names = [] if key == DEFAULT else list(dict.fromkeys(normalized_category(name) for name in (key, noun)))
    others = [name for name in dict.fromkeys(normalized_category(name) for name in also) if name not in names]
    return Category(noun=noun, names=tuple(names), also=tuple(others), templates=dict(scenes))


def _default_noun(key: str) -> str:
    noun = element_noun(key)
    return key.lower() if noun is None else noun.text


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
