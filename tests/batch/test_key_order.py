"""A ledger that does not fit into memory, in the order of a key."""

import random
from itertools import chain, pairwise

import pyarrow as pa
import pytest

from refadgen.batch import key_order
from refadgen.batch.key_order import KEY, in_key_order
from refadgen.generation.ledger import SCHEMA, AdLedger
from refadgen.storage.store import Storage


def table(rows):
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def row(number, sku, status="done", at=1):
    return {"image_id": f"{number:032x}", "sku": sku, "status": status, "reason": "", "row": number, "recorded_at": at}


def skus(rows):
    return rows["sku"].combine_chunks()


def ordered(ledger, bucket_rows):
    return list(in_key_order(ledger, ledger.parts(), skus, ["sku"], ["row"], bucket_rows))


@pytest.fixture
def ledger(tmp_path):
    return AdLedger(Storage(str(tmp_path)))


def test_every_image_once_in_the_order_of_keys_and_no_key_is_torn(ledger, monkeypatch):
    monkeypatch.setattr("refadgen.batch.ledger._PIECE_ROWS", 70)
    numbers = list(range(1000))
    random.Random(0).shuffle(numbers)
    for start in range(0, 1000, 250):  # catalogue order is not the order of skus
        ledger.append(table([row(n, f"S{n // 4 * 7919 % 1000:04}") for n in numbers[start : start + 250]]))
    found = ordered(ledger, bucket_rows=100)
    assert 8 <= len(found) <= 10
    keys = [piece[KEY].to_pylist() for piece in found]
    assert list(chain(*keys)) == sorted(chain(*keys))
    assert sorted(n for piece in found for n in piece["row"].to_pylist()) == list(range(1000))
    assert all(not set(one) & set(other) for one, other in pairwise(keys))
    assert found[0]["row"].to_pylist()[:8] == [0, 1, 2, 3, 148, 149, 150, 151]  # sku 37 × 7919 % 1000 = 3
    assert max(map(len, keys)) < 200


def test_the_latest_row_counts_wherever_it_lies(ledger):
    ledger.append(table([row(n, f"S{n}", "failed", at=5) for n in range(6)]))
    ledger.append(table([row(2, "S2", "done", at=9), row(3, "S3", "rejected", at=5), row(4, "S4", "done", at=2)]))
    found = pa.concat_tables(ordered(ledger, bucket_rows=2))
    assert dict(zip(found["row"].to_pylist(), found["status"].to_pylist(), strict=True)) == {
        0: "failed",
        1: "failed",
        2: "done",
        3: "rejected",
        4: "failed",
        5: "failed",
    }
    assert found.drop_columns(KEY).schema == SCHEMA


def test_one_key_in_all_rows_is_one_piece(ledger):
    ledger.append(table([row(n, "same") for n in range(300)]))
    assert [len(piece) for piece in ordered(ledger, bucket_rows=100)] == [300]


def test_an_empty_ledger_has_no_piece(ledger):
    assert ordered(ledger, bucket_rows=100) == []


def test_open_files_are_bounded(ledger, monkeypatch):
    monkeypatch.setattr(key_order, "_MAX_BUCKETS", 3)
    ledger.append(table([row(n, f"S{n:04}") for n in range(1000)]))
    assert len(ordered(ledger, bucket_rows=10)) == 3


def test_nothing_stays_on_the_disk(ledger, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    ledger.append(table([row(n, f"S{n:04}") for n in range(100)]))
    pieces = in_key_order(ledger, ledger.parts(), skus, ["sku"], bucket_rows=10)
    next(pieces)
    assert len(list(scratch.rglob("*.arrow"))) == 9
    pieces.close()
    assert not list(scratch.iterdir())
