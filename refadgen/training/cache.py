"""What is precomputed of a data set: a folder of parquet parts and `cache.json`, which names them when all are there.

One part holds one row group of one source file: its training rows first, then its test rows, in row groups of their
own. Its name follows from the source and the encoders, so a changed source or encoder makes new parts, and a part that
is there is never made again. Arrays lie in binary columns: latents and states float16, masks uint8, token ids int32.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.storage.store import Storage
from refadgen.training.plan import RowGroup
from refadgen.triplets.schema import SPLITS

MANIFEST = "cache.json"
ROWS_PER_GROUP = 64

_VARIANT = pa.struct(
    [("kind", pa.string()), ("latents", pa.binary()), ("mask", pa.binary()), ("image_states", pa.binary())]
)
_CAPTION = pa.struct([("token_ids", pa.binary()), ("text_states", pa.binary())])
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("product_id", pa.string()),
        ("latents", pa.binary()),
        ("ad_mask", pa.binary()),
        ("variants", pa.list_(_VARIANT)),
        ("captions", pa.list_(_CAPTION)),
    ]
)
"""`ad_mask`: the product's place in the ad, null where the source does not know it. Null states: not precomputed."""


@dataclass(frozen=True)
class CacheShapes:
    """Shapes of the arrays of a row."""

    latents: tuple[int, ...]
    """C, h, w."""
    tokens: int
    text_states: tuple[int, ...] | None
    """tokens, channels; None where the text encoder trains."""
    image_states: tuple[int, ...] | None
    """patches, channels; None without an image encoder."""

    @property
    def bytes_per_row(self) -> int:
        """Of a row as a training step takes it."""
        count = 2 * int(np.prod(self.latents)) + sum(
            int(np.prod(shape)) for shape in (self.text_states, self.image_states) if shape
        )
        return 2 * count + 4 * self.tokens + int(np.prod(self.latents[1:]))


def unit_name(source: str, content: str, group: int, recipe: dict[str, Any]) -> str:
    """The part of one row group of a source file, known by its key and `footer_digest`, encoded by `recipe`."""
    text = json.dumps([source, content, group, recipe], sort_keys=True)
    return f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"


def footer_digest(handle: pa.NativeFile) -> str:
    """What a parquet file is known by without reading it all: its footer has sizes and statistics of every column."""
    end = handle.size()
    length = int.from_bytes(handle.read_at(4, end - 8), "little")
    return hashlib.sha256(handle.read_at(length, end - 8 - length)).hexdigest()[:16]


def write_part(storage: Storage, key: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the rows of each split, whole or not at all."""
    buffer = pa.BufferOutputStream()
    groups = []
    tables = []
    for split in SPLITS:
        for start in range(0, len(rows.get(split, [])), ROWS_PER_GROUP):
            piece = rows[split][start : start + ROWS_PER_GROUP]
            groups.append([split, len(piece)])
            tables.append(pa.Table.from_pylist(piece, schema=SCHEMA))
    with pq.ParquetWriter(buffer, SCHEMA.with_metadata({"groups": json.dumps(groups)}), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    storage.write(key, buffer.getvalue().to_pybytes())


def part_groups(storage: Storage, key: str) -> list[list[Any]]:
    """Split and number of rows of each row group of a part, from its footer."""
    with storage.arrow().open_input_file(storage.path(key)) as handle:
        groups: list[list[Any]] = json.loads(pq.read_schema(handle).metadata[b"groups"])
    return groups


@dataclass(frozen=True)
class Cache:
    """A complete cache."""

    uri: str
    fingerprint: str
    shapes: CacheShapes
    parts: dict[str, list[list[Any]]]
    """Key → split and number of rows of each row group; in the order of the source's files and row groups."""
    constants: dict[str, Any]
    """`empty_token_ids`; `empty_text_states` and `zero_image_states` (float16, hexadecimal) where they are frozen."""

    def groups(self, split: str) -> list[RowGroup]:
        """The row groups of a split, in the source's order."""
        return [
            RowGroup(key, index, tuple(range(rows)))
            for key, groups in self.parts.items()
            for index, (of, rows) in enumerate(groups)
            if of == split
        ]

    def save(self) -> None:
        """Writes `cache.json`; until then a cache is not there."""
        content = {
            "fingerprint": self.fingerprint,
            "shapes": vars(self.shapes),
            "parts": self.parts,
            "constants": self.constants,
        }
        Storage(self.uri).write(MANIFEST, json.dumps(content).encode())


def load_cache(uri: str) -> Cache | None:
    """The cache in `uri`, or None. Raises: ValueError for a manifest that cannot be read."""
    storage = Storage(uri)
    if not storage.exists(MANIFEST):
        return None
    try:
        content = json.loads(storage.read(MANIFEST))
        shapes = {name: tuple(value) if isinstance(value, list) else value for name, value in content["shapes"].items()}
        return Cache(uri, content["fingerprint"], CacheShapes(**shapes), content["parts"], content["constants"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{storage.uri_of(MANIFEST)}: cannot be read ({error}); delete it to encode anew") from error
