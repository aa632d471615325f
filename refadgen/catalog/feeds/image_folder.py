"""A folder of product images: each file is a product."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from refadgen.catalog.feeds.batches import Record, batches_of
from refadgen.catalog.feeds.report import FeedReport

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".bmp", ".ppm", ".gif", ".heic", ".heif"}
)


class ImageFolderReader:
    """Reads a folder's images. A file's path without its suffix is the sku; its folder is the category.

    `mugs/red-7.jpg` is the product `mugs/red-7` of the category "mugs" with the title "red 7".
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys

    @property
    def kind(self) -> str:
        return "folder of product images, one product a file"

    def batches(self, report: FeedReport) -> Iterator[pa.RecordBatch]:
        return batches_of(self._records(report), report)

    def _records(self, report: FeedReport) -> Iterator[Record]:
        for key in self._keys:
            report.rows += 1
            path = PurePosixPath(key)
            folder = path.parent.name
            yield {
                "sku": str(path.with_suffix("")),
                "image": f"./{key}",  # a name with a colon would be an address
                "title": path.stem.replace("_", " ").replace("-", " "),
                "category": folder.replace("_", " ").replace("-", " "),
            }
