"""Step-level batching: one thread that advances a batch step by step, while images join and leave between two steps.

    submit() ─► waiting ─► [ join ─► step ─► finished images leave ]* ─► listener: Progress …, then Finished or Failed

It knows neither Ray nor HTTP nor the model: a `Denoiser` starts rows, steps them and finishes them. Rows of one `shape`
share a batch; batches of several shapes take turns.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

_log = logging.getLogger("ray.serve")


class Denoiser(Protocol):
    """What the engine advances. Only the engine's thread calls it."""

    batch_size: int
    """Rows of one batch."""

    def start(self, order: Any) -> Any:
        """A row for `order`, ready for its first step. Raises: any error, which is that order's alone."""

    def step(self, rows: list[Any]) -> list[Any]:
        """Advances all rows, at most `batch_size` and of one shape; returns those that are finished by it."""

    def finish(self, order: Any, row: Any) -> Any:
        """What a finished row comes to."""

    def preview(self, row: Any) -> Any:
        """What an unfinished row looks like."""


@dataclass(frozen=True)
class Progress:
    """A step was done. preview: None unless it was asked for at this step."""

    step: int
    preview: Any = None


@dataclass(frozen=True)
class Finished:
    result: Any
    waited_s: float
    """From `submit` to the first step."""


@dataclass(frozen=True)
class Failed:
    error: Exception


Event = Progress | Finished | Failed


class QueueFullError(Exception):
    """As many orders wait as may, or the engine has stopped."""


@dataclass(eq=False)
class Ticket:
    """One order on its way."""

    order: Any
    shape: Hashable
    listener: Callable[[Event], None]
    preview_every: int
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    row: Any = None
    steps: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        """The row leaves at the next step boundary; nothing more is heard of it."""
        self.cancelled = True


class StepEngine:
    """The thread and its queue. Safe to use from any thread."""

    def __init__(
        self, denoiser: Denoiser, *, max_waiting: int, observe: Callable[[int, int, float], None] = lambda *_: None
    ) -> None:
        """max_waiting: orders without a place. observe: told of each step: rows, waiting orders, seconds."""
        self._denoiser = denoiser
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: deque[Ticket] = deque()
        self._batches: dict[Hashable, list[Ticket]] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self.consecutive_failures = 0
        """Steps in a row that failed as a whole: a device that is lost stays lost."""
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    def submit(
        self, order: Any, shape: Hashable, listener: Callable[[Event], None], *, preview_every: int = 0
    ) -> Ticket:
        """Queues `order`. listener: called from the engine's thread; the last event is Finished or Failed.

        preview_every: steps between previews; 0: none. Raises: QueueFullError.
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
        """Ends the thread after its step; orders under way are given up."""
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
        """Drops what was cancelled, and gives free places to who waited longest for that shape."""
        for shape, batch in list(self._batches.items()):
            self._keep(shape, [ticket for ticket in batch if not ticket.cancelled])
        joining: list[Ticket] = []
        with self._changed:
            places = {shape: self._denoiser.batch_size - len(batch) for shape, batch in self._batches.items()}
            still_waiting: deque[Ticket] = deque()
            for ticket in self._waiting:
                if ticket.cancelled:
                    continue
                free = places.setdefault(ticket.shape, self._denoiser.batch_size)
                (joining if free else still_waiting).append(ticket)
                places[ticket.shape] -= 1 if free else 0
            self._waiting = still_waiting
        for ticket in joining:
            try:
                ticket.row = self._denoiser.start(ticket.order)
            except Exception as error:
                if not ticket.cancelled:
                    _tell(ticket, Failed(error))
                continue
            ticket.started_at = time.monotonic()
            self._batches.setdefault(ticket.shape, []).append(ticket)

    def _step(self, shape: Hashable) -> None:
        batch = self._batches[shape]
        started = time.monotonic()
        try:
            finished = {id(row) for row in self._denoiser.step([ticket.row for ticket in batch])}
        except Exception as error:  # out of memory, a lost device: these images fail, the others go on
            self.consecutive_failures += 1
            self._keep(shape, [])
            for ticket in batch:
                if not ticket.cancelled:
                    _tell(ticket, Failed(error))
            return
        self.consecutive_failures = 0
        self._observe(len(batch), len(self._waiting), time.monotonic() - started)
        self._keep(shape, [ticket for ticket in batch if id(ticket.row) not in finished])
        for ticket in batch:
            ticket.steps += 1
            if not ticket.cancelled:
                _tell(ticket, self._event(ticket, finished=id(ticket.row) in finished))

    def _event(self, ticket: Ticket, *, finished: bool) -> Event:
        try:
            if finished:
                result = self._denoiser.finish(ticket.order, ticket.row)
                return Finished(result, waited_s=ticket.started_at - ticket.submitted_at)
            wanted = ticket.preview_every and ticket.steps % ticket.preview_every == 0
            return Progress(ticket.steps, self._denoiser.preview(ticket.row) if wanted else None)
        except Exception as error:
            ticket.cancel()  # where a preview failed
            return Failed(error)

    def _keep(self, shape: Hashable, batch: list[Ticket]) -> None:
        if batch:
            self._batches[shape] = batch
        else:
            self._batches.pop(shape, None)


def _tell(ticket: Ticket, event: Event) -> None:
    """A listener that fails, such as one whose event loop is closed, is its own matter."""
    try:
        ticket.listener(event)
    except Exception as error:
        ticket.cancel()
        _log.warning("a listener failed: %s", type(error).__name__)
