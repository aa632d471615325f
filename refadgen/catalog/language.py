"""Whether words are English, by dictionaries (simplemma): a German category has no place in an English prompt."""

import functools
import re
import unicodedata

import simplemma

from refadgen.catalog.english import singular, words_of

_OTHERS = ("fr", "it", "nl", "es", "de")
"""From the smallest dictionary in memory to the largest: all five take 300 MB."""
_ENGLISH_BESIDES = words_of("english_besides")
_WORD = re.compile(r"[^\W\d_]+")


@functools.lru_cache(maxsize=100_000)
def is_foreign(text: str) -> bool:
    """Whether another language knows more of the words of `text` than English does; words of no dictionary say nothing.

    Words of another script than the Latin are foreign. The other languages are French, Italian, Dutch, Spanish and
    German; of others only what these know too is noticed.
    """
    if not is_latin(text):
        return True
    words = [word.lower() for word in _WORD.findall(text) if not (len(word) <= 3 and word.isupper())]
    num_english = sum(map(_is_english, words))
    # The dictionaries of other languages are loaded for words that English does not know, and then alone.
    if num_english == len(words):
        return False
    return any(sum(_is_known(word, language) for word in words) > num_english for language in _OTHERS)


@functools.lru_cache(maxsize=100_000)
def is_latin(text: str) -> bool:
    """Whether all letters of `text` are of the Latin script."""
    letters = {letter for letter in text if letter.isalpha() and not letter.isascii()}
    return all(letter in "ªº" or unicodedata.name(letter, "").startswith("LATIN") for letter in letters)


@functools.lru_cache(maxsize=100_000)
def _is_english(word: str) -> bool:
    one = singular(word)
    return word in _ENGLISH_BESIDES or one in _ENGLISH_BESIDES or _is_known(word, "en") or _is_known(one, "en")


@functools.lru_cache(maxsize=100_000)
def _is_known(word: str, language: str) -> bool:
    return simplemma.is_known(word, lang=language)
