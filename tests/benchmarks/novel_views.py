"""Novel views of one photograph, compared with true renders, the photograph itself and a squeeze of it.

    python tests/benchmarks/novel_views.py [--products 62] [--width 128 --height 160] [--sheet FILE]

The studio photographs products of all its kinds, then the same products turned by 5, 10, 15 and 20 degrees to one side
or the other, with the same lens, base line and middle. `refadgen.dataset.multi_view` makes the turned view from the
photograph alone, without triage. Positive yaw turns the front to the right, in the studio and here.

Figures are PSNR and SSIM inside the true mask of the turned product, as means over products with 95 % bootstrap
intervals. The rivals are the photograph as it is ("nothing") and the photograph squeezed to cos(angle) of its width
about the product's middle ("squeeze"). Needs the studio extra; takes about three minutes on one core. The last line is
JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import cos, radians
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from refadgen.config import MultiViewConfig
from refadgen.dataset.multi_view import NovelViews
from refadgen.evaluation.metrics import inmask_ssim
from refadgen.studio.appearance import sample_appearance
from refadgen.studio.camera import View, camera_for
from refadgen.studio.render import Product, render_product_photo, sample_view
from refadgen.studio.shapes import BUILDERS, Shape, turned_vertices

SEED_OFFSET = 5_000_000  # nothing else uses these products
ANGLES_DEG = (5, 10, 15, 20)
METHODS = ("nothing", "squeeze", "ours")
_BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Case:
    """One product: its photograph, and its renders turned by each of ANGLES_DEG to the left or the right."""

    noun: str
    yaws_deg: list[int]
    photo: np.ndarray
    mask: np.ndarray
    truths: list[tuple[np.ndarray, np.ndarray]]
    """Photograph and mask of each turned view."""


def cases(count: int, width_px: int, height_px: int) -> Iterator[Case]:
    """Yields the first `count` products; their kinds alternate."""
    size = {"width_px": width_px, "height_px": height_px}
    for number in range(count):
        category, noun, build = BUILDERS[number % len(BUILDERS)]
        seed = SEED_OFFSET + number
        product = Product(
            product_id=f"novel-view-{number}",
            category=category,
            shape=build(np.random.default_rng([seed, 0])),
            appearance=sample_appearance(np.random.default_rng([seed, 1])),
        )
        yaws_deg = [angle * (-1) ** (number + place) for place, angle in enumerate(ANGLES_DEG)]
        views = through_one_lens(product.shape, sample_view(seed), yaws_deg, **size)
        photos = [render_product_photo(product, view, **size) for view in views]
        yield Case(noun, yaws_deg, *photos[0], photos[1:])


def through_one_lens(shape: Shape, view: View, yaws_deg: list[int], *, width_px: int, height_px: int) -> list[View]:
    """Returns a view and the views turned from it by each yaw, all with one focal length.

    The studio zooms to give every view its height; a camera that moves around a product does not.
    """
    views = [replace(view, yaw_deg=view.yaw_deg + yaw) for yaw in (0, *yaws_deg)]
    size = {"width_px": width_px, "height_px": height_px}
    widest = [camera_for(shape, replace(each, height_share=1000.0), **size).focal_px for each in views]
    focal = min(camera_for(shape, view, **size).focal_px, *widest)
    turned = []
    for each in views:
        camera = camera_for(shape, each, **size)
        height = np.ptp(camera.project(turned_vertices(shape, each.yaw_deg))[:, 1]) / camera.focal_px
        turned.append(replace(each, height_share=float(focal * height / height_px)))
    return turned


def squeeze(photo: np.ndarray, mask: np.ndarray, yaw_deg: float) -> np.ndarray:
    """Returns the photograph, narrowed by the cosine of the angle about the middle of the product's box."""
    columns = np.flatnonzero((mask > 127).any(axis=0))
    middle, share = (columns[0] + columns[-1]) / 2, cos(radians(yaw_deg))  # OpenCV counts from pixel centres
    matrix = np.array([[share, 0, middle * (1 - share)], [0, 1, 0]])
    size = (photo.shape[1], photo.shape[0])
    return cv2.warpAffine(photo, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))


