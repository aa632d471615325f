"""The report page: what it holds, that nothing in a ledger can break it, and what a real browser makes of it."""

import html.parser
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.generation.page_columns import relative_link
from refadgen.generation.report import write_report
from refadgen.generation.report_selection import select_rows
from refadgen.storage.store import Storage

HOSTILE = (
    "<img src=x onerror=\"document.documentElement.id='pwned'\">'\"\n</script><script>document.documentElement.id="
    '"pwned"</script><!-- <script> --> \u2028 &amp; {{x}} __DATA__ 🧴 '
)
FACTS = {"run_id": "r1", "catalog": "catalogs/demo.parquet", "seconds": 93.5, "counts": {"done": 2, "failed": 1}}
REASONS = ("image_timeout", "not_an_image", "no_plain_background")


def row(number, **values):
    return {
        **dict.fromkeys(SCHEMA.names),
        "image_id": f"{number:032x}",
        "run_id": "r1",
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
        "row": number,
        "sku": f"SKU-{number}",
        "scene": "marble",
        "variant": 0,
        "status": "done",
        "reason": "",
        "detail": "",
        "attempts": 1,
        "uri": f"images/{number:032x}.jpg",
        "product_uri": f"products/{number:032x}.webp",
        "prompt": "a cup on a marble slab",
        "seed": 2**62 + number,
        "color_similarity": 0.5 + (number % 100) / 250,
        **values,
    }


def trouble(number, reason, status="rejected"):
    return row(number, status=status, reason=reason, detail=f"image {number}: {reason}", uri="", product_uri="")


