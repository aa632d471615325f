"""Step-level batching, step by step: each step is held until the test has arranged its surroundings."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from refadgen.engine.previews import Previews
from refadgen.engine.step_engine import (
    EngineLostError,
    Event,
    Failed,
    Finished,
    OutOfDeviceMemoryError,
    Progress,
    QueueFullError,
    StepEngine,
    Ticket,
)

SOON_S = 10.0


@dataclass(eq=False)
class Row:
    name: str
    num_steps: int
    left: int


class HeldDenoiser:
    """Each step tells the test who is in it, and ends when the test lets it. An order is a name and its steps."""

    def __init__(self, batch_size: int, num_kinds: int = 1) -> None:
        self.batch_size = batch_size
        self.num_kinds = num_kinds
        self.sizes: list[int] = []
        self.no_memory_for: set[str] = set()
        """Names of orders that find no memory, once each."""
        self.lost: Exception | None = None
        self.started: list[str] = []
        self.finished: list[str] = []
        self.begun: queue.Queue[list[str]] = queue.Queue()
        self.ends: queue.Queue[BaseException | None] = queue.Queue()

    def start(self, order: tuple[str, int]) -> Row:
        self.started.append(order[0])
        self._find_memory(f"start of {order[0]}")
        if order[0] == "bad start":
            raise ValueError("no such product")
        return Row(*order, left=order[1])

    def kind(self, row: Row) -> int:
        """Steps of several kinds take turns at each row, and rows that are named `… last` have the last one alone."""
        return self.num_kinds - 1 if row.name.endswith("last") else row.left % self.num_kinds

    def num_steps(self, row: Row) -> int:
        return row.num_steps

    def step(self, rows: list[Row], batch_size: int) -> list[Row]:
        assert len({self.kind(row) for row in rows}) == 1
        self.sizes.append(batch_size)
        self.begun.put([row.name for row in rows])
        error = self.ends.get(timeout=SOON_S)
        if error is not None:
            raise error
        assert len(rows) <= batch_size
        for row in rows:
            row.left -= 1
        return [row for row in rows if row.left == 0]

    def finish(self, order: tuple[str, int], row: Row) -> str:
        self._find_memory(f"finish of {row.name}")
        self.finished.append(row.name)
        if row.name == "bad finish":
            raise ValueError("no picture")
        return f"picture of {row.name}"

    def preview(self, row: Row) -> bytes:
        self._find_memory(f"preview of {row.name}")
        if row.name == "bad preview":
            raise ValueError("no preview")
        return f"{row.name} with {row.left} to go".encode()

    def check_device(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _find_memory(self, what: str) -> None:
        if what in self.no_memory_for:
            self.no_memory_for.remove(what)
            raise OutOfDeviceMemoryError(what)


@dataclass
class Heard:
    """A listener and all it was told."""

    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Progress):
            self.ended.set()

    @property
    def last(self) -> Event:
        assert self.ended.wait(SOON_S)
        return self.events[-1]

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, Progress)]


class Bench:
    """An engine whose steps are held. `in_step` waits for the next step and names who is in it; `end` ends it."""

    def __init__(self, batch_size: int = 2, max_waiting: int = 100, num_kinds: int = 1) -> None:
        self.denoiser = HeldDenoiser(batch_size, num_kinds)
        self.seen: list[tuple[int, int, float]] = []
        self.engine = StepEngine(self.denoiser, max_waiting=max_waiting, observe=lambda *step: self.seen.append(step))

    def order(self, name: str, steps: int = 1, *, shape: str = "square", **options: Any) -> tuple[Heard, Ticket]:
        heard = Heard()
        return heard, self.engine.submit((name, steps), shape, heard, **options)

    def in_step(self) -> list[str]:
        return self.denoiser.begun.get(timeout=SOON_S)

    def end(self, error: BaseException | None = None) -> None:
        self.denoiser.ends.put(error)

    def step(self) -> list[str]:
        """Lets the next step begin and end; returns the names of its rows."""
        names = self.in_step()
        self.end()
        return names

    def close(self) -> None:
        for _ in range(1000):
            self.end()
        self.engine.stop()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches, and lets them go."""
    made: list[Bench] = []

    def make(**options: int) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# Joining and leaving


