"""Budgets and deadlines as users write them, and the times that they end a run at."""

import math
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from refadgen.batch.limits import EndOfRun, Limits, stops_in_time


@pytest.mark.parametrize(
    ("budget", "seconds", "cost"),
    [("90m", 5400, None), ("8h", 28800, None), ("1.5 D", 129600, None), ("25.50", None, 25.5)],
)
def test_a_budget_is_a_time_or_a_cost(budget: str, seconds: float | None, cost: float | None) -> None:
    found = Limits.parse(budget)
    assert (found.seconds, found.cost) == (seconds, cost)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"budget": "0"}, "--budget 0: is a budget of nothing"),
        ({"budget": "0h"}, "--budget 0h: is a budget of nothing"),
        ({"budget": "much"}, "--budget much: must be a time such as 90m"),
        ({"budget": "-5"}, "--budget -5: must be"),
        ({"deadline": "tomorrow"}, "--deadline tomorrow: must be a date and time"),
        ({"deadline": "2020-01-01T00:00"}, "--deadline 2020-01-01T00:00: is over"),
    ],
)
def test_what_is_no_limit_is_named(words: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Limits.parse(**words)


def test_money_lasts_as_long_as_what_the_run_holds_costs() -> None:
    end = Limits.parse("25").end(cost_per_hour=10)
    assert end.at - time.time() == pytest.approx(2.5 * 3600, abs=5)
    assert end.why == "--budget 25"
    with pytest.raises(ValueError, match="--budget 25: is a cost, and nothing of this run has a price: set cost"):
        Limits.parse("25").end(cost_per_hour=0)


def test_the_earlier_of_budget_and_deadline_counts() -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert Limits.parse("8h", soon).end(0).why == f"--deadline {soon}"
    assert Limits.parse("8m", soon).end(0).why == "--budget 8m"
    assert not Limits.parse("8m", soon).end(0).is_over
    zone = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None).isoformat()
    assert Limits.parse(None, zone).end(0).at == pytest.approx(time.time() + 3600, abs=5)


def test_without_a_limit_a_run_has_no_end() -> None:
    assert not Limits.parse().end(cost_per_hour=0).is_over


@pytest.mark.parametrize(("at", "left"), [(0.0, [[], [], [], ["block"]]), (math.inf, 4 * [["block"]])])
def test_at_the_end_only_blocks_that_nobody_has_begun_are_taken_out(at: float, left: list[list[str]]) -> None:
    names = ("Repartition", "MapBatches(ProductFetcher)", "MapBatches(AdGenerator)", "MapBatches(AdPublisher)")
    queues = [["block"] for _ in names]
    topology = [
        (SimpleNamespace(name=name), SimpleNamespace(input_queues=[queue]))
        for name, queue in zip(names, queues, strict=True)
    ]
    executor = SimpleNamespace(_topology=SimpleNamespace(items=lambda: topology))
    stops_in_time(EndOfRun(at), "AdGenerator")().on_execution_step(executor)
    assert queues == left
