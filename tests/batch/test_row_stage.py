"""One row stage: errors stay in their row, faults are logged once with their traceback, wrong stages do not start."""

import json
import logging
from dataclasses import dataclass

import pyarrow as pa
import pytest
from ray._common.formatters import JSONFormatter

from refadgen.batch.row_stage import RowFailure, RowStage
from refadgen.batch.rows import from_table, to_table
from refadgen.errors import RowError


@dataclass(frozen=True, kw_only=True)
class Given:
    row: int
    sku: str
    number: int
    error: RowFailure | None = None

    @property
    def label(self) -> str:
        return f"row {self.row}, sku {self.sku!r}"

    @property
    def log_facts(self) -> dict[str, object]:
        return {"row": self.row, "sku": self.sku}


@dataclass(frozen=True, kw_only=True)
class Halved:
    half: int | None = None


@dataclass(frozen=True, kw_only=True)
class Done(Halved):
    row: int
    sku: str
    error: RowFailure | None
    halve_s: float


class Halver(RowStage[Given, Halved, Done]):
    row_in, added, row_out, timer = Given, Halved, Done, "halve_s"

    def process(self, row: Given) -> Halved:
        if row.number % 2:
            raise RowError("bad_seed", f"row {row.row}: seed {row.number}: is odd")
        return Halved(half=row.number // 2 + 0 * (1 // row.number))


class ThreadedHalver(Halver):
    num_threads = 4


def run(stage: Halver, *numbers: int, **values: object) -> list[Done]:
    rows = [Given(row=n, sku=f"s{n}", number=number, **values) for n, number in enumerate(numbers)]
    table: pa.Table = stage(to_table(rows, Given))
    return from_table(table, Done)


@pytest.mark.parametrize("stage", [Halver, ThreadedHalver])
def test_a_bad_row_costs_its_row_and_rows_keep_their_order(stage: type[Halver]) -> None:
    rows = run(stage("run-1"), 4, 3, 8)
    assert [row.half for row in rows] == [2, None, 4]
    assert [row.error and row.error.reason for row in rows] == [None, "bad_seed", None]
    assert rows[1].error == RowFailure("rejected", "bad_seed", "row 1: seed 3: is odd")
    assert all(row.halve_s >= 0 for row in rows)


def test_rows_that_failed_before_pass_untouched() -> None:
    failure = RowFailure("rejected", "not_an_image", "image: is a folder")
    (row,) = run(Halver("run-1"), 0, error=failure)
    assert (row.error, row.half) == (failure, None)


def test_a_fault_is_logged_once_with_run_sku_row_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    stage = Halver("run-7")
    with caplog.at_level(logging.ERROR, logger="refadgen.batch"):
        rows = run(stage, 2, 0, 0)
        run(stage, 0)
    assert [row.error and row.error.reason for row in rows] == [None, "internal_error", "internal_error"]
    assert rows[1].error is not None
    assert rows[1].error.detail == "row 1, sku 's1': ZeroDivisionError: integer division or modulo by zero"
    (record,) = caplog.records
    assert record.getMessage() == "Halver failed: run run-7, row 1, sku 's1': internal_error"
    assert "in process" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_stage_whose_output_nothing_gives_is_refused_when_it_is_defined() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Misspelt(Done):
        haIf: int

    with pytest.raises(TypeError, match="BadStage: nothing gives Misspelt its haIf"):

        class BadStage(RowStage[Given, Halved, Misspelt]):
            row_in, added, row_out, timer = Given, Halved, Misspelt, "halve_s"

            def process(self, row: Given) -> Halved:
                return Halved()


def test_a_subclass_made_by_ray_is_logged_under_the_stages_name(caplog: pytest.LogCaptureFixture) -> None:
    wrapper = type("_Wrapper", (Halver,), {"__module__": "ray.data._internal.execution.util"})
    run(wrapper("run-1"), 0)
    assert caplog.records[0].getMessage().startswith("Halver failed: ")


def test_json_logs_tell_of_each_row_that_ends_and_text_logs_of_none(caplog: pytest.LogCaptureFixture) -> None:
    stage = Halver("run-1")
    run(stage, 4, 3)
    assert not caplog.records
    caplog.set_level(logging.INFO, logger="refadgen.batch")  # as JSON logs have it
    rows = run(stage, 4, 3, 8)
    assert [row.half for row in rows] == [2, None, 4]
    (record,) = caplog.records
    assert record.getMessage() == "rejected: bad_seed"
    told = {name: getattr(record, name) for name in ("run_id", "stage", "row", "sku", "detail")}
    assert told == {
        "run_id": "run-1",
        "stage": "Halver",
        "row": 1,
        "sku": "s1",
        "detail": "row 1: seed 3: is odd",
    }
    caplog.clear()
    run(stage, 2, error=RowFailure("failed", "image_timeout", "an earlier stage has told of it"))
    assert not caplog.records


def test_a_line_of_rays_json_holds_these_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="refadgen.batch")
    run(Halver("run-1"), 1, 0)
    lines = [json.loads(JSONFormatter().format(record)) for record in caplog.records]
    assert [(line["levelname"], line["run_id"], line["stage"], line.get("sku")) for line in lines] == [
        ("INFO", "run-1", "Halver", "s0"),
        ("ERROR", "run-1", "Halver", None),
        ("INFO", "run-1", "Halver", "s1"),
    ]
    assert "ZeroDivisionError" in lines[1]["exc_text"]
