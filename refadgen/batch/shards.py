"""One catalogue shared out among several drivers with one output: `--shard 3/16` is the third of sixteen."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refadgen.batch.ledger import Keys
from refadgen.storage.store import Storage

_RECORD = re.compile(r"run(?:-\d+-of-\d+)?\.json")


@dataclass(frozen=True)
class Shard:
    """The share of one driver. number: from 1 to `of`.

    A product belongs to a shard by the hash of its sku, so that shards stay as they are when the catalogue grows.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """Reads `3/16`; None: the whole catalogue. Raises: ValueError with the fault."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found:
            raise ValueError(f"--shard {text}: write it as 3/16, the third of sixteen")
        number, of = int(found[1]), int(found[2])
        if not 1 <= number <= of:
            raise ValueError(f"--shard {text}: must be a number from 1/{max(of, 1)} to {max(of, 1)}/{max(of, 1)}")
        return cls(number, of)

    @property
    def label(self) -> str:
        """For names of files and for people; empty: the whole catalogue."""
        return "" if self.of == 1 else f"{self.number}-of-{self.of}"

    @property
    def record_key(self) -> str:
        """The key of the record of this driver's runs."""
        return f"run-{self.label}.json" if self.label else "run.json"

    def holds(self, keys: Keys, first_row: int) -> npt.NDArray[np.bool_]:
        """Whether rows belong to this shard. keys: of their skus, 0 where there is none: then the row's number counts.

        first_row: the number of the first of them.
        """
        rows = np.arange(first_row, first_row + len(keys), dtype=np.uint64)
        found: npt.NDArray[np.bool_] = np.where(keys == 0, rows, keys) % np.uint64(self.of) == self.number - 1
        return found


def record_keys(storage: Storage) -> Sequence[str]:
    """The keys of the run records of an output: of its drivers, or of the only one."""
    return [name for name in storage.names("") if _RECORD.fullmatch(name)]
