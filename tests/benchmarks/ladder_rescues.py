"""The gate's ladder on a catalogue with planted hard products, by the real job and the built-in model.

    python tests/benchmarks/ladder_rescues.py OUTPUT [--steps 10]

Half of the products are the sample catalogue's, half are boxes full of print and patterns that `mini` cannot draw. The
output folder gets a run, and `sheet.png`: each placed product with its published ad. Counted are the images of each
rung. Of those with the product's own pixels, each pixel inside the eroded mask is compared with the canvas. The last
line is JSON.
"""

import argparse
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from refadgen.batch.ledger import Ledger
from refadgen.catalog.layout import place
from refadgen.config import LayoutConfig, SegmentationConfig
from refadgen.generation.ledger import AdLedger
from refadgen.generation.product_pixels import edge_px
from refadgen.segmentation import ProductMasker
from refadgen.storage.store import Storage

PROJECT = Path(__file__).resolve().parents[2]
SIZE = (128, 160)
GATE = ("quality.min_local_similarity=0.55", "quality.min_hue_similarity=0.7")
"""Looser than what the studio's renders ask for: `mini` is soft."""
LADDER = ("quality.max_attempts=2", "quality.fusion_attempts=1", "quality.product_pixels=true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    catalog = arguments.output / "catalog.parquet"
    photos = write_catalog(catalog)
    words = [*GATE, *LADDER, "output.format=png", f"sampling.num_inference_steps={arguments.steps}"]
    words += ["catalog.scenes_per_product=1", f'fetch.file_roots=["{PROJECT / "catalogs"}"]']
    command = [sys.executable, str(PROJECT / "jobs" / "generate_catalog.py"), str(catalog)]
    subprocess.run([*command, "--output", str(arguments.output / "run"), *words], check=True, cwd=PROJECT)
    ledger: Ledger = AdLedger(Storage(str(arguments.output / "run")))
    rows = ledger.latest().to_pylist()
    rungs = {hard: Counter() for hard in ("easy", "hard")}
    tiles, differing, compared = [], 0, 0
    for row in sorted(rows, key=lambda each: each["row"]):
        rungs[row["sku"].split("-")[0]][row["rung"] if row["status"] == "done" else row["reason"]] += 1
        canvas, mask = placed(*photos[row["sku"]])
        ad = np.array(Image.open(arguments.output / "run" / row["uri"])) if row["uri"] else np.zeros_like(canvas)
        tiles.append(np.concatenate([canvas, ad], axis=1))
        if row["rung"] == "product_pixels" and row["uri"]:
            core = eroded(mask)
            differing += int((ad[core] != canvas[core]).any(axis=-1).sum())
            compared += int(core.sum())
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    lines = [np.concatenate(tiles[start : start + 4], axis=1) for start in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(lines)).resize((2048, 2 * len(lines) * SIZE[1]), Image.Resampling.LANCZOS).save(
        arguments.output / "sheet.png"
    )
    print(json.dumps({"rungs": rungs, "pixels_compared": compared, "pixels_that_differ": differing}))


def eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without its blended edge."""
    width = 2 * edge_px(mask.shape) + 3
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255) > 0


def placed(photo: bytes, mask: bytes | None) -> tuple[np.ndarray, np.ndarray]:
    """Canvas and mask, as the job's stage makes them."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    own = None if mask is None else np.array(Image.open(io.BytesIO(mask)).convert("L"))
    found = ProductMasker(SegmentationConfig(), gpu_expected=False, num_cpus=1).segment(image, None, own)
    made = place(image, found.alpha, LayoutConfig(), *SIZE)
    return made.canvas, made.mask


def write_catalog(file: Path) -> dict[str, tuple[bytes, bytes | None]]:
    """Six easy and six hard products. Returns: photograph and mask by sku."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[bytes, bytes | None]] = {}
    names: dict[str, str] = {}
    samples = [row for row in pq.read_table(PROJECT / "catalogs" / "demo.parquet").to_pylist() if not row["mask"]]
    for number, row in enumerate(each for each in samples if each["image"].endswith(".jpg")):
        if number == 6:
            break
        sku = f"easy-{number}"
        found[sku], names[sku] = ((PROJECT / "catalogs" / row["image"]).read_bytes(), None), row["category"]
    for number in range(6):
        found[f"hard-{number}"], names[f"hard-{number}"] = printed_box(number), "Box"
    columns = {"sku": list(found), "image": [each[0] for each in found.values()]}
    columns |= {"mask": [each[1] for each in found.values()], "category": list(names.values())}
    pq.write_table(pa.table(columns), file)
    return found


def printed_box(number: int) -> tuple[bytes, bytes]:
    """A box full of coloured print, as PNG, and its mask."""
    rng = np.random.default_rng(number)
    image, mask = np.full((600, 480, 3), 255, np.uint8), np.zeros((600, 480), np.uint8)
    left, top, right, bottom = 90, 80, 390, 540
    mask[top:bottom, left:right] = 255
    colors = [tuple(int(value) for value in color) for color in rng.integers(0, 256, (3, 3))]
    image[top:bottom, left:right] = colors[0]
    for y in range(top + 30, bottom, 34):
        text = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVWXYZ0123456789"), 10))
        cv2.putText(image, text, (left + 12, y), cv2.FONT_HERSHEY_DUPLEX, 1.2, colors[1 + y % 2], 3, cv2.LINE_AA)
    for x, y in rng.integers((left + 40, top + 40), (right - 40, bottom - 40), (4, 2)):
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.circle(image, (int(x), int(y)), int(rng.integers(20, 40)), color, -1, cv2.LINE_AA)
    image[mask == 0] = 255
    return png(image), png(mask)


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


if __name__ == "__main__":
    main()
