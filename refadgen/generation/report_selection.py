"""Which images the report's first page shows, where it cannot show all of them."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_DONE_SHARE = 10  # one row in ten stays for `done`, however many rows failed


def select_rows(latest: pa.Table, max_rows: int) -> pa.Table:
    """At most `max_rows` rows: failed and rejected first, in turns over their reasons so that each is there, then done.

    Both in the order of the ids; done rows come product by product. A tenth of the places is kept for them.
    """
    if len(latest) <= max_rows:
        return latest
    is_done = pc.fill_null(pc.equal(latest["status"], "done"), False).to_numpy()
    done, trouble = np.flatnonzero(is_done), np.flatnonzero(~is_done)
    trouble = trouble[_in_turns(latest.select(["status", "reason"]).filter(pa.array(~is_done)))]
    trouble = trouble[: max_rows - min(len(done), max_rows // _DONE_SHARE)]
    room = max_rows - len(trouble)
    skus = latest["sku"].take(pa.array(done[:room])).unique()
    product = pc.fill_null(pc.index_in(latest["sku"], value_set=skus), len(skus)).to_numpy()[done]
    done = done[np.argsort(product, kind="stable")][:room]
    chosen = np.zeros(len(latest), dtype=bool)
    chosen[trouble] = chosen[done] = True
    return latest.filter(pa.array(chosen))


def _in_turns(trouble: pa.Table) -> npt.NDArray[np.int64]:
    """An order of the rows in which each round takes one of every status and reason that still has some."""
    kinds = pc.binary_join_element_wise(pc.fill_null(trouble["status"], ""), pc.fill_null(trouble["reason"], ""), "\n")
    codes = kinds.combine_chunks().dictionary_encode().indices.to_numpy()
    by_kind = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_kind], codes[by_kind])  # where each row's kind begins
    rounds = np.empty(len(codes), dtype=np.int64)
    rounds[by_kind] = np.arange(len(codes)) - starts
    return np.argsort(rounds, kind="stable")
