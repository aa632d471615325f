"""The cache of a precomputed data set: a folder of parquet parts, and `cache.json`, which lists them once all exist.

One part holds one row group of one source file: its training rows, then its test rows, in row groups of their own. The
part's name is a hash of the source and the encoders, so a changed source or encoder makes new parts, and a part that
exists is never encoded again. Arrays are stored as bytes: latents and states float16, masks uint8, token ids int32.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Required, TypedDict

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
"""The columns of a part: the fields of `CachedRow`."""

SplitRows = list[tuple[str, int]]
"""Split and number of rows of each row group of a part."""


@dataclass(frozen=True)
class CachedVariant:
    """One product image of a row, encoded."""

    kind: str
    latents: bytes
    mask: bytes
    """M′ at the latents' size, 0 or 1."""
    image_states: bytes | None
    """None without an image encoder."""


@dataclass(frozen=True)
class CachedCaption:
    """One caption of a row, encoded."""

    token_ids: bytes
    text_states: bytes | None
    """None where the text encoder trains, and therefore runs at every step."""


@dataclass(frozen=True)
class CachedRow:
    """One triplet, encoded."""

    row_id: str
    product_id: str
    latents: bytes
    ad_mask: bytes | None
    """The product's mask in the ad: a copy of the mask of the first variant `original`, None without one. Training
    reads the variant's; the column stays so that parts keep their bytes."""
    variants: list[CachedVariant]
    captions: list[CachedCaption]


def row_of(values: Mapping[str, Any]) -> CachedRow:
    """A row of SCHEMA as read from a part."""
    variants = [CachedVariant(**each) for each in values["variants"]]
    captions = [CachedCaption(**each) for each in values["captions"]]
    return CachedRow(**{**values, "variants": variants, "captions": captions})


class Constants(TypedDict, total=False):
    """What replaces a dropped caption or product image: plain values for `cache.json`."""

    empty_token_ids: Required[list[int]]
    empty_text_states: str
    """float16 tokens×channels as hexadecimal digits; only where the text encoder is frozen."""
    zero_image_states: str
    """float16 patches×channels as hexadecimal digits; only with an image encoder."""


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
        """Size of a row's arrays as a training step takes them: one variant, one caption."""
        count = 2 * int(np.prod(self.latents)) + sum(
            int(np.prod(shape)) for shape in (self.text_states, self.image_states) if shape
        )
        return 2 * count + 4 * self.tokens + int(np.prod(self.latents[1:]))


def unit_name(source: str, content: str, group: int, recipe: Mapping[str, object]) -> str:
    """The name of the part for one row group of a source file.

    source: the file's key. content: its `footer_digest`. recipe: everything else that the encoded rows depend on.
    """
    text = json.dumps([source, content, group, recipe], sort_keys=True)  # the order of a recipe's keys does not count
    return f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"


def footer_digest(handle: pa.NativeFile) -> str:
    """Identifies a parquet file without reading all of it: its footer has sizes and statistics of every column."""
    end = handle.size()
    # The last 8 bytes of a parquet file: the footer's length as little-endian int32, then the magic number PAR1.
    length = int.from_bytes(handle.read_at(4, end - 8), "little")
    return hashlib.sha256(handle.read_at(length, end - 8 - length)).hexdigest()[:16]


def write_part(storage: Storage, key: str, rows: Mapping[str, list[CachedRow]]) -> None:
    """Writes the rows of each split as one part, atomically."""
    buffer = pa.BufferOutputStream()
    groups: SplitRows = []
    tables = []
    # Splits never share a row group, so training reads no held-out rows.
    for split in SPLITS:
        values = [dataclasses.asdict(row) for row in rows.get(split, [])]
        for start in range(0, len(values), ROWS_PER_GROUP):
            piece = values[start : start + ROWS_PER_GROUP]
            groups.append((split, len(piece)))
            tables.append(pa.Table.from_pylist(piece, schema=SCHEMA))
    # The footer carries the splits, so that a resumed encoding learns them without reading any row.
    with pq.ParquetWriter(buffer, SCHEMA.with_metadata({"groups": json.dumps(groups)}), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    storage.write(key, buffer.getvalue().to_pybytes())


def part_groups(storage: Storage, key: str) -> SplitRows:
    """The row groups of a part, from its footer."""
    with storage.arrow().open_input_file(storage.path(key)) as handle:
        return split_rows(json.loads(pq.read_schema(handle).metadata[b"groups"]))


def split_rows(values: list[list[Any]]) -> SplitRows:
    """Row groups as JSON has them: lists in place of tuples."""
    return [(str(split), int(rows)) for split, rows in values]


@dataclass(frozen=True)
class Cache:
    """A complete cache."""

    uri: str
    fingerprint: str
    shapes: CacheShapes
    parts: dict[str, SplitRows]
    """Key → row groups, in the order of the source's files and row groups."""
    constants: Constants

    def groups(self, split: str) -> list[RowGroup]:
        """The row groups of a split, in the source's order."""
        return [
            RowGroup(key, index, tuple(range(rows)))
            for key, groups in self.parts.items()
            for index, (of, rows) in enumerate(groups)
            if of == split
        ]

    def save(self) -> None:
        """Writes `cache.json`, without which a cache does not count as complete."""
        content = {
            "fingerprint": self.fingerprint,
            "shapes": vars(self.shapes),
            "parts": self.parts,
            "constants": self.constants,
        }
        Storage(self.uri).write(MANIFEST, json.dumps(content).encode())


def load_cache(uri: str) -> Cache | None:
    """The cache in `uri`; None where there is no `cache.json`. Raises: ValueError for one that cannot be read."""
    storage = Storage(uri)
    if not storage.exists(MANIFEST):
        return None
    try:
        content = json.loads(storage.read(MANIFEST))
        # JSON has no tuples.
        shapes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["shapes"].items()
        }
        parts = {key: split_rows(groups) for key, groups in content["parts"].items()}
        return Cache(uri, content["fingerprint"], CacheShapes(**shapes), parts, content["constants"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{storage.uri_of(MANIFEST)}: cannot be read ({error}); delete it to encode anew") from error
