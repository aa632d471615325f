"""The bytes of a product image, wherever the catalogue says they are, within what a foreign catalogue may reach."""

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

from refadgen.catalog.attempts import Attempts, TryAgain
from refadgen.catalog.web import WebReader
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.storage.addresses import redact_address
from refadgen.storage.locations import local_path
from refadgen.storage.store import Storage, split_uri

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")  # two letters at least: C: is a drive
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
_S3_OBJECT = re.compile(r"^[sS]3://[^/]+/+[^/]")


class ImageFetcher:
    """Fetches images of one catalogue. Safe to share between threads.

    A relative path is looked up in the catalogue's folder (of a catalogue that is a folder: in it), on disk or in S3. A
    local file must lie, links resolved, below a local catalogue's folder or one of `fetch.file_roots`.
    """

    def __init__(self, config: FetchConfig, catalog_uri: str) -> None:
        """`catalog_uri`: the parquet file or the folder of files. Raises: ValueError for an address of another kind."""
        self._config = config
        self._catalog = Storage(catalog_uri)
        self._folder_lock = threading.Lock()
        self._remote_folder: str | None = None
        self._local_folder = "" if self._catalog.remote else _folder_of(self._catalog.root)
        roots = [local_path(root) for root in config.file_roots]
        self._roots = [os.path.realpath(root) for root in [*roots, self._local_folder] if root]
        self._web = WebReader(config)
        self._s3_attempts = Attempts(config)

    def fetch(self, image: str | bytes) -> bytes:
        """The encoded image behind an address or path, or the very bytes, at least one and at most `max_bytes`.

        Raises: RowError. rejected: `image_not_found`, `image_refused`, `not_an_image`, `image_too_large`,
        `file_outside_roots`, `private_address`, `unknown_scheme`, `bad_address`, `bad_certificate`,
        `too_many_redirects`; failed: `image_timeout`, `image_unreachable`, `image_server_error`.
        """
        if isinstance(image, bytes):
            data, shown = image, "encoded in the catalogue"
        else:
            shown = redact_address(image)
            try:
                data = self._read(image, shown)
            except RowError:
                raise
            except Exception as error:  # s3fs, botocore, aiohttp raise many kinds; their texts may hold secrets
                raise RowError(
                    "image_unreachable", f"image: {shown}: cannot be read ({type(error).__name__})"
                ) from None
        if not data:
            raise RowError("not_an_image", f"image: {shown}: is empty")
        if len(data) > self._config.max_bytes:
            raise self._too_large(shown, len(data))
        return data

    def _read(self, image: str, shown: str) -> bytes:
        found = _SCHEME.match(image)
        scheme = found[1].lower() if found else ""
        if "\0" in image:
            raise RowError("bad_address", f"image: {shown}: holds a NUL character")
        if scheme in ("http", "https"):
            return self._web.read(image)
        if scheme == "s3":
            return self._read_s3(image, shown)
        if scheme == "data":
            return _read_data(image, shown)
        if scheme == "file":
            return self._read_file(_file_path(image, shown), shown)
        if scheme or image.startswith("//"):
            raise RowError(
                "unknown_scheme",
                f"image: {shown}: use a path, file:, http:, https:, s3: or data: (a file name with a colon: ./a:b)",
            )
        if image.startswith("/"):
            return self._read_file(image, shown)
        if self._catalog.remote:
            return self._read_s3(self._beside_remote_catalog(image, shown), shown)
        return self._read_file(os.path.join(self._local_folder, image), shown)

    def _read_file(self, path: str, shown: str) -> bytes:
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, root]) == root for root in self._roots):
            raise RowError(
                "file_outside_roots",
                f"image: {shown}: lies outside the catalogue's folder; add its folder to fetch.file_roots",
            )
        try:
            with open(real, "rb", opener=_open_resolved) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise RowError("not_an_image", f"image: {shown}: is not a file")
                if info.st_size > self._config.max_bytes:
                    raise self._too_large(shown, info.st_size)
                return file.read(self._config.max_bytes + 1)
        except IsADirectoryError as error:
            raise RowError("not_an_image", f"image: {shown}: is a folder") from error
        except PermissionError as error:
            raise _refused(shown) from error
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                raise RowError("image_not_found", f"image: {shown}: {error.strerror}") from error
            # A disk or network share with a problem of its own: the file may be there another time.
            raise RowError("image_unreachable", f"image: {shown}: {error.strerror}") from error

    def _read_s3(self, uri: str, shown: str) -> bytes:
        # Only the full form: anything less would be a local path to Storage.
        if not _S3_OBJECT.match(uri):
            raise RowError("bad_address", f"image: {shown}: write it as s3://bucket/key")
        try:
            storage, name = split_uri(uri, timeout_s=self._config.timeout_s)
            path = storage.path(name)
        except ValueError as error:
            raise RowError("bad_address", f"image: {shown}: not a bucket and a key") from error
        bucket = path.partition("/")[0]
        return self._s3_attempts.run(lambda: self._attempt_s3(storage, name, bucket, shown))

    def _attempt_s3(self, storage: Storage, name: str, bucket: str, shown: str) -> bytes:
        """One attempt, in the bucket's turn. Raises: RowError, TryAgain."""
        from s3fs.core import S3_RETRYABLE_ERRORS  # here, since catalogues without S3 need not load s3fs

        try:
            with self._s3_attempts.turn(bucket):
                info = storage.arrow().get_file_info(storage.path(name))
                if info.type == pyarrow.fs.FileType.File and (info.size or 0) > self._config.max_bytes:
                    raise self._too_large(shown, info.size)
                if info.type == pyarrow.fs.FileType.Directory:
                    raise RowError("not_an_image", f"image: {shown}: is a folder")
                return storage.read(name)
        except FileNotFoundError as error:
            raise RowError("image_not_found", f"image: {shown}: no such object") from error
        except PermissionError as error:
            raise _refused(shown) from error
        except (OSError, *S3_RETRYABLE_ERRORS) as error:
            detail = f"image: {shown}: cannot be read: {type(error).__name__}"
            raise TryAgain("image_unreachable", detail) from None  # its text may hold secrets

    def _beside_remote_catalog(self, image: str, shown: str) -> str:
        """The address of a relative path in the catalogue's prefix; `..` may climb within the bucket."""
        with self._folder_lock:
            if self._remote_folder is None:
                root = self._catalog.root
                self._remote_folder = root if self._catalog.is_folder() else posixpath.dirname(root)
        bucket, _, prefix = self._remote_folder.partition("/")
        key = posixpath.normpath(posixpath.join(prefix, image))
        if key.startswith("..") or key == ".":
            raise RowError("bad_address", f"image: {shown}: climbs out of the catalogue's bucket")
        return f"s3://{bucket}/{key}"

    def _too_large(self, shown: str, size: int) -> RowError:
        limit = self._config.max_bytes
        return RowError(
            "image_too_large",
            f"image: {shown}: {size} bytes is more than fetch.max_bytes={limit}; raise it",
        )


def _folder_of(path: str) -> str:
    """The local folder in which a catalogue's relative paths start."""
    return path if os.path.isdir(path) else os.path.dirname(path)


def _refused(shown: str) -> RowError:
    return RowError("image_refused", f"image: {shown}: no permission to read it; give it")


def _open_resolved(path: str, flags: int) -> int:
    """Opens a path that was resolved and checked a moment ago: no link at its end, no waiting for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _file_path(address: str, shown: str) -> str:
    try:
        return local_path(address)
    except ValueError as error:
        raise RowError("bad_address", f"image: {shown}: a file: address names no host") from error


def _read_data(address: str, shown: str) -> bytes:
    """The bytes in a `data:` address, base64 or percent-encoded."""
    head, comma, body = address[len("data:") :].partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        raw = unquote_to_bytes(body)
        if head.lower().rstrip().endswith(";base64"):
            return base64.b64decode(b"".join(raw.split()), validate=True)
        return raw
    except (binascii.Error, ValueError) as error:
        raise RowError("not_an_image", f"image: {shown}: not a valid data: address") from error
