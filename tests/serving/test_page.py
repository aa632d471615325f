"""The endpoint's page in a real Chromium, against the real HTTP interface; only the model is replaced."""

import hashlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from local_service import PROJECT, LocalServer, QuickDenoiser, serving
from PIL import Image

from refadgen.provenance.record import read_record

axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright_sync = pytest.importorskip("playwright.sync_api")
expect = playwright_sync.expect
expect.set_options(timeout=20_000)

pytestmark = pytest.mark.slow
PHOTO = PROJECT / "catalogs" / "images" / "er-bottle.jpg"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
STEP_S = 0.05
STEPS = "sampling.num_inference_steps=8"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no chromium or google-chrome on the path, and CHROMIUM does not name one")
    with playwright_sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def quick() -> Iterator[LocalServer]:
    """A server that makes an image in 8 steps of 0.05 s."""
    with serving(STEPS, denoiser=QuickDenoiser(STEP_S)) as running:
        yield running


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a server's page. Afterwards the console is empty, and no request failed or went elsewhere, except `known`.

    known: patterns of what the test brings about itself.
    """
    contexts, troubles = [], []

    def opened(server: LocalServer, *, known: tuple[str, ...] = (), ready: bool = True) -> Any:
        context = browser.new_context(viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()

        def trouble(text: str) -> None:
            if not any(re.search(pattern, text) for pattern in known):
                troubles.append(text)

        def failed(request: Any) -> None:
            # Chromium reports this for streams that were read to their end too (microsoft/playwright#42742). The page
            # itself shows whether all events arrived.
            # A search for a mask is given up where another photograph or category is chosen.
            if not (request.url.endswith(("/v1/ads", "/v1/masks")) and request.failure == "net::ERR_ABORTED"):
                troubles.append(f"failed: {request.url} {request.failure}")

        def requested(request: Any) -> None:
            address = urlsplit(request.url)
            if address.scheme not in ("data", "blob") and address.netloc != urlsplit(server.url).netloc:
                troubles.append(f"elsewhere: {request.url}")

        page.on("console", lambda said: said.type in ("error", "warning") and trouble(f"console: {said.text}"))
        page.on("pageerror", lambda error: trouble(f"script: {error}"))
        page.on("requestfailed", failed)
        page.on("response", lambda answer: answer.status >= 400 and trouble(f"{answer.status}: {answer.url}"))
        page.on("request", requested)
        page.goto(server.url)
        if ready:
            expect(page.locator("#prompt")).to_have_value(re.compile("a product on"))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def choose_photo(page: Any, path: Path = PHOTO) -> None:
    page.set_input_files("input[name=image]", path)
    expect(page.locator("#photo-name")).to_have_text(path.name)


def wait_for_images(page: Any, count: int) -> None:
    expect(page.locator("#status")).to_contain_text(f"{count} of {count} image")


def card(page: Any, title: str) -> Any:
    """The newest card of this title."""
    return page.get_by_role("article", name=title, exact=True).first


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def downloaded(page: Any, title: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        card(page, title).get_by_role("link", name="Download").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_channel_is_chosen(visit, quick):
    page = visit(quick)
    choose_photo(page)
    page.fill("#prompt", "a bottle on grass")
    page.select_option("#channel", "pmax-landscape")
    page.fill("#num_variants", "1")
    page.click("#generate")
    wait_for_images(page, 1)
    name, data = downloaded(page, "Variant 1")
    assert name.endswith(".jpg")
    assert pixels(data).shape == (628, 1200, 3)
    card(page, "Variant 1").get_by_role("button", name="Copy curl").click()
    expect(page.locator("#status")).to_contain_text("copied")
    assert "-F channel=pmax-landscape" in page.evaluate("navigator.clipboard.readText()")


def test_variants_from_upload_to_curl(visit, quick, tmp_path):
    """Mask, previews, results, download; the copied command makes the same image, with any characters in it."""
    photo = tmp_path / """it's a bottle; "ER", 2.jpg"""
    shutil.copy(PHOTO, photo)
    prompt = """@a bottle at "Joe's"; 50% off $HOME `ls` \\ (new)"""
    page = visit(quick)
    choose_photo(page, photo)
    page.select_option("#category", "bottle")
    expect(page.locator("#prompt")).to_have_value(re.compile("a bottle on"))
    page.fill("#prompt", prompt)
    assert page.locator("#scene").input_value() == ""  # the prompt is the user's own now
    page.fill("#seed", "7")
    page.get_by_role("radio", name="bottom right").check()
    page.locator("#layout-size").fill("0.4")
    page.select_option("#format", "png")
    page.get_by_text("More settings").click()
    page.fill("#num_inference_steps", "40")  # long enough to see previews
    page.click("#generate")

    product = card(page, "Product as placed")
    product.get_by_role("img").wait_for()
    expect(product).to_contain_text("plain background")
    for title in ("Variant 1", "Variant 2"):
        card(page, title).get_by_alt_text(f"{title}, unfinished").wait_for()
    expect(card(page, "Variant 2").get_by_role("progressbar")).to_have_attribute("max", "40")
    wait_for_images(page, 2)
    expect(page.get_by_role("progressbar")).to_have_count(0)

    for title, seed in (("Variant 1", "7"), ("Variant 2", "8")):
        expect(card(page, title).locator("dl")).to_contain_text(re.compile(rf"Seed{seed}.*Colour0\.\d.*Attempts1"))
    name, data = downloaded(page, "Variant 2")
    assert name == "prompt-0-8.png"
    assert data.startswith(b"\x89PNG")

    card(page, "Variant 2").get_by_role("button", name="Copy curl").click()
    expect(page.locator("#status")).to_contain_text("copied")
    command = page.evaluate("navigator.clipboard.readText()")
    for part in ("-H 'Accept: image/png'", "-F category=bottle", "-F seed=8", "-F format=png", "-o prompt-0-8.png"):
        assert part in command
    assert """-F 'layout={"size":0.4,"anchor":"bottom-right"}'""" in command
    assert f"{quick.url}/v1/ads" in command
    assert not re.search("preview_every|num_variants|Authorization|margin|guidance", command)
    if shutil.which("curl"):
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, timeout=60, capture_output=True)
        made = (tmp_path / name).read_bytes()
        assert np.array_equal(pixels(made), pixels(data))
        assert read_record(made)["prompt"] == read_record(data)["prompt"] == prompt

    card(page, "Variant 2").get_by_role("button", name="Reuse seed").click()
    assert page.locator("#seed").input_value() == "8"


