"""The stages of the dataset job, as Ray actors. Rows in, rows out, one for one.

First pass: `AdScreener`. Second: `AdFetcher`, `ProductExtractor`, `AdDescriber`, `TripletBuilder`. Between stages
travel encoded bytes and small columns. A stage never raises for a row: what is wrong with it goes into its `error`
column, and later stages pass it on. A retried task repeats a stage's work on the same rows, without effect outside.
"""

import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.batch.stage_rows import error_json, guarded, to_table
from refadgen.catalog.categories import last_element
from refadgen.catalog.fetch import ImageFetcher
from refadgen.catalog.images import decode_image, decode_mask, encode_png
from refadgen.config import DatasetConfig
from refadgen.dataset import ledgers
from refadgen.dataset.files import triplets_key
from refadgen.dataset.near_duplicates import perceptual_hash, thumbnail
from refadgen.dataset.planning import PLAN_SCHEMA
from refadgen.errors import RowError
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage
from refadgen.triplets.schema import SCHEMA as TRIPLET_SCHEMA
from refadgen.triplets.schema import Triplet, encode, original_variant, split_of, write_rows

_THREADS = 8
"""Of one fetching actor: enough to hide latency, and a bound on how many ads are decoded at once."""
_DONE_WITH = ("image_bytes", "mask", "mask_bytes")
FETCH_SCHEMA = pa.schema(
    [
        *(item for item in PLAN_SCHEMA if item.name not in _DONE_WITH),
        ("ad", pa.binary()),  # PNG, RGB, upright, at most triplet.max_side_px; empty after an error
        ("own_mask", pa.binary()),  # PNG, L, the ad's size; empty: none
        ("input_sha256", pa.string()),
        ("width_px", pa.int32()),  # as fetched
        ("height_px", pa.int32()),
        ("fetch_s", pa.float32()),
    ]
)
EXTRACT_SCHEMA = pa.schema(
    [
        *(item for item in FETCH_SCHEMA if item.name != "own_mask"),
        ("product_mask", pa.binary()),  # PNG, L, 0 or 255, the ad's size
        ("mask_source", pa.string()),
        ("mask_score", pa.float32()),
        ("mask_area", pa.float32()),
        ("extract_s", pa.float32()),
    ]
)
DESCRIBE_SCHEMA = pa.schema(
    [
        *(item for item in EXTRACT_SCHEMA if item.name not in ("title", "own_captions")),
        ("captions", pa.list_(pa.string())),
        ("describe_s", pa.float32()),
    ]
)