def test_an_order_is_told_of_its_steps_and_then_of_its_end(bench):
    b = bench()
    heard, _ = b.order("a", 3)
    assert [b.step(), b.step(), b.step()] == [["a"], ["a"], ["a"]]
    last = heard.last
    assert last == Finished("picture of a", waited_s=last.waited_s, worked_s=last.worked_s, batch_size=2)
    assert heard.events[:-1] == [Progress(1, 3), Progress(2, 3)]


def test_rows_join_a_running_batch_at_the_next_step(bench):
    b = bench()
    a, _ = b.order("a", 3)
    assert b.in_step() == ["a"]
    late, _ = b.order("late", 2)
    b.end()
    assert b.step() == ["a", "late"]
    assert b.step() == ["a", "late"]
    assert isinstance(a.last, Finished)
    assert isinstance(late.last, Finished)
    assert (a.steps, late.steps) == ([1, 2], [1])


def test_a_batch_holds_no_more_than_its_places(bench):
    b = bench(batch_size=3)
    b.order("first", 9)
    b.in_step()
    for n in range(5):
        b.order(str(n), 9)
    b.end()
    assert b.in_step() == ["first", "0", "1"]
    assert (b.engine.num_running, b.engine.num_waiting) == (3, 3)


def test_a_finished_row_leaves_at_once_and_the_longest_waiting_takes_its_place(bench):
    b = bench()
    b.order("long", 4)
    b.in_step()
    for name in ("short", "next", "last"):
        b.order(name, 1)
    b.end()
    assert [b.step(), b.step(), b.step()] == [["long", "short"], ["long", "next"], ["long", "last"]]


def test_a_finished_row_is_told_before_others_go_on(bench):
    b = bench()
    b.order("long", 4)
    b.in_step()
    short, _ = b.order("short", 1)
    b.end()
    b.step()
    assert b.in_step() == ["long"]
    assert short.events == [short.last]


def test_a_free_place_goes_past_those_who_wait_for_another_shape(bench):
    b = bench(batch_size=1)
    b.order("square", 3)
    b.in_step()
    b.order("square that waits", 1)
    b.order("tall", 1, shape="tall")
    b.end()
    assert [b.step(), b.step()] == [["square"], ["tall"]]


def test_batches_of_two_shapes_take_turns(bench):
    b = bench()
    b.order("a", 3)
    b.in_step()
    b.order("tall", 3, shape="tall")
    b.order("b", 2)
    b.end()
    steps = [b.step() for _ in range(5)]
    assert steps == [["a", "b"], ["tall"], ["a", "b"], ["tall"], ["tall"]]


# Steps of several kinds


def waiting_together(b: Bench, orders: list[tuple[str, int]]) -> None:
    """Orders that all wait when the engine next looks, with nothing on its way."""
    b.order("held", 1, shape="another")
    b.in_step()
    for name, steps in orders:
        b.order(name, steps)
    b.end()


def test_rows_whose_next_steps_are_of_one_kind_step_together(bench):
    b = bench(batch_size=2, num_kinds=2)
    waiting_together(b, [("a", 2), ("b", 1), ("c", 2), ("d", 1)])
    assert [b.step(), b.step(), b.step()] == [["a", "c"], ["a", "c"], ["b", "d"]]


def test_a_full_batch_goes_on_with_its_rows(bench):
    """What its rows share is on the device: it is built once for their steps, not at each of them."""
    b = bench(batch_size=4, num_kinds=2)
    waiting_together(b, [(str(number), 10) for number in range(80)])
    batches = [b.step() for _ in range(200)]
    assert {len(names) for names in batches} == {4}
    changes = sum(one != other for one, other in itertools.pairwise(batches))
    assert changes < 30  # 20 images' worth of batches, and who waited for sixteen steps in between


