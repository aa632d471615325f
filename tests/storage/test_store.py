"""Storage on disk: whole files or none, keys that stay inside, listings. On S3 the jobs' tests use it."""

import os
from pathlib import Path

import pytest

from refadgen.storage.locations import local_path
from refadgen.storage.store import Storage, split_uri


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b.txt", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write("a/b.txt", b"new")
    assert storage.read("a/b.txt") == b"old"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "a/../../outside"])
def test_a_key_stays_inside(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stays inside"):
        Storage(str(tmp_path)).write(key, b"")


def test_keys_are_sorted_and_filtered(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for key in ("b/2.parquet", "b/1.parquet", "b/x.txt", "c.parquet"):
        storage.write(key, b"")
    assert list(storage.keys("b", ".parquet")) == ["b/1.parquet", "b/2.parquet"]
    assert list(storage.keys("nowhere")) == []


def test_addresses_of_files(tmp_path: Path) -> None:
    assert local_path(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    with pytest.raises(ValueError, match="names no host"):
        local_path("file://host/a")
    storage, name = split_uri("s3://bucket/folder/file.parquet")
    assert (storage.uri, name) == ("s3://bucket/folder", "file.parquet")
    with pytest.raises(ValueError, match="not gs://"):
        Storage("gs://bucket")


def test_what_cannot_be_written_is_named_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output .*cannot be written"):
        Storage(str(tmp_path / "file" / "below")).check_writable("--output")
    Storage(str(tmp_path / "new")).check_writable("--output")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_lies_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = [Storage(str(tmp_path / name)).root_kind("x") for name in ("", "file", "nothing")]
    assert found == ["folder", "file", None]


def test_a_store_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ENDPOINT_URL", "http://127.0.0.1:9"),
        ("ACCESS_KEY_ID", "key"),
        ("SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(ValueError, match=r"^--data s3://shop/x: the data cannot be reached \(EndpointConnectionError"):
        Storage("s3://shop/x", timeout_s=1.5).root_kind("--data s3://shop/x: the data")