def test_as_photographed_takes_the_place_of_the_placing(visit, quick, tmp_path):
    wide = Image.new("RGB", (300, 200), "white")
    wide.paste((200, 30, 40), (180, 40, 270, 120))
    wide.save(tmp_path / "wide.png")
    page = visit(quick)
    choose_photo(page, tmp_path / "wide.png")
    page.locator("#layout-size").fill("0.4")
    page.get_by_label("As photographed").check()
    expect(page.locator("#placing")).to_be_hidden()
    page.fill("#num_variants", "1")
    page.click("#generate")
    wait_for_images(page, 1)
    made = pixels(downloaded(page, "Variant 1")[1])
    assert made.shape[1] / made.shape[0] == pytest.approx(1.5, abs=0.01)
    page.click("#layout-reset")
    expect(page.locator("#placing")).to_be_visible()
    expect(page.get_by_label("As photographed")).not_to_be_checked()


def test_seeds_keep_all_their_digits(visit, quick):
    """They have 63 bits, and the numbers of a page 53; one's own scene template is made again from cache."""
    page = visit(quick)
    choose_photo(page)
    page.select_option("#scene", index=3)
    page.fill("#num_variants", "1")
    page.click("#generate")
    wait_for_images(page, 1)
    _, data = downloaded(page, "Variant 1")
    record = read_record(data)
    assert record["seed"] > 2**53
    assert record["scene"] == page.locator("#scene").input_value()
    card(page, "Variant 1").get_by_role("button", name="Reuse seed").click()
    assert page.locator("#seed").input_value() == str(record["seed"])
    page.click("#generate")
    expect(card(page, "Variant 1")).to_contain_text("cached")
    expect(page.locator(".run")).to_have_count(2)


def test_comparing_fusion_scales(visit, quick):
    page = visit(quick)
    choose_photo(page)
    page.get_by_role("radio", name="Compare λ").check()
    expect(page.locator("#num_variants")).to_be_hidden()
    page.click("#generate")
    wait_for_images(page, 4)
    expect(page.locator(".run .card")).to_have_count(5)  # the placed product is beside them
    seeds = set()
    for value in (0, 0.5, 1, 1.5):
        _, data = downloaded(page, f"λ {value}")
        record = read_record(data)
        assert record["fusion_scale"] == value
        seeds.add(record["seed"])
    assert len(seeds) == 1

    page.fill("#values", "1, much")
    page.click("#generate")
    expect(page.locator("#values-problem")).to_contain_text("numbers from 0 to 10")
    expect(page.locator("#values")).to_be_focused()


