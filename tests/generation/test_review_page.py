"""The review page in a real Chromium, opened as a file: ten decisions by mouse and keyboard, and what they do."""

import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubtful_masks import ledger_of, ledger_row
from PIL import Image
from test_stages import WORDS, planned

from refadgen.batch.rows import from_table, to_table
from refadgen.config import GenerateConfig, load_config
from refadgen.generation.decisions import DecidedMasks, Decisions, load_decisions
from refadgen.generation.doubtful import read_doubtful
from refadgen.generation.review import write_review
from refadgen.generation.rows import FetchedProduct, PlacedProduct, PlannedProduct
from refadgen.generation.stages import ProductFetcher, ProductSegmenter
from refadgen.storage.store import Storage

axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright_sync = pytest.importorskip("playwright.sync_api")
expect = playwright_sync.expect

pytestmark = pytest.mark.slow
IMAGES = Path(__file__).parents[2] / "catalogs" / "images"
CATALOG = "/shop/products.parquet"
PHOTOS = sorted(IMAGES.glob("*.jpg"))[:8]
SKUS = [f"{number:02}-{PHOTOS[number % len(PHOTOS)].stem}" for number in range(10)]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
DOUBTS = "segmentation.max_area=0.006"  # every product is larger than that


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no chromium or google-chrome on the path, and CHROMIUM does not name one")
    with playwright_sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


def fetched(config: GenerateConfig) -> list[FetchedProduct]:
    rows = [
        dataclasses.replace(planned(n), sku=sku, image_bytes=PHOTOS[n % len(PHOTOS)].read_bytes())
        for n, sku in enumerate(SKUS)
    ]
    return from_table(ProductFetcher(config, "r", "c.parquet")(to_table(rows, PlannedProduct)), FetchedProduct)


def segmented(config: GenerateConfig, rows: list[FetchedProduct], *arguments: Any) -> list[PlacedProduct]:
    table = ProductSegmenter(config, "r", *arguments)(to_table(rows, FetchedProduct))
    return from_table(table, PlacedProduct)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output in which all ten products were doubted, with its page."""
    folder = tmp_path_factory.mktemp("review")
    config = load_config(GenerateConfig, None, [*WORDS, DOUBTS])
    placed = segmented(config, fetched(config), str(folder))
    assert [row.error and row.error.reason for row in placed] == 10 * ["mask_area_too_large"]
    # Scores in the order of the skus, so that the page has them in this order.
    rows = [ledger_row(n, sku, reason="mask_area_too_large", mask_score=(10 - n) / 10) for n, sku in enumerate(SKUS)]
    write_review(Storage(str(folder)), ledger_of(Storage(str(folder)), rows), CATALOG, 500, 0.95)
    return folder


@pytest.fixture
def page(browser: Any, output: Path) -> Iterator[Any]:
    """The page as a person opens it, from the disk. Afterwards its console is empty, and it asked for nothing else."""
    context, troubles = browser.new_context(viewport={"width": 1280, "height": 900}), []
    page = context.new_page()
    page.on("console", lambda said: said.type in ("error", "warning") and troubles.append(said.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or troubles.append(asked.url))
    page.goto((output / "review.html").as_uri())
    expect(page.locator("#sku")).to_have_text(SKUS[0])
    yield page
    context.close()
    assert troubles == []


def at(page: Any, number: int) -> None:
    expect(page.locator("#sku")).to_have_text(SKUS[number])
    expect(page.locator("#place")).to_have_text(f"{number + 1} of 10")


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Draws a line over the product's picture, at shares of its width and height."""
    box = page.locator("#product").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def decide_by_mouse(page: Any) -> None:
    """The first five: accept, refuse, flip, paint, erase."""

    def button(name: str) -> Any:
        return page.locator(f"#{name}")

    page.fill("#by", "Ann")
    button("accept").click()
    at(page, 1)
    button("refuse").click()
    at(page, 2)
    button("flip").click()
    expect(page.locator("#state")).to_have_text("changed, not accepted yet")
    button("accept").click()
    at(page, 3)
    button("larger").click()
    button("paint").click()
    drag(page, (0.05, 0.05), (0.3, 0.05), (0.3, 0.1))
    expect(page.locator("#status")).to_have_text("Painted.")
    drag(page, (0.5, 0.05), (0.9, 0.05))
    button("undo").click()
    expect(page.locator("#status")).to_have_text("Undone.")
    button("accept").click()
    at(page, 4)
    button("erase").click()
    drag(page, (0.5, 0.3), (0.5, 0.99))
    button("accept").click()
    at(page, 5)


def decide_by_keyboard(page: Any) -> None:
    """The other five, without the mouse: refuse, accept, flip there and back, erase, paint."""
    keys = page.keyboard
    page.locator("#sku").focus()
    keys.press("e")  # off: it was on
    keys.press("r")
    at(page, 6)
    keys.press("r")  # by mistake
    at(page, 7)
    keys.press("b")
    at(page, 6)
    keys.press("c")
    expect(page.locator("#state")).to_have_text("not decided")
    keys.press("a")
    at(page, 7)
    keys.press("f")
    keys.press("Control+z")
    keys.press("a")
    at(page, 8)
    keys.press("e")
    expect(page.locator("#product-pane")).to_be_focused()
    for key in ("]", "]", "Space", "Shift+ArrowDown", "Shift+ArrowDown"):
        keys.press(key)
    keys.press("n")
    at(page, 9)
    expect(page.locator("#strip button").nth(8)).to_have_attribute(
        "aria-label", re.compile("changed, not accepted yet")
    )
    keys.press("b")
    at(page, 8)
    keys.press("a")
    at(page, 9)
    keys.press("p")
    for key in (*(20 * ["ArrowLeft"]), *(20 * ["ArrowUp"]), "Space"):
        keys.press(key)
    keys.press("a")


