"""Inputs that are no parquet: a folder of images, and the authors' JSON. Each becomes a small parquet in the output."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.catalog.addresses import redact_address
from refadgen.dataset.authors_json import read_authors_ads
from refadgen.dataset.triplets import png_bytes
from refadgen.storage import Storage, is_remote, local_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".jp2")
_SCHEMA = pa.schema(
    [
        ("sku", pa.string()),
        ("image", pa.string()),
        ("category", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("mask", pa.binary()),
    ]
)


def as_catalog(uri: str, output: Storage) -> tuple[str, str | None]:
    """The parquet to read for the input `uri`, and the local folder that its images lie in (None: as the parquet says).

    A parquet file, or a folder with some, is read as it is (a catalogue of the main job is one). Raises: ValueError.
    """
    if uri.lower().endswith(".json"):
        if is_remote(uri):
            raise ValueError(f"{uri}: the authors' JSON and its folders must lie on this machine's disk")
        file = local_path(uri)
        return _kept(output, _authors_rows(file), uri), str(Path(file).parent)
    storage = Storage(uri)
    if storage.root_kind(f"{redact_address(uri)}: the input") == "folder" and not any(storage.keys(suffix=".parquet")):
        rows = _image_rows(storage)
        if not rows:
            raise ValueError(f"{uri}: the folder holds neither .parquet nor images ({', '.join(IMAGE_SUFFIXES)})")
        return _kept(output, rows, uri), None if storage.remote else storage.root
    return uri, None


def _kept(output: Storage, rows: list[dict[str, Any]], uri: str) -> str:
    """Writes the parquet, named by the input: the same input, the same file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, row_group_size=1024)
    key = f"input/{hashlib.sha256(uri.encode()).hexdigest()[:16]}.parquet"
    output.write(key, sink.getvalue().to_pybytes())
    return output.uri_of(key)


def _image_rows(storage: Storage) -> list[dict[str, Any]]:
    """One row an image: its path is its id, the folder it lies in, if any, its category."""
    return [
        {
            "sku": key,
            "image": storage.uri_of(key),
            "category": PurePosixPath(key).parent.name.replace("_", " ") or None,
        }
        for key in storage.keys("")
        if key.lower().endswith(IMAGE_SUFFIXES)
    ]


def _authors_rows(file: str) -> list[dict[str, Any]]:
    """One row an ad of the authors' JSON, with its own mask and captions; their product images are made anew.

    `refadgen.dataset.authors_json` takes their product images over instead.
    """
    rows = []
    for ad in read_authors_ads(file):
        mask = None if ad.mask is None else png_bytes(np.asarray(ad.mask))
        rows.append(
            {"sku": ad.path.stem, "image": str(ad.path), "category": ad.category, "captions": ad.captions, "mask": mask}
        )
    return rows
