"""Encodes a data set once into a cache (see `cache`): Ray Data over its row groups, encoders as actors."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypedDict, TypeVar

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor
from tqdm import tqdm

from refadgen.config import TrainConfig
from refadgen.config.devices import resolve_device, resolve_dtype
from refadgen.model.encoders import Encoders
from refadgen.model.folder import find_model, fingerprint
from refadgen.storage.store import Storage
from refadgen.training.cache import (
    Cache,
    CachedCaption,
    CachedRow,
    CachedVariant,
    CacheShapes,
    Constants,
    SplitRows,
    footer_digest,
    load_cache,
    part_groups,
    split_rows,
    unit_name,
    write_part,
)
from refadgen.training.networks import find_image_encoder, load_parts
from refadgen.training.plan import draw
from refadgen.triplets import schema as triplets
from refadgen.triplets.geometry import CoverCrop
from refadgen.triplets.schema import DatasetScan, Triplet

_SHOWN_ERRORS = 10
Item = TypeVar("Item")
Value = TypeVar("Value")


def recipe_of(config: TrainConfig) -> dict[str, str | int]:
    """Everything besides the source that a cached row depends on: part of the name of each part (see `unit_name`)."""
    folder = find_model(config.model.base, field="model.base")
    names = ["vae", "tokenizer"] + (["text_encoder"] if config.model.trains == "product" else [])
    recipe: dict[str, str | int] = {name: fingerprint(folder if folder.is_file() else folder / name) for name in names}
    encoder = config.model.image_encoder
    if config.model.trains != "text_to_image":
        if encoder is not None:
            recipe["image_encoder"] = fingerprint(find_image_encoder(encoder))
        elif (folder / "image_encoder").is_dir():
            for name in ("image_encoder", "feature_extractor"):
                recipe[name] = fingerprint(folder / name)
    return recipe | {
        "width_px": config.data.width_px,
        "height_px": config.data.height_px,
        "encoding": 2,  # raised where a change of the code moves what is encoded: old parts are encoded anew
        "crop_seed": config.run.seed,  # decides the crop of each row
        "dtype": config.run.dtype,  # the encoders compute in it, and round
    }


class TripletEncoder:
    """Encodes row groups of a data set into parts of the cache.

    INPUT columns: key, group (a row group of the data set), part (the key to write).
    OUTPUT columns: part, groups (JSON, see `cache.SplitRows`; empty where rows were bad), errors (JSON list of texts).
    One row out per row in. A retry encodes the row group again and writes the same bytes.
    """

    def __init__(self, config: TrainConfig, uri: str, cache_uri: str) -> None:
        torch.set_num_threads(config.run.torch_threads or max(1, int(config.run.num_cpus)))
        device = resolve_device("auto", gpu_expected=config.run.num_gpus > 0, field="run.num_gpus")
        dtype = resolve_dtype(config.run.dtype, device, for_training=True)
        self._encoders = load_parts(config).encoders(config, device, dtype).prepared()
        self._config = config
        self._source, _ = triplets.dataset_files(uri)
        self._cache = Storage(cache_uri)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, list[str]] = {"part": [], "groups": [], "errors": []}
        for key, group, part in zip(batch["key"], batch["group"], batch["part"], strict=True):
            errors = self._encode(str(key), int(group), str(part))
            out["part"].append(str(part))
            out["groups"].append("" if errors else json.dumps(part_groups(self._cache, str(part))))
            out["errors"].append(json.dumps(errors))
        return out

    def _encode(self, key: str, group: int, part: str) -> list[str]:
        """Writes the part of one row group, or nothing where rows are bad. Returns: one message for each bad row."""
        with self._source.arrow().open_input_file(self._source.path(key)) as handle:
            stored = pq.ParquetFile(handle).read_row_group(group).to_pylist()
        decoded, errors = [], []
        for row in stored:
            try:
                decoded.append(triplets.decode(row))
            except ValueError as error:
                errors.append(f"{self._source.uri_of(key)}: {error}")
        # All bad rows of a row group are reported at once, but none of it is written: a part is complete or absent.
        if not errors:
            rows: dict[str, list[CachedRow]] = {}
            for triplet, cached in zip(decoded, self._rows(decoded), strict=True):
                rows.setdefault(triplet.split, []).append(cached)
            write_part(self._cache, part, rows)
        return errors

    def _rows(self, decoded: list[Triplet]) -> list[CachedRow]:
        """The cache's rows of some triplets, in their order.

        Each field of all triplets is one flat list, encoded in passes of `data.encode_batch_size`, then split by row.
        """
        data, encoders = self._config.data, self._encoders
        pictures: list[np.ndarray] = []
        products: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        texts: list[str] = []
        for triplet in decoded:
            # A cached row has one crop for all epochs: that of epoch 0.
            drawn = draw(self._config.run.seed, 0, triplet.row_id)
            crop = CoverCrop(data.width_px, data.height_px, drawn.crop_left, drawn.crop_top)
            cropped = [crop(variant.image) for variant in triplet.variants]
            pictures += [crop(triplet.ad_image), *cropped]
            products += cropped
            masks += [crop(variant.mask) for variant in triplet.variants]
            texts += triplet.captions
        num_variants = [len(triplet.variants) for triplet in decoded]
        num_captions = [len(triplet.captions) for triplet in decoded]
        latents = split_by_row(
            "latents",
            self._encoded(pictures, lambda part: encoders.latents(np.stack(part)), np.float16),
            [1 + count for count in num_variants],  # the ad, then its product images
        )
        mask_latents = split_by_row(
            "mask",
            self._encoded(masks, lambda part: encoders.mask_latents(np.stack(part)), np.uint8),
            num_variants,
        )
        token_ids = split_by_row("token_ids", self._encoded(texts, encoders.token_ids, np.int32), num_captions)
        image_states: Sequence[bytes | None] = [None] * len(products)
        if encoders.image_encoder is not None:
            image_states = self._encoded(
                products, lambda part: encoders.image_states(encoders.clip_pixels(np.stack(part))), np.float16
            )
        text_states: Sequence[bytes | None] = [None] * len(texts)
        if encoders.text_encoder is not None:
            text_states = self._encoded(texts, lambda part: encoders.text_states(encoders.token_ids(part)), np.float16)
        return [
            _cached_row(triplet, *values)
            for triplet, *values in zip(
                decoded,
                latents,
                mask_latents,
                split_by_row("image_states", image_states, num_variants),
                token_ids,
                split_by_row("text_states", text_states, num_captions),
                strict=True,
            )
        ]

    def _encoded(self, items: list[Item], encode: Callable[[list[Item]], Tensor], dtype: type) -> list[bytes]:
        """The encoded bytes of each item."""
        size = self._config.data.encode_batch_size
        found: list[bytes] = []
        for start in range(0, len(items), size):
            values = encode(items[start : start + size]).cpu().numpy()
            found += [np.asarray(row, dtype).tobytes() for row in values]
        return found


def split_by_row(field: str, values: Sequence[Value], counts: list[int]) -> list[Sequence[Value]]:
    """Cuts a flat list into one list for each row. counts: of values of each row.

    Raises: RuntimeError naming the field where the encoder gave another number of values, which would otherwise end up
    in the wrong rows.
    """
    if len(values) != sum(counts):
        raise RuntimeError(f"{field}: the encoder gave {len(values)} values for {sum(counts)} items")
    ends = accumulate(counts)
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _cached_row(
    triplet: Triplet,
    latents: Sequence[bytes],
    masks: Sequence[bytes],
    image_states: Sequence[bytes | None],
    token_ids: Sequence[bytes],
    text_states: Sequence[bytes | None],
) -> CachedRow:
    """One row of the cache from its encoded values; `latents`: the ad's, then each variant's."""
    ad, *products = latents
    variants = [
        CachedVariant(*values)
        for values in zip([v.kind for v in triplet.variants], products, masks, image_states, strict=True)
    ]
    captions = [CachedCaption(*values) for values in zip(token_ids, text_states, strict=True)]
    ad_mask = next((variant.mask for variant in variants if variant.kind == "original"), None)
    return CachedRow(triplet.row_id, triplet.product_id, ad, ad_mask, variants, captions)


def constants_of(encoders: Encoders) -> Constants:
    """The encoded empty prompt and zero image: see `Constants`."""
    empty = encoders.token_ids([""])
    constants: Constants = {"empty_token_ids": empty[0].tolist()}

    def hexadecimal(tensor: Tensor) -> str:
        values: np.ndarray = tensor[0].cpu().numpy()
        return values.astype(np.float16).tobytes().hex()

    if encoders.text_encoder is not None:
        constants["empty_text_states"] = hexadecimal(encoders.text_states(empty))
    if encoders.image_encoder is not None:
        size = encoders.image_encoder.config.image_size
        constants["zero_image_states"] = hexadecimal(encoders.image_states(torch.zeros(1, 3, size, size)))
    return constants


def shapes_of(config: TrainConfig, encoders: Encoders) -> CacheShapes:
    """Shapes of a row's arrays, from the encoders' configurations alone."""
    factor = encoders.vae_scale_factor
    channels = encoders.vae.config.latent_channels
    tokens = encoders.tokenizer.model_max_length
    text = (tokens, encoders.text_encoder.config.hidden_size) if encoders.text_encoder is not None else None
    image = None
    if encoders.image_encoder is not None:
        vision = encoders.image_encoder.config
        image = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)  # patches and the class token
    latents = (channels, config.data.height_px // factor, config.data.width_px // factor)
    return CacheShapes(latents, tokens, text, image)


class _Unit(TypedDict):
    """One row group of the source, and its part."""

    key: str
    group: int
    part: str


def precompute(config: TrainConfig, uri: str, cache_uri: str, scanned: DatasetScan, encoders: Encoders) -> Cache:
    """The cache of a data set: found complete, or completed now. Needs Ray.

    encoders: the base's in this process, for shapes and constants; rows are encoded by actors with their own.
    Raises: ValueError naming the rows that cannot be decoded or do not fit together; good row groups stay encoded.
    """
    recipe = recipe_of(config)
    storage, _ = triplets.dataset_files(uri)
    units: list[_Unit] = []
    for file in scanned.files:
        with storage.arrow().open_input_file(storage.path(file.key)) as handle:
            content = footer_digest(handle)
        for group in range(len(file.group_rows)):
            units.append({"key": file.key, "group": group, "part": unit_name(file.key, content, group, recipe)})
    # The word "whole" is hashed: another one would make existing caches look incomplete.
    cache_name = unit_name("whole", "", 0, {"parts": [unit["part"] for unit in units]})
    cache = load_cache(cache_uri)
    if cache is not None and cache.fingerprint == cache_name:
        return dataclasses.replace(cache, uri=cache_uri)
    target = Storage(cache_uri)
    there = set(target.keys(suffix=".parquet"))
    missing = [unit for unit in units if unit["part"] not in there]
    parts = {unit["part"]: part_groups(target, unit["part"]) for unit in units if unit["part"] in there}
    if missing:
        parts |= _encode_missing(config, uri, target.uri, missing)
    in_order = {unit["part"]: parts[unit["part"]] for unit in units}
    cache = Cache(cache_uri, cache_name, shapes_of(config, encoders), in_order, constants_of(encoders))
    cache.save()
    return cache


def _encode_missing(config: TrainConfig, uri: str, cache_uri: str, missing: list[_Unit]) -> dict[str, SplitRows]:
    """Encodes row groups on the cluster. Returns: their parts. Raises: ValueError for bad rows, after all are done."""
    # One block a row group: each is a task of its own, and a lost node repeats only those it had.
    work = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
        TripletEncoder,
        fn_constructor_args=(config, uri, cache_uri),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(config.run.num_workers, len(missing))),
        num_cpus=config.run.num_cpus,
        num_gpus=config.run.num_gpus,
    )
    parts: dict[str, SplitRows] = {}
    errors: list[str] = []
    with tqdm(total=len(missing), unit="row group", desc="encoding", mininterval=1.0) as progress:
        for made in work.iter_rows():
            found = json.loads(made["errors"])
            errors += found
            if not found:
                parts[made["part"]] = split_rows(json.loads(made["groups"]))
            progress.update(1)
    if errors:
        more = f"\n… and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise ValueError(
            f"data.path: {len(errors)} rows are bad; correct or remove them:\n"
            + "\n".join(errors[:_SHOWN_ERRORS])
            + more
        )
    return parts
