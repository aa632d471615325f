"""From catalogue rows to planned products: the images each row wants, less those that the ledger has reconciled."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.ledger import Keys, are_reconciled, short_keys
from refadgen.batch.planning import inline_digest
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import repeated_column, schema_of
from refadgen.batch.shards import Shard
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import Fragment, parsed_rows, unusable_row_id
from refadgen.catalog.scenes import NounSource, Scenes, load_scenes
from refadgen.config import GenerateConfig, LayoutConfig
from refadgen.errors import RowError
from refadgen.generation.decisions import REFUSED, Decided, refusal
from refadgen.generation.rows import PlannedProduct
from refadgen.generation.wanted import PixelSettings, WantedImages

_SCHEMA = schema_of(PlannedProduct)
_WANTED = _SCHEMA.get_field_index("wanted")
_ROWS_AT_ONCE = 1024
_NO_LAYOUT = LayoutConfig()
_WHOLE = Shard()

_scenes = functools.lru_cache(maxsize=1)(load_scenes)  # once in a worker, which lives as long as its job


@dataclass(frozen=True, kw_only=True)
class RowFindings:
    """What planning finds in some catalogue rows, for the text of `--dry-run`.

    nouns: rows by (where their noun was found, an example of their prompts). refused: rows that cannot be read, by
    reason. details: what is wrong with the first row of each reason.
    """

    nouns: Counter[tuple[NounSource, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)

    def refuse(self, error: RowError) -> None:
        """Counts a row that cannot be read."""
        self.refused[error.reason] += 1
        self.details.setdefault(error.reason, error.detail)

    def __add__(self, other: "RowFindings") -> "RowFindings":
        return RowFindings(
            nouns=self.nouns + other.nouns,
            refused=self.refused + other.refused,
            details=other.details | self.details,
        )


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Wanted images of some catalogue rows: all of them, and those that the ledger has reconciled.

    products: rows that have images to make.
    """

    wanted: int = 0
    reconciled: int = 0
    products: int = 0
    rows: RowFindings = field(default_factory=RowFindings, compare=False)

    @property
    def to_make(self) -> int:
        return self.wanted - self.reconciled

    def __add__(self, other: "ImageCounts") -> "ImageCounts":
        return ImageCounts(
            wanted=self.wanted + other.wanted,
            reconciled=self.reconciled + other.reconciled,
            products=self.products + other.products,
            rows=self.rows + other.rows,
        )


class _Product(NamedTuple):
    """The fields of a PlannedProduct that planning fills; `wanted` as RowImages.images. Made for every row."""

    row: int
    sku: str
    category: str | None
    image: str
    negative_prompt: str | None
    wanted: list[tuple[str, str, int, str, int, str]]
    decision: str
    error: RowFailure | None
    mask: str = ""
    layout: LayoutConfig = _NO_LAYOUT
    inline: str = ""


@dataclass(frozen=True, kw_only=True)
class CatalogPlanner:
    """Plans one fragment of a catalogue at a time; travels to Ray tasks.

    first_rows: as in CatalogScan. reconciled: sorted short keys of image ids. decided: decisions of a person by sku.
    shard: whose products are planned.
    """

    config: GenerateConfig
    settings: PixelSettings
    first_rows: Mapping[str, int]
    reconciled: Keys
    decided: Mapping[str, Decided] = field(default_factory=dict)
    shard: Shard = _WHOLE

    def __call__(self, fragment: Fragment) -> tuple[pa.Table, ImageCounts]:
        """The planned products of a fragment, and its counts. Raises: ValueError naming a damaged file."""
        found = RowFindings()
        scenes = _scenes(self.config.catalog.scenes_file, self.config.catalog.taxonomy_file)
        wanted = WantedImages(scenes, self.config, self.settings)
        # In pieces: a row group may hold a million products, and only those with images to make become a table.
        pieces, counts = [_SCHEMA.empty_table()], ImageCounts()
        products = (
            _unusable(number, values, row, found)
            if isinstance(row, RowError)
            else self._product(row, wanted, found, scenes)
            for number, values, row in parsed_rows(
                fragment, self.first_rows, chosen=self.shard.holds if self.shard.label else None
            )
        )
        while piece := list(islice(products, _ROWS_AT_ONCE)):
            table, counted = _open_products(_table(piece), self.reconciled)
            counts += counted
            if len(table):
                pieces.append(table)
        return pa.concat_tables(pieces), replace(counts, rows=found)

    def _product(self, row: CatalogRow, wanted: WantedImages, findings: RowFindings, scenes: Scenes) -> _Product:
        row = self.settings.branded(row)
        by = self.decided.get(row.sku)
        decision = by.digest if by else ""
        asked = wanted.of(row, decision)
        if asked.noun:
            findings.nouns[asked.noun.source, scenes.example(asked.noun)] += 1
        return _Product(
            row.row,
            row.sku,
            row.category,
            row.image if isinstance(row.image, str) else "",
            row.negative_prompt,
            asked.images,
            decision,
            RowFailure.of(RowError(REFUSED, refusal(by))) if by and not by.digest else None,
            row.mask if isinstance(row.mask, str) else "",
            asked.layout,
            inline_digest(row.image, row.mask),
        )


