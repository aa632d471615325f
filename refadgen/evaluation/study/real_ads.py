"""Real ads for G2R: a folder of photographs, or the ads of triplets that no model saw."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from refadgen.evaluation.fid import ads_of_test_split
from refadgen.storage.store import STORE_ERRORS, Storage
from refadgen.triplets import schema

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PICTURE_ERRORS = (*STORE_ERRORS, ValueError, SyntaxError, Image.DecompressionBombError)
"""Raised where a picture is missing or does not decode; Pillow has many."""


@dataclass(frozen=True)
class RealAd:
    """Where a real ad lies. row_group, row: its place in a file of triplets; None: the file is the picture."""

    folder: str
    key: str
    row_group: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class RealAds:
    """The real ads of a study."""

    ads: list[RealAd]
    too_small: int
    """Left out, since enlarged ones would be told by their blur."""


def find_real_ads(uri: str, sizes: Sequence[tuple[int, int]], seed: int) -> RealAds:
    """A random choice of the real ads at `uri`, one for each (width, height) in px that it must cover.

    Raises: ValueError where there is none, or one does not decode.
    """
    candidates = list(_candidates(uri))
    order = np.random.default_rng(seed).permutation(len(candidates)).tolist()
    ads: list[RealAd] = []
    too_small = 0
    for place in order:
        if len(ads) == len(sizes):
            break
        ad = candidates[place]
        try:
            size = open_picture(ad.folder, ad.key, ad.row_group, ad.row).size
        except PICTURE_ERRORS as error:
            raise ValueError(f"--real {uri}: {ad.key}: not a picture ({error}); leave it out") from error
        width, height = sizes[len(ads)]
        if size[0] < width or size[1] < height:
            too_small += 1
        else:
            ads.append(ad)
    if not ads:
        width, height = sizes[0]
        raise ValueError(
            f"--real {uri}: none of its {len(candidates)} pictures covers {width}×{height} px, the size of the "
            "generated ones; give larger photographs"
        )
    return RealAds(ads, too_small)


def _candidates(uri: str) -> Iterator[RealAd]:
    """The real ads at `uri`, in a fixed order. Raises: ValueError where there is none."""
    storage = Storage(uri)
    if storage.root_kind(f"--real {uri}") is None:
        raise ValueError(f"--real {uri}: does not exist; give a folder of photographs, or triplets")
    keys = [key for key in storage.keys("") if key.lower().endswith(_SUFFIXES)] if storage.is_folder() else []
    if keys:
        yield from (RealAd(storage.uri, key) for key in keys)
        return
    if storage.is_folder() and not any(storage.keys(suffix=".parquet")):
        raise ValueError(
            f"--real {uri}: holds neither photographs ({', '.join(_SUFFIXES)}) nor triplets (.parquet); give real ads"
        )
    for key, group, rows in ads_of_test_split(uri, "--real"):
        yield from (RealAd(uri, key, group, row) for row in rows)


def open_picture(folder: str, key: str, row_group: int | None, row: int | None) -> Image.Image:
    """A picture, turned as its EXIF says. Raises: one of PICTURE_ERRORS."""
    if row_group is None or row is None:
        data = Storage(folder).read(key)
    else:
        storage, _ = schema.dataset_files(folder)
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            data = pq.ParquetFile(handle).read_row_group(row_group, columns=["ad_image"])["ad_image"][row].as_py()
    image: Image.Image = Image.open(io.BytesIO(data or b""))
    image.load()
    return ImageOps.exif_transpose(image)
