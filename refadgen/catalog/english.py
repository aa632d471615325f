"""English for prompts: singulars, articles, and nouns that take none. Pure functions of text.

A dictionary (simplemma) knows the words, and regular rules do the rest. `inflect` knows articles too, but it takes
seconds to import, and every planning worker would pay them.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

_WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))


def words_of(name: str) -> frozenset[str]:
    """One of the lists of words.yaml, which says what each is for."""
    return frozenset(_WORDS[name].split())


PAIRS, PLURAL_STUFF, MASS = words_of("pairs"), words_of("plural_stuff"), words_of("mass")
_IRREGULAR: dict[str, str] = _WORDS["irregular"]
PROPER: dict[str, str] = _WORDS["proper"]
"""How names are written, by their lower case: `iphone` is iPhone."""
_AN = re.compile(
    r"(?!uni(?!n)|us[aeu]|usb|uk|ut[ei]|uri|eu|ew|one\b|oui)[aeiou]|x-?(?:box|ray)|hour|heir|honest|honou?r|8|1[18]\b",
    re.I,
)
_SPELT = re.compile(r"(?:[A-Z]{1,4}s?|[A-Z]+\d\w*)(?![a-z])")
"""Capitals that are read letter by letter, such as SD, XLR or MP3."""
_SPOKEN = re.compile(r"(?:LAN|RAM|NAS|RFID|NATO|SIM|SUV|ROM|LASER|MIDI|RIB|HO|MEN|MOM|HOT|RUG|SET|STEM)\b", re.I)
_AN_LETTERS = "AEFHILMNORSX"


@dataclass(frozen=True, kw_only=True)
class Noun:
    """What a prompt calls a product. bare: it takes no article, as "furniture" and "a mug or a tray" do.

    spelling: the words in the shop's own capitals, by which letters are told from words ("an SD card").
    """

    text: str
    bare: bool = False
    spelling: str = ""

    def with_article(self, *, capital: bool = False) -> str:
        """ "a mug", "an apron", "furniture"."""
        words = self.text if self.bare else f"{article(self.spelling or self.text)} {self.text}"
        return words[:1].upper() + words[1:] if capital else words


def article(words: str) -> str:
    """ "a" or "an", by the sound that `words` begins with."""
    letters = _SPELT.match(words)
    if letters and not _SPOKEN.match(words):
        return "an" if words[0] in _AN_LETTERS else "a"
    return "an" if _AN.match(words) else "a"


@functools.lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """The singular of an English plural in lower case; any other word as it is (`glass`, `scissors`, `men's`)."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in PAIRS or word in PLURAL_STUFF or not re.search(r".[^s'’]s$", word):
        return word
    if re.fullmatch(r"[^aeiouy\W\d_]{2,4}s", word):  # an abbreviation, such as DVDs
        return word[:-1]
    first, hyphen, last = word.rpartition("-")
    if hyphen:
        return f"{first}-{singular(last)}"
    import simplemma  # here: its dictionary takes a moment to load

    if simplemma.is_known(word, lang="en"):
        lemma = simplemma.lemmatize(word, lang="en").lower()
        # A lemma of another beginning, or one that is longer, is another word.
        return lemma if word.startswith(lemma[:-2]) and len(lemma) <= len(word) else _regular(word)
    return _regular(word)


def _regular(word: str) -> str:
    """The singular by rule, for words that no dictionary knows."""
    if re.search(r"[^aeiou]ies$", word) and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and re.search(r"[^siu'’]s$", word) else word
