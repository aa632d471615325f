"""Deaths of workers, counted by us: what an actor had in hand when its process died, and what is done with it then.

Before an actor works on a block, it writes the block's keys to its mark: one small file in the output, overwritten
block by block. Ray starts a dead actor again under its old id and retries its calls. The new process finds the mark:
rows that were in hand are worked on alone from then on, and one that was alone at `MOST_ALONE` deaths ends as
`killed_worker`. A run that is killed leaves its marks, and the next one counts them. Ray's own retries have no bound
and need none.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from refadgen.batch.row_stage import RowFailure
from refadgen.errors import RowError
from refadgen.storage.store import STORE_ERRORS, Storage

_log = logging.getLogger("refadgen.batch")
MOST_ALONE = 2
"""Deaths with nothing else in hand after which a row is not tried again. With the one in company before them: three."""
_MOST_STARTS = 12
"""Starts of one actor in a row without a row done: then it is not the rows, and the run ends."""
_EARLIER = "earlier.json"
Deaths = Mapping[str, int]
"""By key of rows that were in hand when a process died: how often they were alone."""
Refuse = Callable[[pa.Table, RowFailure], pa.Table]
"""Gives rows a failure, as their stage takes it from an earlier one."""


@dataclass(frozen=True, kw_only=True)
class DeathMarks:
    """Where the actors of one run leave their marks; travels to them.

    folder: in the output. key: the column that names a row. earlier: deaths of killed runs before, by stage.
    """

    output_uri: str
    folder: str
    key: str
    earlier: Mapping[str, Deaths] = field(default_factory=dict)
    most_starts: int = _MOST_STARTS


@contextlib.contextmanager
def death_marks(storage: Storage, key: str, share: str = "") -> Iterator[DeathMarks]:
    """The marks of a run. They stay where it ends by an error or is killed; else they go. share: of several drivers."""
    folder = f"marks/{share or 'all'}"
    earlier = _gathered(storage, folder)
    try:
        yield DeathMarks(output_uri=storage.uri, folder=folder, key=key, earlier=earlier)
    except Exception:
        raise
    except BaseException:  # stopped: actors end with the driver, and none of their rows is to blame
        with contextlib.suppress(*STORE_ERRORS):
            storage.delete(storage.names(folder))
        raise
    storage.delete(storage.names(folder))


def _gathered(storage: Storage, folder: str) -> dict[str, dict[str, int]]:
    """The deaths that the marks of killed runs tell, by stage; they become one file."""
    keys = storage.names(folder)
    contents = {key: _read(storage, key) for key in keys}
    found: dict[str, dict[str, int]] = {}
    for key, content in contents.items():
        if key.endswith(f"/{_EARLIER}"):
            found = {stage: dict(deaths) for stage, deaths in content.items()}
    for key, content in contents.items():
        if not key.endswith(f"/{_EARLIER}") and content:
            known = found.setdefault(content["stage"], {})
            for row, alone in _deaths(content, dict(known)).items():
                known[row] = max(alone, known.get(row, 0))
    if found:
        storage.write(f"{folder}/{_EARLIER}", json.dumps(found).encode())
    storage.delete([key for key in keys if not key.endswith(f"/{_EARLIER}")])
    return found


def _deaths(content: Mapping[str, Any], earlier: Deaths) -> dict[str, int]:
    """The deaths that a mark tells once its process has died."""
    found = dict(content.get("deaths", {}))
    for row in content.get("in_hand", ()):
        found[row] = found.get(row, earlier.get(row, 0)) + bool(content.get("alone"))
    return found


def _read(storage: Storage, key: str) -> dict[str, Any]:
    """A mark; empty where there is none."""
    try:
        found = json.loads(storage.read(key))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _Mark:
    """One actor's mark, and what is known of deaths in its stage. For many threads."""

    def __init__(self, marks: DeathMarks, stage: str, actor: str) -> None:
        """Raises: RuntimeError where process after process ended without a row done."""
        self._storage, self._stage = Storage(marks.output_uri), stage
        self._key = f"{marks.folder}/{stage}-{actor}.json"
        self._earlier = marks.earlier.get(stage, {})
        self._lock = threading.Lock()
        self._in_hand: dict[int, Sequence[str]] = {}
        self._survived: set[str] = set()
        try:
            found = _read(self._storage, self._key)
        except STORE_ERRORS as error:
            _log.warning("%s: its mark cannot be read, so no death is counted: %s", stage, error)
            found = {}
        self._deaths = _deaths(found, self._earlier)
        self._starts = found.get("starts", 0) + 1
        if self._starts > marks.most_starts:
            last = ", ".join(map(str, found.get("in_hand", ())))
            raise RuntimeError(
                f"{stage}: its process ended {self._starts - 1} times in a row, and no row was done"
                + (f"; it last worked on {marks.key} {last}" if last else "; it had no row in hand")
            )
        with self._lock:
            self._write(alone=False)

    def deaths(self, row: str) -> int | None:
        """How often the process died with this row alone; None: it was never in hand at a death."""
        if row in self._survived:
            return None
        return self._deaths.get(row, self._earlier.get(row))

    @contextlib.contextmanager
    def held(self, rows: Sequence[str], *, alone: bool = False) -> Iterator[None]:
        """Names these rows in the mark meanwhile. alone: there are no others."""
        place = id(rows)
        with self._lock:
            self._in_hand[place] = rows
            self._write(alone=alone)
        try:
            yield
        finally:
            # Without writing: the next block does, and of rows that are done nobody asks any more.
            with self._lock:
                del self._in_hand[place]
        self._starts = 0

    def survived(self, row: str) -> None:
        """Forgets the deaths of a row that was done alone."""
        with self._lock:
            self._deaths.pop(row, None)
            self._survived.add(row)

    def _write(self, *, alone: bool) -> None:
        content = {
            "stage": self._stage,
            "starts": self._starts,
            "in_hand": [row for rows in self._in_hand.values() for row in rows],
            "alone": alone,
            "deaths": self._deaths,
        }
        try:
            # Not to outlive a power cut: that costs a count, and waiting for the disk would cost more.
            self._storage.write(self._key, json.dumps(content).encode(), lasting=False)
        except STORE_ERRORS as error:
            _log.warning("%s: its mark cannot be written, so a death would not be counted: %s", self._stage, error)