def test_errors_stand_at_their_fields(visit, quick, tmp_path):
    page = visit(quick, known=("422",))  # of the search for a mask
    page.click("#generate")
    expect(page.locator("#image-problem")).to_contain_text("Choose a photograph")

    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    choose_photo(page, text)
    expect(page.locator("#image-problem")).to_be_empty()
    expect(page.locator("#mask-summary")).to_contain_text("No mask: image")
    expect(page.locator("#mask-card")).to_be_hidden()
    page.click("#generate")
    expect(page.locator("#alert")).to_contain_text("image")
    assert page.locator("#image-problem").inner_text() == page.locator("#alert").inner_text()
    expect(page.locator("input[name=image]")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".run")).to_have_count(0)

    choose_photo(page)
    page.fill("#prompt", "far too long")
    page.click("#generate")
    expect(page.locator("#prompt-problem")).to_contain_text("too long")
    expect(page.locator("#prompt")).to_be_focused()

    page.get_by_text("More settings").click()
    page.fill("#guidance_scale", "99")
    page.get_by_text("More settings").click()
    page.click("#generate")
    expect(page.locator("#guidance_scale")).to_be_focused()  # and its section is open again
    expect(page.locator("#guidance_scale-problem")).not_to_be_empty()


def test_refused_images_say_why(visit):
    with serving(STEPS, "quality.min_color_similarity=1", "quality.max_attempts=2", denoiser=QuickDenoiser()) as strict:
        page = visit(strict)
        choose_photo(page)
        page.fill("#num_variants", "1")
        page.click("#generate")
        expect(page.locator("#status")).to_contain_text("0 of 1 image made, 1 refused")
        refused = card(page, "Variant 1")
        expect(refused).to_contain_text("low_fidelity")
        expect(refused).to_contain_text("Attempts2")
        expect(refused.get_by_role("link")).to_have_count(0)


def test_busy_says_when_to_come_again(visit, quick):
    page = visit(quick, known=("429",))
    busy = '{"error": {"message": "the queue is full", "type": "rate_limit_error", "param": null, "code": "busy"}}'
    page.route("**/v1/ads", lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, body=busy))
    choose_photo(page)
    page.click("#generate")
    expect(page.locator("#alert")).to_have_text("the queue is full. Try again in 7 s.")


def test_dropped_and_pasted(visit, quick):
    page = visit(quick, known=("422",))  # the files are no pictures
    bring = """(kind, name) => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], name, {type: "image/png"}));
        const event = kind === "drop" ? new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})
                                      : new ClipboardEvent(kind, {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""
    for kind, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(f"([kind, name]) => ({bring})(kind, name)", [kind, name])
        expect(page.locator("#photo-name")).to_have_text(name)


def state(page: Any, text: str) -> None:
    """Waits until the mask's badge says `text`."""
    expect(page.locator("#mask-state")).to_have_text(text)


def saved_mask(page: Any) -> np.ndarray:
    """The mask at hand: uint8 H×W."""
    with page.expect_download() as download:
        page.locator("#mask-save").click()
    return np.asarray(Image.open(download.value.path()).convert("L"))


