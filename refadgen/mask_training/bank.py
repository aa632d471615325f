"""The rendered products, photographs and surroundings that scenes are made from, read from the shards of `renders`."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from refadgen.mask_training.pen import Cutout, Floats
from refadgen.segmentation.classes import BACKDROP, PRODUCT

Photo = tuple[str, Floats, Floats, npt.NDArray[np.uint8]]


class Bank:
    """Rendered pictures of some folders, kept encoded in memory.

    folders: outputs of `refadgen.mask_training.renders`. views: float32 HW3 panoramas, 0 to 255, of environment maps.
    """

    def __init__(self, folders: list[Path], views: list[Floats] | None = None) -> None:
        self._items: dict[str, list[tuple[str, bytes, bytes | None]]] = {"cutout": [], "plain": [], "scene": []}
        self._views = views or []
        for folder in folders:
            for shard in sorted(folder.glob("*.parquet")):
                for row in pq.read_table(shard, columns=["kind", "family", "image", "mask"]).to_pylist():
                    self._items[row["kind"]].append((row["family"], row["image"], row["mask"]))

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def cutout(self, rng: np.random.Generator) -> tuple[str, Cutout] | None:
        """A random product without a backdrop; None: there is none."""
        found = self._pick(rng, "cutout")
        if found is None:
            return None
        family, data, _ = found
        rgba = _decoded(data)
        if rng.random() < 0.5:
            rgba = rgba[:, ::-1]
        alpha = rgba[..., 3].astype(np.float32) / 255
        rgb = np.ascontiguousarray(rgba[..., 2::-1]).astype(np.float32)
        return family, Cutout(rgb, np.ascontiguousarray(alpha), np.ascontiguousarray(alpha))

    def photo(self, rng: np.random.Generator, kind: str, longest_px: int) -> Photo | None:
        """A random rendered photograph: family, image, coverage, classes; None: there is none."""
        found = self._pick(rng, kind)
        if found is None:
            return None
        family, data, mask = found
        assert mask is not None
        image: Floats = _decoded(data)[..., 2::-1].astype(np.float32)
        coverage: Floats = _decoded(mask).astype(np.float32) / np.float32(255)
        coverage = coverage if coverage.ndim == 2 else coverage[..., 0]
        if rng.random() < 0.5:
            image, coverage = image[:, ::-1], coverage[:, ::-1]
        if rng.random() < 0.5:  # a part of it, so that the product is larger and not in the middle
            image, coverage = _cropped(rng, image, coverage)
        scale = longest_px / max(coverage.shape)
        size = (max(24, round(coverage.shape[1] * scale)), max(24, round(coverage.shape[0] * scale)))
        image = np.asarray(cv2.resize(np.ascontiguousarray(image), size), np.float32)
        coverage = np.asarray(cv2.resize(np.ascontiguousarray(coverage), size), np.float32)
        return family, image, coverage, np.where(coverage >= 0.5, PRODUCT, BACKDROP).astype(np.uint8)

    def view(self, rng: np.random.Generator, size: tuple[int, int]) -> Floats | None:
        """A random part of a random panorama, float32 HW3; None: there is none."""
        if not self._views:
            return None
        panorama = self._views[int(rng.integers(len(self._views)))]
        tall, wide = panorama.shape[:2]
        height = int(rng.uniform(0.2, 0.6) * tall)
        width = min(wide, int(height * size[1] / size[0]))
        top = int(rng.uniform(0.2, 0.9) * (tall - height))
        left = int(rng.integers(0, max(1, wide - width)))
        part = panorama[top : top + height, left : left + width]
        if rng.random() < 0.5:
            part = part[:, ::-1]
        view = cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.clip(view * rng.uniform(0.6, 1.4), 0, 255), np.float32)

    def _pick(self, rng: np.random.Generator, kind: str) -> tuple[str, bytes, bytes | None] | None:
        items = self._items[kind]
        return items[int(rng.integers(len(items)))] if items else None


def read_views(folder: Path) -> list[Floats]:
    """The environment maps of a folder (.hdr) as panoramas, float32 HW3, 0 to 255, tone-mapped. Raises: ValueError."""
    views = []
    for path in sorted(folder.glob("*.hdr")):
        linear = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if linear is None:
            raise ValueError(f"--maps: {path.name} cannot be read as an environment map")
        exposed = linear[..., ::-1] * (0.35 / max(1e-6, float(np.median(linear))))
        views.append(np.asarray(255 * np.clip(exposed / (1 + 0.35 * exposed), 0, 1) ** (1 / 2.2), np.float32))
    if not views:
        raise ValueError(f"--maps: {folder} holds no .hdr file")
    return views


def _decoded(data: bytes) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def _cropped(rng: np.random.Generator, image: Floats, coverage: Floats) -> tuple[Floats, Floats]:
    x, y, w, h = cv2.boundingRect((coverage > 0.3).astype(np.uint8))
    height, width = coverage.shape
    if w == 0:
        return image, coverage
    left, top = int(x * rng.uniform(0, 0.95)), int(y * rng.uniform(0, 0.95))
    right = width - int((width - x - w) * rng.uniform(0, 0.95))
    bottom = height - int((height - y - h) * rng.uniform(0, 0.95))
    return image[top:bottom, left:right], coverage[top:bottom, left:right]
