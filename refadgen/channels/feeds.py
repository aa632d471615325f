"""Files that tell channels where a product's ads are, by the shop's own id: feeds, and sheets of assets to upload.

`write_feeds` makes them anew from the ledger's rows, some products at a time. The same ledger gives the same bytes.
"""

import contextlib
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refadgen.storage.store import Storage

LEDGER_COLUMNS = (
    "image_id",
    "sku",
    "scene",
    "variant",
    "status",
    "uri",
    "digital_source_type",
    "recorded_at",
    "ratio",
    "channel_files",
)
"""The columns of the ledger that are read."""
FOLDER = "channels"
_KEYS = ("sku", "scene", "variant", "ratio")
_CLEAN = "clean"
_MOST_CHARS = 2000


@dataclass(frozen=True, kw_only=True)
class ChannelFeed:
    """How one channel takes further pictures of products. Rules and sources as read on `read_on`.

    column: of the pictures' addresses. most: addresses in a row. suffixes: of files that the channel takes. channels:
    whose files it names, where the run made files for channels.
    """

    file: str
    separator: str
    column: str
    most: int
    suffixes: tuple[str, ...]
    channels: tuple[str, ...]
    source: str
    read_on: str


FEEDS = (
    ChannelFeed(
        file="merchant.tsv",
        separator="\t",
        column="lifestyle_image_link",
        most=1,
        suffixes=(".jpg", ".png"),
        channels=("merchant",),
        source="support.google.com/merchants/answer/9103186",
        read_on="2026-11",
    ),
    ChannelFeed(
        file="meta.csv",
        separator=",",
        column="additional_image_link",
        most=20,
        suffixes=(".jpg", ".png"),
        channels=("meta-square", "meta-portrait", "meta-landscape"),
        source="developers.facebook.com/docs/marketing-api/catalog/reference, of second hand",
        read_on="2026-11",
    ),
    ChannelFeed(
        file="pinterest.tsv",
        separator="\t",
        column="additional_image_link",
        most=10,
        suffixes=(".jpg", ".png"),
        channels=("pinterest",),
        source="help.pinterest.com, product specs; the most of second hand",
        read_on="2026-11",
    ),
)
FIELD_TYPES = {
    "pmax-landscape": "MARKETING_IMAGE",
    "pmax-square": "SQUARE_MARKETING_IMAGE",
    "pmax-portrait": "PORTRAIT_MARKETING_IMAGE",
    "pmax-vertical": "TALL_PORTRAIT_MARKETING_IMAGE",
}
"""`AssetFieldType` of the Google Ads API (developers.google.com/google-ads/api, v26, read in 2026-11), by channel."""
GOOGLE_ADS, DISPLAY_VIDEO = "google-ads.csv", "dv360.csv"
_SHEETS = {
    # SyntheticContentInfo of the Google Ads API, v26: advertiser_attestation with its status and source.
    GOOGLE_ADS: (
        *("asset_name", "id", "field_type", "image_url", "width_px", "height_px"),
        *("synthetic_content_attestation", "synthetic_content_source"),
    ),
    # `Creative` and `AdAsset` of the Display & Video 360 API; its SDF files know the status of YouTube videos only.
    DISPLAY_VIDEO: ("displayName", "id", "url", "width_px", "height_px", "syntheticContentAttestationStatus"),
}
_OF_IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("scene", pa.string()),
        ("variant", pa.int32()),
        ("uri", pa.string()),
        ("address", pa.string()),
        ("digital_source_type", pa.string()),
    ]
)
_OF_FILES = pa.schema(
    [
        *_OF_IMAGES,
        ("ratio", pa.string()),
        ("channel", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
    ]
)


class Ad(NamedTuple):
    """One image file of a product. channel: empty: it was made for none."""

    id: str
    scene: str
    variant: int
    uri: str
    address: str
    digital_source_type: str | None
    ratio: str = ""
    channel: str = ""
    width_px: int | None = None
    height_px: int | None = None
    image_id: str = ""


def write_feeds(
    storage: Storage, tables: Iterable[pa.Table], public_url: str, *, for_channels: bool = False
) -> dict[str, int]:
    """Writes a file for each feed, and `images.parquet` with every ad; returns the rows of each.

    tables: rows of the ledger in the order of skus, the latest of each image, all of a sku in one table; of
    `LEDGER_COLUMNS`. public_url: as `output.public_url`. for_channels: whether the files that were made for channels
    are named, each in its channel's feed and only where its lint is clean; else the images themselves.
    """
    with contextlib.ExitStack() as stack:
        writers: list[_FeedWriter | _SheetWriter] = [
            _FeedWriter(storage, stack, feed, for_channels=for_channels) for feed in FEEDS
        ]
        writers += [_SheetWriter(storage, stack, name) for name in _SHEETS if for_channels]
        place = stack.enter_context(storage.new_file(f"{FOLDER}/images.parquet"))
        schema = _OF_FILES if for_channels else _OF_IMAGES
        images = stack.enter_context(pq.ParquetWriter(place, schema))
        num_images = 0
        for table in tables:
            ads = list(_current_ads(table, public_url, for_channels=for_channels))
            images.write_table(_as_table(ads, schema))
            num_images += len(ads)
            for sku, group in groupby(ads, key=lambda ad: ad.id):
                of_product = list(group)
                for writer in writers:
                    writer.write(sku, of_product)
    return {writer.file: writer.rows for writer in writers} | {"images.parquet": num_images}


def _current_ads(ledger: pa.Table, public_url: str, *, for_channels: bool) -> Iterator[Ad]:
    """Yields the files of the newest done image of each (sku, scene, variant, ratio), with their addresses."""
    done = ledger.filter(pc.equal(ledger["status"], "done")).select(LEDGER_COLUMNS)
    ratios = pc.fill_null(done["ratio"].cast(pa.string()), "")
    done = done.set_column(done.column_names.index("ratio"), "ratio", ratios)
    done = done.filter(pc.not_equal(ratios, "") if for_channels else pc.equal(ratios, ""))
    keys = [(name, "ascending") for name in _KEYS]
    by = [*keys, ("recorded_at", "descending"), ("image_id", "ascending")]
    done = done.take(pc.sort_indices(done.select([name for name, _ in by]), by)).combine_chunks()
    first = np.ones(len(done), dtype=bool)
    if len(done) > 1:
        differs = [pc.not_equal(done[name][1:], done[name][:-1]).to_numpy(zero_copy_only=False) for name in _KEYS]
        first[1:] = np.logical_or.reduce(differs)
    for row in done.filter(pa.array(first)).to_pylist():
        yield from _files_of(row, public_url) if for_channels else [_image_of(row, public_url)]


def _image_of(row: dict[str, Any], public_url: str) -> Ad:
    address = public_address(public_url, uri=row["uri"], image_id=row["image_id"], sku=row["sku"])
    return Ad(row["sku"], row["scene"], row["variant"], row["uri"], address, row["digital_source_type"])


def _files_of(row: dict[str, Any], public_url: str) -> Iterator[Ad]:
    """Yields the clean files that an image has for channels."""
    for file in row["channel_files"] or ():
        if file["lint"] == _CLEAN:
            yield Ad(
                id=row["sku"],
                scene=row["scene"],
                variant=row["variant"],
                uri=file["uri"],
                address=public_address(
                    public_url, uri=file["uri"], image_id=row["image_id"], sku=row["sku"], channel=file["channel"]
                ),
                digital_source_type=file["digital_source_type"],
                ratio=row["ratio"],
                channel=file["channel"],
                width_px=file["width_px"],
                height_px=file["height_px"],
                image_id=row["image_id"],
            )


def _as_table(ads: list[Ad], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array([getattr(ad, field.name) for ad in ads], field.type) for field in schema], schema=schema)


