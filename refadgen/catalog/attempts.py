"""Attempts at fetching one image: how messages name it, retries within a run, and a limit of requests per host."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from refadgen.config import FetchConfig
from refadgen.errors import RowError


class TryAgain(Exception):
    """An attempt failed, and another one may succeed.

    error: the RowError if this was the last attempt. retry_after_s: the wait that the server asked for.
    """

    def __init__(self, error: RowError, retry_after_s: float = 0.0) -> None:
        super().__init__(error.reason)
        self.error = error
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """An image as messages name it. field: `image` or `mask`. shown: its address without secrets."""

    field: str
    shown: str

    def error(self, reason: str, problem: str) -> RowError:
        """The error that ends this image's row."""
        return RowError(reason, f"{self.field}: {self.shown}: {problem}", field=self.field)

    def try_again(self, reason: str, problem: str, retry_after_s: float = 0.0) -> TryAgain:
        """The same, unless another attempt succeeds."""
        return TryAgain(self.error(reason, problem), retry_after_s)


class Attempts:
    """Retries and limits requests as FetchConfig says. Safe to share between threads."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: dict[str, threading.BoundedSemaphore] = {}
        self._hosts_lock = threading.Lock()

    def run(self, attempt: Callable[[], bytes]) -> bytes:
        """Returns the result of `attempt`, which is retried up to `num_retries` times while it raises TryAgain.

        Raises: RowError (failed) after the last attempt; any other exception of `attempt` at once.
        """
        attempts = 1 + self._config.num_retries
        for number in range(attempts):
            try:
                return attempt()
            except TryAgain as again:
                if number == attempts - 1:
                    times = f"after {attempts} attempts" if attempts > 1 else "at the only attempt"
                    error = again.error
                    raise RowError(error.reason, f"{error.problem} ({times})", field=error.field) from again
                # A server may ask for an hour. The actor would hold its rows so long, so it waits a request's time.
                asked = min(again.retry_after_s, self._config.timeout_s)
                time.sleep(max(self._config.backoff_s * 2**number, asked))
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        """Lets at most `max_per_host` requests run against `host` at once."""
        # Per host, not in all: one slow shop must not hold up the images of the others.
        with self._hosts_lock:
            semaphore = self._hosts.setdefault(host, threading.BoundedSemaphore(self._config.max_per_host))
        with semaphore:
            yield
