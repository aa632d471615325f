"""Checkpoints: a saved one comes back; an incomplete one is never loaded; a full disk costs the new one only."""

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from refadgen.storage.store import Storage
from refadgen.training.checkpoints import FOLDER, MANIFEST, Checkpoint, CheckpointStore
from refadgen.training.loop import require_same

FILES = ["average.safetensors", "optimizer.safetensors", "weights.safetensors"]
FACTS = {
    "architecture": {"unet.a": [3, 2], "unet.b": [5]},
    "run.seed": 0,
    "run.batch_size": 4,
    "rows of split train": 16,
}


def checkpoint(step: int, **changes: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)

    def tensors(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.randn(3, 2, generator=generator).T for name in names}  # not contiguous

    return Checkpoint(
        **{
            "step": step,
            "facts": FACTS,
            "weights": tensors("unet.a", "unet.b"),
            "average": tensors("unet.a", "unet.b"),
            "optimizer": tensors("unet.a/exp_avg", "unet.a/exp_avg_sq"),
            **changes,
        }
    )


def assert_equal(one: Checkpoint, two: Checkpoint) -> None:
    assert (one.step, one.facts) == (two.step, two.facts)
    for name in ("weights", "average", "optimizer"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path))


def place(tmp_path: Path, step: int) -> Path:
    return tmp_path / FOLDER / f"step-{step:08d}"


def test_what_is_saved_comes_back(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.steps() == []
    assert store.latest() is None
    for step in (2, 10):
        store.save(checkpoint(step), keep=5)
    assert store.steps() == [2, 10]
    assert_equal(store.load(2), checkpoint(2))
    assert_equal(store.latest(), checkpoint(10))
    assert store.facts(10) == FACTS
    assert sorted(file.name for file in place(tmp_path, 10).iterdir()) == sorted([*FILES, MANIFEST])
    # Whoever may read the manifest may read the tensors.
    assert len({file.stat().st_mode for file in place(tmp_path, 10).iterdir()}) == 1


def test_without_average_and_moments(store: CheckpointStore) -> None:
    plain = checkpoint(3, average={}, optimizer={})
    store.save(plain, keep=1)
    assert_equal(store.latest(), plain)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink], ids=["truncated", "altered", "gone"])
