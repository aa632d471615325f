"""Decisions files: what is refused by name, and what a decision does to plan, stage and ledger."""

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doubtful_masks import CATALOG, document, entry, ledger_of, ledger_row, photograph
from PIL import Image

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.catalog.scan import scan_catalog, unknown_skus
from refadgen.config import GenerateConfig, load_config
from refadgen.generation.decisions import DecidedMasks, Decisions, load_decisions, overrule, reopened
from refadgen.generation.doubtful import read_doubtful
from refadgen.generation.job import CatalogJob
from refadgen.generation.planning import CatalogPlanner
from refadgen.generation.rows import FetchedProduct, PlacedProduct, PlannedProduct
from refadgen.generation.stages import ProductSegmenter
from refadgen.generation.wanted import pixel_settings
from refadgen.segmentation import Segmentation
from refadgen.segmentation.triage import measure
from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage

NOTHING = np.array([], dtype=np.uint64)
DEMO = Path(__file__).parents[2] / "catalogs" / "demo.parquet"


def written(folder: Path, content: Any, name: str = "decisions.json") -> str:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(file)


def loaded(folder: Path, *entries: dict[str, Any]) -> Decisions:
    return load_decisions([written(folder, document(*entries))], CATALOG)


def png(image: Image.Image, format: str = "PNG") -> str:
    sink = io.BytesIO()
    image.save(sink, format)
    return base64.b64encode(sink.getvalue()).decode()


def truncated(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)[:-20]).decode()


def damaged(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 0xFF
    return base64.b64encode(bytes(data)).decode()


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda good: b"no JSON", "not JSON"),
    (lambda good: b"\xff\xfe", "not JSON"),
    (lambda good: [good], "not a decisions file"),
    (lambda good: good | {"format": "other"}, "not a decisions file"),
    (lambda good: good | {"version": 2}, "version 2 of the format; this job reads version 1"),
    (lambda good: good | {"catalog": "/other.parquet"}, "decides about the catalogue '/other.parquet', this run's is"),
    (lambda good: good | {"decisions": {}}, "`decisions` must be a list"),
    (lambda good: document({"sku": 3}), "decision 0: has no sku"),
    (lambda good: document("x"), "decision 0: has no sku"),  # type: ignore[arg-type]
    (lambda good: document(entry("a", "maybe")), r"decision 0 \(sku 'a'\): decision is 'maybe'"),
    (lambda good: document(entry("a"), entry("b", by=3)), r"decision 1 \(sku 'b'\): by is 3"),
    (lambda good: document(entry("a", photo_width_px=None)), "photo_width_px × photo_height_px is None × 80"),
    (lambda good: document(entry("a", photo_height_px=90)), "mask is 60×80 px, the photograph 60×90"),
    (lambda good: document(entry("a", mask_width_px=80, mask_height_px=60)), "mask is 80×60 px, the photograph 60×80"),
    (lambda good: document(entry("a", mask_width_px=True)), "mask_width_px × mask_height_px is True"),
    (lambda good: document(entry("a", mask_png=png(Image.new("L", (61, 80))))), "61×80 px, but the file says 60×80"),
    (lambda good: document(entry("a", mask_png=png(Image.new("L", (60, 80)), "JPEG"))), "no whole PNG"),
    (lambda good: document(entry("a", mask_png="***")), "no whole PNG in base64"),
    (lambda good: document(entry("a", mask_png=None)), "no whole PNG in base64"),
    (lambda good: document(entry("a", mask_png=truncated(entry("a")["mask_png"]))), "no whole PNG"),
    (lambda good: document(entry("a", mask_png=damaged(entry("a")["mask_png"]))), "no whole PNG"),
    (lambda good: document(entry("a", mask_png=png(Image.new("I;16", (60, 80))))), "has the mode I;16"),
    (lambda good: document(entry("a"), entry("a", "refuse")), "sku 'a' has two different decisions"),
    (lambda good: document(entry("a"), entry("a", input_sha256="b" * 64)), "sku 'a' has two different decisions"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, change(document(entry("a"))))
    with pytest.raises(ValueError, match=message) as caught:
        load_decisions([file], CATALOG)
    assert str(caught.value).startswith(f"--review {file}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--review .*nowhere\.json: cannot be read: FileNotFoundError"):
        load_decisions([str(tmp_path / "nowhere.json")], CATALOG)