def test_a_kind_that_fills_its_batch_goes_first(bench):
    b = bench(batch_size=2, num_kinds=2)
    waiting_together(b, [("a", 1), ("b", 2), ("c", 2)])
    assert b.step() == ["b", "c"]


def test_while_orders_wait_no_batch_is_padded(bench):
    """As many rows as two batches hold are on their way, so one of two kinds fills its own."""
    b = bench(batch_size=4, num_kinds=2)
    waiting_together(b, [(str(number), 1 + number % 7) for number in range(60)])
    sizes = []
    while b.engine.num_waiting:
        sizes.append(len(b.step()))
    assert len(sizes) > 40
    assert set(sizes) == {4}


def test_a_row_of_a_rare_kind_waits_for_sixteen_steps_at_most(bench):
    b = bench(batch_size=2, num_kinds=3, max_waiting=300)
    waiting_together(b, [("at last", 1), *((str(number), 1) for number in range(100))])
    before = [b.step() for _ in range(17)]
    assert [len(names) for names in before] == [2] * 16 + [1]
    assert before[-1] == ["at last"]


def test_many_shapes_let_no_row_of_a_rare_kind_starve(bench):
    """A shape's turn comes after all others'; only its own steps count as waiting."""
    b = bench(batch_size=2, num_kinds=3, max_waiting=4000)
    waiting_together(b, [("at last", 1), *((str(number), 1) for number in range(100))])
    shapes = [f"shape {number}" for number in range(20)]
    for shape in shapes:
        b.order(shape, 10**6, shape=shape)
    own = []
    while len(own) < 17:
        names = b.step()
        own += [names] * (names[0] not in shapes)
    assert [len(names) for names in own] == [2] * 16 + [1]
    assert own[-1] == ["at last"]


# Giving up


def test_an_order_cancelled_before_it_joins_is_never_started(bench):
    b = bench()
    b.order("a", 2)
    b.in_step()
    heard, ticket = b.order("gone", 1)
    ticket.cancel()
    b.end()
    assert b.step() == ["a"]
    b.order("after", 1)
    assert b.in_step() == ["after"]
    assert b.denoiser.started == ["a", "after"]
    assert heard.events == []


def test_a_cancelled_order_that_waits_gives_its_place_in_the_queue_back(bench):
    b = bench(batch_size=1, max_waiting=1)
    b.order("a", 9)
    b.in_step()
    _, ticket = b.order("gone", 1)
    ticket.cancel()
    b.end()
    b.in_step()
    b.order("taken in its stead", 1)
    assert b.engine.num_waiting == 1


def test_a_cancelled_row_leaves_at_the_next_step_and_is_told_nothing_more(bench):
    b = bench()
    b.order("a", 3)
    b.in_step()
    heard, ticket = b.order("gone", 9)
    b.end()
    assert b.step() == ["a", "gone"]
    assert b.in_step() == ["a", "gone"]
    ticket.cancel()
    told = len(heard.events)
    b.end()
    b.order("after", 1)
    assert b.in_step() == ["after"]
    assert len(heard.events) == told == 1


def test_a_row_cancelled_in_its_last_step_is_not_finished(bench):
    b = bench()
    heard, ticket = b.order("gone", 1)
    b.in_step()
    ticket.cancel()
    b.end()
    b.order("after", 1)
    b.in_step()
    assert b.denoiser.finished == []
    assert heard.events == []


def test_a_row_cancelled_in_a_step_that_fails_is_told_nothing(bench):
    b = bench()
    heard, ticket = b.order("gone", 2)
    b.in_step()
    ticket.cancel()
    b.end(RuntimeError("out of memory"))
    b.order("after", 1)
    b.in_step()
    assert heard.events == []


