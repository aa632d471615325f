"""The job on a real local Ray: the table of two runs, resume, equality with one process, bad input before the start."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from random_inception import random_inception
from runs_to_compare import make_run

import refadgen
from jobs import evaluate as job
from refadgen.config import EvaluateConfig, load_config
from refadgen.evaluation.fid import ads_of_test_split, features_of_ads
from refadgen.evaluation.measures.frechet import FeatureStatistics, frechet_distance
from refadgen.evaluation.rows import ScoreLedger
from refadgen.storage.store import Storage


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("inception"))


TINY = str(Path(refadgen.__file__).parent / "triplets" / "tiny")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    from refadgen.batch import ray_connection

    ray_connection.connect(4)
    yield
    ray.shutdown()


@pytest.fixture
def two_runs(tmp_path: Path) -> list[str]:
    return [f"ours={make_run(tmp_path / 'ours')}", f"dark={make_run(tmp_path / 'dark', shade=0.6)}"]


@pytest.mark.slow
def test_two_runs_three_workers_and_again(
    local_ray: None, two_runs: list[str], tmp_path: Path, inception_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = [*two_runs, "--output", str(output), "--dataset", TINY, f"fid.weights={inception_file}", "fid.min_images=2"]
    words += ["score.images_per_part=2", "stages.score.num_actors=3", "stages.score.num_cpus=0.5"]
    assert job.main(words) == 0
    said = capsys.readouterr().out
    assert "images to score: 12" in said
    table = json.loads((output / "evaluation.json").read_text())
    assert [run["name"] for run in table["runs"]] == ["ours", "dark"]
    lines = {line["name"]: line for line in table["measures"]}
    assert lines["nearest_product"]["cells"][0]["value"] == 1
    assert lines["shift"]["cells"][0]["value"] == pytest.approx(0, abs=0.01)
    assert lines["clip_score"]["cells"] == [None, None]
    assert "clip.model" in lines["clip_score"]["skipped"]
    assert (output / "evaluation.html").stat().st_size > 10_000
    assert "| FID ↓ | " in (output / "evaluation.md").read_text()

    # FID of parts that three actors made equals that of all features at once, in one process.
    rows = ScoreLedger(Storage(str(output))).latest()
    config = load_config(EvaluateConfig, None, [f"fid.weights={inception_file}"])
    real = features_of_ads(TINY, ads_of_test_split(TINY), config)
    for name, cell in zip(("ours", "dark"), lines["fid"]["cells"], strict=True):
        own = rows.filter(pc.equal(rows["run"], str(tmp_path / name))).to_pylist()
        features = np.stack([np.load(output / row["features"])[row["feature_row"]] for row in own])
        assert cell["count"] == 6
        assert cell["value"] == pytest.approx(frechet_distance(FeatureStatistics.of(features), real), rel=1e-5)

    assert job.main(words) == 0
    assert "images to score" not in capsys.readouterr().out  # nothing is scored twice


@pytest.mark.slow
def test_bad_input_is_named_before_the_first_image(
    local_ray: None, two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    for words, problem in (
        ([str(tmp_path / "nothing")], "there is no ledger in it"),
        ([*two_runs, f"lpips.backbone={weights}"], "lpips.backbone="),
        ([*two_runs, "clip.model=/nowhere/clip"], "clip.model"),
        ([*two_runs, f"fid.weights={weights}", "fid.min_images=2", "--dataset", TINY], "fid.weights="),
        ([*two_runs, f"fid.weights={weights}", "--dataset", str(tmp_path / "none")], "none"),
    ):
        output = tmp_path / "out"
        assert job.main([*words, "--output", str(output)]) == 2
        assert problem in capsys.readouterr().err
        assert not list(output.glob("scores/*"))


@pytest.mark.slow
def test_a_broken_image_costs_its_row_and_fid_says_how_many_it_needs(
    local_ray: None, tmp_path: Path, inception_file: Path
) -> None:
    run = make_run(tmp_path / "run")
    (run / "images" / "02.png").write_bytes(b"broken")
    output = tmp_path / "out"
    words = [str(run), "--output", str(output), "--dataset", TINY, f"fid.weights={inception_file}"]
    assert job.main(words) == 0
    table = json.loads((output / "evaluation.json").read_text())
    lines = {line["name"]: line for line in table["measures"]}
    assert lines["mask_iou"]["cells"][0]["count"] == 5
    assert any("1 images could not be scored" in note for note in table["notes"])
    assert lines["fid"]["skipped"].startswith(
        "needs 2048 images on each side (fid.min_images); there are 6 of each run"
    )
