"""The bytes of a product image or mask: from a local file, http(s), S3, a `data:` address or the catalogue itself.

A catalogue is foreign input. It may not read local files outside its folder, nor reach hosts of a private network.
"""

import base64
import binascii
import errno
import os
import posixpath
import re
import stat
import threading
from urllib.parse import unquote_to_bytes

import pyarrow.fs

from refadgen.catalog.attempts import Attempts, ImageName
from refadgen.catalog.links import written_link
from refadgen.catalog.web import WebReader
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.storage.addresses import redact_address
from refadgen.storage.locations import local_path
from refadgen.storage.store import Storage, split_uri

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")  # at least two letters: C: is a drive
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
_S3_OBJECT = re.compile(r"^[sS]3://[^/]+/+[^/]")


class ImageFetcher:
    """Fetches images of one catalogue. Safe to share between threads.

    A relative path starts in the catalogue's folder, on disk or in S3; a catalogue that is a folder is that folder. A
    local file must lie, links resolved, below a local catalogue's folder or one of `fetch.file_roots`.
    """

    def __init__(self, config: FetchConfig, catalog_uri: str) -> None:
        """catalog_uri: the parquet file or the folder of files. Raises: ValueError for an unknown scheme."""
        self._config = config
        self._catalog = Storage(catalog_uri)
        self._folder_lock = threading.Lock()
        self._remote_folder: str | None = None
        self._local_folder = "" if self._catalog.remote else _folder_of(self._catalog.root)
        roots = [local_path(root) for root in config.file_roots]
        self._roots = [os.path.realpath(root) for root in [*roots, self._local_folder] if root]
        self._web = WebReader(config)
        self._s3_attempts = Attempts(config)

    def fetch(self, image: str | bytes, *, field: str = "image") -> bytes:
        """Returns the encoded image behind an address or path, 1 to `max_bytes` bytes; bytes are returned as they are.

        field: the row's field that holds `image`; errors name it.
        Raises: RowError. rejected: `image_not_found`, `image_refused`, `not_an_image`, `image_too_large`,
        `file_outside_roots`, `private_address`, `unknown_scheme`, `bad_address`, `bad_certificate`,
        `too_many_redirects`; failed: `image_timeout`, `image_unreachable`, `image_server_error`.
        """
        if isinstance(image, bytes):
            data, name = image, ImageName(field=field, shown="encoded in the catalogue")
        else:
            name = ImageName(field=field, shown=redact_address(image))
            try:
                data = self._read(image, name)
            except RowError:
                raise
            except Exception as error:  # s3fs, botocore and aiohttp raise many types
                # Without its text and without the exception itself: both may hold the signed address.
                raise name.error("image_unreachable", f"cannot be read ({type(error).__name__})") from None
        if not data:
            raise name.error("not_an_image", "is empty")
        if len(data) > self._config.max_bytes:
            raise self._too_large(name, len(data))
        return data

    def _read(self, image: str, name: ImageName) -> bytes:
        try:
            image = written_link(image)
        except ValueError as error:
            raise name.error("bad_address", str(error)) from None
        found = _SCHEME.match(image)
        scheme = found[1].lower() if found else ""
        if "\0" in image:
            raise name.error("bad_address", "holds a NUL character")
        if scheme in ("http", "https"):
            return self._web.read(image, field=name.field)
        if scheme == "s3":
            return self._read_s3(image, name)
        if scheme == "data":
            return _read_data(image, name)
        if scheme == "file":
            return self._read_file(_file_path(image, name), name)
        if scheme:
            raise name.error(
                "unknown_scheme", "use a path, file:, http:, https:, s3: or data: (a file name with a colon: ./a:b)"
            )
        if image.startswith("/"):
            return self._read_file(image, name)
        if self._catalog.remote:
            return self._read_s3(self._beside_remote_catalog(image, name), name)
        return self._read_file(os.path.join(self._local_folder, image), name)

    def _read_file(self, path: str, name: ImageName) -> bytes:
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, root]) == root for root in self._roots):
            raise name.error(
                "file_outside_roots", "lies outside the catalogue's folder; add its folder to fetch.file_roots"
            )
        try:
            with open(real, "rb", opener=_open_resolved) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise name.error("not_an_image", "is not a file")
                if info.st_size > self._config.max_bytes:
                    raise self._too_large(name, info.st_size)
                return file.read(self._config.max_bytes + 1)
        except IsADirectoryError as error:
            raise name.error("not_an_image", "is a folder") from error
        except PermissionError as error:
            raise _refused(name) from error
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                raise name.error("image_not_found", error.strerror or "no such file") from error
            # Any other errno is a problem of the disk or network share: the file may be readable later.
            raise name.error("image_unreachable", error.strerror or type(error).__name__) from error

    def _read_s3(self, uri: str, name: ImageName) -> bytes:
        # Storage would take anything less than the full form for a local path.
        if not _S3_OBJECT.match(uri):
            raise name.error("bad_address", "write it as s3://bucket/key")
        try:
            storage, key = split_uri(uri, timeout_s=self._config.timeout_s)
            path = storage.path(key)
        except ValueError as error:
            raise name.error("bad_address", "not a bucket and a key") from error
        bucket = path.partition("/")[0]
        return self._s3_attempts.run(lambda: self._attempt_s3(storage, key, bucket, name))

    def _attempt_s3(self, storage: Storage, key: str, bucket: str, name: ImageName) -> bytes:
        """One attempt, within the limit of requests per bucket. Raises: RowError, TryAgain."""
        from s3fs.core import S3_RETRYABLE_ERRORS  # slow to import, and a catalogue without S3 does not need it

        try:
            with self._s3_attempts.turn(bucket):
                info = storage.arrow().get_file_info(storage.path(key))
                if info.type == pyarrow.fs.FileType.File and (info.size or 0) > self._config.max_bytes:
                    raise self._too_large(name, info.size)
                if info.type == pyarrow.fs.FileType.Directory:
                    raise name.error("not_an_image", "is a folder")
                return storage.read(key)
        except FileNotFoundError as error:
            raise name.error("image_not_found", "no such object") from error
        except PermissionError as error:
            raise _refused(name) from error
        except (OSError, *S3_RETRYABLE_ERRORS) as error:
            # Without the error's text, which may hold secrets.
            raise name.try_again("image_unreachable", f"cannot be read: {type(error).__name__}") from None

    def _beside_remote_catalog(self, image: str, name: ImageName) -> str:
        """The address of a path relative to the catalogue's prefix; `..` may climb, but not out of the bucket."""
        # Asked once, at the first relative path: file or folder costs a request, and threads share this fetcher.
        with self._folder_lock:
            if self._remote_folder is None:
                root = self._catalog.root
                self._remote_folder = root if self._catalog.is_folder() else posixpath.dirname(root)
        bucket, _, prefix = self._remote_folder.partition("/")
        key = posixpath.normpath(posixpath.join(prefix, image))
        if key.startswith("..") or key == ".":
            raise name.error("bad_address", "climbs out of the catalogue's bucket")
        return f"s3://{bucket}/{key}"

    def _too_large(self, name: ImageName, size: int) -> RowError:
        limit = self._config.max_bytes
        return name.error("image_too_large", f"{size} bytes is more than fetch.max_bytes={limit}; raise it")


def _folder_of(path: str) -> str:
    """The local folder where a catalogue's relative paths start."""
    return path if os.path.isdir(path) else os.path.dirname(path)


def _refused(name: ImageName) -> RowError:
    return name.error("image_refused", "no permission to read it; give it")


def _open_resolved(path: str, flags: int) -> int:
    """Opens a path that `realpath` resolved and that was checked to lie below a root."""
    # O_NOFOLLOW: the file may have been replaced by a link since the check. O_NONBLOCK: opening a named pipe would
    # otherwise wait for a writer, for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _file_path(address: str, name: ImageName) -> str:
    try:
        return local_path(address)
    except ValueError as error:
        raise name.error("bad_address", "a file: address names no host") from error


def _read_data(address: str, name: ImageName) -> bytes:
    """The bytes of a `data:` address, base64 or percent-encoded. Raises: RowError `not_an_image`."""
    head, comma, body = address[len("data:") :].partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        raw = unquote_to_bytes(body)
        if head.lower().rstrip().endswith(";base64"):
            return base64.b64decode(b"".join(raw.split()), validate=True)
        return raw
    except (binascii.Error, ValueError) as error:
        raise name.error("not_an_image", "not a valid data: address") from error
