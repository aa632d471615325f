"""After `remove_orphans`, the data files hold exactly the triplets that the ledger records as done."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.batch.ledger import now
from refadgen.dataset.files import remove_orphans, triplets_key
from refadgen.dataset.ledgers import dataset_ledger
from refadgen.storage.store import Storage


def row_id(number: int) -> str:
    return f"{number:032x}"


def write(folder: Path, key: str, numbers: list[int]) -> None:
    file = folder / key
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row_id": [row_id(n) for n in numbers], "captions": [["a"]] * len(numbers)}), file)


def record(folder: Path, key: str, numbers: list[int], status: str = "done") -> None:
    rows = [
        {
            "row_id": row_id(n),
            "recorded_at": now(),
            "status": status,
            "reason": "",
            "file": key if status == "done" else "",
        }
        for n in numbers
    ]
    ledger = dataset_ledger(Storage(str(folder)))
    ledger.append(pa.Table.from_pylist(rows, schema=ledger.schema))


def ids_in(folder: Path) -> dict[str, list[str]]:
    return {
        str(file.relative_to(folder)): pq.read_table(file)["row_id"].to_pylist()
        for file in sorted((folder / "data").rglob("*.parquet"))
    }


def test_files_and_rows_without_a_ledger_row_are_removed(tmp_path: Path) -> None:
    a, b, c = triplets_key("train", "ab"), triplets_key("train", "cd"), triplets_key("test", "ef")
    write(tmp_path, a, [1, 2, 3])  # complete
    write(tmp_path, b, [4, 5])  # written, then the run was killed; 4 was made again in c
    write(tmp_path, c, [4, 6, 7])  # 7 had a near-duplicate of smaller id later
    record(tmp_path, a, [1, 2, 3])
    record(tmp_path, c, [4, 6, 7])
    record(tmp_path, "", [7], status="rejected")
    storage = Storage(str(tmp_path))
    stamp = (tmp_path / a).stat().st_mtime_ns
    assert remove_orphans(storage, dataset_ledger(storage)) == 3
    assert ids_in(tmp_path) == {a: [row_id(n) for n in (1, 2, 3)], c: [row_id(4), row_id(6)]}
    assert (tmp_path / a).stat().st_mtime_ns == stamp
    assert remove_orphans(storage, dataset_ledger(storage)) == 0


def test_files_of_others_stay(tmp_path: Path) -> None:
    theirs = "data/ads.parquet", "data/train/mine.parquet", "data/train/triplets-00000.parquet"
    for key in theirs:
        write(tmp_path, key, [1, 2])
    storage = Storage(str(tmp_path))
    assert remove_orphans(storage, dataset_ledger(storage)) == 0
    assert sorted(ids_in(tmp_path)) == sorted(theirs)


def test_an_empty_output_is_clean(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert remove_orphans(storage, dataset_ledger(storage)) == 0
