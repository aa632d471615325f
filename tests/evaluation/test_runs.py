"""Runs as an evaluation reads them: what is compared, what is left out, and bad input named before the first image."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
from runs_to_compare import ledger_row, make_run

from jobs import evaluate as job
from refadgen.evaluation.runs import Run, candidate_products, compare_runs, parse_runs, read_run


def run_at(folder: Path, name: str = "a") -> Run:
    return Run(name, str(folder))


def test_a_run_is_named_or_bears_its_folders_name(tmp_path: Path):
    first, second = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    assert [run.name for run in parse_runs([str(first), f"λ=0.5={second}"])] == ["one", "λ=0.5"]
    assert parse_runs([f"0.5={second}"])[0] == Run("0.5", str(second))


def test_words_with_a_dotted_name_are_settings():
    arguments = job.parse_arguments(["ours=out/ours", "out/demo", "clip.model=openai/clip", "score.batch_size=2"])
    assert arguments.runs == ["ours=out/ours", "out/demo"]
    assert arguments.settings == ["clip.model=openai/clip", "score.batch_size=2"]


def test_bad_runs_are_named(tmp_path: Path):
    good = make_run(tmp_path / "good")
    with pytest.raises(ValueError, match=r"nothing: no run: there is no ledger in it; give the output folder"):
        parse_runs([str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match=r"two runs have it; names must differ"):
        parse_runs([str(good), f"good={make_run(tmp_path / 'other')}"])
    with pytest.raises(ValueError, match=r"two runs have it; folders must differ"):
        parse_runs([f"a={good}", f"b={good}"])
    with pytest.raises(ValueError, match=r"13 runs: at most 12"):
        parse_runs([str(good)] * 13)


def test_a_run_without_images_is_refused(tmp_path: Path):
    rows = [ledger_row(0, status="failed", reason="internal_error", uri="")]
    with pytest.raises(ValueError, match=r"no image of this run is done"):
        read_run(run_at(make_run(tmp_path, rows=rows)), "k")


@pytest.mark.parametrize(("file", "kind"), [("images/03.png", "images"), ("products/01.webp", "products")])
def test_missing_files_are_counted_and_named(tmp_path: Path, file: str, kind: str):
    make_run(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=rf"of 6 files of its ledger are missing, first {file}"):
        read_run(run_at(tmp_path), "k")


def test_only_the_newest_image_of_a_key_counts_and_what_is_not_done_is_said(tmp_path: Path):
    first = ledger_row(0)
    newer = ledger_row(2, sku=first.sku, scene=first.scene, recorded_at=first.recorded_at + timedelta(hours=1))
    failed = ledger_row(4, status="failed", reason="internal_error", uri="")
    found = read_run(run_at(make_run(tmp_path, rows=[first, newer, ledger_row(1), failed])), "k")
    assert found.table["image_id"].to_pylist() == [newer.image_id, ledger_row(1).image_id]
    assert (found.not_done, found.older) == (1, 1)


def test_the_id_of_a_score_depends_on_image_settings_and_rival_products(tmp_path: Path):
    make_run(tmp_path / "a")
    ids = read_run(run_at(tmp_path / "a"), "k").table["score_id"].to_pylist()
    assert len(set(ids)) == 6
    assert read_run(run_at(tmp_path / "a"), "k").table["score_id"].to_pylist() == ids
    assert not set(read_run(run_at(tmp_path / "a"), "other").table["score_id"].to_pylist()) & set(ids)


def test_runs_are_compared_where_all_have_an_image(tmp_path: Path):
    runs = [run_at(make_run(tmp_path / "a"), "a"), run_at(make_run(tmp_path / "b", 4), "b")]
    comparison = compare_runs(runs, [read_run(run, "k") for run in runs])
    assert [len(table) for table in comparison.tables] == [4, 4]
    assert comparison.tables[0]["sku"].to_pylist() == comparison.tables[1]["sku"].to_pylist()
    assert comparison.notes == ["a: 2 images that not all runs have are left out"]


def test_runs_of_other_products_or_sizes_are_refused(tmp_path: Path):
    runs = [run_at(make_run(tmp_path / "a"), "a"), run_at(tmp_path / "b", "b")]
    make_run(tmp_path / "b", rows=[ledger_row(number, sku=f"x{number}") for number in range(6)])
    with pytest.raises(ValueError, match=r"a, b: have no \(sku, scene, variant\) in common"):
        compare_runs(runs, [read_run(run, "k") for run in runs])
    other = run_at(tmp_path / "c", "c")
    make_run(tmp_path / "c", rows=[ledger_row(number, width_px=128) for number in range(6)])
    with pytest.raises(ValueError, match=r"a and c: sizes differ: sku 'sku-0' is 64×80 px in one and 128×80 px"):
        compare_runs([runs[0], other], [read_run(run, "k") for run in (runs[0], other)])


def test_other_prompts_are_said(tmp_path: Path):
    runs = [run_at(make_run(tmp_path / "a"), "a"), run_at(tmp_path / "b", "b")]
    make_run(tmp_path / "b", rows=[dataclasses.replace(ledger_row(n), prompt="another") for n in range(6)])
    comparison = compare_runs(runs, [read_run(run, "k") for run in runs])
    assert comparison.notes == ["6 images of b have another prompt than those of a"]


def test_rival_products_are_a_fixed_choice(tmp_path: Path):
    table = read_run(run_at(make_run(tmp_path)), "k").table
    assert sorted(sku for sku, _ in candidate_products(table)) == ["sku-0", "sku-1", "sku-2"]
    assert candidate_products(table) == candidate_products(table.take([5, 4, 3, 2, 1, 0]))