def test_several_files_are_one_set_of_decisions(tmp_path: Path) -> None:
    """The same decision twice is one; other files of the same review may hold others."""
    first = written(tmp_path, document(entry("a"), entry("b", "refuse")))
    second = written(tmp_path, document(entry("a", "paint"), entry("c", "paint", size=(3000, 1000))), "2.json")
    decided = load_decisions([first, second], CATALOG)
    assert len(decided) == 3
    assert [decided.decided[sku].digest[:7] for sku in "abc"] == ["sha256:", "", "sha256:"]
    assert decided.masks()["sku"].to_pylist() == ["a", "c"]


def test_a_job_names_skus_that_the_catalogue_does_not_have(tmp_path: Path) -> None:
    file = written(tmp_path, document(entry("star-cup"), entry("nobody's"), catalog=str(DEMO)))
    with pytest.raises(ValueError, match=r"--review: the catalogue has no sku \"nobody's\" \(2 such"):
        CatalogJob(load_config(GenerateConfig), str(DEMO), str(tmp_path / "out"), review=[file])
    assert not (tmp_path / "out").exists()


def test_skus_are_known_as_rows_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sku": [7, 8, 9], "image": ["a.png"] * 3}), tmp_path / "c.parquet", row_group_size=2)
    scan = scan_catalog(str(tmp_path / "c.parquet"))
    assert unknown_skus(scan, {"7", "9", "10", "07"}) == ["07", "10"]
    assert unknown_skus(scan, {"7"}) == unknown_skus(scan, set()) == []


# What a decision does.


def plans(folder: Path, decisions: Decisions) -> dict[str, PlannedProduct]:
    rows = {"sku": ["a", "b", "c"], "image": ["a.png"] * 3, "mask": ["m.png", None, None]}
    pq.write_table(pa.table(rows), folder / "c.parquet")
    config = GenerateConfig()
    planner = CatalogPlanner(
        config=config,
        settings=pixel_settings(config, "f" * 16),
        first_rows={},
        reconciled=NOTHING,
        decided=decisions.decided,
    )
    (fragment,) = scan_catalog(str(folder / "c.parquet")).fragments
    return {plan.sku: plan for plan in from_table(planner(fragment)[0], PlannedProduct)}


def ids(plan: PlannedProduct) -> set[str]:
    return {image.image_id for image in plan.wanted}


def test_the_mask_of_a_decision_is_part_of_the_ids(tmp_path: Path) -> None:
    before = plans(tmp_path, Decisions())
    after = plans(tmp_path, loaded(tmp_path, entry("a"), entry("b", "refuse")))
    assert not ids(after["a"]) & ids(before["a"])  # the row's own mask is not used any more
    assert [image.seed for image in after["a"].wanted] == [image.seed for image in before["a"].wanted]
    assert (after["a"].error, after["a"].decision[:7]) == (None, "sha256:")
    assert ids(after["b"]) == ids(before["b"])
    assert after["b"].error is not None
    assert (after["b"].error.status, after["b"].error.reason) == ("rejected", "refused_by_review")
    assert "refused the product's mask by Ann on 2026-03-02" in after["b"].error.detail
    assert after["c"] == before["c"]
    blank = png(Image.new("L", (60, 80), 255))
    assert not ids(plans(tmp_path, loaded(tmp_path, entry("a", "paint", mask_png=blank)))["a"]) & ids(after["a"])


def segmenter(output: Path, decisions: Decisions, *settings: str) -> ProductSegmenter:
    words = ["sampling.width_px=64", "sampling.height_px=64", *settings]
    return ProductSegmenter(load_config(GenerateConfig, None, words), "r", str(output), decisions.masks())


