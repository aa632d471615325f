"""The lines of `--dry-run` about a catalogue's rows: those that cannot be read, and where nouns come from."""

from collections import Counter
from collections.abc import Mapping

from refadgen.catalog.scenes import NounSource

NUM_SHOWN = 20
_SOURCES: dict[NounSource, str] = {
    "category": "the category",
    "category above": "an outer category",
    "list": "a list of things",
    "title": "the title",
    "nothing": "nowhere (a product)",
}


def noun_lines(nouns: Mapping[tuple[NounSource, str], int]) -> list[str]:
    """nouns: rows without prompts of their own, by source and an example of their prompts. None of them: no line."""
    rows: Counter[NounSource] = Counter()
    by_prompt: Counter[str] = Counter()
    for (source, prompt), count in nouns.items():
        rows[source] += count
        by_prompt[prompt] += count
    if not rows:
        return []
    sources = ", ".join(f"{words} {rows[source]}" for source, words in _SOURCES.items() if rows[source])
    # By name where counts are equal: the text must not hang on the order of the fragments.
    shown = sorted(by_prompt.items(), key=lambda each: (-each[1], each[0]))[:NUM_SHOWN]
    return [
        f"nouns of rows, from {sources}; the most frequent:",
        *(f"  {count:>7} {prompt}" for prompt, count in shown),
    ]


def refusal_lines(refused: Mapping[str, int], details: Mapping[str, str]) -> list[str]:
    """refused: rows that cannot be read, by reason, each with the detail of its first row. None of them: no line."""
    if not refused:
        return []
    return [
        f"rows that cannot be read: {sum(refused.values())}; by reason, with the first of each:",
        *(f"  {refused[reason]:>7} {reason}: {details[reason]}" for reason in sorted(refused)),
    ]
