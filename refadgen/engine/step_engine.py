"""Step-level batching: one thread that advances a batch step by step, while images join and leave between two steps.

    submit() ─► waiting ─► [ join ─► step ─► finished images leave ]* ─► listener: Progress …, then Finished or Failed

It knows neither Ray nor HTTP nor the model: a `Denoiser` starts rows, steps them and finishes them. Rows of one `shape`
share a batch; batches of several shapes take turns. Three types are the denoiser's own: the order (what to make), the
row (an order on its way) and the result.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_log = logging.getLogger("refadgen.engine")

Order = TypeVar("Order")
Row = TypeVar("Row")
Result = TypeVar("Result")
_OrderIn = TypeVar("_OrderIn", contravariant=True)
_ResultOut = TypeVar("_ResultOut", covariant=True)


class Denoiser(Protocol[_OrderIn, Row, _ResultOut]):
    """The work that the engine schedules. Only the engine's thread calls it."""

    batch_size: int
    """Rows of one batch."""

    def start(self, order: _OrderIn) -> Row:
        """A row for `order`, ready for its first step. Raises: any error, which fails that order alone."""

    def step(self, rows: list[Row]) -> list[Row]:
        """Advances all rows, at most `batch_size` and of one shape. Returns those that this step finished."""

    def finish(self, order: _OrderIn, row: Row) -> _ResultOut:
        """The result of a finished row."""

    def preview(self, row: Row) -> bytes:
        """An encoded picture of an unfinished row."""


@dataclass(frozen=True)
class Progress:
    """A step was done. step: from 1. preview: None unless it was asked for at this step."""

    step: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """The last event of an order that was made."""

    result: Result
    waited_s: float
    """From `submit` to the first step."""
    worked_s: float
    """Its share of the engine's time: its start, its part of each step it was in, its end."""


@dataclass(frozen=True)
class Failed:
    """The last event of an order that could not be made."""

    error: Exception


Event = Progress | Finished[Result] | Failed


class QueueFullError(Exception):
    """No more orders may wait, or the engine has stopped."""


@dataclass(eq=False)
class Ticket(Generic[Order, Result]):
    """One order, from `submit` to its last event."""

    order: Order
    shape: Hashable
    listener: Callable[[Event[Result]], None]
    preview_every: int
    submitted_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """The row leaves at the next step boundary, and the listener is called no more."""
        self.cancelled = True

    def tell(self, event: Event[Result]) -> None:
        """Calls the listener, unless the order was cancelled."""
        if self.cancelled:
            return
        try:
            self.listener(event)
        except Exception as error:  # such as an event loop that is closed: nobody listens any more
            self.cancel()
            _log.warning("a listener failed, its order is cancelled: %s", type(error).__name__)


@dataclass(eq=False)
class _Running(Generic[Order, Row, Result]):
    """An order with a place in a batch."""

    ticket: Ticket[Order, Result]
    row: Row
    worked_s: float
    started_at: float = field(default_factory=time.monotonic)
    steps: int = 0


class StepEngine(Generic[Order, Row, Result]):
    """The thread and its queue. Safe to use from any thread."""

    def __init__(
        self,
        denoiser: Denoiser[Order, Row, Result],
        *,
        max_waiting: int,
        observe: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        """max_waiting: orders without a place. observe: called after each step with rows, waiting orders, seconds."""
        self._denoiser = denoiser
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: deque[Ticket[Order, Result]] = deque()
        self._batches: dict[Hashable, list[_Running[Order, Row, Result]]] = {}
        # Guards _waiting and _stopping. Only the engine's thread changes _batches.
        self._changed = threading.Condition()
        self._stopping = False
        self.consecutive_failures = 0
        """Steps in a row that raised; 0 again after a step that worked. A lost device stays lost."""
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    def submit(
        self, order: Order, shape: Hashable, listener: Callable[[Event[Result]], None], *, preview_every: int = 0
    ) -> Ticket[Order, Result]:
        """Queues `order`.

        shape: orders of one shape may share a batch. listener: called from the engine's thread; the last event is
        Finished or Failed. preview_every: steps between previews; 0: none. Raises: QueueFullError.
        """
        ticket = Ticket(order, shape, listener, preview_every)
        with self._changed:
            if self._stopping:
                raise QueueFullError("the engine has stopped")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} images wait")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(map(len, self._batches.values()))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends the thread after its step. Orders that are not finished hear nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
            self._admit()
            for shape in list(self._batches):
                self._step(shape)

    def _admit(self) -> None:
        """Drops cancelled orders, and gives each shape's free places to the orders that waited longest for them."""
        for shape, batch in list(self._batches.items()):
            self._keep(shape, [running for running in batch if not running.ticket.cancelled])
        joining: list[Ticket[Order, Result]] = []
        with self._changed:
            places = {shape: self._denoiser.batch_size - len(batch) for shape, batch in self._batches.items()}
            still_waiting: deque[Ticket[Order, Result]] = deque()
            for ticket in self._waiting:
                if ticket.cancelled:
                    continue
                free = places.setdefault(ticket.shape, self._denoiser.batch_size)
                (joining if free else still_waiting).append(ticket)
                places[ticket.shape] -= 1 if free else 0
            self._waiting = still_waiting
        # Outside the lock: starting a row runs the Reference U-Net, and submit() must not wait for that.
        for ticket in joining:
            started = time.monotonic()
            try:
                row = self._denoiser.start(ticket.order)
            except Exception as error:
                ticket.tell(Failed(error))
                continue
            running = _Running(ticket, row, worked_s=time.monotonic() - started)
            self._batches.setdefault(ticket.shape, []).append(running)

    def _step(self, shape: Hashable) -> None:
        batch = self._batches[shape]
        started = time.monotonic()
        try:
            # By identity: a row is a dataclass of tensors, whose == has no truth value.
            finished = {id(row) for row in self._denoiser.step([running.row for running in batch])}
        except Exception as error:  # out of memory, a lost device: these images fail, other batches continue
            self.consecutive_failures += 1
            self._keep(shape, [])
            for running in batch:
                running.ticket.tell(Failed(error))
            return
        self.consecutive_failures = 0
        seconds = time.monotonic() - started
        self._observe(len(batch), len(self._waiting), seconds)
        self._keep(shape, [running for running in batch if id(running.row) not in finished])
        for running in batch:
            running.steps += 1
            running.worked_s += seconds / len(batch)
            if not running.ticket.cancelled:  # before the VAE runs for nobody
                self._report(running, finished=id(running.row) in finished)

    def _report(self, running: _Running[Order, Row, Result], *, finished: bool) -> None:
        """Tells the listener of a step: its progress, or its end."""
        ticket = running.ticket
        event: Event[Result]
        try:
            if finished:
                started = time.monotonic()
                result = self._denoiser.finish(ticket.order, running.row)
                worked_s = running.worked_s + time.monotonic() - started
                event = Finished(result, waited_s=running.started_at - ticket.submitted_at, worked_s=worked_s)
            else:
                previewed = ticket.preview_every and running.steps % ticket.preview_every == 0
                event = Progress(running.steps, self._denoiser.preview(running.row) if previewed else None)
        except Exception as error:
            event = Failed(error)
        ticket.tell(event)
        if isinstance(event, Failed):
            ticket.cancel()  # a failed preview ends its order, though its row has steps left

    def _keep(self, shape: Hashable, batch: list[_Running[Order, Row, Result]]) -> None:
        """Makes `batch` the batch of `shape`."""
        if batch:
            self._batches[shape] = batch
        else:
            self._batches.pop(shape, None)  # so that an idle engine waits instead of stepping empty batches
