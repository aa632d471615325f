"""Imports the authors' data layout: one triplet per ad, with its product images as variants.

    python -m refadgen.triplets.authors_json train_sd.json --root data_sources --output triplets

The JSON is a list of entries, one per product image. `--root` (default: the JSON's folder) holds the files:

    {"image_type": "backpack", "original_image": "17_52.png", "mask_image": "17_52_03.png",
     "mask_npy": "17_52_gs.npy", "image_text": ["A person …", …]}

    Ad Image/17_52.png   Product Image/17_52_00.png … 17_52_04.png   mask_npy/17_52.npy, 17_52_gs.npy

Product image 00 with the ad's own mask becomes `original`, the others with it `degraded`, and those with the `_gs` mask
`novel_view`. Adjustments to our schema:

* Product images and masks are resized to the ad's size. Outside of its mask a product image becomes pure white.
* The layout knows no products. Each ad is taken as a product of its own: its name is row id and product id and decides
  the split.
* Categories begin with a capital, as in the paper's Table 1.

The complete JSON is held in memory, images one ad at a time.
"""

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refadgen.storage.store import STORE_ERRORS, Storage
from refadgen.triplets.schema import SPLITS, Triplet, Variant, split_of, write_triplets

_FOLDERS = {"original_image": "Ad Image", "mask_image": "Product Image", "mask_npy": "mask_npy"}


@dataclass(frozen=True)
class _Entry:
    """One entry of the JSON with its texts checked; its files are not opened yet."""

    name: str
    """`entry N`, counted from 0, for messages."""
    category: str
    captions: list[str]
    files: dict[str, str]
    """File names by the keys of _FOLDERS."""

    @property
    def ad(self) -> str:
        """The ad's id: the stem of its file name."""
        return Path(self.files["original_image"]).stem

    def bad(self, field: str, why: str) -> ValueError:
        """The error that names entry, field and file."""
        return ValueError(f"{self.name}: {field}={self.files[field]!r}: {why}")


@dataclass(frozen=True)
class AuthorsAd:
    """One ad of the authors' JSON without its product images."""

    path: Path
    category: str
    captions: list[str]
    mask: Image.Image | None
    """8-bit grey, 0 or 255. None: no entry has the ad's own mask."""


def read_authors_ads(json_path: str | Path, root: str | Path | None = None) -> Iterator[AuthorsAd]:
    """The ads, each once, in the order in which they first appear. Arguments and errors as in `read_authors_json`."""
    json_path = Path(json_path)
    folder = (json_path.parent if root is None else Path(root)).resolve()
    for entries in _entries_of_ads(json_path):
        captions = list(dict.fromkeys(text for entry in entries for text in entry.captions))
        own = next((entry for entry in entries if Path(entry.files["mask_npy"]).stem == entry.ad), None)
        mask = None if own is None else _read_mask(own, folder)
        yield AuthorsAd(_path(entries[0], "original_image", folder), entries[0].category, captions, mask)


def read_authors_json(json_path: str | Path, root: str | Path | None = None) -> Iterator[Triplet]:
    """One triplet per ad, in the order in which the ads first appear.

    root: the folder of `Ad Image/`, `Product Image/` and `mask_npy/`; None: the JSON's folder. Files outside of it are
    refused.
    Raises: ValueError naming the entry (counted from 0), the field and what to do. The texts of all entries are checked
    before the first triplet; the files of an ad are checked when its turn comes.
    """
    json_path = Path(json_path)
    folder = (json_path.parent if root is None else Path(root)).resolve()
    for entries in _entries_of_ads(json_path):
        yield _triplet(entries, folder)


def _entries_of_ads(json_path: Path) -> list[list[_Entry]]:
    """The entries grouped by ad. Raises: ValueError."""
    try:
        content: object = json.loads(json_path.read_bytes())
    except OSError as error:
        raise ValueError(f"{json_path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{json_path}: not JSON: {error}; give the authors' list of entries") from error
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else f"a {type(content).__name__}"
        raise ValueError(f"{json_path}: must be a list of entries, is {found}")
    ads: dict[str, list[_Entry]] = {}
    for index, values in enumerate(content):
        entry = _entry(f"entry {index}", values)
        ads.setdefault(entry.ad, []).append(entry)
    for entries in ads.values():
        first, product_images = entries[0], set()
        for entry in entries:
            if entry.files["original_image"] != first.files["original_image"]:
                why = f"{first.name} has {first.files['original_image']!r}, which gives the same id; rename one ad"
                raise entry.bad("original_image", why)
            if entry.category != first.category:
                why = f"{first.name} of the same ad has {first.category!r}; an ad has one category"
                raise ValueError(f"{entry.name}: image_type={entry.category!r}: {why}")
            if entry.files["mask_image"] in product_images:
                raise entry.bad("mask_image", "an earlier entry has the same file; drop one of them")
            product_images.add(entry.files["mask_image"])
    return list(ads.values())


