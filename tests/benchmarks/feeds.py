"""How fast a feed becomes a catalogue, and whether memory stays flat: a Merchant TSV and a Merchant XML, of two sizes.

    python tests/benchmarks/feeds.py --rows 2000000 --xml-mb 200

Feeds are made by the specification, with descriptions and columns that nobody reads. `read` opens the catalogue: the
feed is read, staged and scanned for repeated skus. `dry-run` is the whole command, which names every image besides.
Each runs in a process of its own; its peak memory is that of the operating system (ru_maxrss). The small feed has a
quarter of the rows: flat memory means that the large one takes as much.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
_KINDS = ("Kitchen > Travel Mugs", "Apparel > Shoes > Sneakers", "Bottles", "Toys > Plush Bears", "Lamps")
_COLUMNS = (
    "id",
    "title",
    "description",
    "link",
    "image_link",
    "additional_image_link",
    "availability",
    "price",
    "brand",
    "gtin",
    "google_product_category",
    "product_type",
    "item_group_id",
)


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Measure how feeds are read.")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the large TSV; 0: not measured")
    parser.add_argument("--xml-mb", type=int, default=200, help="size of the large XML; 0: not measured")
    parser.add_argument("--folder", type=Path, help="where feeds are made; default: a temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_read(arguments.measure)))
        return
    found = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for share in (4, 1):
            places = []
            if arguments.rows:
                places.append(write_tsv(Path(folder) / f"feed-{share}.tsv", arguments.rows // share))
            if arguments.xml_mb:
                places.append(write_xml(Path(folder) / f"feed-{share}.xml", arguments.xml_mb * 1_000_000 // share))
            for place in places:
                for what in ("read", "dry-run"):
                    figures = {"feed": place.name, "mb": place.stat().st_size // 1_000_000, **run(what, place)}
                    found.append(figures)
                    print(
                        "{feed:12} {mb:5} MB {what:8} {rows:9,} rows {seconds:7.1f} s {rows_s:9,} rows/s "
                        "peak {peak_mb:5} MB".format(**figures),
                        flush=True,
                    )
                place.unlink()
    print(json.dumps(found))


def run(what: str, place: Path) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    read = [sys.executable, __file__, "--measure", str(place)]
    job = [sys.executable, str(PROJECT / "jobs" / "generate_catalog.py"), str(place), "--dry-run", "--output"]
    with tempfile.TemporaryDirectory() as output, tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen(read if what == "read" else [*job, output], stdout=said, cwd=PROJECT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        said.seek(0)
        text = said.read()
    assert status == 0, text
    line = next((line for line in text.splitlines() if line.startswith("rows in the feed: ")), "")
    rows = json.loads(text)["rows"] if what == "read" else int(line.split(",")[0].rpartition(" ")[2])
    seconds = json.loads(text)["seconds"] if what == "read" else seconds
    return {
        "what": what,
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_s": round(rows / seconds),
        "peak_mb": usage.ru_maxrss // 1024,
    }


def measure_read(place: str) -> dict[str, Any]:
    """Opens the catalogue in this process."""
    from refadgen.catalog.feeds.opening import open_catalog
    from refadgen.config import CatalogConfig
    from refadgen.storage.store import Storage

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    catalog = open_catalog(
        place, CatalogConfig(), None, ignored=frozenset(), output=Storage("."), label="", in_output=False
    )
    assert catalog.report is not None
    assert catalog.scan.num_rows == catalog.report.products
    return {"rows": catalog.report.rows, "seconds": time.monotonic() - began, "before_mb": before // 1024}


def _products() -> Iterator[tuple[str, ...]]:
    number = 0
    while True:
        kind = _KINDS[number % len(_KINDS)]
        noun = kind.rpartition("> ")[2]
        yield (
            f"{number:08}",
            f"{noun} No. {number}",
            f"A fine product of the kind {noun}, number {number}. " * 3,
            f"https://shop.example/products/{number}",
            f"https://cdn.shop.example/images/{number}.jpg",
            f"https://cdn.shop.example/images/{number}-b.jpg",
            "out_of_stock" if number % 10 == 3 else "in_stock",
            f"{number % 200}.99 EUR",
            f"Brand {number % 50}",
            f"{4_000_000_000_000 + number:014}",
            "2169",
            kind,
            f"G{number // 4}",
        )
        number += 1


def write_tsv(place: Path, rows: int) -> Path:
    """A Merchant text feed of so many rows."""
    with place.open("w", encoding="utf-8") as file:
        file.write("\t".join(_COLUMNS) + "\n")
        for _, product in zip(range(rows), _products(), strict=False):
            file.write("\t".join(product) + "\n")
    return place


def write_xml(place: Path, num_bytes: int) -> Path:
    """A Merchant RSS feed of so many bytes."""
    with place.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0"?>\n<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel>\n')
        written = 0
        for product in _products():
            pairs = zip(_COLUMNS, product, strict=True)
            item = "".join(f"<g:{name}>{value.replace('>', '&gt;')}</g:{name}>\n" for name, value in pairs)
            written += file.write(f"<item>\n{item}</item>\n")
            if written >= num_bytes:
                break
        file.write("</channel></rss>\n")
    return place


if __name__ == "__main__":
    main()
