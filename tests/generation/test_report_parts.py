"""The parts of a large report: every image in one of them, found by its sku, and none made anew without need."""

import json
from collections import Counter

import pytest
from test_report import HOSTILE, column, data_of, row, table, trouble

from refadgen.generation import report, report_parts
from refadgen.generation.ledger import AdLedger
from refadgen.generation.report import write_report
from refadgen.generation.report_parts import sku_keys
from refadgen.storage.store import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(report_parts, "PART_ROWS", 10)


def page_of(storage, rows=(), **options):
    ledger = AdLedger(storage)
    if rows:
        ledger.append(table(rows))
    write_report(storage, ledger, {"run_id": "r1"}, **{"max_rows": 20} | options)
    return data_of(storage.read("report.html").decode())


def parts_of(storage, data):
    """The columns of each part, as its script hands them to the page."""
    found = []
    for number in range(1, len(data["parts"]["first"]) + 1):
        script = storage.read(f"{data['parts']['folder']}/{number}.js").decode()
        head, _, rest = script.partition(",")
        assert head == f"refadgenPart({number}"
        found.append(json.loads(rest.removesuffix(")\n")))
    return found


def mixed_rows():
    rows = [row(n, row=n // 3, sku=f"S{n // 3 * 37 % 100:03}", variant=n % 3) for n in range(150)]
    rows[40] = trouble(40, "image_timeout", "failed") | {"row": 13, "sku": "S081", "variant": 1}
    return [*rows, trouble(150, "bad_row") | {"sku": "", "row": 77}, trouble(151, "bad_row") | {"sku": "", "row": 50}]


def test_every_image_lies_in_one_part_in_the_order_of_skus(storage, small_parts):
    data = page_of(storage, mixed_rows())
    parts = parts_of(storage, data)
    assert data["parts"]["rows"] == [10] * 15 + [2]
    assert Counter(i for part in parts for i in column(part, "image_id")) == Counter(
        r["image_id"] for r in mixed_rows()
    )
    skus = [sku for part in parts for sku in column(part, "sku")]
    assert skus == sorted(skus)
    assert [column(parts[0], name)[:5] for name in ("sku", "row", "variant")] == [
        ["", "", "S000", "S000", "S000"],
        [50, 77, 0, 0, 0],
        [0, 0, 0, 1, 2],
    ]
    assert data["parts"]["first"][:3] == ["\x00000000000050", "s003", "s011"]


def test_the_index_counts_each_status_and_reason_of_a_part(storage, small_parts):
    data = page_of(storage, mixed_rows())
    kinds = [tuple(kind) for kind in data["parts"]["kinds"]]
    counts = [
        {kinds[kind]: number for kind, number in zip(part[::2], part[1::2], strict=True)}
        for part in data["parts"]["counts"]
    ]
    assert counts[0] == {("rejected", "bad_row"): 2, ("done", ""): 8}
    assert [at for at, part in enumerate(counts) if ("failed", "image_timeout") in part] == [12]
    assert sum((Counter(part) for part in counts), Counter()) == {
        ("done", ""): 149,
        ("failed", "image_timeout"): 1,
        ("rejected", "bad_row"): 2,
    }


def test_totals_selection_and_products_equal_those_of_one_piece(storage, small_parts, monkeypatch):
    rows = [row(n, sku=f"P{n * 7919 % 97}") for n in range(900)]  # as in real ids, the first digits differ
    rows[::9] = [trouble(n, ("common", "rare")[n % 90 == 0]) | {"sku": f"P{n % 97}"} for n in range(0, 900, 9)]
    rows = [each | {"image_id": f"{n * 7919 % 907:016x}{n:016x}"} for n, each in enumerate(rows)]
    whole = report_parts.WholeLedger(max_rows=50)
    whole.add(table(rows))
    monkeypatch.setattr("refadgen.batch.key_order._MAX_BUCKETS", 8)
    monkeypatch.setattr(report_parts.in_key_order, "__defaults__", ((), 100))  # pieces of a hundred rows
    data = page_of(storage, rows, max_rows=50)
    assert sorted(data["totals"]) == sorted([*kind, number] for kind, number in whole.totals.items())
    assert (data["images"], data["products"]) == (900, whole.products)
    assert set(column(data, "image_id")) == set(whole.selection["image_id"].to_pylist())
    assert Counter(column(data, "reason")) == {"common": 35, "rare": 10, "": 5}


def test_images_of_a_product_are_counted_across_parts(storage, small_parts):
    rows = [row(n, sku="many", variant=n) for n in range(25)] + [row(n, sku="one") for n in range(25, 26)]
    parts = parts_of(storage, page_of(storage, rows))
    assert [(part["columns"]["sku"]["values"], part["images_of_sku"]) for part in parts] == [
        (["many"], [25]),
        (["many"], [25]),
        (["many", "one"], [25, 1]),
    ]


def test_long_rows_make_short_parts(storage, monkeypatch):
    monkeypatch.setattr(report_parts, "_MAX_PART_BYTES", 20_000)
    data = page_of(storage, [row(n, prompt=f"{n} " + "🧴" * 500) for n in range(40)])
    sizes = [len(storage.read(key)) for key in storage.keys("report", ".js")]
    assert max(sizes) < 20_100
    assert sum(data["parts"]["rows"]) == 40
    assert len(sizes) == len(data["parts"]["rows"]) > 4


def test_hostile_texts_stay_data_in_parts(storage):
    rows = [row(n, **{name: HOSTILE for name in ("sku", "prompt", "detail", "image")}) for n in range(30)]
    (part,) = parts_of(storage, page_of(storage, rows))
    assert set(column(part, "prompt")) == {HOSTILE}
    assert b"<" not in storage.read(next(storage.keys("report", ".js")))


def test_nothing_is_made_anew_without_new_rows(storage, monkeypatch):
    first = page_of(storage, mixed_rows())
    monkeypatch.setattr(report, "write_parts", None)
    assert page_of(storage) == first


def test_a_new_row_makes_new_parts_and_removes_the_old(storage):
    first = page_of(storage, mixed_rows())
    second = page_of(storage, [trouble(0, "not_an_image") | {"sku": "S000", "row": 0}])
    assert second["images"] == first["images"] == 152
    assert ["rejected", "not_an_image", 1] in second["totals"]
    assert {key.rpartition("/")[0] for key in storage.keys("report", ".js")} == {second["parts"]["folder"]}


def test_parts_of_a_killed_report_go_unless_another_driver_may_write_them(storage):
    storage.write("report/0123456789ab/1.js", b"")
    storage.write("run-1-of-2.json", b"{}")
    page_of(storage, mixed_rows())
    assert storage.exists("report/0123456789ab/1.js")
    storage.delete(["run-1-of-2.json"])
    page_of(storage, [row(0)])
    assert not storage.exists("report/0123456789ab/1.js")


def test_a_small_run_has_no_parts_and_removes_those_of_before(storage):
    assert "parts" in page_of(storage, mixed_rows())
    assert "parts" not in page_of(storage, max_rows=10_000)
    assert not list(storage.keys("report"))


def test_a_ledger_that_is_folded_meanwhile_is_read_again(storage, monkeypatch):
    folded = iter([FileNotFoundError("part-1")])
    honest = report_parts.in_key_order

    def once_gone(*arguments):
        for error in folded:
            raise error
        return honest(*arguments)

    monkeypatch.setattr(report_parts, "in_key_order", once_gone)
    assert page_of(storage, mixed_rows())["images"] == 152


@pytest.mark.parametrize(
    ("sku", "key"),
    [
        ("AbC-9", "abc-9"),
        ("ÄÖ-É", "ÄÖ-É"),
        ("x" * 200, "x" * 100),
        ("🧴" * 101, "🧴" * 100),
        ("", "\x00000000000007"),
        (None, "\x00000000000007"),
    ],
)
def test_place_of_a_sku(sku, key):
    assert sku_keys(table([row(7, sku=sku)])).to_pylist() == [key]