def test_ten_decisions_by_mouse_and_keyboard_are_used_by_the_next_run(page: Any, output: Path) -> None:
    decide_by_mouse(page)
    decide_by_keyboard(page)
    expect(page.locator("#status")).to_contain_text("All masks of this page are decided.")
    expect(page.locator("#progress")).to_have_text("10 of 10 decided on this page")
    page.reload()  # the browser keeps what was decided
    expect(page.locator("#progress")).to_have_text("10 of 10 decided on this page")
    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename == "decisions.json"
    file = str(output / "decisions.json")
    download.value.save_as(file)

    entries = {entry["sku"]: entry for entry in json.loads(Path(file).read_text())["decisions"]}
    kinds = ["accept", "refuse", "paint", "paint", "paint", "refuse", "accept", "accept", "paint", "paint"]
    assert [entries[sku]["decision"] for sku in SKUS] == kinds
    assert {entry["by"] for entry in entries.values()} == {"Ann"}
    decisions = load_decisions([file], CATALOG)
    check_masks(output, decisions)

    # The next run, its own verdict as strict as before.
    config = load_config(GenerateConfig, None, [*WORDS, DOUBTS, "segmentation.min_score=1"])
    digests = {sku: decision.digest for sku, decision in decisions.decided.items()}
    rows = [dataclasses.replace(row, decision=digests[row.sku]) for row in fetched(config) if digests[row.sku]]
    placed = segmented(config, rows, str(output), decisions.masks())
    assert [(row.error, row.mask_source, row.mask_score) for row in placed] == 8 * [(None, "review", 1.0)]


def check_masks(output: Path, decisions: Decisions) -> None:
    """Each decided mask, compared with the proposed one."""
    config = load_config(GenerateConfig, None, WORDS)
    masks = DecidedMasks(decisions.masks())
    for number, row in enumerate(fetched(config)):
        if not decisions.decided[row.sku].digest:
            continue
        with Image.open(IMAGES / PHOTOS[number % len(PHOTOS)].name) as photo:
            size = photo.size
        mask = masks.mask(row.sku, row.input_sha256, size).astype(int)
        proposed = proposal(output, row.sku).astype(int)
        painted, erased = mask > proposed, mask < proposed
        height, width = mask.shape
        if number in (0, 6, 7):
            assert np.array_equal(mask, proposed), "accepted as it was, to the last bit"
        elif number == 2:
            assert np.array_equal(mask, 255 - proposed)
        elif number in (3, 9):
            assert not erased.any()
            assert painted[: height // 5, : width // 2].sum() == painted.sum() > 50
            assert 0 < (mask[painted] < 255).mean() < 0.5, "its edge is smooth"
        else:
            assert not painted.any()
            assert erased.sum() > 50
            columns = np.flatnonzero(erased.any(axis=0))
            assert width * 0.4 < columns[0] < columns[-1] < width * 0.6


def proposal(output: Path, sku: str) -> np.ndarray:
    kept = read_doubtful(Storage(str(output)), sku)
    assert kept is not None
    return np.asarray(Image.open(io.BytesIO(kept.mask)))


def test_a_page_takes_a_file_of_decisions_and_forgets_them(page: Any, output: Path, tmp_path: Path) -> None:
    page.keyboard.press("r")
    at(page, 1)
    with page.expect_download() as download:
        page.click("#download")
    file = tmp_path / "decisions.json"
    download.value.save_as(file)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator("#status")).to_have_text("All decisions are forgotten.")
    expect(page.locator("#progress")).to_contain_text("0 of 10")
    page.set_input_files("#load", file)
    expect(page.locator("#status")).to_have_text("1 decisions loaded.")
    expect(page.locator("#progress")).to_contain_text("1 of 10")
    file.write_text(file.read_text().replace(CATALOG, "/other.parquet"))
    page.set_input_files("#load", file)
    expect(page.locator("#status")).to_contain_text("decides about another catalogue, /other.parquet")


def test_an_empty_mask_is_not_accepted(page: Any) -> None:
    page.evaluate("maskPen.clearRect(0, 0, maskCanvas.width, maskCanvas.height)")
    page.keyboard.press("a")
    expect(page.locator("#status")).to_contain_text("There is no product in this mask")
    at(page, 0)


def test_a_browser_that_keeps_nothing_says_so(browser: Any, output: Path) -> None:
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'indexedDB', {get() { throw new Error('forbidden'); }})")
    page = context.new_page()
    page.goto((output / "review.html").as_uri())
    expect(page.locator("#unkept")).to_contain_text("does not keep decisions")
    page.keyboard.press("a")
    expect(page.locator("#progress")).to_contain_text("1 of 10")
    context.close()


def test_accessible_on_every_screen(page: Any) -> None:
    page.keyboard.press("a")
    page.keyboard.press("f")
    page.keyboard.press("p")
    page.get_by_text("Keys", exact=True).click()
    for size in ({"width": 1280, "height": 900}, {"width": 390, "height": 844}):
        for scheme in ("light", "dark"):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            found = axe_sync.Axe().run(page)
            bad = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
            assert not bad, f"{size}, {scheme}: {found.generate_report()}"
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
