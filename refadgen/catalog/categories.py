"""A shop's category as text: the elements of its path, and the last one that names a thing. Pure functions of text.

`Home & Garden > Kitchen > Travel Mugs` has three elements. The last one, `Travel Mugs`, names the product, and
`nouns` makes "a travel mug" of it. Prompts, captions and the detector's query all read a category by these functions.
"""

import ast
import html
import re
from collections.abc import Sequence
from typing import Any

from refadgen.catalog.english import PAIRS, singular, words_of
from refadgen.catalog.taxonomy import is_number

ANY_PRODUCT = "product"
"""The noun of a product whose category is unknown."""

_NAMES_NOTHING = words_of("names_nothing")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_][\w-]*")
_ENTITY = re.compile(r"&#?\w+;")
_ADDRESS = re.compile(r"\w+://")
_NUMBERED = re.compile(r"\s*\d+ +- +")
_SEPARATOR = re.compile(r"[>»›|→]|::|\\(?!,)")
_BETWEEN_CATEGORIES = re.compile(r";|(?<!\\),(?![^;>»›|]*(?:&|\band\b))")
"""A comma within a name such as `Food, Beverages & Tobacco` ends no category, nor does one that WooCommerce escapes."""
_SLASH = re.compile(r"/+")
_ORNAMENT = re.compile("[™®©\\ufe0f\\u2600-\\u27bf\\U0001f000-\\U0001faff]")
_SLUG = re.compile(r"[a-z]{3,}(?:-[a-z]{3,})+")
"""A category's address, such as `mens-shoes`, but not `t-shirts` or `make-up`."""
_ATTRIBUTE = re.compile(
    r"size\s+\S{1,4}|ages?\s+\d.*|(?:ss|aw|fw|s/s|a/w)\s?'?\d{2,4}(?:\s+collection)?"
    r"|\d+\s?(?:pieces?|pcs?|cl|ml|l|cm|mm|kg|g|oz|inch(?:es)?|years?|months?)\b.*",
    re.IGNORECASE,
)
"""A size, an age, a season, a number of pieces."""
_ENDS_IN_ABBREVIATION = re.compile(r"(?:^|[^\w'’-])(?:[A-Za-z]{1,2}|[A-Z]{2}s|[BCDFGHJ-NP-TV-XZ]{3,5}s?)$")
"""One or two letters, or capitals without a vowel: `w`, `TV`, `CDs`, `DVD`, but not `MEN`, which is a department."""


def path_elements(category: str | None) -> list[str]:
    """The elements of a category's path that hold a letter, outermost first; empty for None and for a bare number.

    Separators are `>`, `»`, `›`, `→`, `|`, `::` and a backslash; in a category without any of these, `/` too
    (`Default Category/Home/Mugs`).
    A `/` that belongs to a word stays: after an abbreviation (`TV/Audio`, `CD/DVD Cases`, `Bottle w/ lid`), in "and/or"
    and between digits. `T-Shirts/Tops` looks like `Clothing/Tops` and is read as a path too: "top" suits either.
    HTML entities, as some exports write them, are decoded first. Of several categories in a cell, the first counts
    whose last element names a thing (`Clothing > Hats, Sale`) and that holds no other of them (`Gear, Gear/Bags`). An
    address (`gid://…`) has no elements. A list as JSON or Python write it (`["Home", "Mugs"]`) is read as one.
    """
    # Only entities that end in a semicolon: html.unescape alone would read "Pots&notes" as "Pots¬es".
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), _written_list((category or "").strip()))
    paths = [path for path in map(_elements, _categories(text)) if path]
    named = [path for path in paths if names_thing(path[-1])]
    # Shops list the categories above a category too: "Gear, Gear/Bags" is a bag.
    innermost = [path for path in named if not any(_is_within(other, path) for other in named)]
    if innermost:
        return innermost[0]
    return next((path for path in paths if any(map(names_thing, path))), paths[0] if paths else [])


