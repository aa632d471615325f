"""The lines of `--dry-run` about nouns."""

from collections import Counter

from refadgen.generation.nouns import NUM_SHOWN, noun_lines


def test_rows_by_source_and_the_most_frequent_prompts() -> None:
    nouns = Counter(
        {("category", "a mug on a table"): 3, ("title", "a mug on a table"): 2, ("nothing", "a product"): 4}
    )
    assert noun_lines(nouns) == [
        "nouns of rows, from the category 3, the title 2, nowhere (a product) 4; the most frequent:",
        "        5 a mug on a table",
        "        4 a product",
    ]


def test_twenty_at_most_and_none_without_rows() -> None:
    many = Counter({("category", f"a thing {number:02}"): 1 for number in range(30)})
    lines = noun_lines(many)
    assert len(lines) == 1 + NUM_SHOWN == 21
    assert lines[1].endswith("a thing 00")
    assert noun_lines(Counter()) == []
