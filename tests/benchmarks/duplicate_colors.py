"""Near-duplicates and colour: which colour variants are kept, which true duplicates are found, and at what speed.

    python tests/benchmarks/duplicate_colors.py [--before FOLDER] [--photos FOLDER]

Eight kinds of products are drawn on four kinds of backdrops, each in eight colours. A colour variant is the same
drawing in another colour, saved anew. A true duplicate is a drawing or a photograph as shops and CDNs make it again:
JPEG 60 to 95, resized, cropped by up to 2 %, brighter or darker, of another white balance, and all of these at once.

--before: the folder of an earlier version, which is measured on the same pictures. --photos: a folder with photographs,
whose duplicates are measured too. Each version works in a process of its own. The last line is JSON.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

PROJECT = Path(__file__).resolve().parents[2]
SIDE = 640

Shape = Callable[[np.ndarray, int], None]
Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# ---- Products: parts of fixed colour, and one (color None) that has the variant's. Coordinates are of 800×800.


def _rect(x0: float, y0: float, x1: float, y1: float) -> Shape:
    return lambda m, s: cv2.rectangle(m, (int(x0 * s), int(y0 * s)), (int(x1 * s), int(y1 * s)), 255, -1)


def _ellipse(x: float, y: float, rx: float, ry: float, width: float = 0) -> Shape:
    thick = lambda s: max(1, round(width * s)) if width else -1  # noqa: E731
    return lambda m, s: cv2.ellipse(m, (int(x * s), int(y * s)), (int(rx * s), int(ry * s)), 0, 0, 360, 255, thick(s))


def _polygon(*points: tuple[float, float]) -> Shape:
    return lambda m, s: cv2.fillPoly(m, [np.int32(np.array(points) * s)], 255)


def _line(width: float, *points: tuple[float, float]) -> Shape:
    return lambda m, s: cv2.polylines(m, [np.int32(np.array(points) * s)], False, 255, max(1, round(width * s)))


_TEE = _polygon(
    (280, 180),
    (520, 180),
    (660, 280),
    (600, 360),
    (540, 320),
    (540, 680),
    (260, 680),
    (260, 320),
    (200, 360),
    (140, 280),
)
_CHAIN = _line(5, *((400 + 210 * np.cos(a), 330 + 260 * np.sin(a)) for a in np.linspace(0.0, np.pi, 40)))
PRODUCTS: dict[str, list[tuple[Shape, tuple[int, int, int] | None]]] = {
    "ring": [(_ellipse(400, 420, 170, 170, 20), None)],
    "thin ring with stone": [
        (_ellipse(400, 460, 120, 150, 8), None),
        (_polygon((370, 290), (400, 260), (430, 290), (400, 325)), (225, 235, 245)),
    ],
    "necklace": [(_CHAIN, None), (_ellipse(400, 600, 24, 30), None)],
    "lipstick": [(_rect(370, 300, 430, 640), (30, 30, 32)), (_rect(378, 220, 422, 300), None)],
    "T-shirt": [(_TEE, None)],
    "mug": [(_ellipse(570, 430, 70, 90, 24), None), (_rect(270, 280, 540, 600), None)],
    "shoe with white sole": [
        (_polygon((150, 520), (180, 380), (330, 370), (470, 470), (640, 500), (660, 540), (150, 540)), None),
        (_rect(145, 540, 668, 580), (240, 240, 238)),
        (_line(8, (330, 380), (380, 430), (350, 445), (420, 470)), (235, 235, 230)),
    ],
    "watch with strap": [
        (_rect(350, 130, 450, 690), None),
        (_ellipse(400, 410, 105, 105), (70, 70, 74)),
        (_ellipse(400, 410, 88, 88), (235, 235, 232)),
    ],
}
METALS = {
    "gold": (212, 175, 55),
    "silver": (192, 192, 196),
    "rose": (205, 145, 125),
    "pale gold": (215, 192, 120),
    "gunmetal": (90, 92, 98),
    "black": (28, 28, 30),
    "copper": (184, 115, 51),
    "steel blue": (150, 165, 190),
}
LIPS = {
    "red": (190, 20, 40),
    "dark red": (150, 15, 35),
    "pink": (230, 120, 150),
    "rosewood": (170, 85, 90),
    "brown": (110, 60, 40),
    "coral": (235, 105, 85),
    "berry": (120, 25, 70),
    "nude": (205, 150, 125),
}
CLOTHES = {
    "black": (25, 25, 28),
    "midnight": (25, 28, 45),
    "navy": (25, 35, 80),
    "charcoal": (58, 58, 62),
    "grey": (140, 140, 142),
    "sage": (140, 152, 130),
    "sky": (140, 175, 215),
    "olive": (85, 90, 50),
}
PALETTES = {name: METALS for name in ("ring", "thin ring with stone", "necklace")} | {"lipstick": LIPS}
BACKDROPS = ("white", "grey gradient", "pale blue", "scene")


def backdrop(name: str) -> np.ndarray:
    """Returns float32 SIDE×SIDE×3."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)[:, :, :, None] / SIDE
    if name == "white":
        return np.full((SIDE, SIDE, 3), 255, np.float32)
    if name == "grey gradient":
        return (215 + 25 * (1 - y) - 10 * (x - 0.5) ** 2) * np.ones(3, np.float32)
    if name == "pale blue":
        return np.full((SIDE, SIDE, 3), (205, 218, 230), np.float32)
    rng = np.random.default_rng(5)
    fields = rng.uniform(60, 210, (9, 9, 1)) + rng.normal(0, 18, (9, 9, 3))
    scene = cv2.resize(fields.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scene[int(0.72 * SIDE) :] = 0.4 * scene[int(0.72 * SIDE) :] + 0.6 * np.array((150, 110, 75), np.float32)
    return scene


def draw(product: str, color: tuple[int, int, int], on: str) -> np.ndarray:
    """Returns uint8 SIDE×SIDE×3, shaded across and with a camera's noise."""
    image = backdrop(on)
    shade = 1 - 0.35 * np.linspace(-1, 1, SIDE, dtype=np.float32)[None, :, None] ** 2
    for shape, fixed in PRODUCTS[product]:
        large = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
        shape(large, 4 * SIDE / 800)
        alpha = cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)
        image = image * (1 - alpha) + alpha * shade * np.array(fixed or color, np.float32)
    noise = np.random.default_rng(len(product)).normal(0, 1.2, image.shape)
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)


