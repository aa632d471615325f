"""Between the two passes: what the first one says of each ad goes into the ledger, near-duplicates with it."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.config import FilterConfig
from refadgen.dataset.ledgers import NEAR_DUPLICATE, SCHEMA, dataset_ledger, screening_ledger
from refadgen.dataset.near_duplicates import find_near_duplicates
from refadgen.dataset.planning import Keys
from refadgen.ledger import LedgerWriter, ledger_rows, short_keys
from refadgen.storage import Storage

_MARKS = ("perceptual_hash", "thumbnail")


def settle(storage: Storage, keys: Keys, run_id: str, rules: FilterConfig, *, retry_failed: bool) -> Keys:
    """Writes what of the first pass the ledger does not say yet; returns the sorted keys that the second pass takes up.

    keys: sorted short keys of the ads of the input. retry_failed: as in `Ledger.settled`.
    """
    screening, ledger = screening_ledger(storage), dataset_ledger(storage)
    names = [name for name in SCHEMA.names if name in screening.names and name != "row_id"]
    screened = screening.latest([*names, *_MARKS])
    screened = screened.filter(pa.array(np.isin(short_keys(screened["row_id"]), keys)))
    screened = _with_near_duplicates(screened, rules).drop_columns(_MARKS)
    own, passed = short_keys(screened["row_id"]), _flags(pc.equal(screened["status"], "done"))

    known = ledger.latest(["status", "reason"])
    known_keys = short_keys(known["row_id"])
    added = screened.filter(pa.array(~passed & ~_said_already(screened, own, known, known_keys)))
    with LedgerWriter(ledger) as writer:
        for row in ledger_rows(added):
            writer.add([{**row, "run_id": run_id, "file": "", "split": ""}])

    settled = np.isin(own, ledger.settled(retry_failed=retry_failed))
    # An ad that had a near-duplicate of smaller id in an earlier input is free again without it.
    freed = np.isin(own, known_keys[_flags(pc.equal(known["reason"], NEAR_DUPLICATE))])
    return np.sort(own[passed & (freed | ~settled)])


def _with_near_duplicates(screened: pa.Table, rules: FilterConfig) -> pa.Table:
    """The rows with their near-duplicates rejected, and a column `duplicate_of`."""
    keeper = np.full(len(screened), -1, np.int64)
    fit = np.flatnonzero(_flags(pc.equal(screened["status"], "done")))
    if rules.duplicate_distance is not None:
        among = screened.take(pa.array(fit))
        found = find_near_duplicates(
            among["ad_id"],
            among["perceptual_hash"].to_numpy(),
            among["thumbnail"],
            max_distance=rules.duplicate_distance,
            max_color_difference=rules.duplicate_color,
        )
        keeper[fit] = np.where(found >= 0, fit[found], -1)
    is_out = pa.array(keeper >= 0)
    duplicate_of = screened["ad_id"].take(pa.array(keeper, mask=keeper < 0))
    bits = f"' by at most filter.duplicate_distance={rules.duplicate_distance} bits"
    replaced = {
        "status": "rejected",
        "reason": NEAR_DUPLICATE,
        "detail": pc.binary_join_element_wise("differs from '", duplicate_of, bits, ""),
    }
    for name, value in replaced.items():
        column = pc.if_else(is_out, value, screened[name])
        screened = screened.set_column(screened.schema.get_field_index(name), name, column)
    return screened.append_column("duplicate_of", duplicate_of)


def _said_already(screened: pa.Table, own: Keys, known: pa.Table, known_keys: Keys) -> npt.NDArray[np.bool_]:
    """For each screened row whether the ledger's latest row of the same ad has its status and reason.

    known_keys: sorted, as rows come out of a ledger.
    """
    if not len(known):
        return np.zeros(len(screened), dtype=bool)
    index = np.minimum(np.searchsorted(known_keys, own), len(known) - 1)
    theirs = known.take(pa.array(index))
    same = [_flags(pc.equal(screened[name], theirs[name])) for name in ("status", "reason")]
    return (known_keys[index] == own) & same[0] & same[1]


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return column.to_numpy().astype(bool)