def _written_list(text: str) -> str:
    """A list that is written as text, as `category_of_list` reads lists; any other text as it is."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return category_of_list(items) if all(isinstance(item, str) for item in items) else text


def _is_within(path: list[str], other: list[str]) -> bool:
    """Whether a category lies below another one."""
    return len(path) > len(other) and path[: len(other)] == other


def last_element(category: str | None) -> str | None:
    """The last element of a category's path that names a thing, as the shop writes it; None where there is none."""
    return next((element for element in reversed(path_elements(category)) if names_thing(element)), None)


def names_thing(element: str, brand: str | None = None) -> bool:
    """Whether an element of a path names a kind of thing.

    A sale, an audience, an occasion, a price, a colour, a size, a season or a brand names none. brand: the row's own;
    None: not known.
    """
    if _ATTRIBUTE.fullmatch(element.strip()):
        return False
    if brand and normalized_category(element) == normalized_category(brand):
        return False
    return any(word not in _NAMES_NOTHING for word in _WORD.findall(re.sub(r"['’]", "", element.lower())))


def normalized_category(name: str) -> str:
    """A category's name as names are compared: lower case, no punctuation, each word in the singular."""
    words = re.findall(r"\w+", re.sub(r"['’]", "", name.lower()))
    return " ".join(word[:-1] if word in PAIRS else singular(word) for word in words)


def split_at_slashes(text: str) -> list[str]:
    """The parts of a text between slashes, without those that belong to a word."""
    parts, start = [], 0
    for slash in _SLASH.finditer(text):
        if not _is_in_word(text, slash):
            parts.append(text[start : slash.start()])
            start = slash.end()
    return [*parts, text[start:]]


def _categories(text: str) -> list[str]:
    """The categories of a cell."""
    pieces = _BETWEEN_CATEGORIES.split(text)
    if re.search(r"[>»›→]|::", text) or text.lstrip().lower().startswith("default category/"):
        # Where paths are written with another separator, a bar stands between categories.
        pieces = [part for piece in pieces for part in piece.split("|")]
    return [piece.replace("\\,", ",") for piece in pieces]


def _elements(path: str) -> list[str]:
    """The elements of one category. Google writes `187 - Apparel & Accessories > Shoes` too."""
    if _ADDRESS.search(path):
        return []
    if numbered := _NUMBERED.match(path):
        path = path[numbered.end() :]
    # A shop that writes paths with > means a slash within a name ("Home > Tops/T-Shirts"), so the two never mix.
    parts = _SEPARATOR.split(path) if _SEPARATOR.search(path) else split_at_slashes(path)
    return [_words(part) for part in parts if _LETTER.search(part)]


def _words(element: str) -> str:
    """An element without ornaments, and its words apart where it is written as an address is."""
    element = _ORNAMENT.sub("", element).strip()
    return element.replace("-", " ") if _SLUG.fullmatch(element) else element.replace("_", " ")


def _is_in_word(text: str, slash: re.Match[str]) -> bool:
    """Whether a slash is part of a name rather than between two elements of a path."""
    before, after = text[: slash.start()], text[slash.end() :]
    if before[-1:].isspace() and after[:1].isspace():
        return False
    and_or = re.search(r"\band$", before, re.IGNORECASE) and re.match(r"or\b", after, re.IGNORECASE)
    fraction = before[-1:].isdigit() and after[:1].isdigit()
    return bool(and_or or fraction or _ENDS_IN_ABBREVIATION.search(before))


def category_of_list(items: Sequence[str]) -> str:
    """A list as one text: the elements of a path, the innermost last; or several categories, where one is a path."""
    if any(len(_elements(item)) > 1 or _ENTITY.search(item) or _ADDRESS.search(item) for item in items):
        return "; ".join(items)
    # A comma or a semicolon within an element ends no category.
    return " > ".join(item.replace(";", ",").replace(",", "\\,") for item in items)


def first_that_names(categories: Sequence[Any]) -> Any:
    """The first of a row's categories that names a thing or is a number; else the first that is not empty."""
    given = [value for value in categories if value is not None and value == value and value != ""]
    named = (value for value in given if not isinstance(value, str) or is_number(value) or last_element(value))
    return next(named, given[0] if given else None)
