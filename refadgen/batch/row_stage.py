"""A stage of a batch job as a Ray actor: one row in, one row out, and no row takes its block down.

A stage declares its row types and implements `process`. Timing, skipping rows that failed before, and turning whatever
`process` raises into the row's `error` are the same for all stages, and are here.
"""

import dataclasses
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from refadgen.batch.rows import field_names, from_table, to_table
from refadgen.errors import RowError

_log = logging.getLogger("refadgen.batch")


@dataclasses.dataclass(frozen=True)
class RowFailure:
    """A RowError as it travels in a row's `error` and ends in the ledger."""

    status: str
    reason: str
    detail: str

    @classmethod
    def of(cls, error: RowError) -> "RowFailure":
        return cls(error.status, error.reason, error.detail)


class LoggedRow(Protocol):
    """A row that a log line can name."""

    @property
    def log_facts(self) -> dict[str, Any]:
        """Its number in the input and its product's id, as fields."""


class StageRow(LoggedRow, Protocol):
    """The fields of every row between stages."""

    @property
    def error(self) -> RowFailure | None:
        """The failure of the row in an earlier stage; later stages pass it on."""

    @property
    def label(self) -> str:
        """The row for people: its number in the input and its product's id."""


class UnexpectedErrors:
    """Faults of ours or of a library in one stage of one run: logged with their traceback, once per kind.

    The ledger keeps a short text; the worker's log is where the fault can be found.
    """

    def __init__(self, stage: str, run_id: str) -> None:
        self._stage, self._run_id = stage, run_id
        self._logged: set[tuple[str, type[Exception]]] = set()
        self._lock = threading.Lock()  # fetchers fail in many threads at once

    def failure(self, error: Exception, label: str, reason: str = "internal_error") -> RowFailure:
        """The failure of the row `label`, after logging `error`. Call it where the error is caught."""
        # A broken library fails for every row alike: one traceback says it, a million would hide it.
        kind = (reason, type(error))
        with self._lock:
            is_new = kind not in self._logged
            self._logged.add(kind)
        if is_new:
            facts = {"run_id": self._run_id, "stage": self._stage}
            _log.error(
                "%s failed: run %s, %s: %s", self._stage, self._run_id, label, reason, exc_info=error, extra=facts
            )
        return RowFailure.of(RowError(reason, f"{label}: {type(error).__name__}: {str(error)[:200]}"))

    def tell(self, row: LoggedRow, failure: RowFailure) -> None:
        """Logs a row that ends in this stage. Only JSON logs show it (`log.format`): the ledger says the same."""
        facts = {"run_id": self._run_id, "stage": self._stage, **row.log_facts}
        _log.info("%s: %s", failure.status, failure.reason, extra=facts | {"detail": failure.detail})


RowIn = TypeVar("RowIn", bound=StageRow)
Added = TypeVar("Added")
RowOut = TypeVar("RowOut")


class RowStage(ABC, Generic[RowIn, Added, RowOut]):
    """One stage. A subclass sets the row types and implements `process`.

    Each field of an output row comes from the result of `process`, from `error` and the timer, or from the input row.
    A class whose `row_out` has a field that none of them gives is refused when it is defined.
    """

    row_in: type[RowIn]
    added: type[Added]
    """The result type of `process`. Made without arguments, it stands for a row that failed. With a field `error`, a
    stage can refuse a row and still keep its measurements."""
    row_out: type[RowOut]
    timer: ClassVar[str]
    """The field of `row_out` that takes the seconds spent on the row."""
    num_threads: ClassVar[int] = 1
    """Rows worked on at once; more than one only where `process` waits for the network."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.__module__.startswith("ray."):  # Ray Data runs a subclass of its own; logs must name the stage
            cls._name = cls.__name__
        cls._from_added = frozenset(field_names(cls.added))
        given = cls._from_added.union(field_names(cls.row_in), ["error", cls.timer])
        if unknown := [name for name in field_names(cls.row_out) if name not in given]:
            raise TypeError(f"{cls.__name__}: nothing gives {cls.row_out.__name__} its {', '.join(unknown)}")

    _name: ClassVar[str]
    _from_added: ClassVar[frozenset[str]]

    def __init__(self, run_id: str) -> None:
        self._errors = UnexpectedErrors(self._name, run_id)
        self._threads = ThreadPoolExecutor(self.num_threads) if self.num_threads > 1 else None

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(self.apply(from_table(table, self.row_in)), self.row_out)

    def apply(self, rows: list[RowIn]) -> list[RowOut]:
        """The output row of each row; for a stage that does more with a block than its rows one by one."""
        run: Callable[..., Iterable[RowOut]] = map if self._threads is None else self._threads.map
        return list(run(self._run, rows))

    @abstractmethod
    def process(self, row: RowIn) -> Added:
        """The fields that this stage adds to a row. Raises: RowError for a bad row; any other error is a fault."""

    def _run(self, row: RowIn) -> RowOut:
        started = time.monotonic()
        made, failure = self.added(), row.error
        if failure is None:
            try:
                made = self.process(row)
            except RowError as error:
                failure = RowFailure.of(error)
            except Exception as error:
                failure = self._errors.failure(error, row.label)
            if failure is None and "error" in self._from_added:
                failure = getattr(made, "error")  # noqa: B009 (mypy knows no such field of every `Added`)
            if failure is not None:
                self._errors.tell(row, failure)
        own = {"error": failure, self.timer: time.monotonic() - started}
        values = {
            name: own[name] if name in own else getattr(made if name in self._from_added else row, name)
            for name in field_names(self.row_out)
        }
        return self.row_out(**values)