def test_the_last_row_cancelled_leaves_the_engine_idle_and_well(bench):
    b = bench()
    _, ticket = b.order("gone", 9)
    b.in_step()
    ticket.cancel()
    b.end()
    heard, _ = b.order("after", 1)
    assert b.step() == ["after"]
    assert isinstance(heard.last, Finished)
    assert b.engine.num_running == 0


# Failures


def test_a_start_that_fails_fails_its_order_alone(bench):
    b = bench()
    a, _ = b.order("a", 2)
    b.in_step()
    bad, _ = b.order("bad start", 2)
    b.end()
    assert b.step() == ["a"]
    assert isinstance(a.last, Finished)
    assert isinstance(bad.last, Failed)
    assert str(bad.last.error) == "no such product"
    assert not bad.last.begun
    assert b.engine.consecutive_failures == 0


def test_a_step_that_fails_fails_its_batch_and_no_other(bench):
    b = bench()
    square, _ = b.order("square", 2)
    b.in_step()
    tall, _ = b.order("tall", 1, shape="tall")
    error = RuntimeError("out of memory")
    b.end()
    assert b.in_step() == ["square"]
    b.end(error)
    assert square.last == Failed(error)
    assert b.step() == ["tall"]
    assert isinstance(tall.last, Finished)


def test_orders_after_a_failed_step_are_made(bench):
    b = bench()
    bad, _ = b.order("bad", 3)
    b.in_step()
    good, _ = b.order("good", 1)
    b.end(RuntimeError("out of memory"))
    assert b.step() == ["good"]
    assert isinstance(bad.last, Failed)
    assert isinstance(good.last, Finished)
    assert b.engine.alive


def test_failed_steps_in_a_row_are_counted_until_one_works(bench):
    b = bench()
    counts = []
    for error in (RuntimeError("lost"), RuntimeError("lost"), None, RuntimeError("lost")):
        heard, _ = b.order("a", 1)
        b.in_step()
        b.end(error)
        assert heard.last
        counts.append(b.engine.consecutive_failures)
    assert counts == [1, 2, 0, 1]


def test_a_finish_that_fails_fails_its_row_alone(bench):
    b = bench()
    b.order("blocker", 1)
    b.in_step()
    bad, _ = b.order("bad finish", 1)
    good, _ = b.order("good", 1)
    b.end()
    assert b.step() == ["bad finish", "good"]
    assert isinstance(good.last, Finished)
    assert isinstance(bad.last, Failed)
    assert b.engine.consecutive_failures == 0


@pytest.mark.parametrize("when", ["at a step", "at the end"])
def test_a_listener_that_fails_harms_nobody(bench, when):
    b = bench()
    b.order("blocker", 1)
    b.in_step()
    told = []

    def broken(event: Event) -> None:
        told.append(event)
        raise RuntimeError("its event loop is closed")

    b.engine.submit(("broken", 3 if when == "at a step" else 1), "square", broken)
    good, _ = b.order("good", 3)
    b.end()
    assert b.step() == ["broken", "good"]
    assert [b.step(), b.step()] == [["good"], ["good"]]
    assert isinstance(good.last, Finished)
    assert len(told) == 1
    assert b.engine.alive


# Too little memory

NO_MEMORY = OutOfDeviceMemoryError("tried to allocate 2 GiB")


def test_without_memory_a_batch_is_halved_and_its_images_begin_again(bench):
    b = bench(batch_size=4)
    b.order("first", 2)
    b.in_step()
    heard = [b.order(name, 2)[0] for name in ("a", "b", "c", "d")]
    b.end()
    assert b.in_step() == ["first", "a", "b", "c"]
    b.end(NO_MEMORY)
    assert [b.step() for _ in range(6)] == [["first", "a"]] * 2 + [["b", "c"]] * 2 + [["d"]] * 2
    assert [one.last.result for one in heard] == [f"picture of {name}" for name in "abcd"]
    assert {one.last.batch_size for one in heard} == {2}
    assert b.denoiser.finished == ["first", "a", "b", "c", "d"]  # each once
    assert b.denoiser.sizes == [4, 4] + [2] * 6
    assert b.engine.consecutive_failures == 0