class AdScreener:
    """Fetches and decodes an ad, looks at its size, and takes the marks that near-duplicates are found by.

    INPUT: PLAN_SCHEMA. OUTPUT: ledgers.SCREENING_SCHEMA. Reads the network; needs no GPU.
    """

    def __init__(self, config: DatasetConfig, catalog_uri: str, run_id: str) -> None:
        cv2.setNumThreads(1)
        self._config = config
        self._run_id = run_id
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(list(self._threads.map(self._row, table.to_pylist())), ledgers.SCREENING_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        seen = {} if row["error"] else guarded(self._screen, row)
        return ledger_row(row, seen, self._run_id) | {"screen_s": time.monotonic() - started}

    def _screen(self, row: dict[str, Any]) -> dict[str, Any]:
        data = self._fetcher.fetch(row["image"] or row["image_bytes"])
        ad_u8 = as_rgb(decode_image(data, self._config.fetch))
        height, width = ad_u8.shape[:2]
        small = fitted(ad_u8, 256)
        seen = {
            "input_sha256": hashlib.sha256(data).hexdigest(),
            "width_px": width,
            "height_px": height,
            "perceptual_hash": perceptual_hash(small),
            "thumbnail": thumbnail(small),
        }
        problem = self._problem(width, height)
        return seen | ({"error": error_json(problem)} if problem else {})

    def _problem(self, width: int, height: int) -> RowError | None:
        rules = self._config.filter
        shorter, longer = min(width, height), max(width, height)
        if shorter < rules.min_side_px:
            detail = f"{width}×{height} px: the shorter side is below {rules.min_side_px} px (filter.min_side_px)"
            return RowError("low_resolution", detail)
        if longer > rules.max_aspect * shorter:
            detail = f"{width}×{height} px: is longer than {rules.max_aspect:g} to 1 (filter.max_aspect)"
            return RowError("extreme_shape", detail)
        return None


class AdFetcher:
    """Fetches and decodes an ad that passed the first pass, and its own mask where it has one.

    INPUT: PLAN_SCHEMA. OUTPUT: FETCH_SCHEMA. Reads the network; needs no GPU.
    """

    def __init__(self, config: DatasetConfig, catalog_uri: str) -> None:
        cv2.setNumThreads(1)
        self._config = config
        self._fetcher = ImageFetcher(config.fetch, catalog_uri)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(list(self._threads.map(self._row, table.to_pylist())), FETCH_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        fetched: dict[str, Any] = {"ad": b"", "own_mask": b""}
        if not row["error"]:
            fetched |= guarded(self._fetch, row)
        return {**row, **fetched, "fetch_s": time.monotonic() - started}

    def _fetch(self, row: dict[str, Any]) -> dict[str, Any]:
        data = self._fetcher.fetch(row["image"] or row["image_bytes"])
        photo = decode_image(data, self._config.fetch)
        max_side_px = self._config.triplet.max_side_px
        own_mask = b""
        if row["mask"] or row["mask_bytes"]:
            mask_data = self._fetcher.fetch(row["mask"] or row["mask_bytes"], field="mask")
            own_mask = encode_png(fitted(decode_mask(mask_data, self._config.fetch, photo.size), max_side_px))
        return {
            "ad": encode_png(fitted(as_rgb(photo), max_side_px)),
            "own_mask": own_mask,
            "input_sha256": hashlib.sha256(data).hexdigest(),
            "width_px": photo.width,
            "height_px": photo.height,
        }


class ProductExtractor:
    """Finds the product's mask in the ad, and refuses ads whose content nobody should learn from.

    INPUT: FETCH_SCHEMA. OUTPUT: EXTRACT_SCHEMA. A GPU only for Grounding DINO, SAM2 and the classifier.
    """

    def __init__(self, config: DatasetConfig) -> None:
        cv2.setNumThreads(1)
        from refadgen.dataset.content import ContentFilter
        from refadgen.segmentation import ProductMasker

        gpu_expected = config.stages.extract.num_gpus > 0
        self._masker = ProductMasker(config.segmentation, gpu_expected=gpu_expected)
        self._content = ContentFilter(
            config.filter, self._masker.networks, config.segmentation.device, gpu_expected=gpu_expected
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([self._row(row) for row in table.to_pylist()], EXTRACT_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        found: dict[str, Any] = {"product_mask": b"", "mask_source": ""}
        if not row["error"]:
            found |= guarded(self._extract, row)
        return {**row, **found, "extract_s": time.monotonic() - started}

    def _extract(self, row: dict[str, Any]) -> dict[str, Any]:
        ad = Image.open(io.BytesIO(row["ad"]))
        own_mask = pixels(row["own_mask"]) if row["own_mask"] else None
        name = last_element(row["category"])
        found = self._masker.segment(ad, name, own_mask)
        self._content.check(np.asarray(ad), found.mask, name)
        return {
            "product_mask": encode_png(found.mask),
            "mask_source": found.source,
            "mask_score": found.score,
            "mask_area": found.measurements.area,
        }


class AdDescriber:
    """Writes the captions of an ad.

    INPUT: EXTRACT_SCHEMA. OUTPUT: DESCRIBE_SCHEMA. A GPU where `caption.model` is set.
    """

    def __init__(self, config: DatasetConfig) -> None:
        from refadgen.dataset.captions import make_captioner

        self._config = config.caption
        self._captioner = make_captioner(config.caption, gpu_expected=bool(config.stages.describe.num_gpus))

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        good = [row for row in rows if not row["error"]]
        started = time.monotonic()
        described = self._describe(good)
        seconds = (time.monotonic() - started) / max(1, len(good))
        for row, found in zip(good, described, strict=True):
            row |= {**found, "describe_s": seconds}
        return to_table(rows, DESCRIBE_SCHEMA)

    def _describe(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from refadgen.dataset.captions import Ad, check_captions

        ads = [
            Ad(
                image_u8=pixels(row["ad"]),
                mask=pixels(row["product_mask"]),
                category=row["category"],
                title=row["title"],
                captions=tuple(row["own_captions"]),
            )
            for row in rows
        ]
        try:
            texts = self._captioner.describe(ads)
        except Exception as error:  # of a whole batch: another run may have the memory
            detail = f"the captioner failed ({type(error).__name__}: {str(error)[:200]})"
            return [{"error": error_json(RowError("caption_failed", detail))} for _ in rows]
        return [
            guarded(lambda row: {"captions": check_captions(row["texts"], self._config)}, {"texts": each, **row})
            for each, row in zip(texts, rows, strict=True)
        ]


class TripletBuilder:
    """Makes the product images of an ad, writes the triplets of a batch to one file a split, and the ledger rows.

    INPUT: DESCRIBE_SCHEMA. OUTPUT: ledgers.SCHEMA. A file's name derives from its rows: a retried task writes the same
    bytes to the same place.
    """

    def __init__(self, config: DatasetConfig, output_uri: str, run_id: str) -> None:
        cv2.setNumThreads(1)
        from refadgen.dataset.variants import VariantMaker

        self._config = config.triplet
        self._storage = Storage(output_uri)
        self._run_id = run_id
        self._maker = VariantMaker(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self._row(row) for row in table.to_pylist()]
        for split in ("train", "test"):
            built = [row for row in rows if row["status"] == "done" and row["split"] == split]
            if not built:
                continue
            key = triplets_key(split, [row["row_id"] for row in built])
            try:
                encoded = pa.Table.from_pylist([row["triplet"] for row in built], schema=TRIPLET_SCHEMA)
                write_rows(self._storage, key, encoded)
                facts: dict[str, Any] = {"file": key}
            except Exception as error:  # storage raises many kinds; the triplets can be made and written again
                detail = f"{type(error).__name__}: {error}"[:300]
                facts = {"status": "failed", "reason": "publish_failed", "detail": detail, "split": ""}
            for row in built:
                row |= facts
        return to_table(rows, ledgers.SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        built = {} if row["error"] else guarded(self._build, row)
        return ledger_row(row, built, self._run_id) | {"augment_s": time.monotonic() - started}

    def _build(self, row: dict[str, Any]) -> dict[str, Any]:
        ad_u8, mask = pixels(row["ad"]), pixels(row["product_mask"])
        original = original_variant(ad_u8, mask)
        variants, views = self._maker.make(original, row["row_id"])
        split = split_of(row["group"], self._config.test_percent)
        triplet = Triplet(
            row_id=row["row_id"],
            product_id=row["group"],
            category=row["category"] or "",
            split=split,
            captions=row["captions"],
            ad_image=ad_u8,
            variants=variants,
            facts=json.dumps({"ad_id": row["ad_id"], "input_sha256": row["input_sha256"], "views": views}),
        )
        return {
            "triplet": encode(triplet),
            "split": split,
            "variants": ", ".join(each.kind for each in variants),
            "views": json.dumps(views),
        }


def ledger_row(row: dict[str, Any], made: dict[str, Any], run_id: str) -> dict[str, Any]:
    """The ledger's row of a planned ad: done, or what its or the stage's error says. made: what the stage adds."""
    problem = row["error"] or made.get("error", "")
    return {
        "file": "",
        "split": "",
        **row,
        **made,
        "run_id": run_id,
        "image": redact_address(row["image"]) if row["image"] else "",
        "status": "done",
        "reason": "",
        "detail": "",
        **(json.loads(problem) if problem else {}),
    }


def as_rgb(image: Image.Image) -> np.ndarray:
    """uint8 H×W×3; what is transparent lies on white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def fitted(pixels_u8: np.ndarray, max_side_px: int) -> np.ndarray:
    """uint8 H×W or H×W×3, made smaller where its longer side is above `max_side_px`. Masks keep their values."""
    height, width = pixels_u8.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return pixels_u8
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_NEAREST if pixels_u8.ndim == 2 else cv2.INTER_AREA
    return cv2.resize(pixels_u8, size, interpolation=interpolation)


def pixels(data: bytes) -> np.ndarray:
    """What `encode_png` was given."""
    return np.asarray(Image.open(io.BytesIO(data)))