def inmask_psnr(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Returns the PSNR in dB of the pixels inside the mask."""
    error = (output[mask > 127].astype(np.float64) - truth[mask > 127]) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-2)))


def interval(values: np.ndarray) -> list[float]:
    """Returns the mean of values [N] and its 95 % bootstrap interval: mean, low, high."""
    draws = np.random.default_rng(0).integers(len(values), size=(_BOOTSTRAPS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return [round(float(number), 4) for number in (values.mean(), low, high)]


def report(scores: dict[tuple[str, int], list[tuple[float, float]]]) -> dict[str, dict[str, list[float]]]:
    """Prints the table; returns by measure and angle the interval of each method and of our lead over the rivals."""
    found: dict[str, dict[str, list[float]]] = {}
    for number, (measure, digits) in enumerate((("psnr", 2), ("ssim", 3))):
        for angle in ANGLES_DEG:
            values = {method: np.array(scores[method, angle])[:, number] for method in METHODS}
            rival = max(("nothing", "squeeze"), key=lambda method: values[method].mean())
            values["lead"] = values["ours"] - values[rival]
            row = {name: interval(each) for name, each in values.items()}
            found[f"{measure}_{angle}"] = row
            cells = [f"{name} {m:.{digits}f} [{a:.{digits}f}, {b:.{digits}f}]" for name, (m, a, b) in row.items()]
            print(f"{measure.upper()} at {angle:2d}°: " + "   ".join(cells))
    return found


def write_sheet(file: Path, tiles: list[np.ndarray]) -> None:
    """Writes photograph, ours, truth and squeeze of each case at twice their size, two cases per line."""
    tiles = tiles + [np.full_like(tiles[0], 255)] * (len(tiles) % 2)
    lines = [np.concatenate(tiles[start : start + 2], axis=1) for start in range(0, len(tiles), 2)]
    sheet = Image.fromarray(np.concatenate(lines))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(file)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Novel views of one photograph against true renders.")
    parser.add_argument("--products", type=int, default=62)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--depth-model", help="Depth Anything, a folder or hub id; without: the inflated silhouette")
    parser.add_argument("--sheet", type=Path, help="PNG of every second product at one of the angles")
    arguments = parser.parse_args()
    started = time.monotonic()
    config = MultiViewConfig(depth_model=arguments.depth_model)
    views = NovelViews(config)
    scores: dict[tuple[str, int], list[tuple[float, float]]] = {}
    tiles, seconds, made = [], [], []
    for number, case in enumerate(cases(arguments.products, arguments.width, arguments.height)):
        for place, (angle, yaw_deg) in enumerate(zip(ANGLES_DEG, case.yaws_deg, strict=True)):
            truth, mask = case.truths[place]
            before = time.process_time()
            view = views.render(case.photo, case.mask, yaw_deg)
            seconds.append(time.process_time() - before)
            made.append(view)
            outputs = (case.photo, squeeze(case.photo, case.mask, yaw_deg), view.image)
            for method, output in zip(METHODS, outputs, strict=True):
                pair = inmask_psnr(output, truth, mask), inmask_ssim(output, truth, mask)
                scores.setdefault((method, angle), []).append(pair)
            if number % 2 == 0 and place == number // 2 % len(ANGLES_DEG):
                tiles.append(np.concatenate([case.photo, view.image, truth, outputs[1]], axis=1))
    result: dict[str, object] = {"products": arguments.products, "size": [arguments.width, arguments.height]}
    result |= report(scores)
    if arguments.sheet:
        write_sheet(arguments.sheet, tiles)
    passed = [view.holes <= config.max_holes and view.stretch <= config.max_stretch for view in made]
    result["passed_triage"] = round(float(np.mean(passed)), 3)
    result["cpu_s_per_view"] = round(float(np.mean(seconds)), 3)
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
