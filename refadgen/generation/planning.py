"""From catalogue rows to planned products: the images each row wants, less those that the ledger has reconciled."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.ledger import is_reconciled
from refadgen.batch.planning import inline_digest, table_of
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import iter_rows
from refadgen.catalog.layout import merged_layout
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import Fragment, parsed_rows, unusable_row_id
from refadgen.catalog.scenes import NounSource, Scenes, load_scenes
from refadgen.config import GenerateConfig
from refadgen.errors import RowError
from refadgen.generation.decisions import REFUSED, Decided, refusal
from refadgen.generation.rows import PlannedProduct
from refadgen.generation.wanted import PixelSettings, WantedImage, wanted_images

Keys = npt.NDArray[np.uint64]

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
    """Wanted images of some catalogue rows: all of them, and those that the ledger has reconciled."""

    wanted: int = 0
    reconciled: int = 0
    rows: RowFindings = field(default_factory=RowFindings, compare=False)

    @property
    def to_make(self) -> int:
        return self.wanted - self.reconciled

    def __add__(self, other: "ImageCounts") -> "ImageCounts":
        return ImageCounts(
            wanted=self.wanted + other.wanted,
            reconciled=self.reconciled + other.reconciled,
            rows=self.rows + other.rows,
        )


@dataclass(frozen=True, kw_only=True)
class CatalogPlanner:
    """Plans one fragment of a catalogue at a time; travels to Ray tasks.

    first_rows: as in CatalogScan. reconciled: sorted short keys of image ids. decided: decisions of a person by sku.
    """

    config: GenerateConfig
    settings: PixelSettings
    first_rows: Mapping[str, int]
    reconciled: Keys
    decided: Mapping[str, Decided] = field(default_factory=dict)

    def __call__(self, fragment: Fragment) -> tuple[pa.Table, ImageCounts]:
        """The planned products of a fragment, and its counts."""
        found = RowFindings()
        table, counts = _open_products(self.products(fragment, found), self.reconciled)
        return table, replace(counts, rows=found)

    def products(self, fragment: Fragment, findings: RowFindings | None = None) -> Iterator[PlannedProduct]:
        """Every catalogue row with all its wanted images. findings: gets what is found in the rows.

        Raises: ValueError naming a damaged file.
        """
        scenes = _scenes(self.config.catalog.scenes_file, self.config.catalog.taxonomy_file)
        for row_number, values, row in parsed_rows(fragment, self.first_rows):
            try:
                if isinstance(row, RowError):
                    raise row
                if findings is not None and not row.prompts:
                    found = scenes.noun_of(row.category, row.title, row.brand)
                    findings.nouns[found.source, scenes.example(found)] += 1
                yield self._product(row, scenes)
            except RowError as error:
                if findings is not None:
                    findings.refuse(error)
                yield _unusable(row_number, values, error)

    def _product(self, row: CatalogRow, scenes: Scenes) -> PlannedProduct:
        by = self.decided.get(row.sku)
        decision = by.digest if by else ""
        refused = RowError(REFUSED, refusal(by)) if by and not by.digest else None
        return PlannedProduct(
            row=row.row,
            sku=row.sku,
            category=row.category,
            image=row.image if isinstance(row.image, str) else "",
            mask=row.mask if isinstance(row.mask, str) else "",
            inline=inline_digest(row.image, row.mask),
            negative_prompt=row.negative_prompt,
            layout=merged_layout(self.config.layout, row.placement),
            wanted=wanted_images(row, scenes, self.config, self.settings, decision),
            decision=decision,
            error=RowFailure.of(refused) if refused else None,
        )


def _unusable(row_number: int, values: Mapping[str, Any], error: RowError) -> PlannedProduct:
    """A row that cannot be read, as one image that fails: nothing of the input goes without a ledger row."""
    # The row may be the reason why nothing else can be read: its values are used as far as they are text.
    sku = values.get("sku")
    image_id = unusable_row_id(row_number, values)
    return PlannedProduct(
        row=row_number,
        sku="" if sku is None else str(sku)[:256],
        category=None,
        image="",
        negative_prompt=None,
        wanted=(WantedImage(image_id=image_id, scene="", variant=0, prompt="", seed=0),),
        error=RowFailure.of(error),
    )


@dataclass(frozen=True, kw_only=True)
class OpenImages:
    """Keeps those images of a plan that are not reconciled; travels to Ray tasks."""

    reconciled: Keys

    def __call__(self, table: pa.Table) -> tuple[pa.Table, ImageCounts]:
        return _open_products(iter_rows(table, PlannedProduct), self.reconciled)


def _open_products(products: Iterator[PlannedProduct], reconciled: Keys) -> tuple[pa.Table, ImageCounts]:
    """The products that have images to make, with these images only; and the counts of all."""
    counts = ImageCounts()

    # A generator: a row group may hold a million products, and only those with images to make become a table.
    def still_open() -> Iterator[PlannedProduct]:
        nonlocal counts
        for product in products:
            left = tuple(image for image in product.wanted if not is_reconciled(image.image_id, reconciled))
            num = len(product.wanted)
            counts += ImageCounts(wanted=num, reconciled=num - len(left))
            if left:
                yield replace(product, wanted=left)

    return table_of(still_open(), PlannedProduct), counts
