"""JSON Lines: values of every kind, broken lines, and JSON that is not one object a line."""

import json

import pytest
from feed_files import Open, report_of, rows_of, told

ROWS = [
    {"id": "00123", "image_link": ["a.jpg", "b.jpg"], "title": "A <i>Cup</i>", "price": {"amount": 3}},
    {"id": 7, "image_link": "c.jpg", "product_type": "Mugs", "num_variants": 2, "prompt": ["on sand", "on grass"]},
    {"g:id": 8.0, "Image-Link": "d.jpg", "placement": {"size": 0.5}, "availability": "out of stock", "title": None},
]


def lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_values(opened: Open) -> None:
    catalog = opened("feed", lines(ROWS), "catalog.leave_out=[]")
    assert catalog.read_as.endswith("read as JSON Lines, UTF-8")
    assert told(catalog) == [
        ("00123", "a.jpg", "A Cup", None),
        ("7", "c.jpg", None, "Mugs"),
        ("8", "d.jpg", None, None),
    ]
    _, second, third = rows_of(catalog)
    assert (second.prompts, second.num_variants) == (("on sand", "on grass"), 2)
    assert third.placement is not None
    assert third.placement.size == 0.5
    assert catalog.lines()[1] == "columns not used: price"
    assert len(rows_of(opened("feed", lines(ROWS)))) == 2


def test_broken_lines_cost_themselves_while_they_are_few(opened: Open) -> None:
    good = [{"sku": str(number), "image": "a.jpg"} for number in range(30)]
    catalog = opened("feed.jsonl", lines(good) + '{"sku": \n\n[1]\n' + lines([{"sku": "x", "image": "\ud800"}]))
    assert len(rows_of(catalog)) == 30
    assert dict(report_of(catalog).left_out) == {"not a JSON object": 2, "not text of the feed's encoding": 1}
    with pytest.raises(ValueError, match="2 of 3 lines are no JSON objects"):
        opened("feed.jsonl", '{"sku": "1", "image": "a"}\n{a\n{b\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"sku": 1}]', r"is one JSON array: write one object a line, as by jq -c '\.\[\]'"),
        ('{\n "sku": 1\n}', "is JSON over several lines"),
        ('{"sku": "1", "image": "a"}\n{"sku": "2", "im', "ends in the middle of line 2: export it again"),
        ('{"name": "1"}\n', "no column 'sku'"),
    ],
)
def test_what_is_refused(text: str, said: str, opened: Open) -> None:
    with pytest.raises(ValueError, match=rf"feed\.json: .*{said}"):
        opened("feed.json", text)
