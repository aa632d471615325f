"""Step-level batching: one thread that advances a batch step by step, while images join and leave between two steps.

    submit() ─► waiting ─► [ join ─► step ─► finished images leave ]* ─► listener: Progress …, then Finished or Failed

It knows neither Ray nor HTTP nor the model: a `Denoiser` starts rows, steps them and finishes them. Rows of one `shape`
share a batch; batches of several shapes take turns. Where steps differ in kind, more rows than one batch holds are on
their way, and each step takes those of one kind. Three types are the denoiser's own: the order (what to make), the row
(an order on its way) and the result.

A step that finds too little memory costs nobody: its images start again, and from then on less of its shape is on its
way at once, first one batch and then halves of it. An engine that has lost its device ends, and tells every order.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from refadgen.engine.previews import Previews
from refadgen.engine.turns import Turns, next_batch
from refadgen.engine.waiting import WaitingOrders

_log = logging.getLogger("refadgen.engine")
_NONE = Previews()

Order = TypeVar("Order")
Row = TypeVar("Row")
Result = TypeVar("Result")
_OrderIn = TypeVar("_OrderIn", contravariant=True)
_ResultOut = TypeVar("_ResultOut", covariant=True)


class OutOfDeviceMemoryError(Exception):
    """The device has no memory for what was asked; with fewer rows it may have."""


class EngineLostError(Exception):
    """The engine has ended by an error, such as a lost device: this process makes no more orders."""


class Denoiser(Protocol[_OrderIn, Row, _ResultOut]):
    """The work that the engine schedules. Only the engine's thread calls it.

    What finds no memory raises OutOfDeviceMemoryError, and leaves the device fit for fewer rows.
    """

    batch_size: int
    """Rows of one batch, while there is memory for them."""
    num_kinds: int
    """The most kinds of steps that one row has. So many batches of rows are on their way at once."""

    def kind(self, row: Row) -> Hashable:
        """The kind of the row's next step: rows of one kind can be stepped together."""

    def num_steps(self, row: Row) -> int:
        """Steps that the row takes from its first to its last; some solvers take more than they were asked for."""

    def start(self, order: _OrderIn) -> Row:
        """A row for `order`, ready for its first step. Raises: any error, which fails that order alone."""

    def step(self, rows: list[Row], batch_size: int) -> list[Row]:
        """Advances rows of one shape and kind, in a batch padded to `batch_size`. Returns those that are finished."""

    def finish(self, order: _OrderIn, row: Row) -> _ResultOut:
        """The result of a finished row."""

    def preview(self, row: Row) -> bytes:
        """An encoded picture of an unfinished row."""

    def check_device(self) -> None:
        """Does next to nothing on the device. Raises: any error where the device is lost. Called after an error."""


@dataclass(frozen=True)
class Progress:
    """A step was done. step: from 1, and from 1 again after a lack of memory. preview: None unless it was asked for."""

    step: int
    num_steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """The last event of an order that was made."""

    result: Result
    waited_s: float
    """From `submit` to the first step."""
    worked_s: float
    """Its share of the engine's time: its start, its part of each step it was in, its end."""
    batch_size: int
    """Rows of its batches, padding included. Results are the same byte for byte at one batch size only."""


@dataclass(frozen=True)
class Failed:
    """The last event of an order that could not be made."""

    error: Exception
    begun: bool = True
    """Whether it got as far as a batch."""


Event = Progress | Finished[Result] | Failed


class QueueFullError(Exception):
    """No more orders may wait, or the engine has stopped."""


@dataclass(eq=False)
class Ticket(Generic[Order, Result]):
    """One order, from `submit` to its last event."""

    order: Order
    shape: Hashable
    listener: Callable[[Event[Result]], None]
    previews: Previews
    leave: "Callable[[Ticket[Order, Result]], None]"
    """Tells the engine that nothing is owed to the order any more."""
    submitted_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """The row leaves at the next step boundary, and the listener is called no more."""
        self.cancelled = True
        self.leave(self)

    def tell(self, event: Event[Result]) -> None:
        """Calls the listener, unless the order was cancelled."""
        if self.cancelled:
            return
        if not isinstance(event, Progress):
            self.leave(self)
        try:
            self.listener(event)
        except Exception as error:  # such as an event loop that is closed: nobody listens any more
            self.cancel()
            _log.warning("a listener failed, its order is cancelled: %s", type(error).__name__)