def test_a_damaged_one_is_passed_over(
    harm: Callable[[Path], None], name: str, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        store.save(checkpoint(step), keep=5)
    harm(place(tmp_path, 4) / name)
    with pytest.raises(ValueError, match=rf"step-00000004: {name} is (missing|damaged)"):
        store.load(4)
    assert_equal(store.latest(), checkpoint(2))
    assert f"{name} is" in caplog.text
    harm(place(tmp_path, 2) / name)
    assert store.latest() is None


def test_one_without_manifest_is_none(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (2, 4):
        store.save(checkpoint(step), keep=5)
    (place(tmp_path, 4) / MANIFEST).unlink()
    assert store.steps() == [2]
    assert_equal(store.latest(), checkpoint(2))


@pytest.mark.parametrize("text", ["", '{"step": 4, "facts": {', "[]", "{}", '{"step": 4, "facts": {}, "sha256": {}}'])
def test_one_with_a_damaged_manifest_is_passed_over(text: str, store: CheckpointStore, tmp_path: Path) -> None:
    for step in (2, 4):
        store.save(checkpoint(step), keep=5)
    (place(tmp_path, 4) / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="step-00000004"):
        store.load(4)
    assert_equal(store.latest(), checkpoint(2))


def test_a_disk_that_cannot_be_read_is_an_error(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no damage: going back to an older one would throw steps away."""
    for step in (2, 4):
        store.save(checkpoint(step), keep=5)

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Storage, "get_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        store.latest()


def test_the_oldest_go(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (2, 4, 6, 100):
        store.save(checkpoint(step), keep=2)
        assert store.steps() == [each for each in (2, 4, 6, 100) if each <= step][-2:]
    assert not any(place(tmp_path, 2).glob("*"))
    assert_equal(store.load(6), checkpoint(6))


def test_a_damaged_later_one_takes_no_good_ones_place(store: CheckpointStore, tmp_path: Path) -> None:
    """The run went back to step 4 and has come by step 6, with another `checkpoint_every`."""
    store.save(checkpoint(4), keep=1)
    store.save(checkpoint(10), keep=2)
    _cut(place(tmp_path, 10) / FILES[0])
    assert_equal(store.latest(), checkpoint(4))
    store.save(checkpoint(6), keep=1)
    assert store.steps() == [6]
    assert_equal(store.latest(), checkpoint(6))


def test_removal_takes_the_manifest_first(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at any point of it leaves no checkpoint behind that looks complete."""
    removed: list[str] = []
    delete = Storage.delete

    def each(self: Storage, keys: list[str]) -> None:
        for key in keys:
            removed.append(key.rpartition("/")[2])
            delete(self, [key])

    monkeypatch.setattr(Storage, "delete", each)
    store.save(checkpoint(2), keep=1)
    store.save(checkpoint(4), keep=1)
    assert removed[0] == MANIFEST
    assert sorted(removed[1:]) == FILES


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step that is there"])
@pytest.mark.parametrize("failing_call", range(4))
def test_a_full_disk_leaves_the_one_before(
    failing_call: int, again: bool, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at each of the four writes in turn: three files, then the manifest."""
    store.save(checkpoint(2), keep=2)
    if again:
        store.save(checkpoint(4), keep=2)
    before, calls = files_of(tmp_path), []

    def full(method: Callable[..., Any]) -> Callable[..., Any]:
        def write(self: Storage, key: str, *data: Any) -> Any:
            calls.append(key)
            if len(calls) > failing_call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return method(self, key, *data)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "new_file", full(Storage.new_file))
        patch.setattr(Storage, "write", full(Storage.write))
        with pytest.raises(OSError, match="No space left"):
            store.save(checkpoint(4), keep=1)
    assert len(calls) == failing_call + 1
    assert calls[-1].endswith(
        [*(f"{name}.safetensors" for name in ("weights", "average", "optimizer")), MANIFEST][failing_call]
    )
    assert_equal(store.latest(), checkpoint(4 if again else 2))
    after = files_of(tmp_path)
    assert before.items() <= after.items()
    assert not [name for name in after if ".tmp" in name]
    store.save(checkpoint(4), keep=1)
    assert store.steps() == [4]
    assert_equal(store.latest(), checkpoint(4))


def test_no_half_file_stays_when_the_disk_is_full(store: CheckpointStore, tmp_path: Path) -> None:
    """The kernel refuses bytes in the middle of a file: here by its limit of a file's size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-00000002/weights\.safetensors: cannot be written: .*File too large"):
            store.save(checkpoint(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_of(tmp_path) == {}


def test_what_killed_runs_have_left_goes(store: CheckpointStore, tmp_path: Path) -> None:
    """Half files in a step's folder, and a step's folder without manifest; but no folder of the user's."""
    for step in (2, 4):
        place(tmp_path, step).mkdir(parents=True)
        (place(tmp_path, step) / "weights.safetensors.0123.tmp").write_bytes(b"half")
    mine = tmp_path / FOLDER / "step-00000002.bak"
    mine.mkdir()
    (mine / MANIFEST).write_text("{}")
    assert store.steps() == []
    store.save(checkpoint(4), keep=1)
    assert store.steps() == [4]
    assert sorted(file.name for file in place(tmp_path, 4).iterdir()) == sorted([*FILES, MANIFEST])
    assert not place(tmp_path, 2).exists()
    store.save(checkpoint(6), keep=1)
    assert not place(tmp_path, 4).exists()
    assert [file.name for file in mine.iterdir()] == [MANIFEST]


def test_the_same_facts_may_go_on() -> None:
    require_same(4, json.loads(json.dumps(FACTS)), FACTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": {"unet.a": [3, 4], "unet.b": [5]}},
            r"--output: the checkpoint at step 4 there is of another architecture: unet\.a has shape \[3, 2\] in it "
            r"and \[3, 4\] here; .*another --output",
        ),
        ({"architecture": {"unet.a": [3, 2]}}, r"unet\.b has shape \[5\] in it and None here"),
        ({"architecture": {**FACTS["architecture"], "unet.c": [1]}}, r"unet\.c has shape None in it and \[1\] here"),
        (
            {"run.seed": 1},
            r"--output: the checkpoint at step 4 there was made with run\.seed=0, now it is 1, .*set it back",
        ),
        ({"run.batch_size": 8}, r"run\.batch_size=4, now it is 8"),
        ({"rows of split train": 17}, r"rows of split train=16, now it is 17"),
        ({"a new fact": 1}, r"a new fact=its default, now it is 1"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_same(4, json.loads(json.dumps(FACTS)), {**FACTS, **change})


def test_a_fact_that_only_the_checkpoint_has_is_named() -> None:
    """The training that made it had another value than the default of a setting that is left out at its default."""
    with pytest.raises(ValueError, match=r"a later setting=None, now it is its default"):
        require_same(4, {**FACTS, "a later setting": None}, FACTS)
