"""Rows of a step as arrays: from the cache, or from the triplets themselves, which the worker then encodes.

Both sources answer `load(plan, segment, rank, world_size)` with one dictionary of arrays, rows in step order:

    step, position, epoch  int64      row_id  text        noise_seed  int64      timestep  float64 in [0, 1)
    fusion_scale  float32, 0 where the reference is dropped       variant  text
    token_ids  int32 n×tokens
    cached:  latents, reference_latents float16 n×C×h×w; mask_latents uint8 n×1×h×w;
             text_states, image_states float16 n×…, where they are frozen
    online:  ad_images, product_images uint8 n×H×W×3; masks uint8 n×H×W; clip_pixels float32 with an image encoder
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from refadgen.storage.store import Storage
from refadgen.training.cache import Cache, row_of
from refadgen.training.choices import RowChoices, RowChooser
from refadgen.training.plan import Plan, PlannedRow, RowGroup, Segment
from refadgen.triplets import schema as triplets
from refadgen.triplets.geometry import CoverCrop

Arrays = dict[str, np.ndarray]


class RowSource(Protocol):
    """Where a worker's rows come from."""

    @property
    def bytes_per_row(self) -> int:
        """Size of one row's arrays, for blocks of a bounded size."""

    def groups(self, split: str) -> list[RowGroup]:
        """The row groups that hold rows of a split, in a fixed order."""

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays:
        """One worker's rows of a segment, see the module. Raises: ValueError naming a row, OSError."""


def _arrays_of(choices: list[RowChoices]) -> Arrays:
    """The columns that both sources share."""
    return {
        "step": np.array([each.planned.step for each in choices]),
        "position": np.array([each.planned.position for each in choices]),
        "epoch": np.array([each.planned.epoch for each in choices]),
        "row_id": np.array([each.row_id for each in choices], dtype=object),
        "noise_seed": np.array([each.drawn.noise_seed for each in choices]),
        "timestep": np.array([each.timestep for each in choices]),
        "fusion_scale": np.array([each.fusion_scale for each in choices], dtype=np.float32),
        "variant": np.array([each.kind for each in choices], dtype=object),
    }


def _read_groups(storage: Storage, groups: Sequence[RowGroup], rows: list[PlannedRow]) -> list[Any]:
    """The planned rows as mappings of the file's own schema, in the plan's order. Each row group is read once."""
    numbers_of_group: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        numbers_of_group.setdefault(row.group, []).append(number)
    groups_of_file: dict[str, list[int]] = {}
    for group in numbers_of_group:
        groups_of_file.setdefault(groups[group].key, []).append(group)
    found: list[Any] = [None] * len(rows)
    for key, members in groups_of_file.items():
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for group in members:
                numbers = numbers_of_group[group]
                # Parquet cannot read single rows: `take` drops the others after the read.
                table = file.read_row_group(groups[group].index)
                taken = table.take([rows[number].offset for number in numbers]).to_pylist()
                for number, values in zip(numbers, taken, strict=True):
                    found[number] = values
    return found


@dataclass(frozen=True)
class CachedRows:
    """Rows whose latents and embeddings are precomputed."""

    cache: Cache
    chooser: RowChooser

    @property
    def bytes_per_row(self) -> int:
        return self.cache.shapes.bytes_per_row

    def groups(self, split: str) -> list[RowGroup]:
        return self.cache.groups(split)

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays:
        """See the module. Raises: ValueError naming a row, OSError."""
        planned = plan.rows(segment, rank=rank, world_size=world_size)
        stored = _read_groups(Storage(self.cache.uri), plan.groups, planned)
        shapes, constants = self.cache.shapes, self.cache.constants
        empty_token_ids = np.array(constants["empty_token_ids"], np.int32)
        no_mask = np.zeros((1, *shapes.latents[1:]), np.uint8)
        halves: dict[str, list[np.ndarray]] = {"latents": [], "reference_latents": []}
        masks, token_ids, choices = [], [], []
        for place, values in zip(planned, stored, strict=True):
            row = row_of(values)
            kinds = [variant.kind for variant in row.variants]
            chosen = self.chooser.choose(plan, place, row_id=row.row_id, kinds=kinds, num_captions=len(row.captions))
            choices.append(chosen)
            variant = row.variants[chosen.variant]
            caption = None if chosen.caption is None else row.captions[chosen.caption]
            halves["latents"].append(_half(row.latents, shapes.latents))
            halves["reference_latents"].append(_half(variant.latents, shapes.latents))
            token_ids.append(empty_token_ids if caption is None else np.frombuffer(caption.token_ids, np.int32))
            if chosen.mask is None:
                masks.append(no_mask)
            else:
                masks.append(np.frombuffer(row.variants[chosen.mask].mask, np.uint8).reshape(no_mask.shape))
            if shapes.text_states is not None:
                states = bytes.fromhex(constants["empty_text_states"]) if caption is None else caption.text_states
                halves.setdefault("text_states", []).append(_half(states, shapes.text_states))
            if shapes.image_states is not None:
                dropped = chosen.image_dropped
                states = bytes.fromhex(constants["zero_image_states"]) if dropped else variant.image_states
                halves.setdefault("image_states", []).append(_half(states, shapes.image_states))
        return {
            **_arrays_of(choices),
            **{name: np.stack(arrays) for name, arrays in halves.items()},
            "mask_latents": np.stack(masks),
            "token_ids": np.stack(token_ids),
        }


