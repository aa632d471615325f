"""The gate's calibration: which thresholds are found, what is said about them, and what is refused."""

import itertools
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs import calibrate_gate as job
from refadgen.batch.rows import to_table
from refadgen.config import GenerateConfig, load_config
from refadgen.evaluation.thresholds import caught, find_thresholds, judge
from refadgen.generation.ledger import AdLedger, AdLedgerRow
from refadgen.storage.store import Storage

RNG = np.random.default_rng(0)


def test_no_other_thresholds_that_stop_as_many_good_images_catch_more() -> None:
    good = RNG.random(120) < 0.5
    scores = np.where(good[:, None], RNG.beta(8, 2, (120, 2)), RNG.beta(3, 3, (120, 2)))
    found = find_thresholds(scores, good, 0.9)
    assert found is not None
    ranked = np.sort(scores[good], axis=0)
    best = 0
    for values, used in itertools.product(ranked, [(1, 0), (0, 1), (1, 1)]):
        stopped = caught(scores, values * used)
        hits, alarms = (stopped & ~good).sum(), (stopped & good).sum()
        if hits >= 0.9 * (hits + alarms + 1):
            best = max(best, hits - 0.01 * (~good).sum() * sum(used))
    assert best > 20
    assert (caught(scores, found) & ~good).sum() - 0.01 * (~good).sum() * (found > 0).sum() == pytest.approx(best)


def test_a_score_that_says_nothing_is_left_off() -> None:
    good = np.arange(200) % 2 == 0
    scores = np.stack([np.where(good, 0.9, 0.5), np.full(200, 0.7)], 1)
    assert find_thresholds(scores, good, 0.95) == pytest.approx([0.9, 0])


def test_too_few_images_prove_no_precision() -> None:
    good = np.arange(20) % 2 == 0
    scores = np.where(good, 0.9, 0.5)[:, None]
    assert find_thresholds(scores, good, 0.9) == pytest.approx([0.9])
    assert find_thresholds(scores, good, 0.95) is None  # ten caught: one false alarm more would be 0.91


def test_images_of_one_product_widen_the_intervals() -> None:
    good = np.arange(400) % 2 == 0
    # Of half of the products all bad images are caught, of the others none.
    product = np.arange(400) // 40
    scores = np.where(good, 0.9, np.where(product % 2, 0.5, 0.95))[:, None]
    of_products = judge(scores, good, [str(each) for each in product], np.array([0.9]))
    alone = judge(scores, good, [str(each) for each in range(400)], np.array([0.9]))
    assert (of_products.precision, of_products.recall) == (1, 0.5)
    width = of_products.recall_interval[1] - of_products.recall_interval[0]
    assert width > 3 * (alone.recall_interval[1] - alone.recall_interval[0])
    assert np.isnan(judge(scores, good, ["a"] * 400, np.array([0.0])).precision)


