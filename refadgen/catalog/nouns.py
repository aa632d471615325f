"""What a prompt calls a product: from an element of its category's path, or from its title. Pure functions of text."""

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

import simplemma

from refadgen.catalog.categories import names_thing, normalized_category, split_at_slashes
from refadgen.catalog.english import MASS, PAIRS, PLURAL_STUFF, PROPER, Noun, singular, words_of

_ACTIVITIES, _FIELDS, _NO_HEAD = words_of("activities"), words_of("fields"), words_of("no_head")
_SYMBOL = re.compile(r"\s*,?\s*[,&+]\s*(?:(?:and|or)\s+)?", re.IGNORECASE)
_CONJUNCTION = re.compile(r"\s+(?:and|or|and/or)\s+", re.IGNORECASE)
_BRACKETED = re.compile(r"\s*[(\[][^)\]]*[)\]]?")
_PAIR_OF = "pair of "
_PAIR = re.compile(r"\b(?:3d|eye|opera|reading|safety|shooting|smart|sun|swim|swimming) glasses$|(?<!paper )\bjoggers$")
"""Pairs that hang on the word before."""
_ABBREVIATIONS = frozenset(("ac", "id", "it", "pc", "tv", "ups", "us"))
"""Those that a dictionary knows as words too."""
_MEASURES = re.compile(
    r"(?:\s+\d+(?:[.,x×/]\d+)*[\s-]?(?:cl|cm|ct|fl|ft|g|gr|inch|in|kg|lb|l|m|ml|mm|oz|pack|pcs|pc|w|x|\")\.?)+$",
    re.IGNORECASE,
)
_TITLE_ENDS = re.compile(
    r"\s[-–—|:/]+\s|[,;|(\[]|\s(?:at|by|for|from|in|inspired|on|to|with|without|w/|and|&|\+)\s", re.I
)
_PURPOSE = re.compile("[a-z]{3,}ing")
"""What a thing is for: watering, sleeping, cutting."""
_QUANTITY = re.compile(r"^.*\b(?:bag|box|bundle|pack|pair|set)s?\s+of\s+(?:\d+\s+)?", re.IGNORECASE)


def things_in(element: str) -> list[str]:
    """The things that an element names: two for `Coats & Jackets`, one for `Coffee & Tea Cups` and most others.

    A member of a list is a thing if it is a plural, or stuff beside one last word; else it describes the next member.
    """
    text = " & ".join(split_at_slashes(_BRACKETED.sub("", element).strip() or element))
    members = [part for part in _split_at_conjunctions(_SYMBOL.split(text)) if part.strip()] or [element]
    if _kind_of_product(members):
        return [f"{', '.join(members[:-1])} and {members[-1]}" if len(members) > 1 else members[0]]
    things: list[str] = []
    described: list[str] = []
    for member in members[:-1]:
        word = _last_word(member)
        stuff = word in MASS and word not in _ACTIVITIES and len(members[-1].split()) == 1
        described.append(member)
        if (_is_plural(word) and word not in _ACTIVITIES) or stuff:
            things.append(_either(described))
            described = []
    return [*things, _either([*described, members[-1]])]


def element_noun(element: str) -> Noun | None:
    """The noun of an element of a path; None where it cannot be told. Several things become "coat or jacket"."""
    things = things_in(element)
    nouns = [noun for noun in map(_noun, things) if noun]
    if len(nouns) < len(things):
        return None
    if len(nouns) == 1:
        return nouns[0]
    if len({noun.bare for noun in nouns}) == 1 and not any(noun.text.startswith(_PAIR_OF) for noun in nouns):
        return Noun(text=_either([noun.text for noun in nouns]), bare=nouns[0].bare, spelling=nouns[0].spelling)
    return Noun(text=_either([noun.with_article() for noun in nouns]), bare=True)