def segmented(stage: ProductSegmenter, photo: Image.Image, decision: str = "", sha: str = "a" * 64) -> PlacedProduct:
    row = FetchedProduct(
        row=0,
        sku="a",
        category=None,
        image="",
        negative_prompt=None,
        wanted=(),
        decision=decision,
        error=None,
        photo=encode_png(photo),
        own_mask=b"",
        input_sha256=sha,
        layout=GenerateConfig().layout,
        fetch_s=0.0,
    )
    return from_table(stage(to_table([row], FetchedProduct)), PlacedProduct)[0]


DOUBT = "segmentation.max_area=0.1"  # the box covers 0.25


def test_a_doubted_mask_is_kept_for_the_review_and_a_decided_one_is_used(tmp_path: Path) -> None:
    photo, mask = photograph()
    refused = segmented(segmenter(tmp_path, Decisions(), DOUBT), photo)
    assert refused.error is not None
    assert (refused.error.reason, refused.mask_source) == ("mask_area_too_large", "plain_background")
    kept = read_doubtful(Storage(str(tmp_path)), "a")
    assert kept is not None
    assert kept.mask_score == refused.mask_score is not None
    assert "segmentation.max_area" in kept.detail
    proposed = np.asarray(Image.open(io.BytesIO(kept.mask)))
    assert ((proposed > 127) == (mask > 127)).mean() > 0.99

    decisions = loaded(tmp_path, entry("a"))
    (digest,) = {each.digest for each in decisions.decided.values()}
    used = segmented(segmenter(tmp_path, decisions, DOUBT, "segmentation.min_score=1"), photo, digest)
    assert (used.error, used.mask_source, used.mask_score, used.decision) == (None, "review", 1.0, digest)
    assert used.mask_area == pytest.approx(0.25)


def test_a_scene_without_a_proposal_is_kept_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    stage = segmenter(tmp_path, Decisions(), "segmentation.second_opinion=false")
    assert segmented(stage, Image.fromarray(noise)).error is not None
    kept = read_doubtful(Storage(str(tmp_path)), "a")
    assert kept is not None
    assert (kept.reason, kept.mask, kept.mask_score) == ("no_plain_background", b"", None)


@pytest.mark.parametrize(("below", "is_kept"), [("0.71", True), ("0.69", False)])
def test_an_accepted_mask_of_a_low_score_is_kept(
    below: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = segmenter(tmp_path, Decisions(), f"review.accepted_below={below}")
    photo, mask = photograph()
    found = Segmentation(mask, mask, "plain_background", 0.7, measure(mask, 0.02))
    monkeypatch.setattr(stage._masker, "segment", lambda *arguments: found)
    placed = segmented(stage, photo)
    assert placed.error is None
    kept = read_doubtful(Storage(str(tmp_path)), "a")
    assert (kept is not None) == is_kept
    if kept is not None:
        assert (kept.reason, kept.mask_score) == ("", pytest.approx(0.7))


def test_nothing_is_kept_without_pages(tmp_path: Path) -> None:
    segmented(segmenter(tmp_path, Decisions(), DOUBT, "review.max_masks=0"), photograph()[0])
    assert list(tmp_path.iterdir()) == []


def test_storage_that_fails_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "review").touch()  # a file where the folder should be
    found = segmented(segmenter(tmp_path, Decisions(), DOUBT), photograph()[0])
    assert found.error is not None
    assert found.error.reason == "mask_area_too_large"
    assert "ProductSegmenter failed" in caplog.text


@pytest.mark.parametrize(
    ("size", "sha", "reason"),
    [((60, 80), "b" * 64, "decision_of_another_photo"), ((80, 60), "a" * 64, "mask_size_mismatch")],
)
def test_a_decision_about_another_photograph_costs_its_row(
    size: tuple[int, int], sha: str, reason: str, tmp_path: Path
) -> None:
    decisions = loaded(tmp_path, entry("a"))
    found = segmented(segmenter(tmp_path, decisions), photograph(size)[0], decisions.decided["a"].digest, sha)
    assert found.error is not None
    assert (found.error.status, found.error.reason) == ("rejected", reason)


