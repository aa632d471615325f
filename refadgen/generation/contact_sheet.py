"""One picture of a run, for a README or a mail: each product as placed, then its ads.

python -m refadgen.generation.contact_sheet out/demo sheet.webp
"""

import argparse
import io
from itertools import groupby

import pyarrow.compute as pc
from PIL import Image, ImageOps

from refadgen.batch.rows import from_table
from refadgen.generation.ledger import AdLedger, AdLedgerRow
from refadgen.storage.store import Storage

_GAP_PX = 4


def contact_sheet(storage: Storage, columns: int = 4, max_products: int = 48) -> Image.Image:
    """The done images of the first products of a run, product by product, `columns` products beside each other.

    Raises: ValueError where nothing is done.
    """
    latest = AdLedger(storage).latest()
    rows = from_table(latest.filter(pc.equal(latest["status"], "done")), AdLedgerRow)
    if not rows:
        raise ValueError(f"{storage.uri}: no image is done")
    rows.sort(key=lambda row: (row.row, row.scene, row.variant))
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.row)][:max_products]
    width, height = _read(storage, rows[0].uri).size
    tiles = 1 + max(len(group) for group in groups)
    cell = tiles * width + 2 * _GAP_PX
    num_lines = -(-len(groups) // columns)
    sheet = Image.new("RGB", (columns * cell, num_lines * (height + _GAP_PX)), "white")
    for index, group in enumerate(groups):
        left, top = index % columns * cell, index // columns * (height + _GAP_PX)
        # Images for channels have several sizes; each fits into the first one's.
        product = ImageOps.contain(_read(storage, group[0].product_uri), (width, height))
        sheet.paste(product, (left, top), product.getchannel("A"))
        for place, row in enumerate(group, start=1):
            ad = ImageOps.contain(_read(storage, row.uri), (width, height))
            sheet.paste(ad, (left + place * width, top))
    return sheet


def _read(storage: Storage, key: str) -> Image.Image:
    image = Image.open(io.BytesIO(storage.read(key)))
    image.load()
    return image


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description="One picture of a run.")
    parser.add_argument("output", help="output folder of a run, a path or s3://")
    parser.add_argument("file", help="picture to write; its ending names the format")
    arguments = parser.parse_args()
    contact_sheet(Storage(arguments.output)).save(arguments.file)


if __name__ == "__main__":
    main()