class _Turns:
    """Calls side by side, or one with nothing beside it. A turn may end in another thread than it began in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._waiting_alone = 0
        self._is_alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            # Those that must be alone first: there would always be another block.
            self._changed.wait_for(lambda: not self._is_alone and not self._waiting_alone)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: not self._is_alone and not self._running)
            self._waiting_alone -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


class MarkedStage:
    """A stage as an actor that marks what it has in hand.

    A block without a row that was in hand at a death goes to the stage as it is. Another is split: each of its rows is
    worked on with nothing else in the process, and the rows that come out keep their order.
    """

    def __init__(self, stage: type, marks: DeathMarks, refuse: Refuse | None, *arguments: Any) -> None:
        """refuse: gives a row its failure, for the stage to pass on; None: it has no such field, and a row that kills
        whenever it is alone ends the run. Raises: RuntimeError, and the errors of the stage.
        """
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        self._mark = _Mark(marks, stage.__name__, str(actor))  # before the model loads: that may kill, too
        self._name, self._key, self._refuse = stage.__name__, marks.key, refuse
        self._turns = _Turns()
        self._stage: Callable[[pa.Table], pa.Table | Iterator[pa.Table]] = stage(*arguments)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        rows = self._rows(table)
        if any(self._mark.deaths(row) is not None for row in rows):
            for index in range(len(table)):
                yield from self._alone(table.slice(index, 1))
        elif rows:
            with self._turns.shared(), self._mark.held(rows):
                yield from self._run(table)
        else:  # nothing but failures of earlier stages
            yield from self._run(table)

    def _rows(self, table: pa.Table) -> list[str]:
        """The keys of the rows that the stage works on: not of those that failed before."""
        if "error" in table.column_names:
            table = table.filter(pc.is_null(table["error"]))
        return [str(key) for key in table[self._key].to_pylist()]

    def _run(self, table: pa.Table) -> Iterator[pa.Table]:
        made = self._stage(table)
        if isinstance(made, pa.Table):
            yield made
        else:
            yield from made

    def _alone(self, table: pa.Table) -> list[pa.Table]:
        """What comes out for one row."""
        rows = self._rows(table)
        if not rows:
            return list(self._run(table))
        deaths = self._mark.deaths(rows[0]) or 0
        if deaths >= MOST_ALONE and self._refuse is not None:
            problem = (
                f"{self._key} {rows[0]}: the process of {self._name} ended each time it worked on this, {deaths} times "
                "with nothing else in hand; its log may tell why"
            )
            _log.error("failed: killed_worker: %s", problem)
            return list(self._run(self._refuse(table, RowFailure.of(RowError("killed_worker", problem)))))
        with self._turns.alone(), self._mark.held(rows, alone=True):
            made = list(self._run(table))
        self._mark.survived(rows[0])
        return made


def with_error(table: pa.Table, failure: RowFailure) -> pa.Table:
    """The rows with this failure in their column `error`."""
    index = table.schema.get_field_index("error")
    kind = table.schema.field(index)
    value = {"status": failure.status, "reason": failure.reason, "detail": failure.detail}
    return table.set_column(index, kind, pa.array([value] * len(table), kind.type))