def row(number: int, **values: object) -> AdLedgerRow:
    texts = dict.fromkeys(("run_id", "scene", "reason", "detail", "image", "input_sha256", "model"), "")
    texts |= {"uri": f"images/{number}.jpg", "product_uri": "", "prompt": "", "negative_prompt": "", "mask_source": ""}
    numbers = {"row": number, "variant": 0, "attempts": 1, "seed": 0, "width_px": 64, "height_px": 64}
    measured = dict.fromkeys(("mask_score", "mask_area", "mask_iou", "generate_s", "category"))
    own = {
        "image_id": f"{number:032x}",
        "sku": f"sku-{number // 4}",
        "status": "done",
        "recorded_at": datetime.now(UTC),
    }
    defaults = {"color_similarity": 0.9, "structure_similarity": 0.9, "local_similarity": 0.9, "hue_similarity": 0.9}
    return AdLedgerRow(
        **(texts | numbers | measured | own | {"fetch_s": 0, "segment_s": 0, "publish_s": 0} | defaults | values)
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 80 products with four images each, of which every second is bad, by its local or hue similarity."""
    folder = tmp_path_factory.mktemp("run")
    rows = []
    for number in range(320):
        bad = {("local_similarity", "hue_similarity")[number // 2 % 2]: RNG.uniform(0.3, 0.7)} if number % 2 else {}
        scores = {"local_similarity": RNG.uniform(0.69, 0.95), "hue_similarity": RNG.uniform(0.8, 1)}
        rows.append(row(number, **(scores | bad)))
    rows.append(row(320, local_similarity=None, hue_similarity=None, color_similarity=None, structure_similarity=None))
    AdLedger(Storage(str(folder))).append(to_table(rows, AdLedgerRow))
    return folder


def write_labels(file: Path, numbers: list[int], good: list[object] | None = None) -> Path:
    values = [number % 2 == 0 for number in numbers] if good is None else good
    table = pa.table({"image_id": [f"{number:032x}" for number in numbers], "good": values})
    (pyarrow.csv.write_csv if file.suffix == ".csv" else pq.write_table)(table, file)
    return file


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_thresholds_come_out_as_settings_with_their_precision(
    kind: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Ids of digits alone, which CSV readers like to take for numbers.
    labels = write_labels(tmp_path / f"labels.{kind}", list(range(320)))
    written = tmp_path / "gate.yaml"
    assert job.main([str(output), "--labels", str(labels), "--write", str(written)]) == 0
    quality = load_config(GenerateConfig, written).quality
    assert 0.65 < quality.min_local_similarity < 0.75
    assert 0.7 <= quality.min_hue_similarity < 0.85
    assert quality.min_color_similarity == 0
    printed = capsys.readouterr().out
    assert "| were held out |" in printed
    held_out = next(line for line in printed.splitlines() if "were held out" in line).split("|")
    assert float(held_out[4].split()[0]) > 0.9
    assert float(held_out[5].split()[0]) > 0.9
    assert held_out[4].strip() in written.read_text()


@pytest.mark.parametrize(
    ("numbers", "good", "complaint"),
    [
        ([900, 901], None, "none of the 2 images are in the ledger"),
        ([0, 1, 900], None, f"not in the ledger of .*: {900:032x}; take"),
        ([0, 2, 4], None, "bad images: there are none among the labelled images"),
        ([1, 3], None, "good images: there are none"),
        ([0, 1], None, "there are none among the images of the products that"),
        (list(range(40)), None, "no thresholds reach a precision of 0.95 .* label more"),
        ([0, 1, 320], None, f"without scores, .*: {320:032x}"),
        ([0, 0], [True, False], "row 2: image_id 0+ is both good and not"),
        ([0, 1], [True, None], "row 2: .* both must be given"),
        ([0, 1], ["yes", "no"], "good must be true or false, is string"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_used_are_refused_by_name(
    numbers: list[int],
    good: list[object] | None,
    complaint: str,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = write_labels(tmp_path / "labels.parquet", numbers, good)
    assert job.main([str(output), "--labels", str(labels), "--write", str(tmp_path / "gate.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("calibrate_gate: ")
    assert re.search(complaint, said), said
    assert not (tmp_path / "gate.yaml").exists()


def test_files_that_are_missing_or_something_else_are_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 1])
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"image_id": ["a"], "verdict": [True]}), tmp_path / "columns.parquet")
    for words, complaint in (
        ([tmp_path, "--labels", labels], "has no ledger; name the --output of a run"),
        ([output, "--labels", tmp_path / "none.csv"], "there is no such file"),
        ([output, "--labels", tmp_path / "text.parquet"], "neither parquet nor .csv"),
        ([output, "--labels", tmp_path / "columns.parquet"], "has no column good; it has image_id, verdict"),
        ([output, "--labels", labels, "--precision", "1"], "--precision 1.0: must lie between 0 and 1"),
        (
            [output, "--labels", labels, "--write", tmp_path / "no" / "gate.yaml"],
            "must be a file in a folder that exists",
        ),
    ):
        assert job.main([str(word) for word in words]) == 2
        assert complaint in capsys.readouterr().err


def test_a_ledger_without_the_later_scores_is_calibrated_by_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(number, local_similarity=None, hue_similarity=None, color_similarity=0.5 + 0.4 * (number % 2 == 0))
        for number in range(200)
    ]
    AdLedger(Storage(str(tmp_path))).append(to_table(rows, AdLedgerRow))
    labels = write_labels(tmp_path / "labels.csv", list(range(200)))
    assert job.main([str(tmp_path), "--labels", str(labels), "--write", str(tmp_path / "gate.yaml")]) == 0
    assert "not in this ledger, and left out: hue_similarity" in capsys.readouterr().out
    assert load_config(GenerateConfig, tmp_path / "gate.yaml").quality.min_color_similarity == pytest.approx(
        0.9, abs=1e-3
    )