def _entry(name: str, values: object) -> _Entry:
    if not isinstance(values, dict):
        raise ValueError(f"{name}: must be an object with {', '.join(_KEYS)}, is a {type(values).__name__}")
    for key in _KEYS:
        if key not in values:
            raise ValueError(f"{name}: {key} is missing; add it or drop the entry")
    for key in ("image_type", *_FOLDERS):
        if not isinstance(values[key], str) or not values[key].strip():
            raise ValueError(f"{name}: {key}={values[key]!r}: must be a non-empty text; add it or drop the entry")
    texts = values["image_text"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: image_text={texts!r}: must be a list of captions")
    captions = [text.strip() for text in texts if text.strip()]
    if not captions:
        raise ValueError(f"{name}: image_text={texts!r}: no caption; write one or drop the entry")
    category = values["image_type"].strip()
    return _Entry(name, category[0].upper() + category[1:], captions, {key: values[key] for key in _FOLDERS})


_KEYS = ("image_type", *_FOLDERS, "image_text")


def _triplet(entries: list[_Entry], folder: Path) -> Triplet:
    ad = entries[0].ad
    ad_image = _read_image(entries[0], "original_image", folder)
    size = (ad_image.width, ad_image.height)
    return Triplet(
        row_id=ad,
        product_id=ad,
        category=entries[0].category,
        split=split_of(ad),
        captions=list(dict.fromkeys(text for entry in entries for text in entry.captions)),
        ad_image=np.asarray(ad_image),
        variants=[_variant(entry, folder, size) for entry in entries],
        facts=json.dumps({"product_images": [entry.files["mask_image"] for entry in entries]}),
    )


def _variant(entry: _Entry, folder: Path, size: tuple[int, int]) -> Variant:
    kind = _kind(entry)
    image = _read_image(entry, "mask_image", folder)
    mask = _read_mask(entry, folder)
    if not _same_ratio(image.size, size):
        raise entry.bad("mask_image", f"{_px(image.size)}, but the ad is {_px(size)}; bring it to the ad's ratio")
    if not _same_ratio(mask.size, image.size):
        why = f"{_px(mask.size)}, but the product image is {_px(image.size)}; make it from that image"
        raise entry.bad("mask_npy", why)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    mask_u8 = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    if not mask_u8.any():
        raise entry.bad("mask_npy", "the mask is empty; drop the entry")
    return Variant(kind, np.where(mask_u8[..., None] > 127, np.asarray(image), 255).astype(np.uint8), mask_u8)


def _kind(entry: _Entry) -> str:
    ad = entry.ad
    variant = re.fullmatch(re.escape(ad) + r"_(\d\d)", Path(entry.files["mask_image"]).stem)
    if not variant:
        raise entry.bad("mask_image", f"must be named {ad}_00 to {ad}_99; rename it")
    mask = Path(entry.files["mask_npy"]).stem
    if mask == f"{ad}_gs":
        return "novel_view"
    if mask != ad:
        raise entry.bad("mask_npy", f"must be named {ad}.npy or {ad}_gs.npy; rename it")
    return "original" if variant[1] == "00" else "degraded"


def _same_ratio(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is a multiple of the other, up to rounding to integer pixels."""
    scale = max(size[0] / other[0], size[1] / other[1])
    return all(abs(a - b * scale) <= max(1, scale) for a, b in zip(size, other, strict=True))


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} px"


def _path(entry: _Entry, field: str, folder: Path) -> Path:
    """The absolute path of a field's file. A relative name counts from the field's folder. Raises: ValueError."""
    name = Path(entry.files[field])
    try:
        path = (folder / _FOLDERS[field] / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a loop of symbolic links
        raise entry.bad(field, f"not a file name: {error}") from error
    # The JSON comes from elsewhere: it must not reach files outside of the root, not by links either.
    if ".." in name.parts or not path.is_relative_to(folder):
        raise entry.bad(field, f"leads outside of {folder}; files must lie below --root")
    if not path.is_file():
        raise entry.bad(field, f"no such file: {path}; add it, drop the entry or give another --root")
    return path


def _read_image(entry: _Entry, field: str, folder: Path) -> Image.Image:
    path = _path(entry, field, folder)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise entry.bad(field, f"cannot be decoded: {error}; replace it or drop the entry") from error


def _read_mask(entry: _Entry, folder: Path) -> Image.Image:
    """The mask of an entry as 8-bit grey, 0 or 255.

    The file holds an array H×W or 1×H×W, bool, uint8 or float, of 0…1 or 0…255; it is cut at half of that range.
    Raises: ValueError.
    """
    path = _path(entry, "mask_npy", folder)
    try:
        # Mapped: a file whose header claims more than it holds is refused before memory is reserved for it. No pickles,
        # which would run code.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise entry.bad("mask_npy", f"not a readable .npy array: {error}; save it again") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise entry.bad("mask_npy", "an .npz archive; save its array as .npy")
    shape = array.shape[1:] if array.ndim == 3 and array.shape[0] == 1 else array.shape
    if len(shape) != 2 or 0 in shape:
        raise entry.bad("mask_npy", f"shape {'×'.join(map(str, array.shape))}: must be H×W or 1×H×W")
    if not (array.dtype == bool or array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise entry.bad("mask_npy", f"type {array.dtype}: must be bool, uint8 or float")
    values = np.asarray(array).reshape(shape)
    lowest, highest = values.min(), values.max()
    if not 0 <= lowest <= highest <= 255:  # also refuses NaN, which compares false
        raise entry.bad("mask_npy", f"values from {lowest} to {highest}; must be 0…1 or 0…255")
    half = 0.5 if highest <= 1 else 127.5
    return Image.fromarray(np.where(values > half, 255, 0).astype(np.uint8))


def import_authors_json(
    json_path: str | Path, output: Storage, *, root: str | Path | None = None, rows_per_file: int = 256
) -> Counter[tuple[str, str]]:
    """Writes `triplets-00000.parquet` … and returns the number of rows by category and split.

    `output` holds all rows or none: an error removes the files that were written before it.
    Raises: ValueError as in `read_authors_json`, and where `output` holds parquet files already.
    """
    if rows_per_file < 1:
        raise ValueError(f"--rows-per-file={rows_per_file}: must be 1 or more")
    if any(output.keys(suffix=".parquet")):
        raise ValueError(f"--output {output.uri}: holds .parquet files already; give a new folder")
    counts: Counter[tuple[str, str]] = Counter()

    def counted(triplets: Iterator[Triplet]) -> Iterator[Triplet]:
        for triplet in triplets:
            counts[triplet.category, triplet.split] += 1
            yield triplet

    triplets = counted(read_authors_json(json_path, root))
    written: list[str] = []
    try:
        for first in triplets:
            key = f"triplets-{len(written):05d}.parquet"
            write_triplets(output, key, itertools.chain([first], itertools.islice(triplets, rows_per_file - 1)))
            written.append(key)
    except BaseException:  # Ctrl-C included: a partial data set looks like a complete one
        output.delete(written)
        raise
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="the authors' list of entries")
    parser.add_argument("--output", required=True, help="folder of the triplets, a path or s3://")
    parser.add_argument(
        "--root", type=Path, help="folder of Ad Image/, Product Image/ and mask_npy/; default: the JSON's"
    )
    parser.add_argument("--rows-per-file", type=int, default=256)
    words = parser.parse_args(arguments)
    try:
        output = Storage(words.output)
        counts = import_authors_json(words.json, output, root=words.root, rows_per_file=words.rows_per_file)
    except (ValueError, *STORE_ERRORS) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{'category':20} " + " ".join(f"{split:>8}" for split in SPLITS))
    for category in sorted({category for category, _ in counts}):
        print(f"{category:20} " + " ".join(f"{counts[category, split]:8}" for split in SPLITS))
    print(f"{counts.total()} triplets in {output.uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
