"""The study's page in a real Chromium: a whole J2b and a whole G2R session by keyboard, and one on a phone."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from runs_to_compare import make_run
from test_study import METHODS, config, photographs

from refadgen.config.serve import AccessConfig
from refadgen.evaluation.study.answers import AnswerBook, rater_id, read_raters
from refadgen.evaluation.study.app import StudyService, make_app
from refadgen.evaluation.study.pictures import BlindPictures
from refadgen.evaluation.study.plan import Study, open_study, order_of, shown_to
from refadgen.evaluation.study.table import write_table
from refadgen.storage.store import Storage

axe_sync = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright_sync = pytest.importorskip("playwright.sync_api")
expect = playwright_sync.expect

pytestmark = pytest.mark.slow
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


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
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Study]:
    folder = tmp_path_factory.mktemp("study")
    runs = [f"{name}={make_run(folder / name, shade=1 - 0.3 * place)}" for place, name in enumerate(METHODS)]
    real = photographs(folder / "photographs", 4 * [(64, 80)])
    storage = Storage(str(folder / "out"))
    return storage, open_study(config("j2b.questions=4", "g2r.images=1"), storage, runs, ["j2b", "g2r"], real)


@contextlib.contextmanager
def serving(asked: tuple[Storage, Study], access: AccessConfig | None = None) -> Iterator[str]:
    storage, study = asked
    app = make_app(StudyService(study, AnswerBook(storage), BlindPictures(study)), access or AccessConfig())
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, *, phone: bool = False) -> Iterator[Any]:
    """The page. Afterwards its console is empty, no request went elsewhere, and no answer named a method."""
    context = browser.new_context(viewport=PHONE if phone else DESKTOP, has_touch=phone, is_mobile=phone)
    page, troubles, answers = context.new_page(), [], []
    page.on("console", lambda said: said.type in ("error", "warning") and troubles.append(said.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda to: to.url.startswith((url.partition("#")[0], "blob:", "data:")) or troubles.append(to))
    page.on("response", lambda answer: answers.append(answer))
    page.goto(url)
    yield page
    names = [f'"{name}"' for name in (*METHODS, "real")]
    for answer in answers:
        said = answer.url + json.dumps(answer.all_headers())
        said += "" if answer.url.startswith("blob:") or "/pictures/" in answer.url else answer.text()
        assert not any(name in said for name in names) or answer.url.rstrip("/") == url.partition("#")[0], said
    context.close()
    assert troubles == []


def enter(page: Any, name: str) -> None:
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")


def at(page: Any, number: int, total: int) -> None:
    expect(page.locator("#place")).to_have_text(f"{number} of {total}")
    expect(page.locator("#asking")).to_have_attribute("aria-busy", "false")


def test_whole_sessions_by_keyboard_give_what_was_chosen(browser: Any, asked: tuple[Storage, Study]) -> None:
    storage, study = asked
    ann = rater_id("Ann")
    with serving(asked) as url, opened(browser, url) as page:
        enter(page, "Ann")
        expect(page.locator("#protocols .main")).to_have_count(2)
        page.keyboard.press("Enter")
        # J2b: always the picture of the first method, wherever it stands; by number and by arrows in turn.
        for number, question in enumerate(order_of(study, "j2b", ann), 1):
            at(page, number, 4)
            place = [picture.method for picture in shown_to(study, question, ann)].index("ours") + 1
            if number % 2:
                page.keyboard.press(str(place))
            else:
                for _ in range(place - 1):
                    page.keyboard.press("ArrowRight")
                page.keyboard.press("Enter")
        expect(page.locator("#thanks")).to_have_text("Thank you, this part is done")
        page.keyboard.press("Enter")  # on with the other part
        # G2R: only real ads are called real; the first answer is a slip, and taken back.
        order = order_of(study, "g2r", ann)
        at(page, 1, len(order))
        page.keyboard.press("ArrowRight" if order[0].pictures[0].method == "real" else "ArrowLeft")
        at(page, 2, len(order))
        page.keyboard.press("b")
        at(page, 1, len(order))
        for number, question in enumerate(order, 1):
            at(page, number, len(order))
            page.keyboard.press("ArrowLeft" if question.pictures[0].method == "real" else "ArrowRight")
        expect(page.locator("#count")).to_contain_text(f"{len(order)} of {len(order)} questions are answered")
        expect(page.locator("#thanks")).to_have_text("Thank you, that is all")
        expect(page.locator("#more")).to_be_hidden()
    text = write_table(storage)
    assert (
        "| J2b: chosen as the best | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] |  | 33.3 | 1 (1) | 4 | – |"
        in text
    )
    assert (
        "| G2R: taken for real | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] | 50.0 |"
        in text
    )


def test_on_a_phone_a_rater_leaves_half_way_and_comes_back(browser: Any, asked: tuple[Storage, Study]) -> None:
    with serving(asked) as url, opened(browser, url, phone=True) as page:
        enter(page, "Ben")
        page.locator("#protocols button").first.tap()
        at(page, 1, 4)
        page.get_by_label("Picture 2 larger").tap()
        page.get_by_label("Next picture").tap()
        expect(page.locator("#large-choose")).to_have_text("Choose 3")
        page.locator("#large-choose").tap()
        at(page, 2, 4)
        page.get_by_label("Choose picture 1").tap()
        at(page, 3, 4)
    with serving(asked) as url, opened(browser, url, phone=True) as page:  # another server, another day
        enter(page, "ben")
        expect(page.locator("#hello")).to_have_text("Welcome back, Ben")
        page.locator("#protocols button").first.tap()
        at(page, 3, 4)
        page.locator("#back").tap()
        at(page, 2, 4)
        expect(page.get_by_label("Choose picture 1")).to_have_attribute("aria-pressed", "true")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    (ben,) = (rater for rater in read_raters(asked[0]) if rater.name == "Ben")
    assert sorted(answer.place for answer in ben.answers.values()) == [1, 3]


def test_accessible_on_every_screen(browser: Any, asked: tuple[Storage, Study]) -> None:
    with serving(asked) as url, opened(browser, url) as page:
        enter(page, "Cy")
        page.locator("#protocols button").first.click()
        at(page, 1, 4)
        for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            found = axe_sync.Axe().run(page)
            bad = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
            assert not bad, f"{size}, {scheme}: {found.generate_report()}"
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_an_answer_that_is_not_kept_says_so_and_stays(browser: Any, asked: tuple[Storage, Study]) -> None:
    with serving(asked) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        enter(page, "Di")
        page.locator("#protocols button").first.click()
        at(page, 1, 4)
        page.route("**/answers", lambda route: route.abort())
        page.keyboard.press("1")
        expect(page.locator("#problem")).to_contain_text("Your answer was not kept: the server does not answer")
        at(page, 1, 4)
        page.unroute("**/answers")
        page.keyboard.press("1")
        at(page, 2, 4)
        context.close()


def status(url: str, data: dict | None = None, **headers: str) -> int:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def test_only_this_machine_or_who_has_the_link_is_let_in(browser: Any, asked: tuple[Storage, Study]) -> None:
    ann = rater_id("Ann")
    with serving(asked) as url:
        assert status(f"{url}/raters", {"name": "Ann"}) == 200
        assert status(f"{url}/raters", {"name": "Ann"}, Origin="https://shop.example") == 403
        assert status(f"{url}/raters", {"name": "Ann"}, Host="shop.example") == 403
        assert status(f"{url}/raters", {"name": " "}) == 422
        assert status(f"{url}/raters", {"name": "x" * 5000}) == 413
        assert status(f"{url}/questions/{ann}/j2b/5") == 404
        assert status(f"{url}/questions/..%2f..%2fx/j2b/1") == 404
        assert status(f"{url}/pictures/{ann}/j2b/1/4") == 404
        given = {"rater": ann, "protocol": "j2b", "number": 1}
        assert status(f"{url}/answers", {**given, "choice": 4}) == 422
        assert status(f"{url}/answers", {**given, "choice": 0}) == 422
    key = "a key"
    access = AccessConfig(tokens=(f"study:{hashlib.sha256(key.encode()).hexdigest()}",))
    with serving(asked, access) as url:
        assert status(f"{url}/raters", {"name": "Ann"}) == 401
        assert status(f"{url}/pictures/{ann}/j2b/1/1") == 401
        assert status(f"{url}/pictures/{ann}/j2b/1/1", Authorization=f"Bearer {key}") == 200
        with opened(browser, f"{url}#a%20key") as page:
            enter(page, "Ed")
            page.locator("#protocols button").first.click()
            at(page, 1, 4)