def test_an_empty_decided_mask_costs_its_row(tmp_path: Path) -> None:
    decisions = loaded(tmp_path, entry("a", "paint", mask_png=png(Image.new("RGBA", (60, 80), (0, 0, 0, 255)))))
    found = segmented(segmenter(tmp_path, decisions), photograph()[0], decisions.decided["a"].digest)
    assert found.error is not None
    assert found.error.reason == "empty_mask"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_soft_edges_come_through(mode: str, tmp_path: Path) -> None:
    """A page writes what it painted as equal red, green and blue; an accepted mask stays grey."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8) * 4, (80, 60))
    painted = png(Image.fromarray(ramp).convert(mode))
    masks = DecidedMasks(loaded(tmp_path, entry("a", "paint", mask_png=painted)).masks())
    assert np.array_equal(masks.mask("a", "a" * 64, (60, 80)), ramp)


# The ledger.


def reasons(ledger: Any) -> dict[str, str]:
    return {row["image_id"][:16].lstrip("0"): row["reason"] for row in ledger.latest().to_pylist()}


def test_images_of_another_mask_do_not_stay_done(tmp_path: Path) -> None:
    decisions = loaded(tmp_path, entry("a"), entry("b", "refuse"))
    digest = decisions.decided["a"].digest
    done = {"status": "done", "reason": "", "uri": "images/x.jpg"}
    rows = [
        ledger_row(1, "a", **done),
        ledger_row(2, "a"),
        ledger_row(3, "a", **done, decision=digest),
        ledger_row(4, "b", **done),
        ledger_row(5, "c", **done),
        ledger_row(6, "a", reason="duplicate_sku", scene=""),
        ledger_row(7, "b", **done, decision="sha256:" + hashlib.sha256(b"earlier").hexdigest()),
    ]
    ledger = ledger_of(Storage(str(tmp_path)), rows)
    assert overrule(ledger, decisions.decided, "r2") == 4
    assert reasons(ledger) == {
        **{"1": "replaced_by_review", "2": "replaced_by_review", "3": "", "4": "refused_by_review", "5": ""},
        **{"6": "duplicate_sku", "7": "refused_by_review"},
    }
    marked = ledger.latest().to_pylist()[0]
    assert (marked["status"], marked["uri"], marked["run_id"], marked["sku"]) == ("rejected", "", "r2", "a")
    assert overrule(ledger, decisions.decided, "r3") == 0  # once is enough
    assert overrule(ledger, {}, "r3") == 0
    # Neither is made again, as long as nobody decides otherwise.
    assert len(ledger.reconciled(retry_failed=True)) == 7
    assert len(reopened(ledger, decisions.decided)) == 0


def test_a_mask_that_is_accepted_again_opens_its_images_again(tmp_path: Path) -> None:
    accepted, refused = loaded(tmp_path, entry("a")), loaded(tmp_path, entry("a", "refuse"))
    done = {"status": "done", "reason": "", "decision": accepted.decided["a"].digest}
    ledger = ledger_of(Storage(str(tmp_path)), [ledger_row(1, "a", **done), ledger_row(2, "a")])
    assert overrule(ledger, refused.decided, "r2") == 2
    assert reopened(ledger, accepted.decided).tolist() == [1]
    assert reopened(ledger, {}).tolist() == []


def test_a_ledger_of_an_earlier_version_has_no_decisions(tmp_path: Path) -> None:
    decisions = loaded(tmp_path, entry("a"))
    ledger = ledger_of(Storage(str(tmp_path)), [ledger_row(1, "a", decision=None)])
    assert overrule(ledger, decisions.decided, "r2") == 1
    assert to_png(photograph()[1], compress_level=1) == decisions.masks()["mask"][0].as_py()
    assert dataclasses.is_dataclass(ledger.row_type)
