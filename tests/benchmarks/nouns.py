"""What prompts call the products of a whole taxonomy: how many are no English, by rules that are not the product's.

    python tests/benchmarks/nouns.py TAXONOMY [--sample 300] [--seed 17] [--show]

TAXONOMY: Google's `taxonomy-with-ids.en-US.txt`, or one path a line. Articles and plurals are judged by `inflect`, and
what is a word, and what has no plural, by `wordfreq` (neither is a dependency: `pip install --target FOLDER inflect
wordfreq`, and FOLDER in PYTHONPATH). The package is that of the Python path: an earlier version can be put there.

Faults: `list` (&, commas, brackets, or "and" after an article), `article`, `plural` after an article, `spelling` of a
singular, `stuff` after an article ("a furniture"), `bare` (no article before one thing), `other words` than the path's.
A rule of thumb by frequencies, so each fault is one to look at. --sample prints so many paths, drawn by the seed, with
their prompts. The last line is JSON.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import inflect
import yaml
from wordfreq import zipf_frequency

from refadgen.catalog import scenes

ENGLISH = inflect.engine()
PAIRS = {
    "glasses",
    "goggles",
    "jeans",
    "pants",
    "scissors",
    "shorts",
    "tights",
    "trousers",
    "binoculars",
    "pliers",
    "tongs",
}
ALIKE = {"bus", "canvas", "chassis", "compass", "gas", "gps", "lens", "pilates", "series", "species", "thermos", "ups"}
"""Words in -s that are no plurals, or are their own."""
COUNTED = {"saw", "safe", "can", "closer", "football", "basketball", "volleyball"}
"""Things whose word has another sense without a plural."""
LETTERS = re.compile(r"[A-Z]{2,}\d*s?\b")
TAILS = sorted(
    {
        template.partition("{category}")[2]
        for entry in yaml.safe_load(Path(scenes.__file__).with_name("scenes.yaml").read_text("utf-8")).values()
        for template in entry["scenes"].values()
    },
    key=len,
)


def frequency(word: str) -> float:
    """Of a word or a phrase in English, on Zipf's scale: 1 is one in 100 million, 3 one in a million."""
    return float(zipf_frequency(word, "en"))


def phrase_of(prompt: str) -> str:
    """What stands in a prompt for the product, with its article."""
    return next(prompt.removesuffix(tail) for tail in reversed(TAILS) if prompt.endswith(tail))


def is_plural(word: str) -> bool:
    if not re.search(r"[^s'’]s$", word) or word in ALIKE or word in PAIRS:
        return False
    one = ENGLISH.singular_noun(word)
    return bool(one) and one != word and frequency(one) > max(1.5, frequency(word) - 1)


def is_stuff(word: str) -> bool:
    """Whether a word is hardly ever put into the plural."""
    return word not in COUNTED and frequency(word) > 3 and frequency(word) - frequency(ENGLISH.plural_noun(word)) > 2.3


def is_thing(word: str) -> bool:
    """Whether a word is as often in the plural as in the singular."""
    several = ENGLISH.plural_noun(word)
    known = several != word and not is_plural(word) and word not in PAIRS
    return known and frequency(word) - frequency(several) < 0.3


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['’-][a-z0-9]+)*", text.lower())


def forms(word: str) -> set[str]:
    """A word and what may be its singular."""
    return {word, word[:-1], word[:-2], f"{word[:-3]}y", f"{word[:-3]}f", f"{word[:-3]}fe", f"{word[:-3]}is"}


def is_misspelt(word: str, path: list[str]) -> bool:
    """Whether another singular of the path's plural is the usual one: "cooky" beside "cookie"."""
    for plural in path:
        if plural != word and word in forms(plural):
            others = [one for one in forms(plural) if one and ENGLISH.plural_noun(one) == plural]
            return bool(others) and max(map(frequency, others)) > frequency(word) + 1
    return False


def faults_of(phrase: str, element: str) -> Iterator[str]:
    """What is wrong with a phrase for the last element of a path. Of "a coat or jacket", each alternative is looked at.

    Behind the first, no article is missed: "a coat or jacket", "a ladder or scaffolding".
    """
    article, _, noun = phrase.partition(" ") if re.match(r"an? ", phrase) else ("", "", phrase)
    path = words_of(element)
    if not words_of(noun):
        yield "list"
        return
    kind = noun.endswith((" equipment", " product"))
    if re.search(r"[&;|/<>()\[\]]", noun) or (" or " not in noun and not kind and re.search(r", | and ", noun)):
        yield "list"
    spelt = re.search(re.escape(noun.split()[0]), element, re.IGNORECASE)
    own = spelt[0] + noun[len(spelt[0]) :] if spelt and LETTERS.match(spelt[0]) else noun
    if article and ENGLISH.a(own).split()[0] != article:
        yield "article"
    first = noun.split(" or ")[0]
    last = words_of(first)[-1]
    if article and not first.startswith("pair of ") and " or " not in noun:
        if is_plural(last):
            yield "plural"
        elif is_misspelt(last, path):
            yield "spelling"
        elif is_stuff(last):
            yield "stuff"
    if not article and not kind and is_thing(last):
        yield "bare"
    allowed = {form for word in path for form in forms(word)}
    allowed |= {"or", "pair", "of", "a", "an", "and", "equipment", "product"}
    if not set(words_of(noun)) <= allowed:
        yield "other words"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("taxonomy", type=Path)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--show", action="store_true", help="print every phrase that has a fault")
    args = parser.parse_args()
    lines = args.taxonomy.read_text("utf-8").splitlines()
    paths = [re.sub(r"^\d+ - ", "", line) for line in lines if line.strip() and not line.startswith("#")]
    shipped = scenes.load_scenes()
    prompts = {path: shipped.prompts_for(path, None, 1)[0].prompt for path in paths}
    found: dict[str, list[str]] = defaultdict(list)
    broken = set()
    for path, prompt in prompts.items():
        phrase, element = phrase_of(prompt), path.rpartition(" > ")[2]
        for fault in faults_of(phrase, element):
            found[fault].append(f"{phrase!r} of {element!r}")
            broken.add(path)
    for fault, phrases in sorted(found.items()):
        print(f"{fault:12} {len(phrases):5}  as {'; '.join(random.Random(args.seed).sample(phrases, 1))}")
        if args.show:
            print("\n".join(f"    {phrase}" for phrase in phrases))
    for number, path in enumerate(sorted(random.Random(args.seed).sample(sorted(paths), args.sample)), start=1):
        print(f"{number:3} {path}: {prompts[path]}")
    print(json.dumps({"paths": len(paths), "broken": len(broken), **{key: len(found[key]) for key in sorted(found)}}))


if __name__ == "__main__":
    main()
