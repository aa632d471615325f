"""The results file of the proof: one JSON that grows case by case and that several calls fill.

A case is named `part/…`, such as `speed/float16/eager/batch-8/ours`. Its entry says what became of it: `done` with its
values, `failed` with the error in words, or `skipped` with the reason.
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Values = dict[str, Any]
_LONGEST_REASON = 300
"""Characters of an error that are kept: compilers write pages."""


class Record:
    """The file, and the budget of the part that runs."""

    def __init__(self, path: Path, command: str, only: str) -> None:
        """path: of the JSON; results that it already holds stay. only: cases run whose names hold this text."""
        self._path = path
        self._command = command
        self._only = only
        self._ends = float("inf")
        self.data: Values = {"machine": {}, "results": {}}
        if path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))

    @property
    def results(self) -> dict[str, Values]:
        """Entries by the case's name."""
        results: dict[str, Values] = self.data["results"]
        return results

    def start_part(self, budget_s: float) -> None:
        """The cases from now on have `budget_s` seconds together."""
        self._ends = time.monotonic() + budget_s

    @property
    def left_s(self) -> float:
        """Seconds of the part's budget that are left."""
        return self._ends - time.monotonic()

    def wanted(self, name: str) -> bool:
        """Whether `--only` names the case."""
        return self._only in name

    def values(self, name: str) -> Values | None:
        """The values of a case that is done, in this call or in an earlier one; else None."""
        entry = self.results.get(name, {})
        return entry.get("values") if entry.get("status") == "done" else None

    def done(self, name: str, values: Values, seconds: float) -> None:
        """Keeps a case's values."""
        self._put(name, {"status": "done", "values": values, "seconds": round(seconds, 1)})

    def failed(self, name: str, error: BaseException) -> None:
        """Keeps in words why a case could not be measured."""
        reason = f"{type(error).__name__}: {error}".strip()[:_LONGEST_REASON]
        traceback.print_exception(error, limit=-4, file=sys.stderr)
        self._put(name, {"status": "failed", "reason": reason})

    def skipped(self, name: str, reason: str) -> None:
        """Keeps why a case did not run. Values of an earlier call stay."""
        if self.values(name) is None:
            self._put(name, {"status": "skipped", "reason": reason})

    def run(self, name: str, measure: Callable[[], Values], *, needs_s: float = 0.0, always: bool = False) -> None:
        """Measures a case unless `--only` leaves it out or less than `needs_s` seconds of the budget are left.

        always: whatever `--only` says.
        """
        if not (always or self.wanted(name)):
            return
        if self.left_s <= needs_s:
            self.skipped(name, f"the part's budget is used up: {max(0.0, self.left_s):.0f} s left, needs {needs_s:.0f}")
            return
        started = time.monotonic()
        try:
            values = measure()
        except Exception as error:  # out of memory, a driver without compilation: the next case runs all the same
            self.failed(name, error)
        else:
            self.done(name, values, time.monotonic() - started)
        free_memory()

    def write(self) -> None:
        """Replaces the file: a reader, and a call that is cut, find the complete one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self.data, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(partial, self._path)

    def _put(self, name: str, entry: Values) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.results[name] = {**entry, "command": self._command, "date": now}
        self.write()
        told = entry.get("values", entry.get("reason"))
        print(f"[{self.left_s:5.0f} s left] {name}: {entry['status']} {json.dumps(told)}", flush=True)


def free_memory() -> None:
    """Gives cached memory back, so that a case which ran out of memory costs the next one nothing."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
