"""`--check-inputs`: which reconciled images were made of a product image that has changed behind its address.

An image_id is known before anything is fetched, so it holds the address, not the bytes. The ledger holds the hash of
the bytes; here the product images are fetched again and compared with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from refadgen.batch.ledger import Ledger, short_key
from refadgen.batch.rows import from_table
from refadgen.generation.rows import FetchedProduct

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RecordedInputs:
    """Short keys of image ids, sorted, and 64 bits of the hash of each one's product image; 0: it was never fetched."""

    keys: Keys
    hashes: Keys

    @classmethod
    def of(cls, ledger: Ledger) -> "RecordedInputs":
        """The latest rows of a ledger."""
        latest = ledger.latest(["input_sha256"])
        keys = _numbers(latest["image_id"].to_pylist())
        order = np.argsort(keys)  # searchsorted below needs them sorted; a set of ten million texts would be gigabytes
        return cls(keys[order], _numbers(latest["input_sha256"].to_pylist())[order])

    def differs(self, image_id: str, input_sha256: str) -> bool:
        """Whether the ledger knows this image, made of other bytes (or of none)."""
        key = np.uint64(short_key(image_id))
        index = int(np.searchsorted(self.keys, key))
        known = index < len(self.keys) and self.keys[index] == key
        return bool(known and self.hashes[index] != np.uint64(short_key(input_sha256)))


def _numbers(digests: list[str | None]) -> Keys:
    return np.fromiter((short_key(digest) if digest else 0 for digest in digests), np.uint64, len(digests))


def changed_inputs(table: pa.Table, *, recorded: Any) -> pa.Table:
    """INPUT: FetchedProduct. OUTPUT: `key`, short keys of the images whose input has changed. A Ray task.

    A product image that cannot be fetched now proves nothing: its images stay as they are.
    """
    known: RecordedInputs = ray.get(recorded)
    keys = [
        short_key(image.image_id)
        for product in from_table(table, FetchedProduct)
        if product.input_sha256
        for image in product.wanted
        if known.differs(image.image_id, product.input_sha256)
    ]
    return pa.table({"key": pa.array(keys, pa.uint64())})
