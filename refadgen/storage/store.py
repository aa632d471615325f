"""Local folders and `s3://` prefixes behind one small interface.

All that jobs read or write goes through `Storage`: bytes by key, and listings. Writes are atomic: a reader sees the
complete file or none (a local file is written under another name and renamed; an object store shows complete objects
only). Credentials come from the environment, as s3fs reads them.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError

from refadgen.storage.addresses import redact_address
from refadgen.storage.locations import is_remote, local_path

STORE_ERRORS = (OSError, BotoCoreError, ClientError)
"""Raised by a full disk, and by an object store that cannot be reached."""


class Storage:
    """A folder, on disk or in an object store, that holds files by relative key.

    remote: whether it is in an object store. root: the absolute path, or bucket/prefix. uri: its address for people and
    other programs; a local one has no scheme.
    """

    def __init__(self, uri: str, *, timeout_s: float | None = None) -> None:
        """uri: a path, `file:` address or `s3://bucket/prefix`.

        timeout_s: of connecting to an object store, and between two received bytes. Each request is then made once, for
        callers that retry themselves. None: timeouts and retries of s3fs.
        Raises: ValueError for an unknown scheme.
        """
        self.remote = is_remote(uri)
        if self.remote:
            scheme, _, rest = uri.partition("://")
            if scheme.lower() != "s3":
                raise ValueError(f"{redact_address(uri)!r}: storage is a local path or s3://, not {scheme}://")
            self.root = rest.rstrip("/")
            self.uri = f"s3://{self.root}"
            client: dict[str, Any] = {}
            if timeout_s is not None:
                client = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"total_max_attempts": 1}}
            # fsspec would remember listings, without the files that other processes have written since.
            self._fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=client)
            if timeout_s is not None:
                self._fs.retries = 1  # s3fs retries by itself, around the retries of botocore
        else:
            self.root = local_path(uri)
            self.uri = self.root
            self._fs = fsspec.filesystem("file")

    def path(self, key: str = "") -> str:
        """The path of `key` for `arrow()`: absolute, or bucket/key. Raises: ValueError when `key` leaves the folder."""
        if not key:
            return self.root
        if key.startswith("/") or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{key!r}: a key is relative and stays inside {self.uri}")
        return f"{self.root}/{key}"

    def uri_of(self, key: str) -> str:
        """The address of `key`, for people and other programs."""
        return f"{self.uri}/{key}"

    def arrow(self) -> pyarrow.fs.FileSystem:
        """The same storage as a pyarrow file system. It takes the paths that `path` returns."""
        if self.remote:
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))
        return pyarrow.fs.LocalFileSystem()

    def read(self, key: str = "") -> bytes:
        """The bytes of `key`. Raises: FileNotFoundError, OSError."""
        data: bytes = self._fs.cat_file(self.path(key))
        return data

    def open(self, key: str = "") -> BinaryIO:
        """Opens `key` for reading, from its beginning. Raises: FileNotFoundError, OSError."""
        return cast(BinaryIO, self._fs.open(self.path(key), "rb"))

    def write(self, key: str, data: bytes, *, lasting: bool = True) -> None:
        """Writes `data` to `key`, atomically. lasting: whether it outlives a power cut. Raises: OSError."""
        path = self.path(key)
        if self.remote:
            self._fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                if lasting:
                    # Without fsync, a power cut after the rename can leave an empty file under the final name.
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # KeyboardInterrupt too: nothing else would remove the partial write
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def put_file(self, key: str, file: str | os.PathLike[str]) -> None:
        """Copies a local file to `key`, atomically, without holding it in memory. Raises: OSError."""
        if self.remote:
            self._fs.put_file(os.fspath(file), self.path(key))
            return
        with self.new_file(key) as place:
            shutil.copyfile(file, place)

    @contextmanager
    def new_file(self, key: str) -> Iterator[str]:
        """Yields a local path to write a file to. It becomes `key`, atomically, if the block ends without an error.

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

    def root_kind(self, subject: str) -> Literal["file", "folder"] | None:
        """Whether the root is a file or a folder; None: neither.

        Raises: ValueError, beginning with `subject`, if the storage cannot be reached.
        """
        try:
            if self.is_folder():
                return "folder"
            return "file" if self.exists() else None
        except Exception as error:  # s3fs and botocore raise many types
            raise ValueError(f"{subject} cannot be reached ({type(error).__name__}: {error})") from error

    def keys(self, prefix: str = "", suffix: str = "") -> Iterator[str]:
        """Yields the keys below the folder `prefix` that end in `suffix`, sorted; none if there is no such folder.

        Partial writes of a killed process (`*.tmp`) are among them, unless `suffix` excludes them.
        """
        base = self.path(prefix)
        if not self._fs.exists(base):
            return
        for path in sorted(self._fs.find(base)):
            key = path[len(self.root) :].lstrip("/")
            if key.endswith(suffix):
                yield key

    def names(self, folder: str) -> list[str]:
        """The keys directly in `folder`, sorted; none if there is no such folder."""
        try:
            paths = self._fs.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path[len(self.root) :].lstrip("/") for path in paths)

    def heads(self, keys: list[str], num_bytes: int) -> list[bytes]:
        """The first bytes of each file, read at once; empty for a file that cannot be read."""
        paths = [self.path(key) for key in keys]
        found = self._fs.cat_ranges(paths, 0, num_bytes, on_error="return") if paths else []
        return [head if isinstance(head, bytes) else b"" for head in found]

    def check_writable(self, field: str) -> None:
        """Writes and removes an empty file. Raises: ValueError naming the setting `field` if that fails."""
        key = f".write-check-{uuid.uuid4().hex}"
        try:
            self.write(key, b"")
            self.delete([key])
        except Exception as error:  # s3fs and botocore raise many types
            raise ValueError(f"{field} {self.uri}: cannot be written: {type(error).__name__}: {error}") from error


def split_uri(uri: str, *, timeout_s: float | None = None) -> tuple[Storage, str]:
    """Splits the address of a file into its folder and its name. timeout_s: see Storage."""
    file = Storage(uri.rstrip("/"), timeout_s=timeout_s)
    folder, _, name = file.root.rpartition("/")
    return Storage(f"s3://{folder}" if file.remote else folder or "/", timeout_s=timeout_s), name
