"""How busy the generating actor keeps its device: a stand-in for the device sleeps, all else is the product's own.

    python tests/benchmarks/device_busy.py --root BEFORE --root . --images 400

The actor gets rows as the segmenting stage gives them, in blocks, as many at once as the job hands it. The bare loop
runs the same stand-in with full batches and nothing beside it. `busy`: images per second of the actor ÷ those of the
bare loop. `padding`: places in batches that no image had. `host`: processor time on the thread that owns the device, as
a share of the run. Each checkout runs in processes of its own. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from stand_in import BATCH, StandIn, bare_images_per_s, install, settings, step_seconds

HEIGHT, WIDTH, ROWS_PER_BLOCK = 640, 512, 4
VARIANTS: dict[str, Callable[[int], int]] = {
    "one": lambda _: 1,
    "two": lambda _: 2,
    "three": lambda _: 3,
    "mixed": lambda product: 1 + product % 4,
}
"""Images of the n-th product, by the name of the run."""
PROJECT = Path(__file__).resolve().parents[2]

# `refadgen` is imported in functions only: a measuring process runs this file with an older checkout's.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, action="append", help="a checkout to measure; default: this one")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--device-ms", type=float, default=130.0, help="of the stand-in for one image")
    parser.add_argument("--devices", type=int, default=1, help="actors side by side, each with a device of its own")
    parser.add_argument("--runs", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--photos", type=Path, default=PROJECT / "catalogs" / "images", help="folder of photographs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measure(arguments.measure, arguments.images, arguments.device_ms, arguments.photos)))
        return
    roots = [root.resolve() for root in arguments.root or [PROJECT]]
    found: dict[str, dict[str, dict[str, float]]] = {str(root): {} for root in roots}
    for run in arguments.runs:
        for root in roots:
            command = [sys.executable, __file__, "--measure", run, "--photos", str(arguments.photos.resolve())]
            command += ["--images", str(arguments.images), "--device-ms", str(arguments.device_ms)]
            actors = [
                subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, text=True, stdout=subprocess.PIPE)
                for _ in range(arguments.devices)
            ]
            outputs = [actor.communicate()[0] for actor in actors]
            if any(actor.returncode for actor in actors):
                sys.exit(f"--root {root}: the run {run} failed, see above")
            each = [json.loads(output.splitlines()[-1]) for output in outputs]
            found[str(root)][run] = mean = {
                name: round(float(np.mean([one[name] for one in each])), 3) for name in each[0]
            }
            print(f"{root.name:20} {run:6} " + ", ".join(f"{name} {value}" for name, value in mean.items()), flush=True)
    print(json.dumps({**{run: found[str(roots[-1])][run]["busy"] for run in arguments.runs}, "roots": found}))


def _measure(run: str, num_images: int, device_ms: float, folder: Path) -> dict[str, float]:
    """One run of this process's `refadgen`."""
    from refadgen.batch.rows import to_table
    from refadgen.config import GenerateConfig, load_config
    from refadgen.generation.generator import AdGenerator
    from refadgen.generation.rows import PlacedProduct

    cv2.setNumThreads(1)
    device = install(StandIn(step_seconds(device_ms)))
    words = [*settings(WIDTH, HEIGHT), "model.path=stand-in"]
    generator = AdGenerator(load_config(GenerateConfig, None, words), "bench")
    rows = _rows(VARIANTS[run], num_images, folder)
    tables = [to_table(rows[at : at + ROWS_PER_BLOCK], PlacedProduct) for at in range(0, len(rows), ROWS_PER_BLOCK)]
    # As the job does: one call after another before it had an engine, then as many as two batches need.
    threads = 1 + -(-2 * BATCH // ROWS_PER_BLOCK) if hasattr(generator, "_engine") else 1
    images, lock = 0, threading.Lock()

    def call(table: Any) -> None:
        nonlocal images
        for made in generator(table):
            with lock:
                images += sum(len(row) for row in made["images"].to_pylist())

    started, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(call, tables), maxlen=0)
    seconds = time.perf_counter() - started
    processor = time.process_time() - processor
    wanted = sum(len(row.wanted) for row in rows)
    assert images == wanted, f"{images} images of {wanted}"
    return {
        "busy": images / seconds / bare_images_per_s(device_ms, num_images),
        "padding": 1 - device.taken / device.places,
        "host": device.host_s / seconds if threads > 1 else 1.0,
        "processor_ms": 1000 * processor / images,
    }


def _rows(variants: Callable[[int], int], num_images: int, folder: Path) -> list[Any]:
    """Products as the segmenting stage gives them, with `num_images` images in all."""
    from refadgen.catalog.images import encode_png
    from refadgen.generation.rows import PlacedProduct
    from refadgen.generation.wanted import WantedImage

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    assert paths, f"--photos {folder}: holds no photographs"
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (WIDTH // 2, HEIGHT // 2), (WIDTH // 3, HEIGHT // 3), 0, 0, 360, 255, -1)
    canvases = []
    for path in paths[:24]:
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert pixels is not None, f"{path}: no photograph"
        canvases.append(encode_png(cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)))
    rows: list[Any] = []
    while num_images > 0:
        number = len(rows)
        count = min(num_images, variants(number))
        num_images -= count
        wanted = tuple(
            WantedImage(image_id=f"{number:016x}{v:016x}", scene="s", variant=v, prompt="a cup", seed=v)
            for v in range(count)
        )
        values = {
            "row": number, "sku": f"sku-{number}", "category": None, "image": "", "negative_prompt": None,
            "wanted": wanted, "decision": "", "input_sha256": "", "fetch_s": 0.0, "segment_s": 0.0,
            "product_uri": f"p{number}",
            "canvas": canvases[number % len(canvases)], "product_mask": encode_png(mask), "product": b"",
            "width_px": WIDTH, "height_px": HEIGHT, "mask_source": "alpha", "mask_score": 1.0, "mask_area": 0.3,
            "error": None,
        }  # fmt: skip
        known = {each.name for each in fields(PlacedProduct)}  # an older checkout has fewer
        rows.append(PlacedProduct(**{name: value for name, value in values.items() if name in known}))
    return rows


if __name__ == "__main__":
    main()
