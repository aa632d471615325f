"""Local folders and `s3://` prefixes behind one small interface.

Everything the jobs read or write goes through `Storage`: bytes by key, atomic for readers (a file is written beside its
place and renamed; an object is put whole), and listings. Credentials come from the environment, as usual with s3fs.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, Literal

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError

from refadgen.storage.addresses import redact_address
from refadgen.storage.locations import is_remote, local_path

STORE_ERRORS = (OSError, BotoCoreError, ClientError)
"""What a full disk or a store that is out of reach raises."""


class Storage:
    """A folder, on disk or in an object store, that holds files by relative key."""

    def __init__(self, uri: str, *, timeout_s: float | None = None) -> None:
        """`uri`: a path, `file:` address or `s3://bucket/prefix`. timeout_s: for connecting to an object store and
        between two received bytes, each request being made once, for a caller that tries again itself; None: s3fs's own
        timeouts and retries. Raises: ValueError for an unknown scheme.
        """
        self.remote = is_remote(uri)
        if self.remote:
            scheme, _, rest = uri.partition("://")
            if scheme.lower() != "s3":
                raise ValueError(f"{redact_address(uri)!r}: storage is a local path or s3://, not {scheme}://")
            self.root = rest.rstrip("/")
            self.uri = f"s3://{self.root}"
            # Listings would otherwise be remembered from before another process wrote.
            client: dict[str, Any] = {}
            if timeout_s is not None:
                client = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
            self._fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=client)
            if timeout_s is not None:
                self._fs.retries = 1  # attempts of s3fs itself, around those of botocore
        else:
            self.root = local_path(uri)
            self.uri = self.root
            self._fs = fsspec.filesystem("file")

    def path(self, key: str = "") -> str:
        """The full path of `key` as the file system below takes it. Raises: ValueError when `key` leaves the folder."""
        if not key:
            return self.root
        if key.startswith("/") or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key!r}: a key is relative and stays inside {self.uri}")
        return f"{self.root}/{key}"

    def uri_of(self, key: str) -> str:
        """The address of `key` for people and other programs."""
        return f"{self.uri}/{key}"

    def arrow(self) -> pyarrow.fs.FileSystem:
        """The same storage as a pyarrow file system; its paths are those of `path`."""
        if self.remote:
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))
        return pyarrow.fs.LocalFileSystem()

    def read(self, key: str = "") -> bytes:
        """The bytes of `key`. Raises: FileNotFoundError, OSError."""
        data: bytes = self._fs.cat_file(self.path(key))
        return data

    def write(self, key: str, data: bytes) -> None:
        """Puts `data` at `key` so that readers see all of it or nothing. Raises: OSError."""
        path = self.path(key)
        if self.remote:
            self._fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def put_file(self, key: str, file: str | os.PathLike[str]) -> None:
        """Puts a local file at `key`, as `write` does, without holding it in memory. Raises: OSError."""
        if self.remote:
            self._fs.put_file(os.fspath(file), self.path(key))
            return
        with self.new_file(key) as place:
            shutil.copyfile(file, place)

    @contextmanager
    def new_file(self, key: str) -> Iterator[str]:
        """A local path to write a file to, which lies at `key`, whole, when the block ends without an error.

        Raises: OSError.
        """
        if self.remote:
            with tempfile.TemporaryDirectory(prefix="refadgen-") as folder:
                file = f"{folder}/{PurePosixPath(key).name}"
                yield file
                self.put_file(key, file)
            return
        path = self.path(key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def get_file(self, key: str, file: str | os.PathLike[str]) -> None:
        """Copies `key` to a local file. Raises: FileNotFoundError, OSError."""
        self._fs.get_file(self.path(key), os.fspath(file))

    def delete(self, keys: list[str]) -> None:
        """Removes the files at `keys`."""
        for key in keys:
            self._fs.rm_file(self.path(key))

    def exists(self, key: str = "") -> bool:
        """Whether there is a file or folder at `key`."""
        return bool(self._fs.exists(self.path(key)))

    def is_folder(self) -> bool:
        """Whether the storage's root is a folder or prefix, not one file."""
        return bool(self._fs.isdir(self.root))

    def root_kind(self, what: str) -> Literal["file", "folder"] | None:
        """What is at the root. Raises: ValueError, begun with `what`, where the storage cannot be reached."""
        try:
            if self.is_folder():
                return "folder"
            return "file" if self.exists() else None
        except Exception as error:  # s3fs and botocore raise many kinds
            raise ValueError(f"{what} cannot be reached ({type(error).__name__}: {error})") from error

    def keys(self, prefix: str = "", suffix: str = "") -> Iterator[str]:
        """All keys below the folder `prefix` that end in `suffix`, sorted; none where it does not exist."""
        base = self.path(prefix)
        if not self._fs.exists(base):
            return
        for path in sorted(self._fs.find(base)):
            key = path[len(self.root) :].lstrip("/")
            if key.endswith(suffix):
                yield key

    def check_writable(self, field: str) -> None:
        """Writes and removes a small file. Raises: ValueError naming `field` when that is refused."""
        key = f".write-check-{uuid.uuid4().hex}"
        try:
            self.write(key, b"")
            self.delete([key])
        except Exception as error:  # s3fs and botocore raise many kinds
            raise ValueError(f"{field} {self.uri}: cannot be written: {type(error).__name__}: {error}") from error


def split_uri(uri: str, *, timeout_s: float | None = None) -> tuple[Storage, str]:
    """The folder that holds the file at `uri`, and the file's name in it. timeout_s: as of Storage."""
    stem = uri.rstrip("/")
    whole = Storage(stem, timeout_s=timeout_s)
    folder, _, name = whole.root.rpartition("/")
    return Storage(f"s3://{folder}" if whole.remote else folder or "/", timeout_s=timeout_s), name
