"""Rows of a step as arrays: from the cache, or from the triplets themselves for encoding on the way.

Both sources answer `load(plan, segment, rank, world_size)` with one dictionary of arrays, rows in step order:

    step, position, epoch  int64      row_id  text        noise_seed  int64      timestep  float64 in [0, 1)
    fusion_scale  float32, 0 where the reference is dropped       variant  text
    mask_latents  uint8 n×1×h×w        token_ids  int32 n×tokens
    cached:  latents, reference_latents float16 n×C×h×w; text_states, image_states float16 where they are frozen
    online:  ad_images, product_images uint8 n×H×W×3; masks uint8 n×H×W; clip_pixels float32 with an image encoder
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from refadgen.config.train import ObjectiveConfig, TrainDataConfig
from refadgen.storage.store import Storage
from refadgen.training.cache import Cache
from refadgen.training.plan import Plan, PlannedRow, RowDraw, RowGroup, Segment, draw
from refadgen.triplets import schema as triplets
from refadgen.triplets.geometry import CoverCrop

Arrays = dict[str, np.ndarray]


class RowSource(Protocol):
    """Where a worker's rows come from."""

    @property
    def bytes_per_row(self) -> int: ...

    def groups(self, split: str) -> list[RowGroup]: ...

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays: ...


@dataclass(frozen=True)
class Choices:
    """What decides which of a row's variants, masks and captions a step sees."""

    data: TrainDataConfig
    objective: ObjectiveConfig

    def drops(self, drawn: RowDraw) -> tuple[bool, bool]:
        """Whether image tokens and text are dropped (the authors' three disjoint shares)."""
        image, text, both = (
            self.objective.image_dropout,
            self.objective.text_dropout,
            self.objective.both_dropout,
        )
        drops_both = drawn.dropout < both
        drops_image = both <= drawn.dropout < both + image
        drops_text = both + image <= drawn.dropout < both + image + text
        return drops_both or drops_image, drops_both or drops_text

    def pick(self, kinds: Sequence[str], drawn: RowDraw, row_id: str) -> int:
        """The index of the drawn variant. Raises: ValueError for a row that has none of the wanted kinds."""
        eligible = [index for index, kind in enumerate(kinds) if kind in self.data.variants]
        if not eligible:
            raise ValueError(
                f"row {row_id!r}: variants {sorted(set(kinds))}: none is of data.variants={list(self.data.variants)}"
            )
        return eligible[int(drawn.variant * len(eligible))]


def _common(plan: Plan, choices: Choices, rows: list[PlannedRow], draws: list[RowDraw], ids: list[str]) -> Arrays:
    timesteps = [drawn.timestep for drawn in draws]
    if choices.objective.timesteps == "stratified":
        timesteps = [(row.position + time) / plan.batch_size for row, time in zip(rows, timesteps, strict=True)]
    kept = [drawn.reference_dropout >= choices.objective.reference_dropout for drawn in draws]
    return {
        "step": np.array([row.step for row in rows]),
        "position": np.array([row.position for row in rows]),
        "epoch": np.array([row.epoch for row in rows]),
        "row_id": np.array(ids, dtype=object),
        "noise_seed": np.array([drawn.noise_seed for drawn in draws]),
        "timestep": np.array(timesteps),
        "fusion_scale": np.array(kept, dtype=np.float32),
    }


def _read_groups(storage: Storage, groups: Sequence[RowGroup], rows: list[PlannedRow]) -> list[dict[str, Any]]:
    """The planned rows as plain values, each row group read once."""
    wanted: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        wanted.setdefault(row.group, []).append(number)
    found: list[dict[str, Any]] = [{}] * len(rows)
    by_file: dict[str, list[int]] = {}
    for group in wanted:
        by_file.setdefault(groups[group].key, []).append(group)
    for key, members in by_file.items():
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for group in members:
                numbers = wanted[group]
                table = file.read_row_group(groups[group].index)
                taken = table.take([rows[number].offset for number in numbers]).to_pylist()
                for number, values in zip(numbers, taken, strict=True):
                    found[number] = values
    return found


