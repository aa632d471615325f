"""A shop's category as text: the elements of its path, the last element, and the noun. Pure functions of text.

`Home & Garden > Kitchen > Travel Mugs` has three elements. The last one, `Travel Mugs`, names the product; its noun is
"travel mug". Prompts, captions and the detector's query all read a category by these functions.
"""

import html
import re

ANY_PRODUCT = "product"
"""The noun of a product whose category is unknown."""

_LETTER = re.compile(r"[^\W\d_]")
_ENTITY = re.compile(r"&#?\w+;")
_SEPARATOR = re.compile(r"[>»›|]")
_SLASH = re.compile(r"/+")
_ENDS_IN_ABBREVIATION = re.compile(r"(?:^|[^\w'’-])(?:[A-Za-z]{1,2}|[A-Z]{2}s|[BCDFGHJ-NP-TV-XZ]{3,5}s?)$")
"""One or two letters, or capitals without a vowel: `w`, `TV`, `CDs`, `DVD`, but not `MEN`, which is a department."""


def path_elements(category: str | None) -> list[str]:
    """The elements of a category's path that hold a letter, outermost first; empty for None and for a bare number.

    Separators are `>`, `»`, `›` and `|`; in a category without any of these, `/` too (`Default Category/Home/Mugs`).
    A `/` that belongs to a word stays: after an abbreviation (`TV/Audio`, `CD/DVD Cases`, `Bottle w/ lid`), in "and/or"
    and between digits. `T-Shirts/Tops` looks like `Clothing/Tops` and is read as a path too: "top" suits either.
    HTML entities, as some exports write them, are decoded first.
    """
    # Only entities that end in a semicolon: html.unescape alone would read "Pots&notes" as "Pots¬es".
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), category or "")
    # A shop that writes paths with > means a slash within a name ("Home > Tops/T-Shirts"), so the two never mix.
    parts = _SEPARATOR.split(text) if _SEPARATOR.search(text) else _split_at_slashes(text)
    return [part.strip() for part in parts if _LETTER.search(part)]


def last_element(category: str | None) -> str | None:
    """The last element of a category's path as the shop writes it; None where there is none."""
    elements = path_elements(category)
    return elements[-1] if elements else None


def as_noun(name: str) -> str:
    """A category's name as a prompt names one product of it: `Bottle Openers` → `bottle opener`."""
    *words, last = name.lower().split()
    return " ".join([*words, singular(last)])


def singular(word: str) -> str:
    """The singular of a regular English plural in lower case; any other word as it is (`glass`, `men's`)."""
    if re.search(r"[^aeiou]ies$", word) and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and re.search(r"[^siu'’]s$", word) else word


def normalized(name: str) -> str:
    """A category's name as names are compared: lower case, no punctuation, each word in the singular."""
    return " ".join(singular(word) for word in re.findall(r"\w+", name.lower().replace("'", "")))


def _split_at_slashes(text: str) -> list[str]:
    parts, start = [], 0
    for slash in _SLASH.finditer(text):
        if not _is_in_word(text, slash):
            parts.append(text[start : slash.start()])
            start = slash.end()
    return [*parts, text[start:]]


def _is_in_word(text: str, slash: re.Match[str]) -> bool:
    """Whether a slash is part of a name rather than between two elements of a path."""
    before, after = text[: slash.start()], text[slash.end() :]
    if before[-1:].isspace() and after[:1].isspace():
        return False
    and_or = re.search(r"\band$", before, re.IGNORECASE) and re.match(r"or\b", after, re.IGNORECASE)
    fraction = before[-1:].isdigit() and after[:1].isdigit()
    return bool(and_or or fraction or _ENDS_IN_ABBREVIATION.search(before))
