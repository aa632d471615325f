"""Which kind of feed a catalogue is, by its content, and the reader for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from refadgen.catalog.feeds.batches import FeedReader
from refadgen.catalog.feeds.delimited import DelimitedFile, DelimitedReader
from refadgen.catalog.feeds.files import FeedFile, open_feed
from refadgen.catalog.feeds.image_folder import SUFFIXES, ImageFolderReader
from refadgen.catalog.feeds.json_lines import JsonLinesReader
from refadgen.catalog.feeds.lakehouse import delta_reader, iceberg_reader
from refadgen.catalog.feeds.magento import MagentoReader, is_magento
from refadgen.catalog.feeds.merchant_xml import MerchantXmlReader
from refadgen.catalog.feeds.shopify import ShopifyReader, is_shopify
from refadgen.catalog.feeds.states import LeftOut
from refadgen.catalog.feeds.woocommerce import WooCommerceReader, is_woocommerce
from refadgen.catalog.files import is_hidden, parquet_keys
from refadgen.config import CatalogConfig
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage, split_uri

_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_PARQUET = b"PAR1"
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".xml", ".gz")
_EXPORTS: Mapping[str, tuple[Callable[[Sequence[str]], bool], Callable[[DelimitedFile, LeftOut], FeedReader]]] = {
    "shopify": (is_shopify, ShopifyReader),
    "woocommerce": (is_woocommerce, WooCommerceReader),
    "magento": (is_magento, MagentoReader),
}


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A catalogue that is no parquet. readers: of each of its files, in their order. not_read: other files, by why."""

    readers: tuple[FeedReader, ...]
    not_read: Mapping[str, tuple[str, ...]]


def feed_of(uri: str, config: CatalogConfig, output: Storage | None = None) -> Feed | None:
    """The feed at an address; None: it is parquet, or nothing is there. output: of the job, not to be read as input.

    Raises: ValueError naming what it is and why it cannot be read.
    """
    if config.format == "parquet":
        return None
    storage = Storage(uri)
    kind = storage.root_kind(f"{redact_address(uri)}: the catalogue")
    if kind == "file" and config.format in ("auto", "iceberg") and uri.endswith(".metadata.json"):
        table, name = split_uri(storage.uri)
        return Feed(readers=(iceberg_reader(table, [name]),), not_read={})
    if kind == "file":
        reader = _file_reader(storage.uri, config)
        return None if reader is None else Feed(readers=(reader,), not_read={})
    return None if kind is None else _folder(storage, config, output)


def _folder(storage: Storage, config: CatalogConfig, output: Storage | None) -> Feed | None:
    shown = redact_address(storage.uri)
    names = storage.names("")
    metadata = [key for key in storage.names("metadata") if key.endswith((".metadata.json", ".metadata.json.gz"))]
    if config.format == "delta" or (config.format == "auto" and "_delta_log" in names):
        return Feed(readers=(delta_reader(storage),), not_read={})
    if config.format == "iceberg" or (config.format == "auto" and metadata):
        if not metadata:
            raise ValueError(f"catalog.format=iceberg: {shown} has no metadata/*.metadata.json")
        return Feed(readers=(iceberg_reader(storage, metadata),), not_read={})
    if config.format == "auto":
        parquet, _ = parquet_keys(storage)  # refuses other tables of a lakehouse too
        if parquet:
            return None
    visible = [key for key in list(storage.keys()) if not is_hidden(key)]
    texts = [key for key in visible if key.lower().endswith(_TEXT_SUFFIXES)]
    pictures = [key for key in visible if PurePosixPath(key).suffix.lower() in SUFFIXES]
    if config.format not in ("auto", "images") or (texts and not pictures):
        return _files(storage, texts, visible, config)
    if not pictures:
        return None
    if texts and config.format == "auto":
        raise ValueError(
            f"{shown}: holds a feed and pictures ({texts[0]}, {pictures[0]}): give the feed's file, whose relative "
            "paths start in its folder; or set catalog.format=images"
        )
    if output is not None and output.remote == storage.remote and f"{output.root}/".startswith(f"{storage.root}/"):
        raise ValueError(f"--output {output.uri}: lies in the folder of product images; give another place")
    return Feed(readers=(ImageFolderReader(pictures),), not_read=_others(visible, pictures, "no picture"))


def _files(storage: Storage, keys: list[str], visible: list[str], config: CatalogConfig) -> Feed | None:
    """The feed in several files of a folder, as Spark and others write them; each has its own header."""
    found = [_file_reader(storage.uri_of(key), config) for key in keys]
    readers = tuple(reader for reader in found if reader is not None)
    if len({type(reader) for reader in readers}) > 1:
        kinds = ", ".join(f"{key}: {reader.kind}" for key, reader in zip(keys, readers, strict=False))
        raise ValueError(f"{redact_address(storage.uri)}: holds feeds of several kinds ({kinds[:300]}): give one file")
    exports = [reader for reader in readers if isinstance(reader, WooCommerceReader)]
    if exports:  # parents and variations may lie in two files
        readers = (exports[0].joined(exports[1:]),)
    return Feed(readers=readers, not_read=_others(visible, keys, "no feed")) if readers else None


def _others(visible: list[str], read: list[str], why: str) -> dict[str, tuple[str, ...]]:
    others = tuple(sorted(set(visible).difference(read)))
    return {why: others} if others else {}


def _file_reader(uri: str, config: CatalogConfig) -> FeedReader | None:
    """The reader of one file; None: it is parquet."""
    if config.format in ("delta", "iceberg", "images"):
        raise ValueError(f"catalog.format={config.format}: is a folder, and {redact_address(uri)} is a file")
    if config.format == "auto" and (uri.lower().endswith(_PARQUET_SUFFIXES) or _begins(uri, _PARQUET)):
        return None
    file = open_feed(uri)
    begin = file.head.lstrip("\ufeff \t\r\n")[:1]
    if config.format == "merchant-xml" or (config.format == "auto" and begin == "<"):
        return MerchantXmlReader(file)
    if config.format == "jsonl" or (config.format == "auto" and begin in ("{", "[")):
        return JsonLinesReader(file)
    return _delimited_reader(file, config)


def _delimited_reader(file: FeedFile, config: CatalogConfig) -> FeedReader:
    left_out = LeftOut(config.leave_out)
    table = DelimitedFile(file, "\t" if config.format == "tsv" else None)
    for name, (fits, reader) in _EXPORTS.items():
        if config.format == name or (config.format == "auto" and fits(table.names)):
            if not fits(table.names):
                raise ValueError(f"catalog.format={name}: {file.shown} has not the columns of its export")
            return reader(table, left_out)
    return DelimitedReader(table, file.shown)


def _begins(uri: str, magic: bytes) -> bool:
    storage, _, name = uri.rpartition("/")
    return Storage(storage or "/").heads([name], len(magic)) == [magic]