@dataclass(eq=False)
class _Running(Turns, Generic[Order, Row, Result]):
    """An order with a place in a batch."""

    ticket: Ticket[Order, Result]
    row: Row
    worked_s: float
    started_at: float = field(default_factory=time.monotonic)


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
        self._waiting: WaitingOrders[Ticket[Order, Result]] = WaitingOrders()
        self._open: set[Ticket[Order, Result]] = set()
        """Orders that are still owed their last event."""
        self._batches: dict[Hashable, list[_Running[Order, Row, Result]]] = {}
        """What is on its way, by shape."""
        self._one_batch: set[Hashable] = set()
        """Shapes of which no more rows than one batch are on their way: there is no memory for those that wait."""
        self._fitting: dict[Hashable, int] = {}
        """Batch sizes of the shapes for which the denoiser's own is too large."""
        self._held: deque[Hashable] = deque()
        """Shapes that found no memory beside another's batch: each gets the device alone for a batch, in this order."""
        self._alone = False
        """Whether a held shape has it now."""
        # Guards _waiting, _open, _stopping and _lost. Only the engine's thread changes the others.
        self._changed = threading.Condition()
        self._stopping = False
        self._lost: EngineLostError | None = None
        self.consecutive_failures = 0
        """Steps in a row that raised; 0 again after a step that worked. A lost device stays lost."""
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    def submit(
        self, order: Order, shape: Hashable, listener: Callable[[Event[Result]], None], *, previews: Previews = _NONE
    ) -> Ticket[Order, Result]:
        """Queues `order`.

        shape: orders of one shape may share a batch. listener: called from the engine's thread; the last event is
        Finished or Failed. previews: which steps have one. Raises: QueueFullError, EngineLostError.
        """
        ticket = Ticket(order, shape, listener, previews, self._leave)
        with self._changed:
            if self._lost is not None:
                raise EngineLostError(str(self._lost))
            if self._stopping:
                raise QueueFullError("the engine has stopped")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} images wait")
            self._waiting.add(shape, ticket)
            self._open.add(ticket)
            self._changed.notify()
        return ticket

    def _leave(self, ticket: Ticket[Order, Result]) -> None:
        with self._changed:
            self._open.discard(ticket)
            self._waiting.discard(ticket.shape, ticket)

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
        try:
            self._work()
        except BaseException as error:  # else everyone who waits for an image would wait for ever
            lost = EngineLostError(f"{type(error).__name__}: {error}")
            lost.__cause__ = error
            _log.error("the engine ends by %s", type(error).__name__)  # its text may repeat a request's
            with self._changed:
                self._lost, orphans = lost, list(self._open)
            for ticket in orphans:
                ticket.tell(Failed(lost))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
            self._admit()
            for shape in list(self._batches):
                self._step(shape)

    def batch_size(self, shape: Hashable) -> int:
        """Rows of a batch of `shape`: the denoiser's number, or the half of it (of the half, …) that memory holds."""
        return self._fitting.get(shape, self._denoiser.batch_size)

    def _admit(self) -> None:
        """Drops cancelled orders, and gives each shape's free places to the orders that waited longest for them."""
        for shape, batch in list(self._batches.items()):
            self._keep(shape, [running for running in batch if not running.ticket.cancelled])
        joining: deque[Ticket[Order, Result]] = deque()
        with self._changed:
            for shape in self._shapes_to_admit():
                num_batches = 1 if shape in self._one_batch else self._denoiser.num_kinds
                free = num_batches * self.batch_size(shape) - len(self._batches.get(shape, ()))
                joining.extend(self._waiting.take(shape, free))
        # Outside the lock: starting a row runs the Reference U-Net, and submit() must not wait for that.
        while joining:
            ticket = joining.popleft()
            if ticket.cancelled:
                continue
            started = time.monotonic()
            try:
                row = self._denoiser.start(ticket.order)
            except OutOfDeviceMemoryError as error:
                alike = [ticket, *(other for other in joining if other.shape == ticket.shape)]
                joining = deque(other for other in joining if other.shape != ticket.shape)
                if self._others_run(ticket.shape):
                    self._hold(ticket.shape, alike)
                else:
                    self._make_room(ticket.shape, error, alike)
                continue
            except Exception as error:
                self._denoiser.check_device()
                ticket.tell(Failed(error, begun=False))
                continue
            running = _Running(ticket, row, worked_s=time.monotonic() - started)
            self._batches.setdefault(ticket.shape, []).append(running)

    def _shapes_to_admit(self) -> Sequence[Hashable]:
        """Those whose orders may join now: all, unless a shape needs the device alone."""
        if self._batches:
            return [] if self._held or self._alone else list(self._waiting.shapes)
        self._alone = bool(self._held)
        return [self._held.popleft()] if self._held else list(self._waiting.shapes)

    def _step(self, shape: Hashable) -> None:
        batch_size = self.batch_size(shape)
        batch = next_batch(self._batches[shape], lambda running: self._denoiser.kind(running.row), batch_size)
        for running in self._batches[shape]:
            running.passed_over += 1
        started = time.monotonic()
        try:
            # By identity: a row is a dataclass of tensors, whose == has no truth value.
            finished = {id(row) for row in self._denoiser.step([running.row for running in batch], batch_size)}
        except OutOfDeviceMemoryError as error:
            self._make_room(shape, error)
            return
        except Exception as error:  # these images fail, other batches continue
            self.consecutive_failures += 1
            self._denoiser.check_device()
            self._drop(shape, batch)
            for running in batch:
                running.ticket.tell(Failed(error))
            return
        self.consecutive_failures = 0
        seconds = time.monotonic() - started
        self._observe(len(batch), len(self._waiting), seconds)
        self._drop(shape, [running for running in batch if id(running.row) in finished])
        without_memory: list[tuple[Ticket[Order, Result], OutOfDeviceMemoryError]] = []
        for running in batch:
            running.steps += 1
            running.passed_over = 0
            running.worked_s += seconds / len(batch)
            if running.ticket.cancelled:  # before the VAE runs for nobody
                continue
            try:
                self._report(running, batch_size, finished=id(running.row) in finished)
            except OutOfDeviceMemoryError as error:
                without_memory.append((running.ticket, error))
        if without_memory:  # once, however many of this step they are: none was tried in a smaller batch yet
            self._make_room(shape, without_memory[0][1], [ticket for ticket, _ in without_memory])

    def _make_room(
        self, shape: Hashable, error: OutOfDeviceMemoryError, others: Sequence[Ticket[Order, Result]] = ()
    ) -> None:
        """Lets less of `shape` be on its way; the orders that are, and `others` of that shape, begin again.

        From the beginning: an image that was made at two batch sizes would equal that of neither. At a batch size of 1
        they wait until they have the device alone, and fail if they had.
        """
        tickets = [*(running.ticket for running in self._batches.get(shape, ())), *others]
        self._keep(shape, [])
        batch_size = self.batch_size(shape)
        if len(tickets) > batch_size:  # first what changes no byte of an image
            self._one_batch.add(shape)
            _log.warning("no memory for several batches at %s: one at a time from now on: %s", shape, error)
        elif batch_size > 1:
            self._fitting[shape] = batch_size // 2
            _log.warning(
                "no memory for batches of %d at %s: %d from now on: %s", batch_size, shape, batch_size // 2, error
            )
        elif self._others_run(shape):
            self._hold(shape, tickets)
            return
        else:
            self.consecutive_failures += 1
            for ticket in tickets:
                ticket.tell(Failed(error))
            return
        self._put_back(shape, tickets)

    def _others_run(self, shape: Hashable) -> bool:
        return any(other != shape for other in self._batches)

    def _hold(self, shape: Hashable, tickets: Sequence[Ticket[Order, Result]]) -> None:
        """Lets nobody join until what runs of other shapes has ended; then `tickets` come first."""
        if shape not in self._held:
            _log.warning("no memory for %s beside other sizes: it waits until they are done", shape)
            self._held.append(shape)
        self._put_back(shape, tickets)

    def _put_back(self, shape: Hashable, tickets: Sequence[Ticket[Order, Result]]) -> None:
        with self._changed:
            self._waiting.put_back(shape, [ticket for ticket in tickets if not ticket.cancelled])

    def _report(self, running: _Running[Order, Row, Result], batch_size: int, *, finished: bool) -> None:
        """Tells the listener of a step's progress or end. Raises: OutOfDeviceMemoryError before it tells of an end."""
        ticket = running.ticket
        event: Event[Result]
        try:
            if finished:
                started = time.monotonic()
                result = self._denoiser.finish(ticket.order, running.row)
                worked_s = running.worked_s + time.monotonic() - started
                event = Finished(result, running.started_at - ticket.submitted_at, worked_s, batch_size)
            else:
                num_steps = self._denoiser.num_steps(running.row)
                event = Progress(running.steps, num_steps, self._preview(running, num_steps))
        except OutOfDeviceMemoryError:
            raise
        except Exception as error:
            self._denoiser.check_device()
            event = Failed(error)
        ticket.tell(event)
        if isinstance(event, Failed):
            ticket.cancel()  # a failed preview ends its order, though its row has steps left

    def _preview(self, running: _Running[Order, Row, Result], num_steps: int) -> bytes | None:
        """The picture of this step, where one is due and there is memory for it."""
        if not running.ticket.previews.due(running.steps, num_steps):
            return None
        try:
            return self._denoiser.preview(running.row)
        except OutOfDeviceMemoryError:  # the image itself goes on
            return None

    def _drop(self, shape: Hashable, leaving: Sequence[_Running[Order, Row, Result]]) -> None:
        self._keep(shape, [running for running in self._batches[shape] if running not in leaving])

    def _keep(self, shape: Hashable, batch: list[_Running[Order, Row, Result]]) -> None:
        """Makes `batch` what is on its way of `shape`."""
        if batch:
            self._batches[shape] = batch
        else:
            self._batches.pop(shape, None)  # so that an idle engine waits instead of stepping empty batches
