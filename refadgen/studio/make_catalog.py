"""Makes the sample catalogue: twelve products of the test split, photographed in the studio.

    python -m refadgen.studio.make_catalog --output catalogs

Ten are JPEGs on white, one is a PNG with a transparent background, one is a phone photograph with its mask.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.storage.pictures import to_jpeg
from refadgen.studio.camera import View
from refadgen.studio.phone_photo import render_phone_photo
from refadgen.studio.render import Product, render_product_photo, sample_product, split_of
from refadgen.studio.scenes import scene_prompt
from refadgen.triplets.schema import png_bytes

WIDTH_PX, HEIGHT_PX = 480, 600
# A three-quarter view that fills the image, as shops show products.
_VIEW = View(yaw_deg=18.0, pitch_deg=6.0, height_share=0.8, center_x=0.5, base_y=0.9)

SCHEMA = pa.schema(
    [
        ("sku", pa.string()),
        ("image", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("prompt", pa.list_(pa.string())),
        ("mask", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One row of the catalogue: a seed of the test split, and the texts that a shop would write."""

    seed: int
    name: str
    title: str
    brand: str
    scenes: tuple[tuple[str, str, str], ...] = ()
    """(surface, wall, light) of each explicit prompt; without any, the category's scene templates are used."""
    kind: Literal["white", "cutout", "phone"] = "white"
    """JPEG on white, PNG with alpha, or phone photograph with mask."""
    phone_seed: int = 0
    """Seed of a phone photograph; decides everything in it but the product."""


LISTINGS = (
    Listing(seed=360, name="heart-sneaker", title="Navy and forest stripe sneaker with a heart", brand="Fennel"),
    Listing(seed=1571, name="hoop-backpack", title="Mint and berry hoop backpack", brand="Kreuz & Quer"),
    Listing(seed=191, name="star-cup", title="Green check cup with a star", brand="Morgen", kind="phone", phone_seed=4),
    Listing(seed=356, name="er-bottle", title="Deep blue bottle with ER label", brand="Erste"),
    Listing(
        seed=2131,
        name="triangle-handbag",
        title="Grey and violet stripe handbag with a triangle",
        brand="Bergwerk",
        scenes=(
            ("marble slab", "pink wall", "morning sun from the left"),
            ("sand", "open sky", "soft studio light"),
        ),
    ),
    Listing(seed=1280, name="star-hat", title="Red and olive check cap with a star", brand="Morgen"),
    Listing(seed=413, name="cross-notebook", title="Green zigzag notebook", brand="Papierhaus", kind="cutout"),
    Listing(seed=267, name="triangle-shirt", title="Violet and aqua stripe shirt", brand="Erste"),
    Listing(
        seed=1300,
        name="zigzag-van",
        title="Magenta zigzag toy van",
        brand="Bravo",
        scenes=(
            ("wooden table", "green wall", "soft studio light"),
            ("grass", "leafy hedge", "evening sun from the right"),
        ),
    ),
    Listing(seed=492, name="stripe-wine-glass", title="Blue and forest stripe wine glass", brand="Bergwerk"),
    Listing(
        seed=2145,
        name="heart-ball",
        title="Green and grey sports ball with a heart",
        brand="Bravo",
        scenes=(
            ("concrete", "open sky", "morning sun from the left"),
            ("snow", "blue wall", "spotlight from above"),
        ),
    ),
    Listing(seed=2601, name="heart-shampoo", title="Blue and sage stripe shampoo", brand="Fennel"),
)


def _photograph(listing: Listing, product: Product, *, spp: int) -> dict[str, bytes]:
    """The listing's files by name: the image first, then the mask of a phone photograph."""
    if listing.kind == "phone":
        rgb, mask = render_phone_photo(product, listing.phone_seed, spp=spp)
        return {f"{listing.name}.jpg": to_jpeg(rgb, quality=90), f"{listing.name}-mask.png": png_bytes(mask)}
    rgb, mask = render_product_photo(product, _VIEW, width_px=WIDTH_PX, height_px=HEIGHT_PX, spp=spp)
    if listing.kind == "cutout":
        return {f"{listing.name}.png": png_bytes(np.dstack([rgb, mask]))}
    return {f"{listing.name}.jpg": to_jpeg(rgb, quality=90)}


def make_catalog(output: Path, *, spp: int = 12, listings: Sequence[Listing] = LISTINGS) -> Path:
    """Writes `demo.parquet` and `images/` into `output`. Returns: the parquet file.

    Raises: ValueError when a listing's product is not in the test split.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, listing in enumerate(listings, start=1):
        product = sample_product(listing.seed)
        if split_of(product.product_id) != "test":
            raise ValueError(
                f"seed {listing.seed} ({listing.name}): is a training product; choose one of the test split"
            )
        files = _photograph(listing, product, spp=spp)
        for name, data in files.items():
            (output / "images" / name).write_bytes(data)
        image, *mask = files
        noun = product.shape.noun
        rows.append(
            {
                "sku": f"DEMO-{number:03d}",
                "image": f"images/{image}",
                "title": listing.title,
                "category": product.category,
                "brand": listing.brand,
                "prompt": [scene_prompt(*scene, noun) for scene in listing.scenes] or None,
                "mask": f"images/{mask[0]}" if mask else None,
            }
        )
    path = output / "demo.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("catalogs"), help="folder of demo.parquet and images/")
    parser.add_argument("--spp", type=int, default=12, help="samples per pixel")
    options = parser.parse_args(arguments)
    print(make_catalog(options.output, spp=options.spp))


if __name__ == "__main__":
    main()
