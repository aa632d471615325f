"""How the runs of an output stand, from the output alone: their records, and what the ledger says of each image."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from refadgen.batch.shards import record_keys
from refadgen.generation.ledger import AdLedger
from refadgen.storage.store import Storage

_RECENT_S = 600
"""The rate of a run is told for its last ten minutes, too."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One driver's last run. facts: its record. recorded: images that it has recorded so far.

    left: images that it was to make and has not recorded; None: the record does not say.
    """

    facts: Mapping[str, Any]
    recorded: int
    left: int | None
    images_per_s: float
    recent_per_s: float
    last_recorded_at: datetime | None

    def lines(self) -> Iterator[str]:
        """For a person."""
        facts = self.facts
        state = facts.get("state", "unknown")
        if state == "running":
            state = "running, or killed without a word"
        by = f" by {facts['error']}" if "error" in facts else f" by {facts['ended_by']}" if "ended_by" in facts else ""
        shard = f"shard {facts['shard']}, " if facts.get("shard") else ""
        yield f"run {facts.get('run_id', '?')}: {shard}{state}{by}; started {facts.get('started_at', '?')}"
        last = "" if self.last_recorded_at is None else f"; the last one {self.last_recorded_at:%Y-%m-%d %H:%M:%S} UTC"
        left = "" if self.left is None else f", {self.left} of its images left"
        yield f"  recorded {self.recorded} images{left}{last}"
        yield f"  {self.images_per_s:.2f} images/s, {self.recent_per_s:.2f} in the last ten minutes that it worked"


@dataclass(frozen=True, kw_only=True)
class OutputStatus:
    """How an output stands. counts: images by status and reason."""

    output: str
    runs: tuple[RunStatus, ...]
    counts: Counter[tuple[str, str]]
    retried: int
    """Images that `--retry-failed` works on again: failed ones, and rejections that something outside lifts."""

    def __str__(self) -> str:
        by_status = Counter[str]()
        for (status, _), number in self.counts.items():
            by_status[status] += number
        listed = ", ".join(f"{status} {by_status[status]}" for status in ("done", "failed", "rejected"))
        reasons = sorted(((n, *kind) for kind, n in self.counts.items() if kind[0] != "done"), reverse=True)
        return "\n".join(
            [
                f"output: {self.output}",
                *(line for run in self.runs for line in run.lines()),
                *([] if self.runs else ["no run has begun here"]),
                f"ledger: {self.counts.total()} images: {listed}",
                *(f"  {number} × {reason} ({status})" for number, status, reason in reasons),
                *self._rerun(),
            ]
        )

    def _rerun(self) -> Iterator[str]:
        if not self.runs:
            return
        lefts = [run.left for run in self.runs if run.left is not None]
        known = len(lefts) == len(self.runs)
        made = f"makes the {sum(lefts)} that are left" if known else "makes what has no row in the ledger"
        yield f"the same command again: {made}, and leaves all others alone"
        yield f"  with --retry-failed: {self.retried} more"


def output_status(storage: Storage) -> OutputStatus:
    """Reads how an output stands. Raises: ValueError naming an output that is none of the main job."""
    if storage.root_kind(f"{storage.uri}: the output") != "folder":
        raise ValueError(f"{storage.uri}: there is no such output")
    records = [json.loads(storage.read(key)) for key in record_keys(storage)]
    ledger = AdLedger(storage)
    outcomes = ledger.outcomes()
    if not records and not len(outcomes.keys):
        raise ValueError(f"{storage.uri}: holds neither run.json nor a ledger; give the --output of a run")
    counts = outcomes.counts()
    retried = sum(
        number
        for kind, number in counts.items()
        if ledger.is_settled(*kind, retry_failed=False) and not ledger.is_settled(*kind, retry_failed=True)
    )
    pace = ledger.pace([str(facts.get("run_id")) for facts in records])
    runs = tuple(_run_status(facts, pace[str(facts.get("run_id"))]) for facts in records)
    return OutputStatus(output=storage.uri, runs=runs, counts=counts, retried=retried)


def _run_status(facts: Mapping[str, Any], pace: Mapping[int, int]) -> RunStatus:
    """pace: images recorded in each second since 1970."""
    recorded, to_make = sum(pace.values()), facts.get("to_make")
    last, first = max(pace, default=0), min(pace, default=0)
    with contextlib.suppress(KeyError, ValueError):
        first = int(datetime.fromisoformat(facts["started_at"]).timestamp())
    recent = max(first, last - _RECENT_S)
    return RunStatus(
        facts=facts,
        recorded=recorded,
        left=None if to_make is None else max(0, to_make - recorded),
        images_per_s=recorded / max(1, last - first),
        recent_per_s=sum(number for second, number in pace.items() if second > recent) / max(1, last - recent),
        last_recorded_at=datetime.fromtimestamp(last, UTC) if pace else None,
    )
