"""The review pages: which masks are on them, in which order, and what they hold."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubtful_masks import CATALOG, keep, ledger_of, ledger_row, photograph
from PIL import Image

from refadgen.generation import review
from refadgen.generation.doubtful import bounded_size, doubtful_product, read_doubtful
from refadgen.generation.review import ReviewPages, select_doubtful, write_review
from refadgen.segmentation.doubt import DoubtfulMask
from refadgen.storage.store import Storage

HOSTILE = '</script><script>document.title="pwned"</script>\u2028'


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def data_of(storage: Storage, key: str = "review.html") -> dict[str, Any]:
    page = storage.read(key).decode()
    return json.loads(page.split('id="data">', 1)[1].split("</script", 1)[0])


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def accepted(number: int, sku: str, score: float, **values: Any) -> dict[str, Any]:
    return ledger_row(number, sku, status="done", reason="", mask_score=score, **values)


def test_refused_masks_come_first_and_then_accepted_ones_of_low_scores(storage: Storage) -> None:
    rows = [
        accepted(1, "low", 0.8),
        accepted(2, "lower", 0.6),
        accepted(3, "good", 0.96),
        accepted(4, "decided", 0.5, mask_source="review"),
        ledger_row(5, "refused", mask_score=0.2),
        ledger_row(6, "nearly", mask_score=0.4),
        ledger_row(7, "nothing found", reason="no_plain_background", mask_source="", mask_score=None),
        ledger_row(8, "other fault", reason="image_not_found", mask_source="", mask_score=None),
        ledger_row(9, "by a person", reason="refused_by_review"),
        ledger_row(10, "low", reason="duplicate_sku", scene="", mask_source="", mask_score=None),
    ]
    latest = ledger_of(storage, rows).latest()
    assert select_doubtful(latest, 100, 0.95) == (["nearly", "refused", "nothing found", "lower", "low"], 5)
    assert select_doubtful(latest, 100, 0.7)[0][-1] == "lower"
    assert select_doubtful(latest.slice(0, 0), 100, 0.95) == ([], 0)


def test_the_last_row_of_a_product_counts(storage: Storage) -> None:
    rows = [ledger_row(1, "mended"), accepted(2, "mended", 0.99), accepted(3, "worse", 0.99), ledger_row(4, "worse")]
    assert select_doubtful(ledger_of(storage, rows).latest(), 100, 0.95) == (["worse"], 1)


def test_many_refused_masks_leave_room_for_accepted_ones(storage: Storage) -> None:
    rows = [ledger_row(n, f"r{n:02}") for n in range(40)] + [accepted(n, f"a{n}", n / 100) for n in range(50, 58)]
    chosen, total = select_doubtful(ledger_of(storage, rows).latest(), 20, 0.95)
    assert (len(chosen), total) == (20, 48)
    assert [sku for sku in chosen if sku.startswith("a")] == ["a50", "a51", "a52", "a53"]
    assert chosen[:2] == ["r00", "r01"]


def test_pages_of_fifty_hold_their_pictures_and_say_what_is_left_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MASKS_A_PAGE", 4)
    skus = [f"s{n}" for n in range(12)]
    for sku in skus[:10]:  # of two of them nothing was kept, as in outputs of earlier versions
        keep(storage, sku, score=None if sku == "s0" else 0.4)
    ledger = ledger_of(storage, [ledger_row(n, sku, mask_score=(20 - n) / 40) for n, sku in enumerate(skus)])
    pages = write_review(storage, ledger, CATALOG, 11, 0.95)
    assert pages == ReviewPages(masks=10, left_out=2, pages=3)
    assert "10 doubtful masks (2 more are left out)" in "".join(pages.lines("out"))
    assert [len(data_of(storage, key)["masks"]) for key in ("review.html", "review-2.html", "review-3.html")] == [
        4,
        4,
        2,
    ]
    data = data_of(storage, "review-2.html")
    assert (data["page"], data["keys"]) == (2, ["review.html", "review-2.html", "review-3.html"])
    assert (data["total"], data["left_out"], data["max_masks"], data["catalog"]) == (10, 2, 11, CATALOG)
    first, second = data_of(storage)["masks"][:2]
    assert (first["sku"], first["mask"], first["mask_score"]) == ("s0", "", None)
    assert (second["reason"], second["detail"]) == ("mask_low_score", "the mask's score is low")
    assert second["image"] == "https://shop.example/a.jpg"
    photo, mask = photograph()
    assert picture(second["photo"]).size == photo.size
    assert np.array_equal(np.asarray(picture(second["mask"])), mask)

    # Fewer pages next time: those of the last run would show what is decided already.
    assert write_review(storage, ledger, CATALOG, 3, 0.95).pages == 1
    assert not storage.exists("review-2.html")
    assert not storage.exists("review-3.html")
    assert write_review(storage, ledger, CATALOG, 0, 0.95) == ReviewPages()
    assert not storage.exists("review.html")


def test_without_doubts_the_page_says_so(storage: Storage) -> None:
    assert write_review(storage, ledger_of(storage, [accepted(1, "a", 1.0)]), CATALOG, 500, 0.95).masks == 0
    assert data_of(storage)["masks"] == []


def test_hostile_texts_stay_data(storage: Storage) -> None:
    keep(storage, HOSTILE)
    write_review(storage, ledger_of(storage, [ledger_row(1, HOSTILE)]), HOSTILE, 500, 0.95)
    page = storage.read("review.html").decode()
    assert page.count("<script") == 2
    assert (data_of(storage)["masks"][0]["sku"], data_of(storage)["catalog"]) == (HOSTILE, HOSTILE)
    assert "unsafe-inline" not in page


@pytest.mark.parametrize("size", [(60, 80), (2048, 100), (3000, 1000), (1000, 4001), (4096, 1)])
def test_pictures_are_bounded_and_keep_their_shape(size: tuple[int, int]) -> None:
    photo, mask = photograph(size)
    found = DoubtfulMask("mask_low_score", "", alpha=mask, source="alpha", score=0.5)
    values = {"sku": "s", "row": 0, "category": None, "image": "", "input_sha256": "", "reason": "", "detail": ""}
    kept = doubtful_product(found, photo, **values)
    assert (kept.photo_width_px, kept.photo_height_px) == size
    shown = Image.open(io.BytesIO(kept.photo)).size
    drawn = Image.open(io.BytesIO(kept.mask)).size
    assert max(shown) <= 768
    assert drawn == bounded_size(size)
    assert max(drawn) <= 2048
    assert drawn[0] / drawn[1] == pytest.approx(size[0] / size[1], rel=0.01) or 1 in drawn


def test_what_cannot_be_read_is_nothing(storage: Storage) -> None:
    keep(storage, "a")
    (key,) = storage.keys("review")
    assert read_doubtful(storage, "b") is None
    storage.write(key, b"PAR1 and nothing more")
    assert read_doubtful(storage, "a") is None


def test_a_mask_that_is_doubtful_no_more_is_not_shown(storage: Storage) -> None:
    keep(storage, "cleared")
    keep(storage, "doubtful")
    doubtful = [ledger_row(n, sku, mask_score=0.5) for n, sku in enumerate(["cleared", "doubtful"])]
    ledger_of(storage, doubtful)
    ledger = ledger_of(storage, [accepted(0, "cleared", 0.99)])
    assert write_review(storage, ledger, CATALOG, 10, 0.9).masks == 1
    assert [each["sku"] for each in data_of(storage)["masks"]] == ["doubtful"]
