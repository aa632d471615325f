"""The evaluation's table, plots and page: what they say, what is on the page, and how large it may be."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from runs_to_compare import make_run
from synthetic_scores import synthetic_scores

from refadgen.config.evaluate import ShowConfig
from refadgen.evaluation.plots import plot
from refadgen.evaluation.report import KEY, choose, write_page
from refadgen.evaluation.runs import Run
from refadgen.evaluation.summary import Cell, Summary, summarize, values_of
from refadgen.storage.store import Storage

SKIPPED = {"fid": "needs 2048 images", "image_reward": "no library", "clip_score": "no weights: set clip.model"}
NETWORKS = {"mask_iou": "mask network (Apache-2.0)", "dino": "facebook/dinov2-base (Apache-2.0)"}
COUNT = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Run]:
    return [Run(name, str(make_run(folder / name, 2))) for name in ("ours", "other")]


@pytest.fixture(scope="module")
def tables(runs: list[Run]) -> list:
    return [synthetic_scores(COUNT, run.uri, seed, skipped=("clip_score",)) for seed, run in enumerate(runs)]


@pytest.fixture(scope="module")
def summary(runs: list[Run], tables: list) -> Summary:
    return summarize(runs, tables, NETWORKS, SKIPPED, [None, None], ["other: 3 images are failed"])


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_number_stands_with_interval_count_and_network(summary: Summary):
    text = summary.markdown()
    line = next(row for row in text.splitlines() if row.startswith("| DINO"))
    assert re.search(r"↑ \| 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] \(\d{3} images\) \| ", line)
    assert "facebook/dinov2-base (Apache-2.0)" in line
    assert "small print" in line  # what it does not see


def test_what_is_skipped_is_no_number(summary: Summary):
    text = summary.markdown()
    assert "* CLIP-Score: no weights: set clip.model." in text
    assert not re.search(r"^\| (CLIP-Score|FID|ImageReward)", text, re.MULTILINE)
    assert all(cell is None for line in summary.lines if line.skipped for cell in line.cells)


def test_differences_are_paired_and_left_out_where_one_has_no_value(summary: Summary, tables: list):
    line = next(each for each in summary.lines if each.measure.name == "dino")
    first, second = (values_of(table, "dino") for table in tables)
    both = np.isfinite(first) & np.isfinite(second)
    difference = line.differences[1]
    assert difference is not None
    assert difference.count == both.sum()
    assert difference.low < (second - first)[both].mean() < difference.high
    assert line.differences[0] is None


def test_the_worst_and_best_of_each_measure_and_run_are_chosen(summary: Summary, tables: list):
    chosen = choose(summary, tables, 60)
    assert len(chosen) == len(set(chosen)) == 60
    for line in summary.lines:
        if line.skipped or not line.measure.per_image:
            continue
        for table in tables:
            values = values_of(table, line.measure.name)
            assert {int(np.nanargmin(values)), int(np.nanargmax(values))} <= set(chosen)
    assert choose(summary, tables, COUNT) == list(range(COUNT))


def test_the_page_is_bounded_and_says_what_it_shows(folder: Path, summary: Summary, tables: list):
    storage = Storage(str(folder / "out"))
    show = ShowConfig(max_groups=100, max_megabytes=0.5)
    shown = write_page(storage, summary, tables, show, {"started_at": "2026"})
    page = storage.read(KEY).decode()
    assert len(page) < 0.5e6 + 40_000  # and the page itself
    data = data_of(page)
    assert 0 < shown == len(data["groups"]) <= 100
    assert data["groups"][0]["ads"][0]["picture"].startswith("data:image/webp;base64,")
    assert data["images"] == COUNT


def test_pictures_that_are_gone_and_hostile_names_do_no_harm(folder: Path, summary: Summary, runs: list[Run]):
    rows = synthetic_scores(3, runs[0].uri, 0)
    hostile = "</script><img src=x onerror=alert(1)>"
    rows = rows.set_column(rows.schema.get_field_index("sku"), "sku", [[hostile] * 3])
    rows = rows.set_column(rows.schema.get_field_index("uri"), "uri", [["images/none.png"] * 3])
    storage = Storage(str(folder / "hostile"))
    write_page(storage, summary, [rows, rows], ShowConfig(), {})
    page = storage.read(KEY).decode()
    assert hostile not in page
    group = data_of(page)["groups"][0]
    assert group["sku"] == hostile
    assert group["ads"][0]["picture"] == ""


def test_runs_named_by_numbers_become_a_curve_in_their_order(summary: Summary):
    line = next(each for each in summary.lines if each.measure.name == "shift")
    line = type(line)(line.measure, "", "", [Cell(value, value - 1, value + 1, 9) for value in (3.0, 1.0, 2.0)], [])
    svg = plot(line, ["1.0", "0.25", "0.5"])
    assert svg is not None
    assert re.findall(r'text-anchor="middle"[^>]*>([\d.]+)<', svg) == ["0.25", "0.5", "1"]
    assert "polyline" in svg
    rows = plot(line, ["ours", "<b>", "c"])
    assert rows is not None
    assert "&lt;b&gt;" in rows
    assert plot(type(line)(line.measure, "", "", [Cell(1, None, None, 9), None], []), ["a", "b"]) is None