def _unusable(row_number: int, values: Mapping[str, Any], error: RowError, findings: RowFindings) -> _Product:
    """A row that cannot be read, as one image that fails: nothing of the input goes without a ledger row."""
    findings.refuse(error)
    # The row may be the reason why nothing else can be read: its values are used as far as they are text.
    sku = values.get("sku")
    image = (unusable_row_id(row_number, values), "", 0, "", 0, "")
    return _Product(
        row_number, "" if sku is None else str(sku)[:256], None, "", None, [image], "", RowFailure.of(error)
    )


def _table(products: Sequence[_Product]) -> pa.Table:
    """Planned products as a table of PlannedProduct, column by column."""
    columns = dict(zip(_Product._fields, zip(*products, strict=True), strict=True))
    num_images = np.fromiter(map(len, columns["wanted"]), np.int32, len(products))
    images = zip(*chain.from_iterable(columns["wanted"]), strict=True)
    image_type = _SCHEMA.field("wanted").type.value_type
    fields = [pa.array(values, field.type) for values, field in zip(images, image_type, strict=True)]
    arrays = {
        "wanted": _lists(num_images, pa.StructArray.from_arrays(fields, fields=list(image_type))),
        **{name: repeated_column(columns[name], _SCHEMA.field(name).type) for name in ("error", "layout")},
        **{name: pa.repeat(pa.scalar(b"", pa.binary()), len(products)) for name in ("image_bytes", "mask_bytes")},
    }
    for name in columns.keys() - arrays.keys():
        arrays[name] = pa.array(columns[name], _SCHEMA.field(name).type)
    return pa.table([arrays[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _lists(lengths: npt.NDArray[np.int32], items: pa.Array) -> pa.ListArray:
    """Lists of these lengths of the items, in their order."""
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), items)


@dataclass(frozen=True, kw_only=True)
class OpenImages:
    """Keeps those images of a plan that are not reconciled; travels to Ray tasks."""

    reconciled: Keys

    def __call__(self, table: pa.Table) -> tuple[pa.Table, ImageCounts]:
        """The products that have images to make, with these images only; and the counts of all."""
        pieces, counts = [_SCHEMA.empty_table()], ImageCounts()
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            piece, counted = _open_products(pa.Table.from_batches([batch]), self.reconciled)
            pieces.append(piece)
            counts += counted
        return pa.concat_tables(pieces), counts


def _open_products(table: pa.Table, reconciled: Keys) -> tuple[pa.Table, ImageCounts]:
    """As `OpenImages`, of a table in one piece."""
    wanted = table["wanted"].chunk(0)
    images = wanted.flatten()
    is_open = ~are_reconciled(short_keys(pa.chunked_array([images.field("image_id")])), reconciled)
    num_open = int(is_open.sum())
    counts = ImageCounts(wanted=len(images), reconciled=len(images) - num_open, products=len(table))
    if num_open == len(images):
        return table, counts
    product = np.repeat(np.arange(len(table)), wanted.value_lengths().to_numpy())
    left = np.bincount(product[is_open], minlength=len(table))
    field = table.schema.field("wanted")
    remaining = _lists(left.astype(np.int32), images.filter(pa.array(is_open))).cast(field.type)
    table = table.set_column(_WANTED, field, remaining).filter(pa.array(left > 0))
    return table, replace(counts, products=len(table))