def test_a_batch_is_halved_until_it_fits_and_a_single_row_that_does_not_fails(bench):
    b = bench(batch_size=4)
    heard = []
    b.order("blocker", 1)
    b.in_step()
    heard = [b.order(name, 1)[0] for name in ("a", "b", "c")]
    b.end()
    for names in (["a", "b", "c"], ["a", "b"], ["a"]):
        assert b.in_step() == names
        b.end(NO_MEMORY)
    assert heard[0].last == Failed(NO_MEMORY)
    assert [b.step(), b.step()] == [["b"], ["c"]]
    assert isinstance(heard[1].last, Finished)
    assert heard[2].last.batch_size == 1


def test_with_steps_of_several_kinds_one_batch_at_a_time_comes_before_smaller_batches(bench):
    """Rows that wait for their kind take memory too, and giving them up changes no byte."""
    b = bench(batch_size=2, num_kinds=2)
    heard = []
    b.order("held", 1, shape="another")
    b.in_step()
    heard = [b.order(name, 2)[0] for name in "abcd"]
    b.end()
    assert b.in_step() == ["a", "b"]
    b.end(NO_MEMORY)
    assert b.in_step() == ["a", "b"]
    assert (b.engine.num_running, b.engine.num_waiting) == (2, 2)
    b.end()
    assert [b.step() for _ in range(3)] == [["a", "b"], ["c", "d"], ["c", "d"]]
    assert {one.last.batch_size for one in heard} == {2}
    assert b.denoiser.sizes == [2] * 6


def test_a_single_row_that_has_memory_alone_does_not_fail_beside_rows_of_other_kinds(bench):
    b = bench(batch_size=1, num_kinds=4)
    b.order("held", 1, shape="another")
    b.in_step()
    heard = [b.order(name, 1)[0] for name in "abc"]
    b.end()
    assert b.in_step() == ["a"]
    b.end(NO_MEMORY)
    assert [b.step() for _ in range(3)] == [["a"], ["b"], ["c"]]
    assert all(isinstance(one.last, Finished) for one in heard)


def test_other_shapes_keep_their_batches(bench):
    b = bench(batch_size=2)
    b.order("small", 3)
    b.in_step()
    large = [b.order(name, 1, shape="large")[0] for name in ("l1", "l2")]
    small, _ = b.order("small too", 1)
    b.end()
    assert b.step() == ["small", "small too"]
    assert b.in_step() == ["l1", "l2"]
    b.end(NO_MEMORY)
    assert [b.step(), b.step(), b.step()] == [["small"], ["l1"], ["l2"]]
    assert large[1].last.batch_size == 1
    assert small.last.batch_size == 2


@pytest.mark.parametrize("where", ["start of b", "finish of a"])
def test_a_lack_of_memory_at_the_start_or_end_of_an_image_costs_no_image(bench, where):
    b = bench(batch_size=4)
    b.order("blocker", 1)
    b.in_step()
    b.denoiser.no_memory_for = {where}
    heard = [b.order(name, steps)[0] for name, steps in (("a", 1), ("b", 2), ("c", 2))]
    for _ in range(50):
        b.end()
    assert [one.last.result for one in heard] == ["picture of a", "picture of b", "picture of c"]
    assert sorted(b.denoiser.finished) == ["a", "b", "blocker", "c"]
    assert b.engine.batch_size("square") == 2


