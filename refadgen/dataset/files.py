"""The data files of an output, held to what its ledger says: each triplet that is done, and no other."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.batch.ledger import Ledger
from refadgen.storage.store import Storage
from refadgen.triplets.schema import write_rows

_THREADS = 16
_OWN_KEY = re.compile(r"data/(train|test)/triplets-[0-9a-f]{16}\.parquet")


def triplets_key(split: str, row_ids: Iterable[str]) -> str:
    """Where the triplets of these ads are written together: the same ads, the same file."""
    return f"data/{split}/triplets-{hashlib.sha256(' '.join(row_ids).encode()).hexdigest()[:16]}.parquet"


def sweep(storage: Storage, ledger: Ledger) -> int:
    """Removes triplets that the ledger does not know as done in their file; returns how many. Other files stay.

    A run that was killed between a file and its ledger rows leaves some, and so does an ad that a near-duplicate of
    smaller id came in front of.
    """
    latest = ledger.latest(["status", "file"])
    done = latest.filter(pc.equal(latest["status"], "done")).sort_by("file").combine_chunks()
    counts = pc.value_counts(done["file"])
    ends = np.cumsum(counts.field("counts").to_numpy())
    rows_of_file = dict(zip(counts.field("values").to_pylist(), zip([0, *ends], ends, strict=False), strict=True))

    def clean(key: str) -> int:
        first, end = rows_of_file.get(key, (0, 0))
        known = done["row_id"].slice(first, end - first)
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            extra = file.metadata.num_rows - len(known)
            if extra and len(known):
                table = file.read()
                kept = table.filter(pc.is_in(table["row_id"], value_set=known.combine_chunks()))
        if extra and len(known):
            write_rows(storage, key, kept)
        elif extra:
            storage.delete([key])
        return extra

    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(clean, filter(_OWN_KEY.fullmatch, storage.keys("data"))))
