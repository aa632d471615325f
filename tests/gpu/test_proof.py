"""The proof runs on a CPU at tiny size: every part, the table, and what becomes of parts that fail or are cut."""

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import proof
import proof_workers
import pytest
import torch
from proof_correctness import authors_agree
from proof_measure import merged
from proof_record import Record
from proof_setup import make_setup
from proof_table import table
from proof_workers import Case

TINY = ["--device", "cpu", "--size", "tiny", "--workers", "0", "--dtype", "bfloat16"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The file and the table of all parts, from two calls with one output."""
    output = tmp_path_factory.mktemp("proof") / "proof.json"
    shown: list[str] = []
    for parts in (["--part", "speed", "--part", "networks"], ["--part", "correctness", "--part", "training"]):
        assert proof.main([*TINY, *parts, "--output", str(output)], shown.append) == 0
    assert proof.main([*TINY, "--part", "engine", "--output", str(output)], shown.append) == 0
    return json.loads(output.read_text()), shown[-1]


def test_all_parts_run_and_the_calls_are_merged(made: tuple[dict[str, Any], str]) -> None:
    data, _ = made
    not_done = {name: entry for name, entry in data["results"].items() if entry["status"] != "done"}
    assert set(not_done) <= {"networks/gsplat", "engine/compiled", "training/adamw-8bit/batch-01/ours"}, not_done
    assert all(entry["reason"] for entry in not_done.values())
    assert {name.split("/")[0] for name in data["results"]} == set(proof.PARTS)
    assert data["machine"]["card"] == "none (CPU)"
    assert all("proof.py" in entry["command"] for entry in data["results"].values())


def test_the_systems_make_images_and_ours_does_the_least_work(made: tuple[dict[str, Any], str]) -> None:
    results = made[0]["results"]
    for system in ("ours", "authors", "plain"):
        assert results[f"speed/bfloat16/eager/batch-2/{system}"]["values"]["finite"]
    tflop = {name: results[f"speed/bfloat16/operations/{name}"]["values"]["step_tflop"] for name in ("ours", "authors")}
    assert 0 < tflop["ours"] < tflop["authors"]


def test_no_byte_depends_on_company(made: tuple[dict[str, Any], str]) -> None:
    values = {n: e["values"] for n, e in made[0]["results"].items() if n.startswith("correctness/")}
    assert len(values) == 12
    del values["correctness/bfloat16/authors-loop"]
    assert all(found["same_bytes"] and found["finite"] for found in values.values())
    assert values["correctness/bfloat16/mixed-rows"]["equal_rows"] == [True] * 4
    assert values["correctness/bfloat16/mixed-rows"]["at_the_same_place"]
    assert 0 < values["correctness/bfloat16/scheduler/DDIMScheduler"]["relative_error"] < 0.1  # eight bits


def test_the_restated_loop_is_the_same_function_as_ours() -> None:
    setup = make_setup("tiny", torch.device("cpu"), torch.float32)
    assert authors_agree(setup)["relative_error"] < 1e-5  # rounding of float32 over three steps


def test_the_table_names_figures_goals_and_what_is_missing(made: tuple[dict[str, Any], str]) -> None:
    text = made[1]
    for words in (
        "eager batch 2 ours",
        "company-of-eight",
        "rows_s",
        "engine_over_bare",
        "sam2.1",
        "goals",
    ):
        assert words in text
    assert "gsplat is not installed here" in text or "gsplat is installed" in text


def test_goals_compare_measured_with_counted_ratios() -> None:
    def done(**values: float) -> dict[str, Any]:
        return {"status": "done", "values": values}

    results = {"speed/float16/ceilings": done(matrix_tflops=800.0)}
    for system, tflop, rate in (("ours", 2.3, 3.0), ("authors", 2.5, 2.0), ("plain", 2.0, 3.3)):
        results[f"speed/float16/operations/{system}"] = done(step_tflop=tflop)
        for variant, faster in (("eager", 0.5), ("graphs", 1.0)):
            images = rate * faster
            figures = done(
                loop_images_s=images, whole_images_s=images, step_ms=50 / images, waits=0.0, warned_waits=0.0
            )
            results[f"speed/float16/{variant}/batch-1/{system}"] = figures
    text = table({"machine": {}, "results": results})
    assert "reached       float16 batch 1, loop: ours compiled (graphs) / authors eager, images/s: 3, goal" in text
    assert "reached       float16 batch 1 graphs: ours / authors, images/s (counted 1.087): 1.5, goal ≥ 1.04" in text
    assert "reached       float16 batch 1 graphs: time over plain SD (counted 1.15): 1.1, goal ≤ 1.2" in text
    assert "not measured  engine: busy share" in text


def test_an_error_is_kept_in_words_and_the_next_case_runs(tmp_path: Path) -> None:
    def out_of_memory() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    record = Record(tmp_path / "proof.json", "command", "")
    record.start_part(100)
    record.run("speed/large", out_of_memory)
    record.run("speed/small", lambda: {"images": 1})
    kept = json.loads((tmp_path / "proof.json").read_text())["results"]
    assert kept["speed/large"]["reason"] == "OutOfMemoryError: CUDA out of memory"
    assert kept["speed/small"]["values"] == {"images": 1}


def test_a_used_up_budget_skips_the_rest_and_keeps_earlier_values(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    record = Record(path, "command", "")
    record.start_part(100)
    record.run("speed/a", lambda: {"images": 1})
    again = Record(path, "command", "")
    again.start_part(0)
    for name in ("speed/a", "speed/b"):
        again.run(name, lambda: {"images": 2}, needs_s=5)
    kept = json.loads(path.read_text())["results"]
    assert kept["speed/a"]["values"] == {"images": 1}
    assert "budget" in kept["speed/b"]["reason"]


@pytest.mark.parametrize("part", ["speed", "correctness"])
def test_a_worker_compiles_waits_and_measures(part: str) -> None:
    """In a thread: a process of its own would import torch again."""
    ours, theirs = multiprocessing.Pipe()
    case = Case("ours", "whole", 1, "float32", "tiny", "cpu", part)
    thread = threading.Thread(target=proof_workers.work, args=(case, theirs))
    thread.start()
    assert ours.poll(60)
    assert ours.recv()[0] == "ready"
    assert not ours.poll(0.1), "it measures before its turn"
    ours.send("go")
    assert ours.poll(60)
    kind, values = ours.recv()
    thread.join()
    assert kind == "values"
    if part == "correctness":
        assert values["same_bytes"]
        assert values["error_to_eager"] < 1e-4
    else:
        assert values["finite"]
        assert values["loop_images_s"] > 0


def test_a_failed_worker_is_recorded(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    proof_workers.work(Case("ours", "whole", 1, "no_such_dtype", "tiny", "cpu"), theirs)
    record = Record(tmp_path / "proof.json", "command", "")
    worker = proof_workers._Worker(Case("ours", "whole", 1, "float16", "tiny", "cpu"), None, ours, 0.0)
    assert proof_workers._received(record, worker) is None
    assert "no_such_dtype" in record.results["speed/float16/whole/batch-1/ours"]["reason"]


def test_busy_time_counts_overlapping_kernels_once() -> None:
    assert merged([(0, 10), (2, 5), (8, 12), (20, 30)]) == (22, [8])
    assert merged([]) == (0, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proof.main(["--output", str(tmp_path / "proof.json")]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "proof.json").exists()