def test_images_that_end_together_without_memory_halve_their_batch_once(bench):
    b = bench(batch_size=4)
    b.order("blocker", 1)
    b.in_step()
    b.denoiser.no_memory_for = {f"finish of {name}" for name in "abcd"}
    heard = [b.order(name, 1)[0] for name in "abcd"]
    for _ in range(20):
        b.end()
    assert [one.last.result for one in heard] == [f"picture of {name}" for name in "abcd"]
    assert b.engine.batch_size("square") == 2


def test_a_preview_without_memory_is_left_out(bench):
    b = bench(batch_size=2)
    b.denoiser.no_memory_for = {"preview of a"}
    heard, _ = b.order("a", 3, previews=Previews(every=1))
    for _ in range(3):
        b.step()
    assert heard.last.result == "picture of a"
    assert [event.preview is None for event in heard.events[:-1]] == [True, False]
    assert b.engine.batch_size("square") == 2


@pytest.mark.parametrize("where", ["start", "step"])
def test_a_shape_without_memory_beside_another_gets_the_device_alone(bench, where):
    """Also before orders of other shapes that came later: these could take its memory again, for ever."""
    b = bench(batch_size=1)
    b.order("small", 4)
    assert b.in_step() == ["small"]
    if where == "start":
        b.denoiser.no_memory_for = {"start of large"}
    large, _ = b.order("large", 2, shape="large")
    later, _ = b.order("later", 1)
    b.end()
    assert b.in_step() == ["small"]
    b.end()
    if where == "step":
        assert b.in_step() == ["large"]
        b.end(NO_MEMORY)
    assert [b.step() for _ in range(5)] == [["small"], ["small"], ["large"], ["large"], ["later"]]
    assert large.last.result == "picture of large"
    assert isinstance(later.last, Finished)
    assert b.engine.batch_size("large") == 1
    assert b.engine.consecutive_failures == 0


def test_an_order_that_is_cancelled_does_not_begin_again(bench):
    b = bench(batch_size=4)
    b.order("blocker", 1)
    b.in_step()
    heard, _ = b.order("a", 1)
    gone, ticket = b.order("gone", 9)
    b.end()
    assert b.in_step() == ["a", "gone"]
    ticket.cancel()
    b.end(NO_MEMORY)
    assert b.step() == ["a"]
    assert isinstance(heard.last, Finished)
    assert gone.events == []


# A lost device


@pytest.mark.parametrize("fault", ["the device", "the thread"])
def test_an_engine_that_is_lost_tells_everyone_and_takes_no_more(bench, fault):
    b = bench()
    running, _ = b.order("running", 9)
    b.in_step()
    waiting = [b.order(str(n), 1, shape=str(n % 2))[0] for n in range(5)]
    gone, ticket = b.order("gone", 1)
    ticket.cancel()
    if fault == "the device":
        b.denoiser.lost = RuntimeError("CUDA error: unspecified launch failure")
        b.end(RuntimeError("CUDA error"))
    else:
        b.end(SystemExit("of the thread"))
    for heard in (running, *waiting):
        assert isinstance(heard.last, Failed)
        assert isinstance(heard.last.error, EngineLostError)
        assert len(heard.events) == 1
    assert ("launch failure" if fault == "the device" else "of the thread") in str(running.last.error)
    assert gone.events == []
    with pytest.raises(EngineLostError):
        b.order("late", 1)
    b.engine._thread.join(SOON_S)
    assert not b.engine.alive


# The queue


def test_admitting_looks_only_at_the_orders_that_join(bench, monkeypatch):
    """A catalogue's orders may wait by the thousand while a few join at each step."""
    b = bench(batch_size=2, max_waiting=1000)
    b.order("first", 1)
    b.in_step()
    for n in range(500):
        b.order(str(n), 1)
    looked = []
    monkeypatch.setattr(Ticket, "cancelled", property(lambda t: looked.append(t) or False, lambda t, v: None))
    b.end()
    for _ in range(10):
        b.step()
    b.in_step()
    assert len(looked) < 150