def lab(color: tuple[int, int, int]) -> np.ndarray:
    return cv2.cvtColor(np.array([[color]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]


# ---- Edits of true duplicates.


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink).convert("RGB"))


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def cropped(image: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    height, width = image.shape[:2]
    top, bottom = (int(x * height) for x in rng.uniform(0, most, 2))
    left, right = (int(x * width) for x in rng.uniform(0, most, 2))
    return image[top : height - bottom, left : width - right]


def levels(image: np.ndarray, gain: np.ndarray | float, offset: float = 0.0) -> np.ndarray:
    return np.clip(image * gain + offset + 0.5, 0, 255).astype(np.uint8)


def balance(rng: np.random.Generator, most: float) -> np.ndarray:
    """Gains of red, green and blue: warmer or colder, and a little tint."""
    warm, tint = rng.uniform(-most, most), rng.uniform(-most / 2, most / 2)
    return np.array([1 + warm, 1 + tint, 1 - warm], np.float32)


def all_at_once(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = cropped(image, rng, 0.01)
    image = levels(image, balance(rng, 0.03) * rng.uniform(0.95, 1.05), rng.uniform(-5, 5))
    return jpeg(scaled(image, rng.uniform(0.45, 1.2)), int(rng.integers(60, 96)))


EDITS: dict[str, Edit] = {
    "JPEG 60": lambda image, rng: jpeg(image, 60),
    "JPEG 75": lambda image, rng: jpeg(image, 75),
    "JPEG 95": lambda image, rng: jpeg(image, 95),
    "resized 0.35 to 0.7": lambda image, rng: scaled(image, rng.uniform(0.35, 0.7)),
    "resized 1.3 to 2": lambda image, rng: scaled(image, rng.uniform(1.3, 2)),
    "crop 1 %": lambda image, rng: cropped(image, rng, 0.01),
    "crop 2 %": lambda image, rng: cropped(image, rng, 0.02),
    "brightness, gain 8 %": lambda image, rng: levels(image, rng.uniform(0.92, 1.08)),
    "brightness, 10 levels": lambda image, rng: levels(image, 1, rng.uniform(-10, 10)),
    "white balance 4 %": lambda image, rng: levels(image, balance(rng, 0.04)),
    "all at once": all_at_once,
}


# ---- Pictures and pairs. Every version sees the same ones.


def photographs(folder: Path | None) -> list[np.ndarray]:
    found = sorted(each for each in folder.rglob("*") if each.suffix in (".jpg", ".png")) if folder else []
    pictures = [np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in found]
    return [scaled(picture, min(1, 900 / max(picture.shape[:2]))) for picture in pictures]


def variant_pairs() -> Iterator[tuple[str, str, float, np.ndarray, np.ndarray]]:
    """Yields kind of product, backdrop, ΔE of the two colours (CIE 1976, 8 and more), and the two pictures."""
    rng = np.random.default_rng(1)
    for product in PRODUCTS:
        colors = list(PALETTES.get(product, CLOTHES).values())
        for on in BACKDROPS:
            drawn = [jpeg(draw(product, color, on), int(rng.integers(70, 96))) for color in colors]
            for index, color in enumerate(colors):
                for other in range(index):
                    apart = float(np.linalg.norm(lab(color) - lab(colors[other])))
                    if apart >= 7.5:
                        yield product, on, apart, drawn[index], drawn[other]


def duplicate_pairs(photos: Path | None) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yields drawing or photograph, edit, and the two pictures."""
    rng = np.random.default_rng(2)
    originals = [("photograph", each) for each in photographs(photos)]
    for product in PRODUCTS:
        for color in PALETTES.get(product, CLOTHES).values():
            originals += [("drawing", jpeg(draw(product, color, on), 92)) for on in BACKDROPS]
    for kind, image in originals:
        for name, edit in EDITS.items():
            yield kind, name, image, edit(image, rng)


# ---- One version, in a process of its own.


class Version:
    """Signatures and search of the version that is on the path. Earlier ones have no product colours."""

    def __init__(self) -> None:
        from refadgen.dataset import near_duplicates
        from refadgen.dataset.stages import fitted

        self._module, self._fitted = near_duplicates, fitted
        self._makers = [near_duplicates.perceptual_hash, near_duplicates.thumbnail]
        self._limits = {"max_distance": 4, "max_color_difference": 12.0}  # the defaults of filter.duplicate_*
        try:
            from refadgen.dataset.product_colors import product_colors
        except ImportError:
            pass
        else:
            self._makers.append(product_colors)
            self._limits["max_product_difference"] = 5.0
        self._last: list[tuple[np.ndarray, list]] = []

    def signature(self, image: np.ndarray) -> list:
        for picture, known in self._last:
            if picture is image:
                return known
        small = self._fitted(image, 256)
        self._last = [*self._last[-11:], (image, [make(small) for make in self._makers])]
        return self._last[-1][1]

    def find(self, ids: pa.Array, hashes: np.ndarray, *columns: list) -> np.ndarray:
        arrays = [pa.array(each, pa.binary()) for each in columns]
        return self._module.find_near_duplicates(ids, hashes, *arrays, **self._limits)

    def near(self, image: np.ndarray, other: np.ndarray) -> bool:
        hashes, *columns = zip(self.signature(image), self.signature(other), strict=True)
        return bool(self.find(pa.array(["a", "b"]), np.array(hashes, np.uint64), *columns)[1] == 0)

    def seconds(self) -> dict[str, float]:
        """Seconds for the signatures of 10,000 pictures of 256×256, and for the search among 200,000 ads."""
        pictures = [scaled(draw("mug", color, on), 0.4) for color in CLOTHES.values() for on in BACKDROPS]
        started = time.perf_counter()
        for number in range(640):
            signature = [make(pictures[number % len(pictures)]) for make in self._makers]
        making = (time.perf_counter() - started) * 10_000 / 640
        rng = np.random.default_rng(0)
        num = 200_000
        hashes = rng.integers(2**64, size=num, dtype=np.uint64)
        hashes[num // 2 :] = hashes[: num - num // 2]  # every second ad is a duplicate
        ids = pa.array([f"{number:08d}" for number in rng.permutation(num)])
        columns = [[each] * num for each in signature[1:]]
        started = time.perf_counter()
        self.find(ids, hashes, *columns)
        searching = time.perf_counter() - started
        return {"signatures_s_per_10000": round(making, 2), "search_s_of_200000": round(searching, 2)}


def measure(photos: Path | None) -> dict[str, object]:
    cv2.setNumThreads(1)
    version = Version()
    kept: dict[str, list[bool]] = defaultdict(list)
    for product, on, apart, image, other in variant_pairs():
        alone = not version.near(image, other)
        step = next(name for most, name in [(12, "8 to 12"), (25, "12 to 25"), (1e9, "over 25")] if apart < most)
        for name in (product, f"on {on}", f"ΔE {step}", "all"):
            kept[name].append(alone)
    found: dict[str, list[bool]] = defaultdict(list)
    for kind, edit, image, again in duplicate_pairs(photos):
        is_near = version.near(image, again)
        for name in (f"{kind}: {edit}", f"{kind}s"):
            found[name].append(is_near)
    shares = [{name: round(float(np.mean(each)), 4) for name, each in of.items()} for of in (kept, found)]
    counts = {name: len(each) for of in (kept, found) for name, each in of.items()}
    return {"variants kept": shares[0], "duplicates found": shares[1], "pairs": counts} | version.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="folder of an earlier version")
    parser.add_argument("--photos", type=Path, help="folder with photographs")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.photos)))
        return
    words = [sys.executable, __file__, "--measure"]
    words += ["--photos", str(arguments.photos.resolve())] if arguments.photos else []
    results = {}
    for name, folder in {"before": arguments.before, "now": PROJECT}.items():
        if folder:
            environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
            done = subprocess.run(words, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True)
            results[name] = json.loads(done.stdout)
    pairs = results["now"]["pairs"]
    print(f"{'':36}{'pairs':>8}" + "".join(f"{name:>10}" for name in results))
    for table in ("variants kept", "duplicates found"):
        print(table)
        for row in results["now"][table]:
            print(f"  {row:34}{pairs[row]:8}" + "".join(f"{each[table][row]:10.3f}" for each in results.values()))
    for row in ("signatures_s_per_10000", "search_s_of_200000"):
        print(f"{row:44}" + "".join(f"{each[row]:10.2f}" for each in results.values()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
