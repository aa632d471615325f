"""`run.json`: the request and the outcome of a run of a batch job, written when it starts and when it ends."""

import contextlib
import json
import logging
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayActorError
from tqdm import tqdm

from refadgen.batch.actor_pools import growth_shown, use_callbacks
from refadgen.batch.ledger import LedgerWriter, now
from refadgen.batch.metrics import RowCounts, watches_pools
from refadgen.storage.store import STORE_ERRORS, Storage

KEY = "run.json"
_log = logging.getLogger("refadgen.batch")
_PROGRESS_S = 30.0


class RunRecord:
    """The record of one run, and its clock."""

    def __init__(self, storage: Storage, packages: Sequence[str], key: str = KEY, **facts: Any) -> None:
        """packages: distributions whose versions are recorded. key: of the record in the output. facts: plain values
        for JSON, without secrets.
        """
        self.run_id = uuid.uuid4().hex[:12]
        self._written, self._key = False, key
        self._storage = storage
        self._started = time.monotonic()
        versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        self.facts: dict[str, Any] = {
            "run_id": self.run_id,
            "state": "running",
            "output": storage.uri,
            "started_at": now().isoformat(timespec="seconds"),
            **facts,
            "versions": versions,
        }

    def start(self, **facts: Any) -> None:
        """Writes the record of the running job, `facts` added; until then the record of the last run stays."""
        self.facts |= facts
        self._write()

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Records how a run ends that does not finish: `failed` by an error, or `stopped`.

        Ray turns SIGTERM, which `ray job stop` sends, into SystemExit. A process that is killed at once leaves
        `running` behind.
        """
        try:
            yield
        except BaseException as error:
            if self._written:
                stopped = isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit)
                self.facts |= {
                    "state": "stopped" if stopped else "failed",
                    "seconds": round(self.seconds, 1),
                    "error": type(error).__name__,
                }
                with contextlib.suppress(*STORE_ERRORS):
                    self._write()
            raise

    @property
    def seconds(self) -> float:
        """Since the run started."""
        return time.monotonic() - self._started

    def finish(self, **facts: Any) -> Mapping[str, Any]:
        """Writes the record of the finished run, `facts` added, and returns all of it."""
        self.facts |= {"state": "finished", "seconds": round(self.seconds, 1)} | facts
        self._write()
        return self.facts

    def add(self, **facts: Any) -> None:
        """Adds facts that are known only after the run has finished."""
        self.facts |= facts
        self._write()

    def _write(self) -> None:
        self._written = True
        self._storage.write(self._key, json.dumps(self.facts, indent=2, ensure_ascii=False).encode())


def record_rows(
    dataset: Dataset,
    writer: LedgerWriter,
    *,
    total: int,
    unit: str,
    job: str,
    run_id: str,
    label: str | None = None,
    cost_per_hour: float = 0.0,
    callbacks: Sequence[type[ExecutionCallback]] = (),
    listener: Callable[[Mapping[str, int], int], None] | None = None,
) -> None:
    """Appends the ledger rows of a stream as they come, behind a progress bar.

    total: rows that will come. unit: their noun. job: the entry's name, for metrics. label: shown before the bar.
    cost_per_hour: of the GPUs that the run holds. callbacks: the run's own, for Ray Data. listener: is
    told the rows recorded so far by status, and `total`. With JSON logs (`log.format`)
    there is no bar, and a line every half minute.
    Raises: RuntimeError where an actor's process ends on the same rows whenever they are retried, or cannot start
    again.
    """
    use_callbacks(dataset, watches_pools(job, cost_per_hour), *callbacks)
    in_lines = _log.isEnabledFor(logging.INFO)
    bar = tqdm(total=total, unit=unit, desc=label, mininterval=1.0, dynamic_ncols=True, disable=in_lines)
    told_at = time.monotonic()
    with bar as progress, growth_shown(), RowCounts(job) as counts:
        try:
            # No prefetching: a row counts once it is recorded, and blocks held back here would be lost in a crash.
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                writer.add(table)
                counts.add(table)
                progress.update(len(table))
                if listener is not None:
                    listener(writer.counts, total)
                if in_lines and time.monotonic() - told_at >= _PROGRESS_S:
                    told_at = time.monotonic()
                    facts = {"run_id": run_id, "job": job, "recorded": writer.counts.total(), "total": total}
                    _log.info("%s under way", job, extra=facts | dict(writer.counts))
                # Drawn with the bar's next update: a redraw for every block would flood the log of a submitted job.
                progress.set_postfix(dict(writer.counts), refresh=False)
        except RayActorError as error:
            raise RuntimeError(
                "an actor's process ended again and again on the same rows, or could not start again: its own message "
                f"is in the log above. What is recorded stays, and the same command resumes. Ray says: {error}"
            ) from error


def reason_lines(reasons: Mapping[str, int]) -> Iterator[str]:
    """The reasons of a summary, the most frequent first, a line each."""
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        yield f"  {count} × {reason}"