def test_the_queue_is_bounded(bench):
    b = bench(batch_size=1, max_waiting=2)
    b.order("running", 2)
    b.in_step()
    b.order("first", 1)
    b.order("second", 1)
    with pytest.raises(QueueFullError, match="2 images wait"):
        b.order("too many", 1)
    b.end()
    assert b.step() == ["running"]
    assert b.in_step() == ["first"]  # which leaves a place
    heard, _ = b.order("now", 1)
    b.end()
    assert [b.step(), b.step()] == [["second"], ["now"]]
    assert isinstance(heard.last, Finished)
    assert "too many" not in b.denoiser.started


def test_what_is_observed_of_a_step(bench):
    b = bench()
    b.order("a", 1)
    b.in_step()
    for name in ("b", "c", "d"):
        last, _ = b.order(name, 1)
    time.sleep(0.05)
    b.end()
    b.step()
    b.step()
    assert last.last
    assert [(rows, waiting) for rows, waiting, _ in b.seen] == [(1, 3), (2, 1), (1, 0)]
    assert 0.05 <= b.seen[0][2] < SOON_S


def test_the_time_waited_ends_with_the_first_step(bench):
    b = bench()
    begun = time.monotonic()
    first, _ = b.order("first", 1)
    b.in_step()
    in_step_s = time.monotonic() - begun
    second, _ = b.order("second", 1)
    time.sleep(0.1)
    b.end()
    b.in_step()
    waited_s = time.monotonic() - begun
    time.sleep(0.1)
    b.end()
    assert 0 <= first.last.waited_s <= in_step_s
    assert 0.1 <= second.last.waited_s <= waited_s


# Previews


@pytest.mark.parametrize(
    ("previews", "previewed"),
    [
        (Previews(), []),
        (Previews(every=1), [1, 2, 3, 4, 5]),
        (Previews(every=2), [2, 4]),
        (Previews(every=5), [5]),
        (Previews(every=6), []),
        (Previews(every=100), []),
        (Previews(number=1), [3]),
        (Previews(number=2), [2, 4]),
        (Previews(number=3), [1, 2, 3]),
        (Previews(number=9), [1, 2, 3, 4, 5]),
    ],
)
def test_previews_come_as_often_as_was_asked(bench, previews, previewed):
    b = bench()
    heard, _ = b.order("a", 6, previews=previews)
    for _ in range(6):
        b.step()
    assert isinstance(heard.last, Finished)
    assert heard.steps == [1, 2, 3, 4, 5]
    shown = {event.step: event.preview for event in heard.events[:-1] if event.preview is not None}
    assert shown == {step: f"a with {6 - step} to go".encode() for step in previewed}


def test_a_preview_that_fails_fails_its_row_alone(bench):
    b = bench()
    b.order("blocker", 1)
    b.in_step()
    bad, _ = b.order("bad preview", 9, previews=Previews(every=1))
    good, _ = b.order("good", 2, previews=Previews(every=1))
    b.end()
    assert b.step() == ["bad preview", "good"]
    assert b.step() == ["good"]
    assert isinstance(good.last, Finished)
    assert bad.events == [bad.last]
    assert isinstance(bad.last, Failed)


# The end


def test_stop_ends_the_thread_after_its_step(bench):
    b = bench()
    heard, _ = b.order("a", 3)
    waits, _ = b.order("tall", 3, shape="tall")
    b.in_step()
    stopping = threading.Thread(target=b.engine.stop)
    stopping.start()
    time.sleep(0.05)
    assert b.engine.alive  # it is in its step
    for _ in range(9):
        b.end()
    stopping.join(SOON_S)
    assert not b.engine.alive
    assert not heard.ended.is_set()
    assert not waits.ended.is_set()


def test_an_idle_engine_stops(bench):
    b = bench()
    assert b.engine.alive
    b.engine.stop()
    assert not b.engine.alive
