"""Channels' files of an output checked again: as they lie there, or as a CDN serves them, which may strip the mark."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from refadgen.batch.key_order import in_key_order
from refadgen.catalog.fetch import ImageFetcher
from refadgen.channels.feeds import FOLDER, public_address
from refadgen.channels.lint import lint_file
from refadgen.channels.pictures import channel_picture
from refadgen.channels.rules import load_rules
from refadgen.config import FetchConfig
from refadgen.errors import RowError
from refadgen.generation.channel_files import CLEAN
from refadgen.generation.ledger import AdLedger
from refadgen.storage.store import Storage

ImageU8 = npt.NDArray[np.uint8]
TextReader = Callable[[ImageU8, ImageU8], str]
"""Words in a picture, uint8 H×W×3, outside a mask, uint8 H×W; empty: there are none."""
LINT_FILE = f"{FOLDER}/lint.csv"
_THREADS = 16
_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class LintedFile:
    """One channel's file of an ad, and what is wrong with it; `clean`: nothing."""

    sku: str
    image_id: str
    channel: str
    address: str
    lint: str


class FileLint:
    """Lints the channels' files of an output."""

    def __init__(
        self,
        storage: Storage,
        fetch: FetchConfig,
        *,
        url: str | None = None,
        channels_file: str | None = None,
        text: TextReader | None = None,
    ) -> None:
        """url: a template as `output.public_url`, where the files are served; None: they are read from the output.

        channels_file: as the setting. text: looks for text where a channel forbids it; None: nobody looks.
        Raises: ValueError for a file of rules that cannot be.
        """
        self._storage, self._url, self._text = storage, url, text
        self._rules = load_rules(channels_file)
        self._fetcher = None if url is None else ImageFetcher(fetch, storage.uri)

    def run(self, limit: int | None = None) -> Counter[tuple[str, str]]:
        """Lints the files of done images, at most `limit`; returns files by (channel, lint).

        Those that are not clean are named in `channels/lint.csv`. Raises: ValueError where there are no such files.
        """
        counts: Counter[tuple[str, str]] = Counter()
        with (
            self._storage.new_file(LINT_FILE) as place,
            open(place, "w", encoding="utf-8", newline="") as handle,
            ThreadPoolExecutor(1 if self._text else _THREADS) as threads,
        ):
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["id", "image_id", "channel", "address", "lint"])
            for wanted in _in_pieces(self._wanted(), limit):
                for found in threads.map(self._lint, wanted):
                    counts[found.channel, found.lint] += 1
                    if found.lint != CLEAN:
                        writer.writerow([found.sku, found.image_id, found.channel, found.address, found.lint])
        if not counts:
            raise ValueError(f"{self._storage.uri}: no image here has files for channels (see `channels`)")
        return counts

    def _wanted(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields (row of the ledger, one of its channels' files)."""
        ledger = AdLedger(self._storage)
        names = ["sku", "image_id", "product_uri", "channel_files"]
        for table in in_key_order(ledger, ledger.parts(), _sku, ["sku"]):
            for row in table.filter(pc.equal(table["status"], "done")).select(names).to_pylist():
                for file in row["channel_files"] or ():
                    yield row, file

    def _lint(self, wanted: tuple[dict[str, Any], dict[str, Any]]) -> LintedFile:
        row, file = wanted
        address = file["uri"]
        if self._url is not None:
            address = public_address(
                self._url, uri=file["uri"], image_id=row["image_id"], sku=row["sku"], channel=file["channel"]
            )
        return LintedFile(
            sku=row["sku"],
            image_id=row["image_id"],
            channel=file["channel"],
            address=address,
            lint="; ".join(self._problems(row, file, address)) or CLEAN,
        )

    def _problems(self, row: dict[str, Any], file: dict[str, Any], address: str) -> list[str]:
        rule = self._rules.get(file["channel"])
        if rule is None:
            return ["no rule of this channel: name its channels_file"]
        try:
            data = self._storage.read(address) if self._fetcher is None else self._fetcher.fetch(address)
        except RowError as error:
            return [f"not served: {error.reason}"]
        except OSError as error:
            return [f"not there: {type(error).__name__}"]
        problems = lint_file(data, rule, file["digital_source_type"])
        if self._text is not None and not rule.overlay_text and not problems:
            words = self._text(*self._picture_and_mask(data, row["product_uri"]))
            problems += [f"text beside the product: {words!r}"] if words else []
        return problems

    def _picture_and_mask(self, data: bytes, product_uri: str) -> tuple[ImageU8, ImageU8]:
        with Image.open(io.BytesIO(data)) as image:
            picture = np.asarray(image.convert("RGB"))
        with Image.open(io.BytesIO(self._storage.read(product_uri))) as product:
            mask = np.asarray(product.getchannel("A"))
        height, width = picture.shape[:2]
        return picture, channel_picture(mask, (width, height))


def _sku(rows: pa.Table) -> pa.Array:
    return rows["sku"].combine_chunks()


def _in_pieces(items: Iterator[Any], limit: int | None) -> Iterator[list[Any]]:
    """Yields the first `limit` items, some hundred at a time."""
    piece: list[Any] = []
    for number, item in enumerate(items):
        if number == limit:
            break
        piece.append(item)
        if len(piece) == _AT_ONCE:
            yield piece
            piece = []
    yield piece
