"""Between the passes: the ads that the second pass works on, and the ledger rows of the others."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from refadgen.batch.ledger import Ledger, now, short_key
from refadgen.config import FilterConfig
from refadgen.dataset.ledgers import SCHEMA, SCREENING_SCHEMA, dataset_ledger, screening_ledger
from refadgen.dataset.reconciling import reconcile
from refadgen.storage.store import Storage

RULES = FilterConfig(duplicate_distance=4)
HASH = 0x0F0F_3333_5555_AAAA


def key_of(name: str) -> str:
    return f"{ord(name):032x}"[::-1]


def seen(name: str, **said: Any) -> dict[str, Any]:
    """A row of the first pass; ads of different letters look different unless `perceptual_hash` says so."""
    row = dict.fromkeys(SCREENING_SCHEMA.names) | {
        "row_id": key_of(name),
        "run_id": "first",
        "recorded_at": now(),
        "row": ord(name),
        "ad_id": name,
        "group": name,
        "status": "done",
        "reason": "",
        "detail": "",
        "perceptual_hash": int(np.random.default_rng(ord(name)).integers(2**63)),
        "thumbnail": bytes(48),
    }
    return row | said


def append(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    ledger.append(pa.Table.from_pylist(rows, schema=ledger.schema))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def second_pass(storage: Storage, names: str, *, retry_failed: bool = False, **rules: Any) -> set[str]:
    """Names of the ads that the second pass works on, for an input of these."""
    keys = np.sort(np.array([short_key(key_of(name)) for name in names], np.uint64))
    found = reconcile(storage, keys, "run", dataclasses.replace(RULES, **rules), retry_failed=retry_failed)
    assert (np.diff(found.astype(object)) > 0).all()  # sorted
    return {name for name in names if short_key(key_of(name)) in found.tolist()}


def ledger(storage: Storage) -> dict[str, dict[str, Any]]:
    return {row["ad_id"]: row for row in dataset_ledger(storage).latest().to_pylist()}


def test_ads_that_passed_go_on_and_others_are_recorded_once(storage: Storage) -> None:
    append(
        screening_ledger(storage),
        [seen("a"), seen("b", status="rejected", reason="low_resolution", detail="8×8 px"), seen("c"), seen("x")],
    )
    assert second_pass(storage, "abc") == {"a", "c"}  # x is not of this input
    assert second_pass(storage, "abc") == {"a", "c"}
    (row,) = dataset_ledger(storage).latest().to_pylist()
    expected = ("b", "rejected", "low_resolution", "8×8 px", "run", "", None)
    assert tuple(row[n] for n in ("ad_id", "status", "reason", "detail", "run_id", "file", "duplicate_of")) == expected
    assert len(dataset_ledger(storage).parts()) == 1  # the second time said nothing new


def test_done_and_failed_ads_need_no_work_unless_a_retry_is_asked_for(storage: Storage) -> None:
    append(screening_ledger(storage), [seen(name) for name in "abc"])
    done, failed = (
        dict.fromkeys(SCHEMA.names)
        | {"row_id": key_of(name), "recorded_at": now(), "ad_id": name, "status": status, "reason": reason}
        for name, status, reason in (("a", "done", ""), ("b", "failed", "fetch_timeout"))
    )
    append(dataset_ledger(storage), [done, failed])
    assert second_pass(storage, "abc") == {"c"}
    assert second_pass(storage, "abc", retry_failed=True) == {"b", "c"}


def test_near_duplicates_are_rejected_while_the_ad_of_smaller_id_is_in_the_input(storage: Storage) -> None:
    append(
        screening_ledger(storage),
        [
            seen("c", perceptual_hash=HASH),
            seen("b", perceptual_hash=HASH ^ 0b111),
            seen("a", status="rejected", reason="low_resolution", perceptual_hash=HASH),
            seen("d"),
        ],
    )
    assert second_pass(storage, "abcd") == {"b", "d"}
    row = ledger(storage)["c"]
    assert (row["status"], row["reason"], row["duplicate_of"]) == ("rejected", "near_duplicate", "b")
    assert row["detail"] == "differs from 'b' by at most filter.duplicate_distance=4 bits"
    assert second_pass(storage, "acd") == {"c", "d"}  # b has left the input


def test_a_near_duplicate_names_the_ad_that_keeps_it_out_now(storage: Storage) -> None:
    append(screening_ledger(storage), [seen(name, perceptual_hash=HASH) for name in "abc"])
    second_pass(storage, "bc")
    assert ledger(storage)["c"]["duplicate_of"] == "b"
    second_pass(storage, "ac")
    assert ledger(storage)["c"]["duplicate_of"] == "a"


def done(name: str, **said: Any) -> dict[str, Any]:
    row = {"row_id": key_of(name), "recorded_at": now(), "ad_id": name, "status": "done", "reason": "", "file": "f"}
    return dict.fromkeys(SCHEMA.names) | row | said


def test_a_changed_row_replaces_the_done_one_and_can_change_back(storage: Storage) -> None:
    ads = [seen(name, ad_id="ad", image="s3://shop/ad.jpg", perceptual_hash=ord(name) << 40) for name in "pq"]
    append(screening_ledger(storage), ads)
    append(dataset_ledger(storage), [done("p", ad_id="ad", image="s3://shop/ad.jpg")])
    assert second_pass(storage, "q") == {"q"}
    (row,) = dataset_ledger(storage).latest().to_pylist()
    assert (row["row_id"], row["status"], row["reason"], row["file"]) == (key_of("p"), "rejected", "replaced", "")
    append(dataset_ledger(storage), [done("q", ad_id="ad", image="s3://shop/ad.jpg")])
    assert second_pass(storage, "q") == set()
    assert second_pass(storage, "p") == {"p"}
    assert {row["row_id"]: row["reason"] for row in dataset_ledger(storage).latest().to_pylist()} == {
        key_of("p"): "replaced",
        key_of("q"): "replaced",
    }


def test_another_picture_of_the_same_id_is_another_ad(storage: Storage) -> None:
    append(screening_ledger(storage), [seen("q", ad_id="1.jpg", image="/second/1.jpg", input_sha256="b")])
    append(dataset_ledger(storage), [done("p", ad_id="1.jpg", image="/first/1.jpg", input_sha256="a")])
    assert second_pass(storage, "q") == {"q"}
    assert [row["status"] for row in dataset_ledger(storage).latest().to_pylist()] == ["done"]


@pytest.mark.parametrize("reason", ["low_resolution", "truncated_image"])
def test_a_better_file_at_the_same_place_is_retried_when_asked_for(reason: str, storage: Storage) -> None:
    append(screening_ledger(storage), [seen("a", status="rejected", reason=reason)])
    assert second_pass(storage, "a") == set()
    append(screening_ledger(storage), [seen("a")])
    assert second_pass(storage, "a") == set()
    assert second_pass(storage, "a", retry_failed=True) == {"a"}


def test_without_a_distance_all_stay(storage: Storage) -> None:
    append(screening_ledger(storage), [seen("a", perceptual_hash=HASH), seen("b", perceptual_hash=HASH)])
    assert second_pass(storage, "ab", duplicate_distance=None) == {"a", "b"}
    assert ledger(storage) == {}


def test_an_input_without_rows_plans_nothing(storage: Storage) -> None:
    assert second_pass(storage, "") == set()