def member_in_title(element: str, title: str) -> Noun | None:
    """The member of a list that a title names: "Blue Denim Jacket" in `Coats & Jackets`; None: none of them."""
    words = f" {normalized_category(title)} "
    for member in things_in(element):
        head = normalized_category(member).split()[-1:]
        if head and f" {head[0]} " in words:
            return _noun(member)
    return None


def title_noun(title: str | None, brand: str | None = None, compounds: Set[str] = frozenset()) -> Noun | None:
    """The head noun of a product's title: "shirt" of "Ocean Blue Shirt, size M"; None where it cannot be told.

    The word before it stays where the head alone may name another thing: one in -ing ("watering can"), and `compounds`,
    names as `normalized_category` returns them ("egg cup"). What stands behind a model's number ("iPhone 15 Pro") may
    be anything, and so may a word that no dictionary knows.
    """
    text = _TITLE_ENDS.split(_QUANTITY.sub("", " ".join((title or "").split())))[0].split(" of ")[0]
    words = _MEASURES.sub("", text).split()
    while words and words[-1].lower() in _NO_HEAD:
        words.pop()
    if not words or not re.fullmatch(r"[^\W\d_][^\W\d_'’-]{2,}", words[-1].strip(".!™®©")):
        return None
    head = words[-1].strip(".!™®©").lower()
    brands = normalized_category(brand or "").split()
    is_word = simplemma.is_known(singular(head), lang="en")
    if not is_word or normalized_category(head) in brands or not names_thing(head):
        return None
    before = words[-2].lower() if len(words) > 1 else ""
    told = _PURPOSE.fullmatch(before) and before not in brands and simplemma.is_known(before, lang="en")
    return _noun(f"{before} {head}" if told or normalized_category(f"{before} {head}") in compounds else head)


def _noun(name: str) -> Noun | None:
    """The noun of one thing's name, in the shop's own words."""
    words = _BRACKETED.sub("", name).split()
    if not words or not any(letter.isalpha() for letter in name):
        return None
    lower = [word.lower() for word in words]
    if name.isupper():  # then capitals say nothing about how a word is read
        words = [
            low if low not in _ABBREVIATIONS and simplemma.is_known(singular(low), lang="en") else word
            for low, word in zip(lower, words, strict=True)
        ]
    *first, last = lower
    text = " ".join(lower)
    if "of" in lower[1:-1]:  # a chest of drawers
        of = lower.index("of", 1)
        head = _noun(" ".join(words[:of]))
        rest = " ".join(lower[of:])
        return head and replace(head, text=f"{head.text} {rest}", spelling=head.spelling and f"{head.spelling} {rest}")
    if last in _ACTIVITIES:
        return Noun(text=f"{text} equipment", bare=True)
    if last in _FIELDS:
        return Noun(text=f"{text} product", spelling=name)
    if last in PAIRS or _PAIR.search(text):
        return Noun(text=f"{_PAIR_OF}{text}")
    if last in PLURAL_STUFF or last in MASS:
        return Noun(text=text, bare=True)
    text = " ".join(PROPER.get(word, word) for word in [*first, singular(last)])
    return Noun(text=text, spelling=" ".join(words))


def _kind_of_product(members: Sequence[str]) -> bool:
    """Whether the members name activities or fields: what is sold there is "equipment" or a "product" for them."""
    words = [_last_word(member) for member in members]
    return words[-1] in _FIELDS or all(word in _ACTIVITIES | _FIELDS for word in words)


def _split_at_conjunctions(parts: Sequence[str]) -> Iterator[str]:
    """The parts, split at "and" and "or" behind a plural: not in "hook and loop fasteners"."""
    for part in parts:
        start = 0
        for found in _CONJUNCTION.finditer(part):
            before = part[start : found.start()]
            if before.split() and _is_plural(_last_word(before)):
                yield before
                start = found.end()
        yield part[start:]


def _last_word(text: str) -> str:
    return text.lower().split()[-1]


def _is_plural(word: str) -> bool:
    return singular(word) != word or word in PAIRS or word in PLURAL_STUFF


def _either(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
