"""Between the two passes: what the first one says of each ad goes into the ledger, near-duplicates with it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger, LedgerWriter, ledger_rows, short_keys
from refadgen.config import FilterConfig
from refadgen.dataset.ledgers import NEAR_DUPLICATE, REPLACED, SCHEMA, dataset_ledger, screening_ledger
from refadgen.dataset.near_duplicates import find_near_duplicates
from refadgen.dataset.planning import Keys
from refadgen.storage.store import Storage

_MARKS = ("perceptual_hash", "thumbnail")
_FREED = (NEAR_DUPLICATE, REPLACED)
"""Rejections that end with what they came of: the ad of smaller id has left the input, or the row is as it was."""


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

    known = ledger.latest(["status", "reason", "ad_id", "duplicate_of"])
    known_keys = short_keys(known["row_id"])
    added = screened.filter(pa.array(~passed & ~_said_already(screened, own, known, known_keys)))
    with LedgerWriter(ledger) as writer:
        for row in ledger_rows(added):
            writer.add([{**row, "run_id": run_id, "file": "", "split": ""}])
        for row in _replaced(ledger, known.filter(pa.array(~np.isin(known_keys, keys))), screened):
            said = {"status": "rejected", "reason": REPLACED, "detail": "the input's row of this ad has changed"}
            writer.add([{**row, **said, "run_id": run_id, "file": "", "split": ""}])

    settled = np.isin(own, ledger.settled(retry_failed=retry_failed))
    freed = np.isin(own, known_keys[_flags(pc.is_in(known["reason"], pa.array(_FREED)))])
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
    """For each screened row whether the ledger's latest row of the same id has its status, reason and near-duplicate.

    known_keys: sorted, as rows come out of a ledger.
    """
    if not len(known):
        return np.zeros(len(screened), dtype=bool)
    index = np.minimum(np.searchsorted(known_keys, own), len(known) - 1)
    theirs = known.take(pa.array(index))
    said = known_keys[index] == own
    for name in ("status", "reason", "duplicate_of"):
        said &= _flags(pc.equal(pc.fill_null(screened[name], ""), pc.fill_null(theirs[name], "")))
    return said


def _replaced(ledger: Ledger, others: pa.Table, screened: pa.Table) -> list[dict[str, Any]]:
    """The ledger's rows of ads that are done and in the input by another row of the same id and the same picture.

    others: rows of the ledger that are not of this input.
    """
    others = others.filter(pc.equal(others["status"], "done"))
    others = others.filter(pc.is_in(others["ad_id"], value_set=screened["ad_id"].combine_chunks()))
    now = screened.filter(pc.is_in(screened["ad_id"], value_set=others["ad_id"].combine_chunks()))
    pictures: dict[str, set[str]] = {}
    for row in now.select(["ad_id", "image", "input_sha256"]).to_pylist():
        pictures.setdefault(row["ad_id"], set()).update(filter(None, (row["image"], row["input_sha256"])))
    return [
        row
        for row in ledger_rows(ledger.latest(ids=others["row_id"].combine_chunks()))
        if pictures[row["ad_id"]] & {row["image"], row["input_sha256"]}
    ]


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return column.to_numpy().astype(bool)
