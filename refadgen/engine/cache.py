"""A cache bounded in bytes: the least recently used values are dropped first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """Values by key, with their sizes. Safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: bound on all values together; 0: nothing is kept."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, key: Hashable) -> T | None:
        """The value, from now the most recently used; None: it is not kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: T, num_bytes: int) -> None:
        """Keeps `value` and drops old ones until all fit. A value larger than the bound is not kept."""
        with self._lock:
            # Out first, also where the new value is too large: the old one is no longer the key's value.
            if key in self._entries:
                self.num_bytes -= self._entries.pop(key)[1]
            if num_bytes > self._max_bytes:
                return
            self._entries[key] = (value, num_bytes)
            self.num_bytes += num_bytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drops all values."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