@pytest.fixture
def sent_masks(quick: LocalServer, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """Grows with the decided mask of each request for ads: uint8 H×W; None: the request has none."""
    masks: list[np.ndarray | None] = []
    real = quick.service.requested_images

    def look(fields: Any, given: Any) -> Any:
        assert given.decided == (given.mask is not None)
        masks.append(None if given.mask is None else np.asarray(Image.open(io.BytesIO(given.mask)).convert("L")))
        return real(fields, given)

    monkeypatch.setattr(quick.service, "requested_images", look)
    return masks


def generate_one(page: Any) -> None:
    page.fill("#num_variants", "1")
    with page.expect_response("**/v1/ads*"):  # the page still shows the images of the request before
        page.click("#generate")
    wait_for_images(page, 1)


def test_a_painted_correction_is_sent_as_the_mask(visit, quick, sent_masks):
    """By mouse: what is erased is missing in the mask that is sent, and in the product as placed."""
    page = visit(quick)
    choose_photo(page)
    state(page, "found")
    expect(page.locator("#mask-summary")).to_contain_text("plain background")
    before = saved_mask(page)
    generate_one(page)
    assert sent_masks == [None]  # the server finds the same one

    page.locator("#mask-erase").click()
    pane = page.locator("#mask-product-pane canvas").bounding_box()
    x, y = pane["x"] + 0.5 * pane["width"], pane["y"] + 0.6 * pane["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 0.2 * pane["height"], steps=4)
    page.mouse.up()
    state(page, "painted")
    erased = saved_mask(page)
    assert erased.shape == before.shape
    assert 0.001 < np.mean(before.astype(int) - erased > 127) < 0.2
    assert (erased <= before).all()
    generate_one(page)
    np.testing.assert_array_equal(sent_masks[1], erased)
    expect(card(page, "Product as placed")).to_contain_text("decided by a person")

    page.locator("#mask-undo").click()
    state(page, "found")
    np.testing.assert_array_equal(saved_mask(page), before)
    page.locator("#mask-paint").click()
    page.locator("#mask-product-pane canvas").click(position={"x": 20, "y": 20})
    assert saved_mask(page).mean() > before.mean()
    choose_photo(page, PHOTO.with_name("star-cup.jpg"))  # the correction belonged to the other photograph
    state(page, "found")
    generate_one(page)
    assert sent_masks[2] is None


def test_a_finger_paints_and_else_scrolls(browser, quick):
    context = browser.new_context(viewport=PHONE, has_touch=True)
    page = context.new_page()
    page.goto(quick.url)
    choose_photo(page)
    state(page, "found")
    canvas = page.locator("#mask-product-pane canvas")
    canvas.tap()
    state(page, "found")  # no tool is chosen
    page.locator("#mask-erase").tap()
    canvas.tap()
    state(page, "painted")
    context.close()


def test_a_mask_is_decided_by_keyboard_alone(visit, quick, sent_masks, tmp_path):
    """A doubtful mask is accepted as it is; flip, empty, take back, brush and arrows change it."""
    pieces = np.full((128, 96, 3), 255, np.uint8)
    for row in range(3):
        for column in range(3):
            pieces[10 + 40 * row : 30 + 40 * row, 8 + 30 * column : 24 + 30 * column] = (200, 30, 40)
    photo = tmp_path / "pieces.png"
    Image.fromarray(pieces).save(photo)
    page = visit(quick)
    choose_photo(page, photo)
    state(page, "doubtful")
    expect(page.locator("#mask-why")).to_contain_text("mask_in_pieces")
    expect(page.locator("#mask-summary")).to_contain_text("accept it or paint it")
    page.click("#generate")
    expect(page.locator("#alert")).to_contain_text("pieces")  # nobody decided
    page.locator("#mask-link").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#mask-card")).to_be_focused()
    page.keyboard.press("a")
    state(page, "accepted")
    generate_one(page)
    product = np.where((pieces == 255).all(axis=2), 0, 255)
    assert sent_masks[0] is None
    assert np.mean(np.abs(sent_masks[1].astype(int) - product) > 127) < 0.02

    page.locator("#mask-card").focus()
    page.keyboard.press("f")
    state(page, "painted")
    np.testing.assert_array_equal(saved_mask(page) > 127, sent_masks[1] <= 127)
    page.keyboard.press("u")
    state(page, "doubtful")
    page.locator("#mask-card").focus()
    page.keyboard.press("x")
    assert saved_mask(page).max() == 0
    page.keyboard.press("a")
    expect(page.locator("#mask-status")).to_contain_text("is empty")
    state(page, "painted")
    page.keyboard.press("p")
    expect(page.locator("#mask-product-pane")).to_be_focused()
    size = page.locator("#mask-size").inner_text()
    page.keyboard.press("]")
    assert page.locator("#mask-size").inner_text() != size
    page.keyboard.press("ArrowUp")
    assert saved_mask(page).max() == 0  # moved, not painted
    page.locator("#mask-product-pane").focus()
    page.keyboard.press("Space")
    spot = np.count_nonzero(saved_mask(page))
    assert spot > 0
    page.locator("#mask-product-pane").focus()
    page.keyboard.press("Shift+ArrowDown")
    assert np.count_nonzero(saved_mask(page)) > spot
    page.keyboard.press("c")
    state(page, "doubtful")
    page.locator("#prompt").focus()
    page.keyboard.type("a")  # letters elsewhere are letters
    state(page, "doubtful")


def test_by_keyboard_alone(visit, quick):
    page = visit(quick)
    keys = page.keyboard

    def tab_to(selector: str, key: str = "Tab") -> None:
        """Presses Tab until the element has the focus; on the way each focus must be visible."""
        target = page.locator(selector).first
        for _ in range(60):
            if target.evaluate("element => element === document.activeElement"):
                return
            keys.press(key)
            ring = page.evaluate("""() => {
                const around = [document.activeElement, document.activeElement.closest("label.drop")];
                return document.activeElement === document.body
                    || around.some(each => each && getComputedStyle(each).outlineStyle !== "none");
            }""")
            assert ring, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        pytest.fail(f"{selector} is not reached")

    page.on("filechooser", lambda chooser: None)  # registered now: a handler added at the key press may be too late
    tab_to("input[name=image]")
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files(PHOTO)
    tab_to("#category")
    keys.type("bott")
    expect(page.locator("#prompt")).to_have_value(re.compile("a bottle on"))
    before = page.locator("#prompt").input_value()
    tab_to("#scene")
    keys.press("ArrowDown")
    assert page.locator("#prompt").input_value() != before
    tab_to("input[name=mode]:checked")
    keys.press("ArrowRight")
    expect(page.locator("#values")).to_be_visible()
    keys.press("ArrowLeft")
    tab_to("#num_variants")
    keys.press("ArrowUp")
    tab_to("#seed")
    keys.type("3")
    tab_to("input[name=anchor]")
    keys.press("Space")
    keys.press("ArrowRight")
    expect(page.get_by_role("radio", name="top", exact=True)).to_be_checked()
    tab_to("#layout-size")
    keys.press("ArrowLeft")
    expect(page.locator("#layout-size-value")).to_have_text("0.59")
    tab_to(".more summary")
    keys.press("Space")
    tab_to("#num_inference_steps")
    keys.type("90")
    tab_to("#generate")
    keys.press("Enter")
    page.locator("#cancel").wait_for()
    tab_to("#cancel")
    keys.press("Space")
    expect(page.locator("#status")).to_contain_text("Cancelled")
    expect(page.locator("#results")).to_be_focused()
    expect(page.locator("#cancel")).to_be_hidden()

    tab_to("#num_inference_steps", "Shift+Tab")
    keys.press("Control+A")
    keys.type("4")
    keys.press("Enter")
    wait_for_images(page, 3)
    tab_to(".run a[download]")
    with page.expect_download() as download:
        keys.press("Enter")
    record = read_record(Path(download.value.path()).read_bytes())
    assert (record["seed"], record["num_inference_steps"]) == (3, 4)


def test_accessible_on_every_screen(visit, quick):
    """axe's rules with every section open, before and after images are made; no element is wider than the screen."""
    page = visit(quick)
    looks = [(size, scheme) for size in (DESKTOP, PHONE) for scheme in ("light", "dark")]

    def check(when: str) -> None:
        for size, scheme in looks:
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found = axe_sync.Axe().run(page)
            bad = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
            assert not bad, f"{when}, {size}, {scheme}: {found.generate_report()}"
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    page.click("#generate")  # with its message
    page.get_by_text("Access").click()
    check("before")
    choose_photo(page)
    page.locator("#mask-card").wait_for()
    page.locator("#mask-erase").click()
    page.keyboard.press("Space")
    check("painting")
    page.get_by_text("More settings").click()
    page.locator("#layout-size").fill("0.5")
    page.click("#generate")
    wait_for_images(page, 2)
    check("after")


def test_with_a_token(visit):
    token = "a word of the shop's"
    entry = f"shop:{hashlib.sha256(token.encode()).hexdigest()}"
    with serving(STEPS, f"access.tokens=[{entry}]", denoiser=QuickDenoiser()) as guarded:
        page = visit(guarded, known=("401",), ready=False)
        expect(page.locator("#token-problem")).to_contain_text("A token is needed")
        expect(page.locator("#token")).to_be_focused()
        choose_photo(page)
        expect(page.locator("#mask-summary")).to_contain_text("No mask")
        page.locator("#token").focus()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-problem")).to_contain_text("not one of access.tokens")
        assert page.locator("#alert").inner_text() == page.locator("#token-problem").inner_text()
        page.fill("#token", token)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text("mini@")
        expect(page.locator("#alert")).to_be_empty()
        state(page, "found")

        page.fill("#num_variants", "1")
        page.click("#generate")
        wait_for_images(page, 1)
        card(page, "Variant 1").get_by_role("button", name="Copy curl").click()
        expect(page.locator("#status")).to_contain_text("copied")
        command = page.evaluate("navigator.clipboard.readText()")
        assert '-H "Authorization: Bearer $REFADGEN_TOKEN"' in command
        assert token not in command

        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        expect(page.locator("#model")).to_contain_text("mini@")  # kept in the tab's session
