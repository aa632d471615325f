"""Encodes a data set once into a cache (see `cache`): Ray Data over its row groups, encoders as actors."""

import dataclasses
import json
from typing import Any

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
from refadgen.training.cache import Cache, CacheShapes, footer_digest, load_cache, part_groups, unit_name, write_part
from refadgen.training.networks import load_parts
from refadgen.training.plan import draw
from refadgen.triplets import schema as triplets
from refadgen.triplets.geometry import CoverCrop
from refadgen.triplets.schema import DatasetScan, Triplet

_SHOWN_ERRORS = 10


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """Everything besides the source that a cached row depends on."""
    folder = find_model(config.model.base, field="model.base")
    names = ["vae", "tokenizer"] + (["text_encoder"] if config.model.trains == "product" else [])
    recipe: dict[str, Any] = {name: fingerprint(folder / name) for name in names}
    encoder = config.model.image_encoder
    if config.model.trains != "text_to_image":
        if encoder is not None:
            recipe["image_encoder"] = fingerprint(find_model(encoder, field="model.image_encoder"))
        elif (folder / "image_encoder").is_dir():
            for name in ("image_encoder", "feature_extractor"):
                recipe[name] = fingerprint(folder / name)
    return recipe | {
        "width_px": config.data.width_px,
        "height_px": config.data.height_px,
        "crop_seed": config.run.seed,
        "dtype": config.run.dtype,
    }


class TripletEncoder:
    """INPUT columns: key, group, part: a row group of the data set and where it goes. OUTPUT: part, groups (JSON; empty
    where rows were bad), errors (JSON list). One row in, one row out; a retry encodes the row group again.
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
        out: dict[str, list[Any]] = {"part": [], "groups": [], "errors": []}
        for key, group, part in zip(batch["key"], batch["group"], batch["part"], strict=True):
            errors = self._encode(str(key), int(group), str(part))
            out["part"].append(str(part))
            out["groups"].append("" if errors else json.dumps(part_groups(self._cache, str(part))))
            out["errors"].append(json.dumps(errors))
        return out

    def _encode(self, key: str, group: int, part: str) -> list[str]:
        with self._source.arrow().open_input_file(self._source.path(key)) as handle:
            stored = pq.ParquetFile(handle).read_row_group(group).to_pylist()
        decoded, errors = [], []
        for row in stored:
            try:
                decoded.append(triplets.decode(row))
            except ValueError as error:
                errors.append(f"{self._source.uri_of(key)}: {error}")
        if not errors:
            rows: dict[str, list[dict[str, Any]]] = {}
            for triplet, values in zip(decoded, self._rows(decoded), strict=True):
                rows.setdefault(triplet.split, []).append(values)
            write_part(self._cache, part, rows)
        return errors

    def _rows(self, decoded: list[Triplet]) -> list[dict[str, Any]]:
        """The cache's rows of some triplets."""
        data, size = self._config.data, self._config.data.encode_batch_size
        crops = []
        for triplet in decoded:
            drawn = draw(self._config.run.seed, 0, triplet.row_id)
            crops.append(CoverCrop(data.width_px, data.height_px, drawn.crop_left, drawn.crop_top))
        images, masks, texts = [], [], []
        for triplet, crop in zip(decoded, crops, strict=True):
            images += [crop(triplet.ad_image), *(crop(variant.image) for variant in triplet.variants)]
            masks += [crop(variant.mask) for variant in triplet.variants]
            texts += triplet.captions

        def encoded(items: list[Any], encode: Any, dtype: type) -> list[bytes]:
            found = []
            for start in range(0, len(items), size):
                tensor: Tensor = encode(items[start : start + size])
                found += [np.asarray(row, dtype).tobytes() for row in tensor.cpu().numpy()]
            return found

        latents = iter(encoded(images, lambda part: self._encoders.latents(np.stack(part)), np.float16))
        mask_latents = iter(encoded(masks, lambda part: self._encoders.mask_latents(np.stack(part)), np.uint8))
        token_ids = iter(encoded(texts, self._encoders.token_ids, np.int32))
        text_states = iter(encoded(texts, self._text_states, np.float16)) if self._encoders.text_encoder else None
        image_states = None
        if self._encoders.image_encoder is not None:
            products = [crop(variant.image) for t, crop in zip(decoded, crops, strict=True) for variant in t.variants]
            image_states = iter(encoded(products, self._image_states, np.float16))
        rows = []
        for triplet in decoded:
            ad = next(latents)
            variants = [
                {
                    "kind": variant.kind,
                    "latents": next(latents),
                    "mask": next(mask_latents),
                    "image_states": next(image_states) if image_states else None,
                }
                for variant in triplet.variants
            ]
            captions = [
                {"token_ids": next(token_ids), "text_states": next(text_states) if text_states else None}
                for _ in triplet.captions
            ]
            own = next((each["mask"] for each in variants if each["kind"] == "original"), None)
            rows.append(
                {
                    "row_id": triplet.row_id,
                    "product_id": triplet.product_id,
                    "latents": ad,
                    "ad_mask": own,
                    "variants": variants,
                    "captions": captions,
                }
            )
        return rows

    def _text_states(self, texts: list[str]) -> Tensor:
        return self._encoders.text_states(self._encoders.token_ids(texts))

    def _image_states(self, images: list[np.ndarray]) -> Tensor:
        return self._encoders.image_states(self._encoders.clip_pixels(np.stack(images)))


