"""From rows of the input to planned ads and their ids, and the choice of ads for each pass."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from refadgen.batch.ledger import short_keys
from refadgen.batch.planning import Plan, inline_digest, table_of, with_inline_images
from refadgen.batch.row_stage import RowFailure
from refadgen.batch.rows import from_table
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scan import Fragment, inline_images, parsed_rows, unusable_row_id
from refadgen.dataset.rows import PlannedAd
from refadgen.errors import RowError
from refadgen.storage.addresses import image_identity

Keys = npt.NDArray[np.uint64]
"""Short keys of row ids (see `batch.ledger.short_key`)."""


@dataclass(frozen=True, kw_only=True)
class AdPlanner:
    """Plans one fragment of the input at a time; travels to Ray tasks.

    first_rows: as in CatalogScan.
    """

    first_rows: Mapping[str, int]

    def __call__(self, fragment: Fragment) -> tuple[pa.Table, Keys]:
        """The planned ads of a fragment, and their keys."""
        table = table_of(self.ads(fragment), PlannedAd)
        return table, short_keys(table["row_id"])

    def ads(self, fragment: Fragment) -> Iterator[PlannedAd]:
        """Every row of the input. Raises: ValueError naming a damaged file."""
        for row_number, values, row in parsed_rows(fragment, self.first_rows, DATASET_COLUMNS):
            yield _unusable(row_number, values, row) if isinstance(row, RowError) else _planned(row)


@dataclass(frozen=True, kw_only=True)
class _AdIdentity:
    """The content of a row_id. A field more is another id for every ad of every data set that exists."""

    ad_id: str
    group: str
    category: str | None
    title: str | None
    own_captions: tuple[str, ...]
    image: str
    mask: str | None


def _planned(row: CatalogRow) -> PlannedAd:
    ad = PlannedAd(
        row_id="",
        row=row.row,
        ad_id=row.sku,
        group=row.group or row.sku,
        category=row.category,
        title=row.title,
        own_captions=row.captions,
        image=row.image if isinstance(row.image, str) else "",
        mask=row.mask if isinstance(row.mask, str) else "",
        inline=inline_digest(row.image, row.mask),
        error=None,
    )
    identity = _AdIdentity(
        ad_id=ad.ad_id,
        group=ad.group,
        category=ad.category,
        title=ad.title,
        own_captions=ad.own_captions,
        image=image_identity(row.image),
        mask=None if row.mask is None else image_identity(row.mask),
    )
    row_id = hashlib.sha256(json.dumps(asdict(identity), sort_keys=True).encode()).hexdigest()[:32]
    return replace(ad, row_id=row_id)


def _unusable(row_number: int, values: Mapping[str, Any], error: RowError) -> PlannedAd:
    """A row that cannot be read. It is planned too: every row of the input has a ledger row."""
    ad_id = values.get("sku")
    return PlannedAd(
        row_id=unusable_row_id(row_number, values),
        row=row_number,
        ad_id="" if ad_id is None else str(ad_id)[:256],  # it may be what is wrong: megabytes of text
        group="",
        category=None,
        image="",
        error=RowFailure.of(error),
    )


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Keeps the planned ads with these keys, or all others; travels to Ray tasks."""

    keys: Keys
    others: bool = False

    def __call__(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The ads that stay, and their number."""
        is_chosen = np.isin(short_keys(table["row_id"]), self.keys, invert=self.others)
        table = table.filter(pa.array(is_chosen))
        return table, len(table)


def ads_of_rows(plan: Plan, rows: Collection[int]) -> Iterator[PlannedAd]:
    """The usable ads among these rows of the input, complete with their images.

    For a few rows: it reads only the fragments that these lie in.
    """
    for fragment, reference in zip(plan.fragments, plan.tables, strict=True):
        inside = {row for row in rows if fragment.first_row <= row < fragment.first_row + fragment.num_rows}
        if not inside:
            continue
        table = ray.get(reference)  # one at a time: all tables of a large input would not fit into memory
        table = table.filter(pc.is_in(table["row"], pa.array(inside, pa.int64())))
        ads = {ad.row: ad for ad in from_table(table, PlannedAd) if ad.error is None}
        if not fragment.has_inline_images:
            yield from ads.values()
            continue
        for found in inline_images(fragment):
            if found.row in ads and (ad := with_inline_images(ads[found.row], found)).error is None:
                yield ad
