"""Inputs other than parquet: a folder of images, or the authors' JSON. Each becomes a small parquet in the output."""

import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.catalog.files import is_hidden, left_out, left_out_lines, parquet_keys
from refadgen.storage.addresses import redact_address
from refadgen.storage.locations import is_remote, local_path
from refadgen.storage.store import Storage
from refadgen.triplets.authors_json import read_authors_ads
from refadgen.triplets.schema import png_bytes

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pnm"),
)
NO_IMAGE = "no image"
_GROUP_ROWS = 1024
"""Rows per row group: one fragment of planning."""


@dataclass(frozen=True, kw_only=True)
class _InputRow:
    """One ad, in the columns that the dataset job reads (`refadgen.catalog.columns.DATASET_COLUMNS`)."""

    sku: str
    image: str
    """A path or an address."""
    category: str | None
    captions: list[str] | None = None
    mask: bytes | None = None
    """PNG, 8-bit grey; None: the job finds the mask."""


_SCHEMA = pa.schema(
    [
        ("sku", pa.string()),
        ("image", pa.string()),
        ("category", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("mask", pa.binary()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Input:
    """catalog: the parquet to read. folder: the local folder of its images; None: the parquet says where they lie.

    left_out: keys of a folder's files that are neither parquet nor images, by why they are not read.
    """

    catalog: str
    folder: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def as_catalog(uri: str, output: Storage) -> Input:
    """Returns what to read for the input `uri`; writes the parquet of an input that is none.

    A parquet file, or a folder with parquet files, is read as it is; a catalogue of the main job is one.
    Raises: ValueError naming the input and the problem.
    """
    if uri.lower().endswith(".json"):
        if is_remote(uri):
            raise ValueError(f"{redact_address(uri)}: the authors' JSON and its folders must lie on a local disk")
        file = local_path(uri)
        return Input(catalog=_kept(output, _authors_rows(file), uri), folder=str(Path(file).parent))
    storage = Storage(uri)
    if storage.root_kind(f"{redact_address(uri)}: the input") == "folder" and not parquet_keys(storage)[0]:
        keys = list(storage.keys())
        images = [key for key in keys if key.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(key)]
        not_read = left_out(keys, images, NO_IMAGE)
        if not images:
            lines = "".join(f"; {line}" for line in left_out_lines(not_read))
            raise ValueError(
                f"{uri}: the folder holds neither .parquet nor images ({', '.join(IMAGE_SUFFIXES)}){lines}"
            )
        kept = _kept(output, _image_rows(storage, images), uri)
        return Input(catalog=kept, folder=None if storage.remote else storage.root, left_out=not_read)
    return Input(catalog=uri)


def _kept(output: Storage, rows: Iterable[_InputRow], uri: str) -> str:
    """Writes the rows to a parquet in the output and returns its address. The same input has the same file name."""
    key = f"input/{hashlib.sha256(uri.encode()).hexdigest()[:16]}.parquet"
    left = iter(rows)
    # A local file first: parquet is written in pieces, and a store takes only complete objects.
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        with pq.ParquetWriter(file.name, _SCHEMA) as writer:
            while some := list(itertools.islice(left, _GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist([asdict(row) for row in some], schema=_SCHEMA))
        output.put_file(key, file.name)
    return output.uri_of(key)


def _image_rows(storage: Storage, keys: Iterable[str]) -> Iterator[_InputRow]:
    """Yields one row per image. Its path is the id; the name of its folder is the category."""
    for key in keys:
        try:
            # Linux allows any bytes in a name, Arrow only UTF-8: Python shows the others as lone surrogates.
            key.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{storage.uri}: the file name {key!r} is not UTF-8; rename the file") from error
        category = PurePosixPath(key).parent.name.replace("_", " ") or None
        yield _InputRow(sku=key, image=storage.uri_of(key), category=category)


def _authors_rows(file: str) -> Iterator[_InputRow]:
    """Yields one row per ad of the authors' JSON, with its mask and captions; the job makes new product images.

    `refadgen.triplets.authors_json` imports the authors' product images instead.
    """
    for ad in read_authors_ads(file):
        yield _InputRow(
            sku=ad.path.stem,
            image=str(ad.path),
            category=ad.category,
            captions=ad.captions,
            mask=None if ad.mask is None else png_bytes(np.asarray(ad.mask)),
        )