def _half(data: bytes | None, shape: tuple[int, ...]) -> np.ndarray:
    """float16 of a shape from its bytes."""
    assert data is not None, "the cache's shapes name a field that its rows leave null"
    return np.frombuffer(data, np.float16).reshape(shape)


FileGroups = dict[str, list[tuple[int, dict[str, tuple[int, ...]]]]]
"""Key of a file → its row groups: the index of each, and the offsets of the rows of each split."""


@dataclass(frozen=True)
class OnlineRows:
    """Rows of the triplets themselves, decoded and cropped; the worker encodes them."""

    uri: str
    files: FileGroups
    chooser: RowChooser
    tokenize: Callable[[list[str]], np.ndarray]
    """Captions to padded token ids, int32 n×tokens."""
    clip_pixels: Callable[[np.ndarray], np.ndarray] | None
    """Images uint8 n×H×W×3 to the image encoder's input; None: there is no image encoder."""

    @property
    def bytes_per_row(self) -> int:
        # Two pictures of three channels and one mask; token ids are few beside them.
        return 7 * self.chooser.data.width_px * self.chooser.data.height_px

    def groups(self, split: str) -> list[RowGroup]:
        return [
            RowGroup(key, index, offsets[split])
            for key, groups in sorted(self.files.items())
            for index, offsets in groups
            if offsets.get(split)
        ]

    def load(self, plan: Plan, segment: Segment, *, rank: int, world_size: int) -> Arrays:
        """See the module. Raises: ValueError naming a row, OSError."""
        planned = plan.rows(segment, rank=rank, world_size=world_size)
        storage, _ = triplets.dataset_files(self.uri)
        stored = _read_groups(storage, plan.groups, planned)
        ads, products, masks, texts, clips, choices = [], [], [], [], [], []
        data = self.chooser.data
        for place, values in zip(planned, stored, strict=True):
            triplet = triplets.decode(values)
            kinds = [variant.kind for variant in triplet.variants]
            chosen = self.chooser.choose(
                plan, place, row_id=triplet.row_id, kinds=kinds, num_captions=len(triplet.captions)
            )
            choices.append(chosen)
            drawn, zoomed = chosen.drawn, data.crop == "random"
            crop = CoverCrop(data.width_px, data.height_px, drawn.crop_left, drawn.crop_top, zoomed)
            variant = triplet.variants[chosen.variant]
            mask = np.zeros_like(variant.mask) if chosen.mask is None else triplet.variants[chosen.mask].mask
            ads.append(crop(triplet.ad_image))
            products.append(crop(variant.image))
            masks.append(crop(mask))
            texts.append("" if chosen.caption is None else triplet.captions[chosen.caption])
            if self.clip_pixels is not None:
                clip = self.clip_pixels(products[-1][None])[0]
                # Zeros after normalisation, as the cache's `zero_image_states`.
                clips.append(np.zeros_like(clip) if chosen.image_dropped else clip)
        arrays = {
            **_arrays_of(choices),
            "ad_images": np.stack(ads),
            "product_images": np.stack(products),
            "masks": np.stack(masks),
            "token_ids": self.tokenize(texts),
        }
        return arrays | ({"clip_pixels": np.stack(clips)} if clips else {})


def online_files(uri: str) -> FileGroups:
    """The index that `OnlineRows` needs. Reads one column, the split of each row."""
    storage, keys = triplets.dataset_files(uri)
    found: FileGroups = {}
    for key in keys:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for index in range(file.num_row_groups):
                splits = file.read_row_group(index, columns=["split"])["split"].to_pylist()
                offsets = {split: tuple(i for i, of in enumerate(splits) if of == split) for split in triplets.SPLITS}
                found.setdefault(key, []).append((index, offsets))
    return found
