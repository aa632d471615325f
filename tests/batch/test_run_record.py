"""How a run's record says that it ended: finished, failed or stopped."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refadgen.batch.ray_connection import require_lasting
from refadgen.batch.run_record import KEY, RunRecord
from refadgen.storage.store import Storage


@pytest.fixture
def rays_sigterm() -> Iterator[None]:
    """SIGTERM ends the process as `ray.init` arranges it."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    yield
    signal.signal(signal.SIGTERM, before)


def run(folder: Path, end: Callable[[], object]) -> None:
    record = RunRecord(Storage(str(folder)), [])
    with record.ending():
        record.start(wanted=3)
        assert written(folder)["state"] == "running"
        end()


def written(folder: Path) -> dict:
    return json.loads((folder / KEY).read_bytes())


def test_a_stopped_run_says_so(tmp_path: Path, rays_sigterm: None) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (written(tmp_path)["state"], written(tmp_path)["wanted"]) == ("stopped", 3)


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, lambda: 1 // 0)
    assert (written(tmp_path)["state"], written(tmp_path)["error"]) == ("failed", "ZeroDivisionError")


def test_what_ends_before_it_starts_leaves_the_last_record(tmp_path: Path) -> None:
    (tmp_path / KEY).write_text('{"state": "finished"}')
    with pytest.raises(ValueError, match="settings"), RunRecord(Storage(str(tmp_path)), []).ending():
        raise ValueError("wrong settings")
    assert written(tmp_path) == {"state": "finished"}


def test_an_output_in_a_package_of_ray_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1f0c2a"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(ValueError, match=r"--output .*/out/demo: lies in the package.* --output s3://BUCKET/PREFIX"):
        require_lasting(Storage("out/demo"))
    require_lasting(Storage("s3://shop/_ray_pkg_1f0c2a"))
    require_lasting(Storage(str(tmp_path / "out")))
