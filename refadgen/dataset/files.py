"""The data files of an output: their names, and the removal of triplets that the ledger does not record as done."""

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

_THREADS = 16  # footers in a store: latency counts, not bandwidth
_OWN_KEY = re.compile(r"data/(train|test)/triplets-[0-9a-f]{16}\.parquet")


def triplets_key(split: str, row_ids: Iterable[str]) -> str:
    """Returns the key of the file that holds these ads' triplets. The same ads in the same order give the same key."""
    return f"data/{split}/triplets-{hashlib.sha256(' '.join(row_ids).encode()).hexdigest()[:16]}.parquet"


def remove_orphans(storage: Storage, ledger: Ledger) -> int:
    """Removes triplets that no ledger row records as done in their file; returns how many. Other files stay.

    Orphans come from a run that was killed after it had written a file and before it had written its ledger rows, and
    from ads that were done before a near-duplicate of smaller id rejected them.
    """
    latest = ledger.latest(["status", "file"])
    done = latest.filter(pc.equal(latest["status"], "done")).sort_by("file").combine_chunks()
    counts = pc.value_counts(done["file"])
    ends = np.cumsum(counts.field("counts").to_numpy())
    rows_of_file = dict(zip(counts.field("values").to_pylist(), zip([0, *ends], ends, strict=False), strict=True))

    def clean(key: str) -> int:
        first, end = rows_of_file.get(key, (0, 0))
        known = done["row_id"].slice(first, end - first)
        extra: int
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            # The footer tells the number of rows: a file without orphans is not read further.
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