@dataclass(frozen=True)
class CachedRows:
    """Rows whose latents and embeddings are precomputed."""

    cache: Cache
    choices: Choices

    @property
    def bytes_per_row(self) -> int:
        return self.cache.shapes.bytes_per_row

    def groups(self, split: str) -> list[RowGroup]:
        return self.cache.groups(split)

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays:
        """See the module. Raises: ValueError naming a row, OSError."""
        rows = plan.rows(segment, rank=rank, world_size=world_size)
        stored = _read_groups(Storage(self.cache.uri), plan.groups, rows)
        shapes, constants = self.cache.shapes, self.cache.constants
        halves: dict[str, list[np.ndarray]] = {"latents": [], "reference_latents": []}
        masks, token_ids, kinds, draws = [], [], [], []
        mask_shape = (1, *shapes.latents[1:])
        for row, values in zip(rows, stored, strict=True):
            drawn = draw(plan.seed, row.epoch, values["row_id"])
            draws.append(drawn)
            image_dropped, text_dropped = self.choices.drops(drawn)
            chosen = values["variants"][
                self.choices.pick([each["kind"] for each in values["variants"]], drawn, values["row_id"])
            ]
            caption = values["captions"][int(drawn.caption * len(values["captions"]))]
            kinds.append(chosen["kind"])
            halves["latents"].append(_half(values["latents"], shapes.latents))
            halves["reference_latents"].append(_half(chosen["latents"], shapes.latents))
            mask = values["ad_mask"] if self.choices.data.mask == "ad" and values["ad_mask"] else chosen["mask"]
            masks.append(np.frombuffer(mask, np.uint8).reshape(mask_shape))
            empty = np.array(constants["empty_token_ids"], np.int32)
            token_ids.append(empty if text_dropped else np.frombuffer(caption["token_ids"], np.int32))
            if shapes.text_states is not None:
                states = bytes.fromhex(constants["empty_text_states"]) if text_dropped else caption["text_states"]
                halves.setdefault("text_states", []).append(_half(states, shapes.text_states))
            if shapes.image_states is not None:
                states = bytes.fromhex(constants["zero_image_states"]) if image_dropped else chosen["image_states"]
                halves.setdefault("image_states", []).append(_half(states, shapes.image_states))
        mask_latents = np.stack(masks) if self.choices.data.mask != "none" else np.zeros((len(rows), *mask_shape), "u1")
        return {
            **_common(plan, self.choices, rows, draws, [values["row_id"] for values in stored]),
            **{name: np.stack(arrays) for name, arrays in halves.items()},
            "mask_latents": mask_latents,
            "token_ids": np.stack(token_ids),
            "variant": np.array(kinds, dtype=object),
        }


def _half(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, np.float16).reshape(shape)


@dataclass(frozen=True)
class OnlineRows:
    """Rows of the triplets themselves, decoded and cropped; the worker encodes them."""

    uri: str
    files: dict[str, list[tuple[int, dict[str, tuple[int, ...]]]]]
    """Key → row groups: index, and the offsets of each split's rows."""
    choices: Choices
    tokenize: Callable[[list[str]], np.ndarray]
    clip_pixels: Callable[[np.ndarray], np.ndarray] | None

    @property
    def bytes_per_row(self) -> int:
        return 7 * self.choices.data.width_px * self.choices.data.height_px

    def groups(self, split: str) -> list[RowGroup]:
        return [
            RowGroup(key, index, offsets[split])
            for key, groups in sorted(self.files.items())
            for index, offsets in groups
            if offsets.get(split)
        ]

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays:
        """See the module. Raises: ValueError naming a row, OSError."""
        rows = plan.rows(segment, rank=rank, world_size=world_size)
        storage, _ = triplets.dataset_files(self.uri)
        stored = _read_groups(storage, plan.groups, rows)
        ads, products, masks, texts, kinds, draws, ids, clips = [], [], [], [], [], [], [], []
        data = self.choices.data
        for row, values in zip(rows, stored, strict=True):
            triplet = triplets.decode(values)
            drawn = draw(plan.seed, row.epoch, triplet.row_id)
            draws.append(drawn)
            ids.append(triplet.row_id)
            image_dropped, text_dropped = self.choices.drops(drawn)
            chosen = triplet.variants[self.choices.pick([v.kind for v in triplet.variants], drawn, triplet.row_id)]
            crop = CoverCrop(data.width_px, data.height_px, drawn.crop_left, drawn.crop_top)
            own = next((v.mask for v in triplet.variants if v.kind == "original"), chosen.mask)
            mask = {"variant": chosen.mask, "ad": own, "none": np.zeros_like(chosen.mask)}[data.mask]
            kinds.append(chosen.kind)
            ads.append(crop(triplet.ad_image))
            products.append(crop(chosen.image))
            masks.append(crop(mask))
            texts.append("" if text_dropped else triplet.captions[int(drawn.caption * len(triplet.captions))])
            if self.clip_pixels is not None:
                clip = self.clip_pixels(products[-1][None])[0]
                clips.append(np.zeros_like(clip) if image_dropped else clip)
        arrays = {
            **_common(plan, self.choices, rows, draws, ids),
            "ad_images": np.stack(ads),
            "product_images": np.stack(products),
            "masks": np.stack(masks),
            "token_ids": self.tokenize(texts),
            "variant": np.array(kinds, dtype=object),
        }
        return arrays | ({"clip_pixels": np.stack(clips)} if clips else {})


def online_files(uri: str) -> dict[str, list[tuple[int, dict[str, tuple[int, ...]]]]]:
    """The index that `OnlineRows` needs: reads the split of each row."""
    storage, keys = triplets.dataset_files(uri)
    found: dict[str, list[tuple[int, dict[str, tuple[int, ...]]]]] = {}
    for key in keys:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for index in range(file.num_row_groups):
                splits = file.read_row_group(index, columns=["split"])["split"].to_pylist()
                offsets = {split: tuple(i for i, of in enumerate(splits) if of == split) for split in triplets.SPLITS}
                found.setdefault(key, []).append((index, offsets))
    return found