def public_address(template: str, *, uri: str, image_id: str, sku: str, channel: str = "") -> str:
    """The address of one file; what its parts hold is escaped, so that a comma always separates addresses."""
    return template.format(uri=quote(uri, safe="/"), image_id=image_id, sku=quote(sku, safe=""), channel=channel)


class _TextFile:
    """A file of rows that is written as its products come."""

    def __init__(self, storage: Storage, stack: contextlib.ExitStack, file: str, separator: str) -> None:
        """stack: closes the file, and publishes it where nothing was raised."""
        self.file, self.rows = file, 0
        place = stack.enter_context(storage.new_file(f"{FOLDER}/{file}"))
        handle = stack.enter_context(open(place, "w", encoding="utf-8", newline=""))  # noqa: SIM115 (the stack closes it)
        self._csv = csv.writer(handle, delimiter=separator, lineterminator="\n")

    def _write(self, values: Iterable[object]) -> None:
        self._csv.writerow(values)
        self.rows += 1


class _FeedWriter(_TextFile):
    """A row a product, with the addresses of its pictures."""

    def __init__(self, storage: Storage, stack: contextlib.ExitStack, feed: ChannelFeed, *, for_channels: bool) -> None:
        super().__init__(storage, stack, feed.file, feed.separator)
        self._feed, self._for_channels = feed, for_channels
        self._csv.writerow(["id", feed.column])

    def write(self, sku: str, ads: list[Ad]) -> None:
        """The product's row, where the channel takes one of its ads."""
        cell = _cell([ad.address for ad in ads if self._takes(ad)], self._feed.most)
        if cell:
            self._write([sku, cell])

    def _takes(self, ad: Ad) -> bool:
        named = not self._for_channels or ad.channel in self._feed.channels
        return named and ad.uri.endswith(self._feed.suffixes)


class _SheetWriter(_TextFile):
    """A row an asset of Google's campaigns, attested as synthetic."""

    def __init__(self, storage: Storage, stack: contextlib.ExitStack, file: str) -> None:
        super().__init__(storage, stack, file, ",")
        self._csv.writerow(_SHEETS[file])

    def write(self, sku: str, ads: list[Ad]) -> None:
        """The rows of the product's files for Performance Max."""
        for ad in ads:
            if ad.channel not in FIELD_TYPES:
                continue
            name, size = f"{ad.channel} {ad.image_id}", (ad.width_px, ad.height_px)
            if self.file == GOOGLE_ADS:
                kind = FIELD_TYPES[ad.channel]
                self._write([name, sku, kind, ad.address, *size, "IS_SYNTHETIC", "ADVERTISER_ATTESTED"])
            else:
                self._write([name, sku, ad.address, *size, "IS_SYNTHETIC"])


def _cell(addresses: list[str], most: int) -> str:
    """The addresses that fit into one cell; empty: none."""
    cell = ""
    for address in addresses[:most]:
        longer = f"{cell},{address}" if cell else address
        if len(longer) > _MOST_CHARS:
            break
        cell = longer
    return cell
