"""The bytes of a feed's file: unpacked, its encoding found, read as a stream of text."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TextIO, cast

from refadgen.storage.addresses import redact_address
from refadgen.storage.store import STORE_ERRORS, split_uri

_HEAD_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook: unpack it, or save its sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save its sheet as CSV (UTF-8)"),
    (b"BZh", "compressed by bzip2: unpack it, or compress it by gzip"),
    (b"\xfd7zXZ", "compressed by xz: unpack it, or compress it by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it, or compress it by gzip"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Obj\x01", "Avro: write it as parquet"),
    (b"ORC", "ORC: write it as parquet"),
    (b"%PDF", "a PDF: give the table that it was made from"),
    (b"\x89PNG", "a picture: give the folder that it is in"),
    (b"\xff\xd8\xff", "a picture: give the folder that it is in"),
)


@dataclass(frozen=True, kw_only=True)
class FeedFile:
    """One file of a feed. encoding: Python's name of it. head: the beginning of its text."""

    uri: str
    gzipped: bool
    encoding: str
    head: str

    @property
    def shown(self) -> str:
        """Its address for people."""
        return redact_address(self.uri)

    @property
    def written(self) -> str:
        """Its encoding and packing, for people."""
        name = {"utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}.get(self.encoding, self.encoding.upper())
        return f"{name}, gzip" if self.gzipped else name

    @contextmanager
    def bytes(self) -> Iterator[BinaryIO]:
        """Yields its bytes, unpacked. Raises: ValueError naming a packed file that is cut or damaged."""
        storage, name = split_uri(self.uri)
        with storage.open(name) as raw:
            try:
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if self.gzipped else raw
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{self.shown}: is cut or damaged gzip ({error}): export it again") from error

    @contextmanager
    def text(self) -> Iterator[TextIO]:
        """Yields its text, line ends as they are. What is not of its encoding comes as lone surrogates."""
        errors = "strict" if self.encoding.startswith("utf-16") else "surrogateescape"
        with self.bytes() as raw:
            buffered = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES)
            try:
                yield io.TextIOWrapper(buffered, self.encoding, errors=errors, newline="")
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.shown}: is cut or no {self.encoding.upper()} ({error})") from error


def open_feed(uri: str) -> FeedFile:
    """Looks into a file. Raises: ValueError naming a file that is no text."""
    shown = redact_address(uri)
    gzipped, head = _head(uri, shown)
    for magic, words in _OTHER_KINDS:
        if head.startswith(magic):
            raise ValueError(f"{shown}: is {words}")
    encoding = _encoding(head)
    if encoding is None:
        raise ValueError(f"{shown}: is neither parquet nor text")
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return FeedFile(uri=uri, gzipped=gzipped, encoding=encoding, head=decoder.decode(head))


def _head(uri: str, shown: str) -> tuple[bool, bytes]:
    """Whether a file is packed, and how it begins, unpacked. Raises: ValueError naming a file that cannot be read."""
    storage, name = split_uri(uri)
    try:
        with storage.open(name) as raw:
            head = raw.read(_HEAD_BYTES)
        if not head.startswith(_GZIP):
            return False, head
        with storage.open(name) as raw:
            return True, gzip.GzipFile(fileobj=raw).read(_HEAD_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{shown}: is cut or damaged gzip ({error}): export it again") from error
    except STORE_ERRORS as error:
        raise ValueError(f"{shown}: cannot be read ({type(error).__name__}: {error})") from error


def _encoding(head: bytes) -> str | None:
    """The encoding of a text that begins so; None: it is none."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head[:4096]:
        for odd, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            half, other = head[odd:4096:2], head[1 - odd : 4096 : 2]
            if half.count(0) > len(half) // 2 and other.count(0) == 0:
                return encoding
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"
