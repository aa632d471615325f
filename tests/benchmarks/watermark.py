"""How often a watermark is read back after what happens to images on their way, and what it costs in PSNR.

    python tests/benchmarks/watermark.py FOLDER --num 200

FOLDER holds pictures (JPEG, PNG, WebP), also in its folders; where they are fewer than `--num`, each is taken again,
from another part. Each is cut to `--size`, marked with a payload of its own, changed, and read. A reading counts where
it is the payload; `unmarked` counts readings of the pictures before they were marked: each of them is false.
"""

import argparse
import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from refadgen.config.provenance import SPREAD_SPECTRUM, ProvenanceConfig
from refadgen.provenance.watermarks import load_watermark

LANCZOS = Image.Resampling.LANCZOS


def pictures(folder: Path, num: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yields `num` pictures of this size: of each file its middle first, then other parts at another scale."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    rng = np.random.default_rng(0)
    for index, file in enumerate(itertools.islice(itertools.cycle(files), num)):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        again = index // len(files)
        scale = max(size[0] / image.width, size[1] / image.height) * (1 + 0.4 * again)
        image = image.resize((int(image.width * scale) + 1, int(image.height * scale) + 1), LANCZOS)
        room = image.width - size[0], image.height - size[1]
        left, top = (int(each * (rng.random() if again else 0.5)) for each in room)
        yield image.crop((left, top, left + size[0], top + size[1]))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    with Image.open(sink) as opened:
        return opened.convert("RGB")


def changes(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    cut = round(width * 0.05) + 1, round(height * 0.05) + 1
    half = image.resize((width // 2, height // 2), LANCZOS)
    cropped = image.crop((cut[0], cut[1], width - cut[0], height - cut[1]))
    return {
        "unchanged": image,
        "JPEG 70": jpeg(image, 70),
        "half": half,
        "crop of 10 %": cropped,
        "half, JPEG 85": jpeg(half, 85),
        "crop, JPEG 70": jpeg(cropped, 70),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--size", default="512x640")
    parser.add_argument("--watermark", default=SPREAD_SPECTRUM)
    parser.add_argument("--weights")
    given = parser.parse_args()
    width, height = (int(side) for side in given.size.split("x"))
    watermark = load_watermark(ProvenanceConfig(watermark=given.watermark, watermark_weights=given.weights))
    assert watermark is not None
    rng = np.random.default_rng(1)
    read: dict[str, int] = {}
    losses, embed_s, read_s = [], 0.0, 0.0
    for image in pictures(given.folder, given.num, (width, height)):
        payload, pixels = int(rng.integers(2**48)), np.asarray(image)
        started = time.perf_counter()
        marked = watermark.embed(pixels, payload)
        embed_s += time.perf_counter() - started
        losses.append(10 * np.log10(255**2 / max(np.mean((marked.astype(np.float64) - pixels) ** 2), 1e-9)))
        started = time.perf_counter()
        for name, changed in changes(Image.fromarray(marked)).items():
            read[name] = read.get(name, 0) + (watermark.read(np.asarray(changed)) == payload)
        read_s += time.perf_counter() - started
        read["unmarked"] = read.get("unmarked", 0) + (watermark.read(pixels) is not None)
    print(f"{given.num} pictures of {given.size}, {given.watermark}")
    for name, count in read.items():
        print(f"  {name:15} {count / given.num:7.1%}")
    low, middle = np.percentile(losses, [5, 50])
    print(f"  PSNR: mean {np.mean(losses):.1f} dB, median {middle:.1f}, 5 % below {low:.1f}, least {min(losses):.1f}")
    print(f"  {embed_s / given.num * 1000:.0f} ms to mark, {read_s / given.num / 6 * 1000:.0f} ms to read")
    print(json.dumps({"read": read, "num": given.num, "psnr": round(float(np.mean(losses)), 2)}))


if __name__ == "__main__":
    main()
