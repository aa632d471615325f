"""Files that tell channels where a product's ads are: one row a product, by the shop's own id.

`write_feeds` makes them anew from the ledger's rows. The same ledger gives the same bytes.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.storage.store import Storage

LEDGER_COLUMNS = ("image_id", "sku", "scene", "variant", "status", "uri", "digital_source_type", "recorded_at")
"""The columns of the ledger that are read."""
FOLDER = "channels"
_MOST_CHARS = 2000
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class ChannelFeed:
    """How one channel takes further pictures of products. Rules and sources as read on `read_on`.

    column: of the pictures' addresses. most: addresses in a row. suffixes: of files that the channel takes.
    """

    file: str
    separator: str
    column: str
    most: int
    suffixes: tuple[str, ...]
    source: str
    read_on: str


FEEDS = (
    ChannelFeed(
        file="merchant.tsv",
        separator="\t",
        column="lifestyle_image_link",
        most=1,
        suffixes=(".jpg", ".png"),
        source="support.google.com/merchants/answer/9103186",
        read_on="2026-11",
    ),
    ChannelFeed(
        file="meta.csv",
        separator=",",
        column="additional_image_link",
        most=20,
        suffixes=(".jpg", ".png"),
        source="developers.facebook.com/docs/marketing-api/catalog/reference, of second hand",
        read_on="2026-11",
    ),
    ChannelFeed(
        file="pinterest.tsv",
        separator="\t",
        column="additional_image_link",
        most=10,
        suffixes=(".jpg", ".png"),
        source="help.pinterest.com, product specs; the most of second hand",
        read_on="2026-11",
    ),
)


def write_feeds(storage: Storage, ledger: pa.Table, public_url: str) -> dict[str, int]:
    """Writes a file for each channel, and `images.parquet` with every ad; returns the rows of each.

    ledger: the latest row of each image, `LEDGER_COLUMNS` of it. public_url: as `output.public_url`.
    """
    ads = _current_ads(ledger, public_url)
    counts = {feed.file: _write_feed(storage, ads, feed) for feed in FEEDS}
    with storage.new_file(f"{FOLDER}/images.parquet") as place:
        pq.write_table(ads, place)
    return {**counts, "images.parquet": len(ads)}


def _current_ads(ledger: pa.Table, public_url: str) -> pa.Table:
    """The newest done image of each (sku, scene, variant), its file and its address."""
    done = ledger.filter(pc.equal(ledger["status"], "done"))
    keys = [("sku", "ascending"), ("scene", "ascending"), ("variant", "ascending")]
    done = done.sort_by([*keys, ("recorded_at", "descending"), ("image_id", "ascending")]).combine_chunks()
    first = np.ones(len(done), dtype=bool)
    if len(done) > 1:
        differs = [pc.not_equal(done[name][1:], done[name][:-1]) for name, _ in keys]
        first[1:] = pc.or_(pc.or_(differs[0], differs[1]), differs[2]).to_numpy()
    done = done.filter(pa.array(first))
    addresses = [
        public_address(public_url, uri=uri, image_id=image_id, sku=sku)
        for uri, image_id, sku in zip(
            *(done[name].to_pylist() for name in ("uri", "image_id", "sku")),
            strict=True,
        )
    ]
    return pa.table(
        {
            "id": done["sku"],
            "scene": done["scene"],
            "variant": done["variant"],
            "uri": done["uri"],
            "address": pa.array(addresses, pa.string()),
            "digital_source_type": done["digital_source_type"],
        }
    )


def public_address(template: str, *, uri: str, image_id: str, sku: str) -> str:
    """The address of one image; what its parts hold is escaped, so that a comma always separates addresses."""
    return template.format(uri=quote(uri, safe="/"), image_id=image_id, sku=quote(sku, safe=""))


def _write_feed(storage: Storage, ads: pa.Table, feed: ChannelFeed) -> int:
    rows = 0
    with storage.new_file(f"{FOLDER}/{feed.file}") as place, open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=feed.separator, lineterminator="\n")
        writer.writerow(["id", feed.column])
        for sku, images in _by_product(ads):
            taken = _fitting(images, feed)
            if taken:
                writer.writerow([sku, taken])
                rows += 1
    return rows


def _by_product(ads: pa.Table) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields each sku with (uri, address) of its images."""
    rows = (
        row
        for batch in ads.select(["id", "uri", "address"]).to_batches(max_chunksize=_ROWS_AT_ONCE)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    for sku, group in groupby(rows, key=lambda row: row[0]):
        yield sku, [(uri, address) for _, uri, address in group]


def _fitting(images: list[tuple[str, str]], feed: ChannelFeed) -> str:
    """The addresses that the channel takes, as one cell; empty: none."""
    cell = ""
    fitting = [address for uri, address in images if uri.endswith(feed.suffixes)]
    for address in fitting[: feed.most]:
        longer = f"{cell},{address}" if cell else address
        if len(longer) > _MOST_CHARS:
            break
        cell = longer
    return cell
