"""The parts of a large report in a real Chromium, opened as files: found by sku, leafed through, filtered, missing."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, page_of, row, trouble

from refadgen.storage.store import Storage

axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright_sync = pytest.importorskip("playwright.sync_api")
expect = playwright_sync.expect

pytestmark = pytest.mark.slow
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no chromium or google-chrome on the path, and CHROMIUM does not name one")
    with playwright_sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """400 images of 100 products in ten parts, of which the page itself holds 100; four failed, in the last part."""
    monkeypatch.setattr("refadgen.generation.report_parts.PART_ROWS", 40)
    rows = [row(n, row=n // 4, sku=f"{'sS'[n // 4 % 2]}ku-{n // 4:03}", variant=n % 4) for n in range(400)]
    # Beyond the characters that two bytes hold JavaScript's order of texts is another than the parts'.
    rows[:4] = [trouble(n, "image_timeout", "failed") | {"sku": "\U0001f9f4-last", "row": 0} for n in range(4)]
    rows[4:8] = [each | {"sku": "\ufffd-before-last" + HOSTILE} for each in rows[4:8]]
    page_of(tmp_path, rows, max_rows=100)
    return tmp_path


def find(page: Any, sku: str, part: str, count: str) -> None:
    page.locator("#sku").fill(sku)
    page.locator("#sku").press("Enter")
    expect(page.locator("#part")).to_contain_text(f"Part {part} of 10: 40 images")
    expect(page.locator("#count")).to_have_text(count)


def test_all_images_are_found_from_the_disk(browser: Any, output: Path) -> None:
    context, troubles = browser.new_context(viewport={"width": 390, "height": 844}), []
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or troubles.append(asked.url))
    page.goto((output / "report.html").as_uri())
    expect(page.locator("#notice")).to_contain_text("This page shows 100 of 400 images: 96 of 396 done, 4 of 4 failed")
    expect(page.locator("#part")).to_be_empty()
    expect(page.locator("#part-none")).to_be_hidden()
    part, following, before = page.locator("#part"), page.locator("#part-next"), page.locator("#part-previous")

    following.click()
    expect(part).to_have_text("Part 1 of 10: 40 images, sku sku-002 to Sku-011")
    expect(page.locator("#count")).to_have_text("10 products, 40 images")
    expect(page.locator("h2").first).to_have_text("sku-002")
    expect(before).to_be_disabled()
    following.click()
    expect(part).to_have_text("Part 2 of 10: 40 images, sku sku-012 to Sku-021")
    before.click()
    expect(part).to_contain_text("Part 1 of 10")

    # In the middle of a part, in another case; of several products; the first of a part; none; an emoji.
    find(page, "SKU-095", "10", "1 product, 4 images")
    find(page, "Sku-01", "1", "2 products, 8 images")
    following.click()
    expect(page.locator("#count")).to_have_text("8 products, 32 images")
    expect(following).to_be_disabled()
    find(page, "sku-012", "2", "1 product, 4 images")
    find(page, "sku-05x", "6", "0 products, 0 images")
    expect(page.locator("#list")).to_contain_text("No sku begins with “sku-05x”.")
    find(page, "\U0001f9f4-", "10", "1 product, 4 images")
    find(page, "\ufffd-before", "10", "1 product, 4 images")
    assert page.locator("h2").first.get_attribute("title") == "\ufffd-before-last" + HOSTILE

    # Parts without a chosen reason are passed over, and an address brings its part back.
    find(page, "sku-012", "2", "1 product, 4 images")
    page.locator("#clear").click()
    page.locator("#reasons button", has_text="image_timeout").click()
    expect(page.locator("#count")).to_have_text("0 products, 0 images")
    page.locator("#part-none").click()
    expect(page.locator("#count")).to_have_text("1 product, 4 images")
    following.click()
    expect(part).to_contain_text("Part 10 of 10")
    expect(following).to_be_disabled()
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(part).to_contain_text("Part 10 of 10")
    expect(page.locator("#count")).to_have_text("1 product, 4 images")
    found = axe_sync.Axe().run(page)
    bad = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    assert not bad, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    (output / next(Storage(str(output)).keys("report", "/3.js"))).unlink()
    page.goto((output / "report.html").as_uri() + "#part=3")
    expect(part).to_contain_text("Part 3 could not be loaded: report/")
    context.close()
    assert troubles == []