def table(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def large_ledger():
    """10,000 images of 2,500 products, each with a prompt, a sku and an address of its own; every tenth failed."""
    wording = ", with a wording of its own as long as the prompts that shops write for their products"
    rows = []
    for i in range(10_000):
        shop = {"row": i // 4, "sku": f"SHOP-{i // 4}", "variant": i % 4, "prompt": f"a cup number {i}{wording}"}
        shop |= {"image": f"https://shop.example/products/{i // 4}/front.jpg", "structure_similarity": i / 1e4}
        rows.append(trouble(i, REASONS[i // 10 % 3], "failed") | shop if i % 10 == 0 else row(i, **shop))
    return rows


def page_of(folder, rows, facts=FACTS, **options):
    storage = Storage(str(folder))
    shutil.rmtree(folder / "ledger", ignore_errors=True)
    AdLedger(storage).append(table(rows))
    assert write_report(storage, AdLedger(storage), facts, **options) == "report.html"
    return (folder / "report.html").read_text("utf-8")


def data_of(page):
    """The page's JSON as a browser finds it: up to the first end of a script element."""
    return json.loads(page.split('id="data">', 1)[1].split("</script", 1)[0])


def column(data, name):
    values = data["columns"][name]
    return values if isinstance(values, list) else [None if i is None else values["values"][i] for i in values["index"]]


def test_hostile_texts_stay_data(tmp_path):
    texts = {name: HOSTILE for name in ("sku", "category", "scene", "detail", "prompt", "image", "model")}
    page = page_of(tmp_path, [trouble(0, HOSTILE) | texts], {"catalog": HOSTILE, HOSTILE: [HOSTILE]})
    data = data_of(page)
    assert {column(data, name)[0] for name in texts} == {HOSTILE}
    assert data["totals"] == [["rejected", HOSTILE, 1]]
    assert data["facts"] == {"catalog": HOSTILE, HOSTILE: [HOSTILE]}
    plain = page_of(tmp_path, [], {})
    for tag in ("<script", "</script", "<img", "<!--"):
        assert page.count(tag) == plain.count(tag)
    assert "\u2028" not in page


def test_json_gives_the_rows_back(tmp_path):
    rows = [
        row(0),
        row(1, color_similarity=float("nan"), sku="ü", mask_iou=0.25),
        trouble(2, "image_timeout", "failed"),
    ]
    data = data_of(page_of(tmp_path, rows))
    for name in ("image_id", "row", "sku", "status", "reason", "detail", "uri", "product_uri", "prompt", "mask_iou"):
        assert column(data, name) == [r[name] for r in rows], name
    assert column(data, "seed") == [str(r["seed"]) for r in rows]  # JavaScript's numbers would round them
    assert column(data, "color_similarity") == [0.5, None, 0.508]
    assert (data["images"], data["products"]) == (3, 3)


def test_odd_facts_are_shown_as_text(tmp_path):
    facts = {
        "seconds": float("inf"),
        "started_at": datetime(2026, 3, 1, tzinfo=UTC),
        "output": "caf\udce9",
        "n": (1, None),
    }
    data = data_of(page_of(tmp_path, [], facts))
    assert data["facts"] == {
        "seconds": None,
        "started_at": "2026-03-01 00:00:00+00:00",
        "output": "caf\udce9",
        "n": [1, None],
    }


def test_page_is_small_at_10_000_rows_and_bounded_with_long_texts(tmp_path):
    rows = large_ledger()
    page = page_of(tmp_path, rows)
    assert len(page.encode()) < 6_000_000
    assert len(column(data_of(page), "sku")) == 10_000
    page = page_of(tmp_path, [r | {"prompt": f"{n} " + "🧴" * 700} for n, r in enumerate(rows)])
    assert len(page.encode()) < 6_000_000
    assert data_of(page)["images"] == 10_000
    assert set(REASONS) < set(column(data_of(page), "reason"))


def test_selection_represents_every_reason_then_whole_products():
    rows = [trouble(n, "common") for n in range(500)] + [trouble(500, "rare"), trouble(501, "once", "failed")]
    rows += [row(n, sku=f"P{n % 100}") for n in range(600, 1000)]
    chosen = select_rows(table(rows), 100).to_pylist()
    assert Counter(r["reason"] for r in chosen) == {"common": 88, "rare": 1, "once": 1, "": 10}
    assert Counter(r["sku"] for r in chosen if r["status"] == "done") == {"P0": 4, "P1": 4, "P2": 2}
    assert max(r["row"] for r in chosen if r["reason"] == "common") == 87
    few_failures = select_rows(table(rows[490:]), 100).to_pylist()
    assert Counter(r["status"] for r in few_failures) == {"done": 88, "rejected": 11, "failed": 1}
    assert select_rows(table(rows), 5000).num_rows == len(rows)


def test_totals_are_of_the_whole_ledger(tmp_path):
    rows = [row(n, sku=f"P{n % 5}") for n in range(50)] + [trouble(n, "not_an_image") for n in range(50, 55)]
    data = data_of(page_of(tmp_path, rows, max_rows=10))
    assert sorted(data["totals"]) == [["done", "", 50], ["rejected", "not_an_image", 5]]
    assert (data["images"], len(column(data, "sku"))) == (55, 10)
    assert dict(zip(data["columns"]["sku"]["values"], data["images_of_sku"], strict=True))["P0"] == 10


def test_no_outside_address_and_only_relative_links(tmp_path):
    page = page_of(tmp_path, [row(0, uri=f"{tmp_path}/images/a b#?.jpg", product_uri="javascript:alert(1)")])
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w", re.sub(r"^\s*//.*$", "", page, flags=re.MULTILINE))
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page
    data = data_of(page)
    assert column(data, "uri") == ["images/a%20b%23%3F.jpg"]
    assert column(data, "product_uri") == ["javascript%3Aalert%281%29"]


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("images/0a.jpg", "images/0a.jpg"),
        ("s3://bucket/out/images/0a.jpg", "images/0a.jpg"),
        ("//evil.example/a.jpg", "evil.example/a.jpg"),
        ("https://evil.example/a.jpg", "https%3A//evil.example/a.jpg"),
        ("images/../../a.jpg", ""),
        ("images\\ü.jpg", "images%5C%C3%BC.jpg"),
        ("", ""),
    ],
)
def test_links(uri, link):
    assert relative_link(uri, "s3://bucket/out") == link


class Dom(html.parser.HTMLParser):
    """What the tests look at in a rendered page: attribute names, links, texts by id, and (title, text) of headings."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.links, self.ids, self.headings = set(), set(), {}, []
        self._tag = self._id = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.attributes |= given.keys()
        self.links |= {given[name] for name in ("src", "href") if name in given}
        self._tag, self._id = tag, given.get("id")
        if tag == "h2":
            self.headings.append((given.get("title"), ""))

    def handle_endtag(self, tag):
        self._tag = self._id = None

    def handle_data(self, data):
        if self._id:
            self.ids[self._id] = self.ids.get(self._id, "") + data
        if self._tag == "h2":
            title, text = self.headings.pop()
            self.headings.append((title, text + data))


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Loads a file in a headless Chromium and gives the DOM after its scripts."""
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium or google-chrome on the path, and CHROMIUM does not name one")
    profile = tmp_path_factory.mktemp("profile")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]

    def dom(path, state=""):
        address = path.as_uri() + state
        command = [browser, *flags, f"--user-data-dir={profile}", "--dump-dom", address]
        return Dom(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)

    return dom


@pytest.mark.slow
def test_in_a_browser(browse, tmp_path):
    rows = large_ledger()
    rows[:4] = [r | {"sku": (HOSTILE * 3)[:300], "prompt": HOSTILE, "category": HOSTILE, "row": -1} for r in rows[:4]]
    page_of(tmp_path, rows, FACTS | {"catalog": HOSTILE})
    page = tmp_path / "report.html"

    dom = browse(page)
    assert dom.ids["count"] == "2,500 products, 10,000 images"
    assert dom.ids["page"].startswith("Page 1 of ")
    assert not [name for name in dom.attributes if name.startswith("on") or name == "pwned"]
    title, text = dom.headings[0]
    assert title == rows[0]["sku"]
    assert text == rows[0]["sku"].replace("\n", "␊")
    pictures = dom.links - {"data:,", "#products"}
    assert len(pictures) > 24
    assert all(re.fullmatch(r"(images|products)/[0-9a-f]{32}\.(jpg|webp)", link) for link in pictures)

    dom = browse(page, "#status=failed&reason=not_an_image&q=SHOP-25&sort=worst")
    wanted = [r for r in rows if r["reason"] == "not_an_image" and "shop-25" in r["sku"].lower()]
    assert dom.ids["count"] == f"{len({r['sku'] for r in wanted})} products, {len(wanted)} images"
    assert dom.headings[0] == (wanted[0]["sku"], wanted[0]["sku"])

    page_of(tmp_path, rows, max_rows=100)
    dom = browse(page, "#q=nothing-like-it")
    assert dom.ids["notice"].startswith("This page shows 100 of 10,000 images: 10 of 9,000 done, 90 of 1,000 failed.")
    assert dom.ids["count"] == "0 products, 0 images"
