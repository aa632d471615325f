"""Attempts at an image: turns at a host, further tries within a run, and the hint at a later run."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from refadgen.config import FetchConfig
from refadgen.errors import RowError


class TryAgain(Exception):
    """An attempt failed in a way that another may not.

    reason, detail: of the RowError if it was the last one. retry_after_s: what the server asked for.
    """

    def __init__(self, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


class Attempts:
    """Turns and tries as FetchConfig says. Safe to share between threads."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: dict[str, threading.BoundedSemaphore] = {}
        self._hosts_lock = threading.Lock()

    def run(self, attempt: Callable[[], bytes]) -> bytes:
        """What `attempt` returns, which is made up to `num_retries` times more where it raises TryAgain.

        Raises: RowError (failed) after the last one; whatever else `attempt` raises, at once.
        """
        attempts = 1 + self._config.num_retries
        for number in range(attempts):
            try:
                return attempt()
            except TryAgain as error:
                if number == attempts - 1:
                    times = f"after {attempts} attempts" if attempts > 1 else "at the only attempt"
                    raise RowError(error.reason, f"{error.detail} ({times})") from error
                asked = min(error.retry_after_s, self._config.timeout_s)
                time.sleep(max(self._config.backoff_s * 2**number, asked))
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        """At most `max_per_host` requests to `host` at once."""
        with self._hosts_lock:
            semaphore = self._hosts.setdefault(host, threading.BoundedSemaphore(self._config.max_per_host))
        with semaphore:
            yield
