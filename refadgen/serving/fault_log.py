"""Unexpected errors in the log: types and lines of code, never what a request said.

An exception's message may repeat a prompt, a signed address or a token, so messages are left out here. The same holds
for `logger.exception`, which prints them: this package does not use it.
"""

import logging
import threading
import traceback

_log = logging.getLogger("ray.serve")
_MAX_KNOWN = 1000  # so that faults at ever new places do not grow this process
_known: set[tuple[str, str, str]] = set()
_lock = threading.Lock()


def log_fault(what: str, error: BaseException, *, request_id: str = "") -> None:
    """Logs that `what` failed. The traceback is written once per type of error and place, then one line each."""
    name, place = type(error).__name__, _place(error)
    ending = f", id={request_id}" if request_id else ""
    with _lock:
        first = (what, name, place) not in _known and len(_known) < _MAX_KNOWN
        if first:
            _known.add((what, name, place))
    if first:
        _log.error("%s failed%s: %s\n%s", what, ending, name, _frames(error))
    else:
        _log.error("%s failed%s: %s at %s (its traceback is further up in this log)", what, ending, name, place)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def _frames(error: BaseException) -> str:
    """The lines of code of `error` and of the errors that led to it, newest first."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < 10:
        parts.append(f"{type(current).__name__}\n{''.join(traceback.format_tb(current.__traceback__))}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "caused by ".join(parts)
