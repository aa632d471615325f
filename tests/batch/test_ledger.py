"""The ledger: append only, the latest row counts, reconciled ids, many parts folded into few."""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refadgen.batch.ledger import Ledger, LedgerWriter, are_reconciled, mean_of, short_key, short_keys
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.storage.store import Storage


def settled(ids: list[str], ledger: Ledger, *, retry_failed: bool = False) -> list[bool]:
    keys = np.array([short_key(i) for i in ids], np.uint64)
    return are_reconciled(keys, ledger.reconciled(retry_failed=retry_failed)).tolist()


START = datetime(2026, 1, 1, tzinfo=UTC)


def entry(number: int, status: str, minute: int = 0, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {name: None for name in SCHEMA.names}
    return row | {
        "image_id": f"{number:032x}",
        "status": status,
        "reason": "" if status == "done" else "because",
        "recorded_at": START + timedelta(minutes=minute),
        **values,
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return AdLedger(Storage(str(tmp_path)))


def test_the_latest_row_of_an_id_counts_whatever_the_order_of_the_parts(ledger: Ledger) -> None:
    ledger.append(table([entry(1, "done", minute=5), entry(2, "failed", minute=1)]))
    ledger.append(table([entry(1, "failed", minute=2), entry(2, "done", minute=3)]))
    latest = ledger.latest(["status"]).to_pylist()
    assert [row["status"] for row in latest] == ["done", "done"]


def test_of_rows_of_one_instant_the_later_written_counts(ledger: Ledger) -> None:
    ledger.append(table([entry(1, "failed")]))
    ledger.append(table([entry(1, "done")]))
    assert ledger.latest(["status"]).to_pylist()[0]["status"] == "done"


def test_reconciled_holds_failed_rows_only_where_they_are_not_retried(ledger: Ledger) -> None:
    first = 2**120  # short keys are the first digits
    ledger.append(table([entry(first * n, status) for n, status in enumerate(("done", "failed", "rejected"), start=1)]))
    ids = [f"{first * n:032x}" for n in (1, 2, 3, 4)]
    assert settled(ids, ledger, retry_failed=False) == [True, True, True, False]
    assert settled(ids, ledger, retry_failed=True) == [True, False, True, False]


def test_an_empty_ledger_settles_nothing(ledger: Ledger) -> None:
    assert len(ledger.latest()) == 0
    assert settled(["0" * 32], ledger) == [False]


def test_many_parts_are_folded_without_changing_what_they_say(ledger: Ledger) -> None:
    for number in range(70):
        ledger.append(table([entry(number % 50, "done" if number % 3 else "failed", minute=number)]))
    before = ledger.latest().to_pylist()
    ledger.compact()
    assert len(ledger.parts()) == 7
    assert ledger.latest().to_pylist() == before
    ledger.compact()
    assert len(ledger.parts()) == 7


def test_a_folded_part_keeps_its_place_in_time(ledger: Ledger) -> None:
    for _ in range(64):
        ledger.append(table([entry(1, "failed")]))
    ledger.append(table([entry(1, "done")]))
    ledger.compact()
    assert len(ledger.parts()) == 2
    assert ledger.latest(["status"]).to_pylist()[0]["status"] == "done"


def test_only_the_rows_of_wanted_ids_are_read(ledger: Ledger) -> None:
    ledger.append(table([entry(1, "done"), entry(2, "done"), entry(3, "done")]))
    wanted = pa.array([f"{n:032x}" for n in (3, 1)])
    assert [row["image_id"][-1] for row in ledger.latest(ids=wanted).to_pylist()] == ["1", "3"]


def test_only_the_rows_of_wanted_values_are_read_in_small_pieces(ledger: Ledger, monkeypatch: Any) -> None:
    monkeypatch.setattr("refadgen.batch.ledger._PIECE_ROWS", 2)
    ledger.append(table([entry(n, "failed", sku=f"S{n // 2}") for n in range(7)]))
    ledger.append(table([entry(2, "done", minute=1, sku="S1")]))
    found = ledger.latest(["status"], of=("sku", pa.array(["S1", "S3", "none"]))).to_pylist()
    assert [(int(row["image_id"], 16), row["status"]) for row in found] == [(2, "done"), (3, "failed"), (6, "failed")]
    assert ledger.of_parts(["sku"], lambda pieces: [len(piece) for piece in pieces]) == [[2, 2, 2, 1], [1]]


def test_the_mean_of_a_column_leaves_out_what_was_not_measured(ledger: Ledger) -> None:
    assert mean_of(ledger, "generate_s") == 0
    ledger.append(table([entry(n, "done", generate_s=value) for n, value in enumerate([2.0, None, 0.0])]))
    ledger.append(table([entry(3, "done", generate_s=5.0)]))
    assert mean_of(ledger, "generate_s") == 3.5


def test_what_a_setting_lifts_is_taken_up_with_what_failed(ledger: Ledger) -> None:
    ledger.append(
        table([entry(2**120, "rejected", reason="private_address"), entry(2**121, "rejected", reason="duplicate_sku")])
    )
    ids = [f"{n:032x}" for n in (2**120, 2**121)]
    assert settled(ids, ledger, retry_failed=False) == [True, True]
    assert settled(ids, ledger, retry_failed=True) == [False, True]


def test_the_writer_writes_at_once_and_the_rest_at_its_end(ledger: Ledger) -> None:
    with LedgerWriter(ledger, min_interval_s=3600) as writer:
        writer.add(table([entry(1, "done")]))
        wait_until(lambda: len(ledger.parts()) == 1)
        writer.add(table([entry(2, "rejected")]))
        assert len(ledger.latest()) == 1
    assert len(ledger.latest()) == 2
    assert writer.counts == {"done": 1, "rejected": 1}
    assert writer.reasons == {"because": 1}


def test_pending_rows_do_not_wait_for_further_ones(ledger: Ledger) -> None:
    with LedgerWriter(ledger, min_interval_s=0.05) as writer:
        writer.add(table([entry(1, "done")]))
        writer.add(table([entry(2, "done")]))
        wait_until(lambda: len(ledger.latest()) == 2)


def test_a_burst_is_written_by_count_without_waiting(ledger: Ledger) -> None:
    """What a kill costs is what is pending: never as many rows as hurry the writer."""
    with LedgerWriter(ledger, min_interval_s=3600) as writer:
        writer.add(table([entry(0, "done")]))
        wait_until(lambda: len(ledger.parts()) == 1)
        for block in range(1, 6):
            writer.add(table([entry(10 * block + number, "done") for number in range(3)]))
        wait_until(lambda: sum(map(len, writer._pending)) < 4)
        wait_until(lambda: len(ledger.latest()) >= 13)


def test_a_long_fast_run_makes_few_parts(ledger: Ledger) -> None:
    with LedgerWriter(ledger, min_interval_s=3600) as writer:
        for number in range(400):
            writer.add(table([entry(number, "done")]))
            wait_until(lambda: sum(map(len, writer._pending)) < 4 or writer._ahead < 1)
        assert len(ledger.parts()) <= 17
    assert len(ledger.latest()) == 400


def test_an_error_in_the_middle_of_a_run_loses_no_row(ledger: Ledger) -> None:
    def interrupted() -> None:
        with LedgerWriter(ledger, min_interval_s=3600) as writer:
            for number in range(5):
                writer.add(table([entry(number, "done")]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(ledger.latest()) == 5


def test_a_run_folds_its_own_parts(ledger: Ledger) -> None:
    with LedgerWriter(ledger, min_interval_s=0) as writer:
        for number in range(200):
            writer.add(table([entry(number, "done")]))
            wait_until(lambda number=number: writer.counts["done"] == number + 1 and not writer._pending)
    assert len(ledger.parts()) < 100
    assert len(ledger.latest()) == 200


def test_a_part_that_cannot_be_written_stops_the_run(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file in the folder's place")
    with pytest.raises(OSError, match="ledger"), LedgerWriter(ledger) as writer:
        writer.add(table([entry(1, "done")]))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_part_that_is_no_parquet_is_named(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "part-0.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"part-0\.parquet: not a part of a ledger"):
        ledger.latest()


def test_a_part_from_before_a_column_was_added_has_nulls_there(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append(table([entry(2**120, "done", mask_iou=0.5)]))
    early = table([entry(2**121, "done")]).drop_columns(["mask_iou"])
    pq.write_table(early, tmp_path / "ledger" / "part-00000000000000000001-0-early.parquet")
    assert ledger.latest(["mask_iou"])["mask_iou"].to_pylist() == [0.5, None]
    assert ledger.latest().schema == SCHEMA
    assert len(ledger.reconciled(retry_failed=True)) == 2


def test_a_part_without_a_column_that_every_row_has_is_named(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    foreign = table([entry(1, "done")]).drop_columns(["status"])
    pq.write_table(foreign, tmp_path / "ledger" / "part-0.parquet")
    with pytest.raises(ValueError, match=r"part-0\.parquet: not a part of a ledger: it has no column status"):
        ledger.latest(["status"])


def test_short_keys_keep_the_order_of_ids() -> None:
    ids = sorted(f"{int(n):032x}" for n in np.random.default_rng(0).integers(0, 2**62, 50) * 2**60)
    keys = [short_key(i) for i in ids]
    assert keys == sorted(keys)


def test_short_keys_of_a_column_are_those_of_its_ids() -> None:
    ids = [f"{int(n):064b}"[-32:] for n in range(20)] + [hashlib.sha256(bytes([n])).hexdigest()[:32] for n in range(80)]
    column = pa.chunked_array([ids[:30], [], ids[30:31], ids[31:]])
    assert short_keys(column).tolist() == [short_key(i) for i in ids]
    assert short_keys(column.slice(10, 70)).tolist() == [short_key(i) for i in ids[10:80]]
    assert short_keys(column.slice(0, 0)).tolist() == []


def test_a_table_without_rows_makes_no_part(ledger: Ledger) -> None:
    with LedgerWriter(ledger) as writer:
        writer.add(table([]))
    assert ledger.parts() == []


def test_drivers_fold_their_own_parts_of_one_ledger(tmp_path: Path) -> None:
    third, thirteenth = (AdLedger(Storage(str(tmp_path)), writer) for writer in ("3-of-16", "13-of-16"))
    for number in range(66):
        third.append(table([entry(number * 2**64, "done")]))
    for number in range(66, 70):
        thirteenth.append(table([entry(number * 2**64, "failed")]))
    thirteenth.compact()
    assert len(third.parts()) == 70
    third.compact()
    assert len(third.parts()) == 7
    whole = AdLedger(Storage(str(tmp_path)))
    assert whole.latest(["status"])["status"].to_pylist() == ["done"] * 66 + ["failed"] * 4
    assert whole.outcomes().counts() == {("done", ""): 66, ("failed", "because"): 4}
    for number in range(70, 132):
        whole.append(table([entry(number * 2**64, "done")]))
    whole.compact()  # the only driver of an output folds what shards have left
    assert len(whole.parts()) < 10
    assert len(whole.latest(["status"])) == 132


def test_a_part_that_another_driver_folds_meanwhile_is_read_in_its_new_place(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(64):
        ledger.append(table([entry(number * 2**64, "done")]))
    read, folded = Ledger._read, []

    def late(self: Ledger, key: str, columns: Any = None) -> pa.Table:
        if not folded:
            folded.append(key)
            ledger.compact()
        return read(self, key, columns)

    monkeypatch.setattr(Ledger, "_read", late)
    assert len(ledger.outcomes().keys) == 64


def test_the_pace_of_a_run_is_its_rows_by_second(ledger: Ledger) -> None:
    ledger.append(table([entry(n, "done", minute=n % 2, run_id="a") for n in range(4)]))
    ledger.append(table([entry(9, "done", minute=1, run_id="b")]))
    first = int(START.timestamp())
    assert ledger.pace(["a", "c"]) == {"a": {first: 2, first + 60: 2}, "c": {}}
