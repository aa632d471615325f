"""Ads of photographs in the wild, the product where the photograph has it: whether its box stays, and a sheet of them.

    python tests/benchmarks/photographs_in_the_wild.py FOLDER OUTPUT [--number 12] [--model PATH] [SETTING …]

Runs the main job with `layout.as_photographed`. Masks are this project's own network's opinion, right or not: what is
measured is the layout. Prints by how much each box of M′ differs from the photograph's, as a share of the picture's
side, and writes OUTPUT/sheet.png: photograph, product as placed, ad. The last line is JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import planted_ads
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from refadgen.dataset.masks import product_box
from refadgen.storage.pictures import to_png

PROJECT = Path(__file__).resolve().parents[2]
sys.path.append(str(PROJECT / "jobs"))


def shares(mask: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of the product as shares of width and height. mask: uint8 H×W."""
    return np.array(product_box(mask)) / (mask.shape[::-1] * 2)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask, uint8 H×W."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    return np.where(labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax(), 255, 0).astype(np.uint8)


def main() -> None:
    """Makes the ads, measures and draws."""
    import generate_catalog  # in jobs/

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs")
    parser.add_argument("output", type=Path)
    parser.add_argument("--number", type=int, default=12, help="of photographs, spread over the folder")
    parser.add_argument("--model", default="mini")
    parser.add_argument("settings", nargs="*", metavar="section.field=value")
    arguments = parser.parse_intermixed_args()
    pictures = planted_ads.photographed(arguments.folder)
    chosen = np.linspace(0, len(pictures) - 1, min(arguments.number, len(pictures))).round().astype(int)
    photos = {f"photo-{place:03d}": pictures[place] for place in chosen}
    masks = {sku: largest_piece(each.mask) for sku, each in photos.items()}
    catalog = arguments.output / "photographs.parquet"
    catalog.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "sku": sku,
            "image": to_png(each.image_u8, compress_level=1),
            "mask": to_png(masks[sku], compress_level=1),
            "prompt": "a product on a wooden table in front of a white wall, morning sun from the left",
        }
        for sku, each in photos.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), catalog)
    words = ["layout.as_photographed=true", *arguments.settings]
    run = arguments.output / "run"
    code = generate_catalog.main([str(catalog), "--output", str(run), "--model", arguments.model, *words])
    assert code == 0
    differences, strips = [], []
    table = pa.concat_tables(pq.read_table(part) for part in (run / "ledger").glob("*.parquet"))
    for row in sorted(table.to_pylist(), key=lambda row: (row["sku"], row["variant"])):
        if row["status"] != "done" or row["variant"]:
            print(row["sku"], row["reason"], row["detail"]) if row["status"] != "done" else None
            continue
        photo, placed = photos[row["sku"]].image_u8, Image.open(run / row["product_uri"])
        before, after = shares(masks[row["sku"]]), shares(np.asarray(placed.getchannel("A")))
        differences.append(float(np.abs(before - after).max()))
        print(f"{row['sku']}: box {np.round(before, 3)} → {np.round(after, 3)}, {differences[-1]:.2%}")
        size = (round(320 * photo.shape[1] / photo.shape[0]), 320)
        white = Image.new("RGB", placed.size, "white")
        white.paste(placed, mask=placed.getchannel("A"))
        tiles = [Image.fromarray(photo), white, Image.open(run / row["uri"]).convert("RGB")]
        strips.append(np.concatenate([np.asarray(tile.resize(size)) for tile in tiles], axis=1))
    wide = max(strip.shape[1] for strip in strips)
    padded = [np.pad(strip, ((0, 8), (0, wide - strip.shape[1]), (0, 0)), constant_values=200) for strip in strips]
    half = (len(padded) + 1) // 2
    columns = [np.concatenate(part) for part in (padded[:half], padded[half:]) if part]
    tall = columns[0].shape[0]
    columns = [np.pad(each, ((0, tall - each.shape[0]), (0, 8), (0, 0)), constant_values=200) for each in columns]
    Image.fromarray(np.concatenate(columns, axis=1)).save(arguments.output / "sheet.png")
    result = {"ads": len(differences), "largest": round(max(differences), 4), "mean": round(np.mean(differences), 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
