"""The data files of an output, held to what its ledger says: each triplet that is done, and no other."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.dataset.triplets import write_rows
from refadgen.ledger import Ledger
from refadgen.storage import Storage

_THREADS = 16


def sweep(storage: Storage, ledger: Ledger) -> int:
    """Removes triplets that the ledger does not know as done in their file; returns how many.

    A run that was killed between a file and its ledger rows leaves some, and so does an ad that a near-duplicate of
    smaller id came in front of.
    """
    latest = ledger.latest(["status", "file"])
    done = latest.filter(pc.equal(latest["status"], "done"))
    rows_of_file: dict[str, list[str]] = defaultdict(list)
    for row_id, file in zip(done["row_id"].to_pylist(), done["file"].to_pylist(), strict=True):
        rows_of_file[file].append(row_id)

    def clean(key: str) -> int:
        known = rows_of_file.get(key, [])
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            extra = file.metadata.num_rows - len(known)
            if extra and known:
                table = file.read()
                kept = table.filter(pc.is_in(table["row_id"], value_set=pa.array(known)))
        if extra and known:
            write_rows(storage, key, kept)
        elif extra:
            storage.delete([key])
        return extra

    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(clean, storage.keys("data", ".parquet")))