def constants_of(encoders: Encoders) -> dict[str, Any]:
    """What stands for a dropped caption or product image: plain values for `cache.json`."""
    empty = encoders.token_ids([""])
    constants: dict[str, Any] = {"empty_token_ids": empty[0].tolist()}

    def hexadecimal(tensor: Tensor) -> str:
        return tensor[0].cpu().numpy().astype(np.float16).tobytes().hex()

    if encoders.text_encoder is not None:
        constants["empty_text_states"] = hexadecimal(encoders.text_states(empty))
    if encoders.image_encoder is not None:
        size = encoders.image_encoder.config.image_size
        constants["zero_image_states"] = hexadecimal(encoders.image_states(torch.zeros(1, 3, size, size)))
    return constants


def shapes_of(config: TrainConfig, encoders: Encoders) -> CacheShapes:
    """Shapes of a row's arrays."""
    factor = encoders.vae_scale_factor
    channels = encoders.vae.config.latent_channels
    tokens = encoders.tokenizer.model_max_length
    text = (tokens, encoders.text_encoder.config.hidden_size) if encoders.text_encoder is not None else None
    image = None
    if encoders.image_encoder is not None:
        vision = encoders.image_encoder.config
        image = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
    latents = (channels, config.data.height_px // factor, config.data.width_px // factor)
    return CacheShapes(latents, tokens, text, image)


def precompute(config: TrainConfig, uri: str, cache_uri: str, scanned: DatasetScan) -> Cache:
    """The cache of a data set: found complete, or completed now. Needs Ray.

    Raises: ValueError naming the rows that cannot be decoded or do not fit together; good row groups stay encoded.
    """
    recipe = recipe_of(config)
    storage, _ = triplets.dataset_files(uri)
    units = []
    for file in scanned.files:
        with storage.arrow().open_input_file(storage.path(file.key)) as handle:
            content = footer_digest(handle)
        for group in range(len(file.group_rows)):
            units.append({"key": file.key, "group": group, "part": unit_name(file.key, content, group, recipe)})
    whole = unit_name("whole", "", 0, {"parts": [unit["part"] for unit in units]})
    cache = load_cache(cache_uri)
    if cache is not None and cache.fingerprint == whole:
        return dataclasses.replace(cache, uri=cache_uri)
    target = Storage(cache_uri)
    there = set(target.keys(suffix=".parquet"))
    missing = [unit for unit in units if unit["part"] not in there]
    parts = {unit["part"]: part_groups(target, unit["part"]) for unit in units if unit["part"] in there}
    errors: list[str] = []
    if missing:
        work = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            TripletEncoder,
            fn_constructor_args=(config, uri, target.uri),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(config.run.num_workers, len(missing))),
            num_cpus=config.run.num_cpus,
            num_gpus=config.run.num_gpus,
        )
        with tqdm(total=len(missing), unit="row group", desc="encoding", mininterval=1.0) as progress:
            for made in work.iter_rows():
                found = json.loads(made["errors"])
                errors += found
                if not found:
                    parts[made["part"]] = json.loads(made["groups"])
                progress.update(1)
    if errors:
        more = f"\n… and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise ValueError(
            f"data.path: {len(errors)} rows are bad; mend or remove them:\n" + "\n".join(errors[:_SHOWN_ERRORS]) + more
        )
    encoders = load_parts(config).encoders(config, torch.device("cpu"), torch.float32).prepared()
    in_order = {unit["part"]: parts[unit["part"]] for unit in units}
    cache = Cache(cache_uri, whole, shapes_of(config, encoders), in_order, constants_of(encoders))
    cache.save()
    return cache
