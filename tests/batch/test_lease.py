"""One driver at a time on a shard: a second one is refused, and a dead one stands in nobody's way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refadgen.batch.lease import OutputInUseError, _started, _this_process, held
from refadgen.batch.shards import Shard
from refadgen.storage.store import Storage

WHOLE = Shard()
FAST = {"beat_s": 0.05, "watch_s": 1.0}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    (tmp_path / "out").mkdir()
    return Storage(str(tmp_path / "out"))


def take(storage: Storage, shard: Shard = WHOLE, **times: float) -> None:
    with held(storage, shard, "second", **{**FAST, **times}):
        pass


@pytest.mark.parametrize(
    ("first", "second"),
    [(WHOLE, WHOLE), (Shard(3, 16), Shard(3, 16)), (WHOLE, Shard(3, 16)), (Shard(3, 16), Shard(2, 8))],
)
def test_a_second_driver_of_the_same_products_is_refused(first: Shard, second: Shard, storage: Storage) -> None:
    refused = pytest.raises(OutputInUseError, match=r"run.*\.lease: the run first on .* is at work here; wait")
    with held(storage, first, "first", **FAST), refused:
        take(storage, second)
    take(storage, second)  # after its end
    assert storage.names("") == []


def test_drivers_of_different_shards_work_side_by_side(storage: Storage) -> None:
    with held(storage, Shard(1, 2), "first", **FAST), held(storage, Shard(2, 2), "second", **FAST):
        assert [Path(key).name for key in storage.names("")] == ["run-1-of-2.lease", "run-2-of-2.lease"]


def lease(storage: Storage, **values: Any) -> None:
    storage.write("run.lease", json.dumps({"run_id": "gone", "host": "h", "token": "t", "beat": 3} | values).encode())


def test_a_driver_that_was_killed_on_this_machine_is_dead_at_once(storage: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = [*_this_process()[:2], str(gone.pid), _started(gone.pid)]
    lease(storage, process=process)
    with pytest.raises(OutputInUseError):  # alive, and beating
        _beaten(storage, process)
    gone.kill()
    gone.communicate()
    lease(storage, process=process)
    take(storage, watch_s=1000.0)


def _beaten(storage: Storage, process: list[str]) -> None:
    beat = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, sys, time\n"
            "for beat in range(100):\n"
            f"    open({storage.path('run.lease')!r}, 'w').write(json.dumps({{'run_id': 'x', 'beat': beat}}))\n"
            "    time.sleep(0.05)\n",
        ]
    )
    try:
        take(storage, watch_s=30.0)
    finally:
        beat.kill()
        beat.communicate()


def test_one_of_another_machine_is_dead_when_its_file_stays_as_it_is(storage: Storage) -> None:
    lease(storage, process=["other", "pid:[1]", "1", "1"])
    take(storage)
    lease(storage, process="nonsense")
    take(storage)
