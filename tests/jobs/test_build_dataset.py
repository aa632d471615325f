"""The dataset job on a real local Ray: the outcome of each ad, crashes and faults, and training on the result."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ad_pictures
import cv2
import dataset_runs
import datasets
import job_runs
import numpy as np
import pyarrow.parquet as pq
import pytest

from refadgen.config import DatasetConfig, load_config
from refadgen.dataset.job import DatasetJob
from refadgen.triplets.schema import decode, scan, split_of

pytestmark = pytest.mark.slow
GOOD = 14


def copies() -> list[dict]:
    """Ad 3 encoded again, and made smaller and brighter; their ids come after and before it."""
    picture, mask = ad_pictures.ad(3)
    brighter = np.clip(picture * 1.04 + 2, 0, 255).astype(np.uint8)
    small, small_mask = (cv2.resize(each, (72, 96), interpolation=cv2.INTER_AREA) for each in (brighter, mask))
    return [
        ad_pictures.row(3, id="ad-990", image=ad_pictures.encoded(picture, "JPEG", quality=60)),
        ad_pictures.row(
            3,
            id="ad-0025",
            image=ad_pictures.encoded(small),
            mask=ad_pictures.encoded(np.where(small_mask > 127, 255, 0).astype(np.uint8)),
        ),
    ]


def bad_rows() -> dict[str, dict]:
    """Rows that are rejected, by their reason."""
    picture, mask = ad_pictures.ad(50)
    wide, wide_mask = ad_pictures.ad(51, width=640, height=96)
    return {
        "empty_sku": ad_pictures.row(60, id=""),
        "missing_image": ad_pictures.row(61, image=None),
        "not_an_image": ad_pictures.row(62, image=b"no picture"),
        "truncated_image": ad_pictures.row(63, image=ad_pictures.encoded(picture)[:-200]),
        "low_resolution": ad_pictures.row(
            64, image=ad_pictures.encoded(picture[:50, :60]), mask=ad_pictures.encoded(mask[:50, :60])
        ),
        "extreme_shape": ad_pictures.row(65, image=ad_pictures.encoded(wide), mask=ad_pictures.encoded(wide_mask)),
        "mask_size_mismatch": ad_pictures.row(66, mask=ad_pictures.encoded(mask[:60])),
        "empty_mask": ad_pictures.row(67, mask=ad_pictures.encoded(np.zeros_like(mask))),
        "no_plain_background": ad_pictures.row(68, mask=None),
        "duplicate_sku": ad_pictures.row(69, id="ad-000"),
        "mask_in_pieces": ad_pictures.row(70, mask=ad_pictures.encoded(five_products())),
    }


def five_products() -> np.ndarray:
    mask = np.zeros((128, 96), np.uint8)
    for number in range(12):
        mask[8 + 10 * number : 14 + 10 * number, 20:70] = 255
    return mask


@pytest.fixture(scope="module")
def ads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [ad_pictures.row(number) for number in range(GOOD)]
    rows[1]["captions"] = ["a mug of our own on a shelf", " ", "a mug " + "very " * 2000 + "far away"]
    rows[4]["group"] = rows[5]["group"] = "one-product"
    rows += copies()
    rows += bad_rows().values()
    return ad_pictures.write(tmp_path_factory.mktemp("ads") / "ads.parquet", rows)


@pytest.fixture(scope="module")
def uninterrupted(ads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted run."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    finished = dataset_runs.run(ads, output)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"done {GOOD}," in finished.stdout, finished.stdout
    return output


def test_every_ad_has_a_ledger_row_with_its_outcome(ads: Path, uninterrupted: Path) -> None:
    rows = dataset_runs.latest(uninterrupted)
    assert len(rows) == pq.ParquetFile(ads).metadata.num_rows
    assert dataset_runs.num_ledger_rows(uninterrupted) == len(rows)
    by_row = {row["row"]: row for row in rows.values()}
    assert [by_row[number]["reason"] for number in range(2)] == ["", ""]
    for number, reason in enumerate(bad_rows(), start=GOOD + 2):
        found = by_row[number]
        assert (found["status"], found["reason"]) == ("rejected", reason), found["detail"]
        assert found["detail"]
    counts = dataset_runs.facts(uninterrupted)["counts"]
    assert counts == {"done": GOOD, "rejected": len(bad_rows()) + 2}


def test_of_near_duplicates_the_smallest_id_stays(uninterrupted: Path) -> None:
    by_id = {row["ad_id"]: row for row in dataset_runs.latest(uninterrupted).values()}
    assert by_id["ad-0025"]["status"] == "done"
    for name in ("ad-003", "ad-990"):
        assert by_id[name]["reason"] == "near_duplicate"
        assert by_id[name]["duplicate_of"] == "ad-0025"


def test_the_triplets_are_complete(uninterrupted: Path) -> None:
    rows, found = dataset_runs.latest(uninterrupted), dataset_runs.triplets(uninterrupted)
    assert set(found) == {key for key, row in rows.items() if row["status"] == "done"}
    for key, row in found.items():
        triplet = decode(row)
        assert [each.kind for each in triplet.variants][:2] == ["original", "degraded"]
        assert len(triplet.variants) == 5
        original = triplet.variants[0]
        inside = original.mask > 127
        assert (original.image[inside] == triplet.ad_image[inside]).all()
        for variant in triplet.variants:
            assert (variant.image[variant.mask == 0] == 255).all()
        assert rows[key]["captions"] == triplet.captions
        assert rows[key]["split"] == triplet.split
    own = next(row for row in found.values() if "ad-001" in row["facts"])
    assert own["captions"][0] == "a mug of our own on a shelf"
    assert max(map(len, own["captions"])) < 400
    together = {row["split"] for row in found.values() if row["product_id"] == "one-product"}
    assert len(together) == 1
    assert scan(str(uninterrupted / "data")).num_rows == GOOD


def test_the_report_and_the_card_tell_of_it(uninterrupted: Path) -> None:
    page, card = (uninterrupted / "report.html").read_text(), (uninterrupted / "README.md").read_text()
    for reason in ("near_duplicate", "low_resolution", "no_plain_background"):
        assert reason in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "| Sneaker |" in card
    assert (uninterrupted / "variants.webp").exists()


def test_datasets_loads_it(uninterrupted: Path, tmp_path: Path) -> None:
    files = {split: str(uninterrupted / "data" / split / "*.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert sum(len(split) for split in loaded.values()) == GOOD
    by_card = datasets.load_dataset(str(uninterrupted), cache_dir=str(tmp_path / "card"))
    assert {name: len(split) for name, split in by_card.items()} == {name: len(s) for name, s in loaded.items()}
    assert loaded["train"][0]["variants"][0]["kind"] == "original"


def test_the_same_command_again_does_nothing(ads: Path, uninterrupted: Path, shared_ray: None) -> None:
    before, files = dataset_runs.num_ledger_rows(uninterrupted), sorted((uninterrupted / "data").rglob("*.parquet"))
    stamps = [file.stat().st_mtime_ns for file in files]
    again = dataset_runs.run_here(ads, uninterrupted)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "0 triplets made" in again.stdout
    assert dataset_runs.num_ledger_rows(uninterrupted) == before
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_other_settings_need_another_output(ads: Path, uninterrupted: Path) -> None:
    other = load_config(DatasetConfig, None, [*dataset_runs.SMALL, "triplet.seed=1", "triplet.rows_per_file=8"])
    with pytest.raises(ValueError, match=r"triplet\.seed=0, now it is 1"):
        DatasetJob(other, str(ads), str(uninterrupted))
    same = load_config(DatasetConfig, None, [*dataset_runs.SMALL, "triplet.rows_per_file=8", "caption.batch_size=1"])
    DatasetJob(same, str(ads), str(uninterrupted))  # settings of the work itself may change


def test_an_empty_input_is_done_at_once_and_a_dry_run_makes_nothing(shared_ray: None, tmp_path: Path) -> None:
    empty = ad_pictures.write(tmp_path / "ads.parquet", [])
    dry = dataset_runs.run_here(empty, tmp_path / "dry", "--dry-run")
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert "to screen: 0" in dry.stdout
    assert not list((tmp_path / "dry").rglob("*.parquet"))
    assert not (tmp_path / "dry" / "dataset.json").exists()
    finished = dataset_runs.run_here(empty, tmp_path / "out")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "done 0, failed 0, rejected 0" in finished.stdout
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--limit", "0"), "--limit 0"),
        (("filter.min_side_px=1",), "filter.min_side_px=1"),
        (
            ("segmentation.grounding_dino=nowhere", "segmentation.sam2_checkpoint=nowhere.pt"),
            "segmentation.sam2_checkpoint",
        ),
        (("--config", "author"), "no preset of that name; there are authors"),
        (("--config", "authors", "filter.text=false"), "filter.people='required': needs a network"),
        (("filter.watermark_model=./nowhere",), "filter.watermark_model='./nowhere': there is no such folder"),
        (("triplet.variants=[novel_view]",), "`original` first"),
        (("degradation.noise=[5, 1]",), "degradation.noise"),
        (("caption.model=./nowhere",), "caption.model='./nowhere': there is no such folder"),
    ],
)
def test_a_wrong_setting_stops_the_job_before_it_starts(
    words: tuple[str, ...], what: str, ads: Path, tmp_path: Path
) -> None:
    stopped = dataset_runs.run_here(ads, tmp_path / "out", *words)
    assert stopped.returncode == 2
    assert what in stopped.stderr
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_output_in_the_inputs_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ads").mkdir()
    stopped = dataset_runs.run_here(tmp_path / "ads", tmp_path / "ads" / "out")
    assert stopped.returncode == 2
    assert f"--output {tmp_path}/ads/out: lies in the input's folder" in stopped.stderr
    assert not (tmp_path / "ads" / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("kill_in", [["data"], ["screening", "data"]], ids=["once", "twice"])
def test_killed_and_in_another_order_it_gives_the_same_triplets(
    kill_in: list[str], ads: Path, uninterrupted: Path, shared_ray: None, tmp_path: Path
) -> None:
    """kill_in: the driver is killed when the first file lies in this folder, and run again."""
    rows = pq.read_table(ads).to_pylist()
    random.Random(0).shuffle(rows)
    first, second = (index for index, row in enumerate(rows) if row["id"] == "ad-000")
    if rows[first]["image"] != ad_pictures.row(0)["image"]:  # of two rows with one id the first counts
        rows[first], rows[second] = rows[second], rows[first]
    shuffled = ad_pictures.write(tmp_path / "ads.parquet", rows, row_group_size=5)
    output = tmp_path / "out"

    for folder in kill_in:
        process = dataset_runs.start(shuffled, output)
        job_runs.wait_until(lambda folder=folder: any((output / folder).rglob("*.parquet")), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = dataset_runs.run_here(shuffled, output)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert dataset_runs.triplets(output) == dataset_runs.triplets(uninterrupted)

    def comparable(folder: Path) -> dict[str, dict]:
        """Ledger rows without their numbers in the input. The ids and details of unreadable rows hold these numbers."""
        by_key = {}
        for key, row in dataset_runs.comparable(folder).items():
            if row["reason"] in ("empty_sku", "duplicate_sku", "missing_image"):
                key, row = row["reason"], row | {"row_id": "", "detail": ""}
            by_key[key] = {**row, "row": None}
        return by_key

    assert comparable(output) == comparable(uninterrupted)


def test_a_fault_costs_its_ads_only_and_is_in_the_log_once(shared_ray: None, tmp_path: Path) -> None:
    """A file where the folder of a split should be: every triplet of that split fails to be written."""
    rows = [ad_pictures.row(number) for number in range(6)]
    ads, output = ad_pictures.write(tmp_path / "ads.parquet", rows), tmp_path / "out"
    (output / "data").mkdir(parents=True)
    (output / "data" / "train").write_text("not a folder")
    finished = dataset_runs.run(ads, output, "stages.augment.num_actors=1")
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = {row["row"]: row for row in dataset_runs.latest(output).values()}
    held_out = {number for number in range(6) if split_of(f"ad-{number:03d}") == "test"}
    assert held_out == {2, 3}
    assert {number for number, row in found.items() if row["status"] == "done"} == held_out
    assert {row["reason"] for row in found.values()} == {"", "publish_failed"}
    assert found[5]["detail"].startswith("row 5, ad 'ad-005': ")
    run_id = dataset_runs.facts(output)["run_id"]
    assert finished.stderr.count("Traceback") == 1
    assert re.search(rf"TripletBuilder failed: run {run_id}, row (\d), ad 'ad-00\1': publish_failed", finished.stderr)
    (output / "data" / "train").unlink()
    retried = dataset_runs.run_here(ads, output, "--retry-failed")
    assert "done 6, failed 0" in retried.stdout, retried.stderr[-3000:]


@pytest.mark.long
def test_the_authors_preset(detector: str, sam2_checkpoint: str, shared_ray: None, tmp_path: Path) -> None:
    """All filters run and every product image is shown to SAM2; both networks are random, so that no box counts."""
    pytest.importorskip("rapidocr")
    letters = ad_pictures.row(2)
    lettered = cv2.putText(ad_pictures.ad(2)[0], "SALE", (4, 30), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (255, 255, 255), 3)
    letters["image"] = ad_pictures.encoded(lettered)
    ads = ad_pictures.write(tmp_path / "ads.parquet", [ad_pictures.row(0), ad_pictures.row(1), letters])
    places = [f"segmentation.grounding_dino={detector}", f"segmentation.sam2_checkpoint={sam2_checkpoint}"]
    words = [*places, "segmentation.sam2_config=configs/sam2.1/sam2.1_hiera_t.yaml", "segmentation.device=cpu"]
    words += ["segmentation.box_threshold=1", "triplet.min_sam2_iou=0", "stages.extract.num_actors=1"]
    finished = dataset_runs.run_here(ads, tmp_path / "out", "--config", "authors", *words)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = {row["ad_id"]: row for row in dataset_runs.latest(tmp_path / "out").values()}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "ad-000": "",
        "ad-001": "",
        "ad-002": "embedded_text",
    }
    for row in dataset_runs.triplets(tmp_path / "out").values():
        kinds = [each["kind"] for each in row["variants"]]
        assert kinds == ["original", "degraded", "degraded", "novel_view", "novel_view"]
        assert len(row["geometric_masks"]) == 5
    ious = json.loads(rows["ad-000"]["mask_ious"])
    assert ious[0] is None
    assert all(0 <= each <= 1 for each in ious[1:])
    assert scan(str(tmp_path / "out" / "data")).num_rows == 2


@pytest.mark.long
def test_training_takes_the_result(uninterrupted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(uninterrupted / "data", copy)
    train = [
        sys.executable,
        "jobs/train.py",
        "--config",
        "debug",
        "--data",
        str(copy),
        "--output",
        str(tmp_path / "run"),
    ]
    finished = subprocess.run(train, capture_output=True, text=True, timeout=500, cwd=dataset_runs.PROJECT, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "model_index.json").exists()
