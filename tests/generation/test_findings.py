"""The lines of `--dry-run` about a catalogue's rows."""

from collections import Counter

from refadgen.generation.findings import NUM_SHOWN, noun_lines, refusal_lines


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


def test_rows_that_cannot_be_read_by_reason() -> None:
    details = {"empty_sku": "row 3: sku is empty", "bad_address": "row 7: image is an address without its scheme"}
    assert refusal_lines(Counter(empty_sku=2, bad_address=1), details) == [
        "rows that cannot be read: 3; by reason, with the first of each:",
        "        1 bad_address: row 7: image is an address without its scheme",
        "        2 empty_sku: row 3: sku is empty",
    ]
    assert refusal_lines(Counter(), {}) == []
