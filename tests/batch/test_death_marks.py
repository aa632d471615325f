"""Deaths of workers as marks tell them: what is worked on alone, what is not tried again, what a next run knows."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from refadgen.batch import death_marks as module
from refadgen.batch.death_marks import DeathMarks, MarkedStage, death_marks, with_error
from refadgen.batch.row_stage import RowFailure
from refadgen.storage.store import Storage

ERROR = pa.struct([(name, pa.string()) for name in ("status", "reason", "detail")])


class Died(BaseException):
    """In the place of a SIGKILL: nothing of the stage runs after it."""


def table(*skus: str) -> pa.Table:
    return pa.table({"sku": list(skus), "error": pa.nulls(len(skus), ERROR)})


def marks(folder: Path, **facts: object) -> DeathMarks:
    return DeathMarks(output_uri=str(folder), folder="marks/all", key="sku", **facts)  # type: ignore[arg-type]


class Killed:
    """Dies of the skus that start with `poison`, as far as they have no error."""

    calls: list[list[str]]

    def __init__(self, calls: list[list[str]]) -> None:
        self.calls = calls

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        self.calls.append(rows["sku"].to_pylist())
        for row in rows.to_pylist():
            if row["sku"].startswith("poison") and row["error"] is None:
                raise Died
        yield rows


def worked_off(folder: Path, blocks: list[pa.Table], most_starts: int = 12) -> tuple[pa.Table, int, list[list[str]]]:
    """All rows, as an actor that is started again and retries its blocks makes them; deaths; calls of the stage."""
    made, deaths, calls = [], 0, []
    waiting = list(blocks)
    while waiting:
        stage = MarkedStage(Killed, marks(folder, most_starts=most_starts), with_error, calls)
        try:
            while waiting:
                made += list(stage(waiting[0]))
                waiting.pop(0)
        except Died:
            deaths += 1
    return pa.concat_tables(made), deaths, calls


def test_a_poison_row_ends_as_killed_worker_after_three_deaths_and_costs_no_other(tmp_path: Path) -> None:
    made, deaths, calls = worked_off(tmp_path, [table("a", "b"), table("c", "poison", "d"), table("e")])
    failed = [row for row in made.to_pylist() if row["error"]]
    assert made["sku"].to_pylist() == ["a", "b", "c", "poison", "d", "e"]
    assert [(row["sku"], row["error"]["status"], row["error"]["reason"]) for row in failed] == [
        ("poison", "failed", "killed_worker")
    ]
    assert failed[0]["error"]["detail"].startswith("sku poison: the process of Killed ended each time")
    assert deaths == 3
    assert ["c", "poison", "d"] in calls  # in company once, then alone
    assert calls[calls.index(["c", "poison", "d"]) + 1 :].count(["poison"]) == 3  # the last with its error


def test_two_poison_rows_side_by_side_cost_three_deaths_each(tmp_path: Path) -> None:
    made, deaths, _ = worked_off(tmp_path, [table("poison-1", "poison-2", "a")])
    assert [bool(row["error"]) for row in made.to_pylist()] == [True, True, False]
    assert deaths == 5  # the first is of both


def test_a_process_that_dies_whatever_its_row_is_not_started_for_ever(tmp_path: Path) -> None:
    blocks = [table(f"poison-{number}") for number in range(9)]
    with pytest.raises(RuntimeError, match=r"Killed: its process ended 5 times in a row, and no row was done"):
        worked_off(tmp_path, blocks, most_starts=5)


def test_the_next_run_knows_the_deaths_of_one_that_was_killed(tmp_path: Path) -> None:
    storage, killed = Storage(str(tmp_path)), []
    calls: list[list[str]] = []
    for _ in range(2):  # poison takes driver and all with it, each time
        killed.append(death_marks(storage, "sku"))
        stage = MarkedStage(Killed, killed[-1].__enter__(), with_error, calls)
        with pytest.raises(Died):
            list(stage(table("a", "poison")))
    with death_marks(storage, "sku") as known:
        assert known.earlier == {"Killed": {"a": 0, "poison": 1}}
        with pytest.raises(Died):
            list(MarkedStage(Killed, known, with_error, calls)(table("a", "poison")))
        # Its actor is started again: with those of earlier runs, the deaths are enough.
        made = pa.concat_tables(MarkedStage(Killed, known, with_error, calls)(table("a", "poison", "b")))
    assert [bool(row["error"]) for row in made.to_pylist()] == [False, True, False]
    assert storage.names("marks/all") == []


@pytest.mark.parametrize(("error", "left"), [(SystemExit, 0), (RuntimeError, 1)])
def test_a_run_that_is_stopped_leaves_no_marks_and_one_that_fails_does(
    error: type[BaseException], left: int, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))

    def run() -> None:
        with death_marks(storage, "sku") as known:
            list(MarkedStage(Killed, known, with_error, [])(table("a")))
            raise error

    with pytest.raises(error):
        run()
    assert len(storage.names("marks/all")) == left


def test_one_small_file_holds_what_an_actor_has_in_hand(tmp_path: Path) -> None:
    stage = MarkedStage(Killed, marks(tmp_path), with_error, [])
    for number in range(50):
        list(stage(table(f"a{number}", f"b{number}")))
    (file,) = (tmp_path / "marks" / "all").iterdir()
    assert json.loads(file.read_bytes())["in_hand"] == ["a49", "b49"]
    assert file.stat().st_size < 200


def test_rows_that_failed_before_are_no_ones_death(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    rows = with_error(table("poison"), RowFailure("failed", "image_timeout", ""))
    made = list(MarkedStage(Killed, marks(tmp_path), with_error, calls)(rows))
    assert made == [rows]
    assert json.loads(next((tmp_path / "marks" / "all").iterdir()).read_bytes())["in_hand"] == []


def test_a_store_that_is_away_costs_the_count_and_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("503 SlowDown")

    monkeypatch.setattr(module.Storage, "write", away)
    monkeypatch.setattr(module.Storage, "read", away)
    assert list(MarkedStage(Killed, marks(tmp_path), with_error, [])(table("a"))) == [table("a")]


def test_a_row_alone_has_the_process_to_itself(tmp_path: Path) -> None:
    """Also where a block before it waits for whoever takes its rows, and others come meanwhile."""
    known = marks(tmp_path, earlier={"Slow": {"suspect": 0}})
    together: list[int] = []

    class Slow:
        def __init__(self) -> None:
            self.running = 0

        def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
            self.running += 1
            if rows["sku"].to_pylist() == ["suspect"]:
                time.sleep(0.05)
                together.append(self.running)
            yield rows
            self.running -= 1

    stage = MarkedStage(Slow, known, with_error)
    first = iter(stage(table("a")))
    next(first)
    alone = threading.Thread(target=lambda: list(stage(table("suspect"))))
    alone.start()
    time.sleep(0.1)
    assert together == []  # the first block is still under way
    after = threading.Thread(target=lambda: list(stage(table("b"))))
    after.start()
    list(first)
    alone.join(10)
    after.join(10)
    assert together == [1]
