"""Between the two passes: the ledger is reconciled with the first pass, and near-duplicates are rejected.

The first pass writes its own ledger (`screening/`). Its rejections are copied to the data set's ledger (`ledger/`); the
ads that passed are given to the second pass.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger, LedgerWriter, short_keys
from refadgen.config import FilterConfig
from refadgen.dataset.ledgers import NEAR_DUPLICATE, REPLACED, dataset_ledger, screening_ledger
from refadgen.dataset.near_duplicates import find_near_duplicates
from refadgen.dataset.planning import Keys
from refadgen.storage.store import Storage

_SIGNATURES = ("perceptual_hash", "thumbnail", "product_colors")
_LIFTED = (NEAR_DUPLICATE, REPLACED)
"""Rejections that a change of the input lifts: the ad of smaller id is gone, or the row is as it was before."""


def reconcile(storage: Storage, keys: Keys, run_id: str, rules: FilterConfig, *, retry_failed: bool) -> Keys:
    """Appends the rejections that the ledger lacks; returns the sorted short keys of the ads for the second pass.

    keys: sorted short keys of the ads of the input. retry_failed: as in `Ledger.reconciled`.
    """
    screening, ledger = screening_ledger(storage), dataset_ledger(storage)
    names = [name for name in ledger.schema.names if name in screening.schema.names and name != "row_id"]
    screened = screening.latest([*names, *_SIGNATURES])
    screened = screened.filter(pa.array(np.isin(short_keys(screened["row_id"]), keys)))
    screened = _with_near_duplicates(screened, rules).drop_columns(_SIGNATURES)
    own, passed = short_keys(screened["row_id"]), _flags(pc.equal(screened["status"], "done"))

    # Few columns of all rows, as the ledger may hold millions of ads of other inputs too.
    known = ledger.latest(["status", "reason", "ad_id", "duplicate_of"])
    known_keys = short_keys(known["row_id"])
    # Only rows that are new: a run that changes nothing leaves the ledger as it is.
    added = screened.filter(pa.array(~passed & ~_is_recorded(screened, own, known, known_keys)))
    replaced = _replaced(ledger, known.filter(pa.array(~np.isin(known_keys, keys))), screened)
    with LedgerWriter(ledger) as writer:
        if len(added):
            writer.add(_ledger_rows(added, ledger, run_id=run_id))
        if len(replaced):
            detail = "the input's row of this ad has changed"
            writer.add(_ledger_rows(replaced, ledger, run_id=run_id, status="rejected", reason=REPLACED, detail=detail))

    reconciled = np.isin(own, ledger.reconciled(retry_failed=retry_failed))
    lifted = np.isin(own, known_keys[_flags(pc.is_in(known["reason"], pa.array(_LIFTED)))])
    return np.sort(own[passed & (lifted | ~reconciled)])


def _ledger_rows(rows: pa.Table, ledger: Ledger, **values: str) -> pa.Table:
    """Returns ads as rows of the ledger, without a triplet. values: of columns; other columns of `rows` stay.

    In columns, as a first pass may reject millions of ads.
    """
    values |= {"file": "", "split": ""}

    def column(field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name in values:
            return pa.array([values[field.name]] * len(rows), field.type)
        return rows[field.name] if field.name in rows.schema.names else pa.nulls(len(rows), field.type)

    return pa.Table.from_arrays([column(field) for field in ledger.schema], schema=ledger.schema)


def _with_near_duplicates(screened: pa.Table, rules: FilterConfig) -> pa.Table:
    """Returns the rows with near-duplicates rejected, and a column `duplicate_of` (the ad_id of the ad that stays)."""
    keeper = np.full(len(screened), -1, np.int64)
    fit = np.flatnonzero(_flags(pc.equal(screened["status"], "done")))
    if rules.duplicate_distance is not None:
        among = screened.take(pa.array(fit))
        found = find_near_duplicates(
            among["ad_id"],
            among["perceptual_hash"].to_numpy(),
            among["thumbnail"],
            among["product_colors"],
            max_distance=rules.duplicate_distance,
            max_color_difference=rules.duplicate_color,
            max_product_difference=rules.duplicate_product_color,
        )
        keeper[fit] = np.where(found >= 0, fit[found], -1)
    is_duplicate = pa.array(keeper >= 0)
    duplicate_of = screened["ad_id"].take(pa.array(keeper, mask=keeper < 0))
    bits = f"' by at most filter.duplicate_distance={rules.duplicate_distance} bits"
    replaced = {
        "status": "rejected",
        "reason": NEAR_DUPLICATE,
        "detail": pc.binary_join_element_wise("differs from '", duplicate_of, bits, ""),
    }
    for name, value in replaced.items():
        column = pc.if_else(is_duplicate, value, screened[name])
        screened = screened.set_column(screened.schema.get_field_index(name), name, column)
    return screened.append_column("duplicate_of", duplicate_of)


def _is_recorded(screened: pa.Table, own: Keys, known: pa.Table, known_keys: Keys) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: whether the ledger's latest row of the same id has the same status, reason and near-duplicate.

    own: short keys of `screened`. known_keys: short keys of `known`, sorted, as rows come out of a ledger.
    """
    if not len(known):
        return np.zeros(len(screened), dtype=bool)
    index = np.minimum(np.searchsorted(known_keys, own), len(known) - 1)
    theirs = known.take(pa.array(index))
    recorded: npt.NDArray[np.bool_] = known_keys[index] == own
    for name in ("status", "reason", "duplicate_of"):
        recorded &= _flags(pc.equal(pc.fill_null(screened[name], ""), pc.fill_null(theirs[name], "")))
    return recorded


def _replaced(ledger: Ledger, others: pa.Table, screened: pa.Table) -> pa.Table:
    """Returns the ledger's rows of done ads whose row of the input has changed.

    Such an ad is in the input with another row of the same ad_id and the same picture. others: rows of the ledger that
    are not in this input.
    """
    others = others.filter(pc.equal(others["status"], "done"))
    others = others.filter(pc.is_in(others["ad_id"], value_set=screened["ad_id"].combine_chunks()))
    now = screened.filter(pc.is_in(screened["ad_id"], value_set=others["ad_id"].combine_chunks()))
    pictures: dict[str, set[str]] = {}
    for ad_id, *picture in _pictures(now):
        pictures.setdefault(ad_id, set()).update(filter(None, picture))
    done = ledger.latest(ids=others["row_id"].combine_chunks())
    is_same = [not pictures[ad_id].isdisjoint(picture) for ad_id, *picture in _pictures(done)]
    return done.filter(pa.array(is_same, pa.bool_()))


def _pictures(rows: pa.Table) -> Iterator[tuple[str, str | None, str | None]]:
    """Yields ad_id, address and SHA-256 of each ad's picture."""
    names = ("ad_id", "image", "input_sha256")
    return zip(*(rows[name].to_pylist() for name in names), strict=True)


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = column.to_numpy().astype(bool)
    return flags
