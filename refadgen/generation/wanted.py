"""Wanted images: the images that a catalogue row asks for, with ids and seeds known before anything is fetched."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refadgen.catalog.layout import merged_layout
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import Scenes
from refadgen.config import GenerateConfig
from refadgen.config.identity import layout_identity, pixel_identity
from refadgen.storage.addresses import image_identity


@dataclass(frozen=True, kw_only=True)
class WantedImage:
    """One image that should exist: (sku, scene, variant). `image_id` names its file and its ledger rows."""

    image_id: str
    scene: str
    variant: int
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """The settings and the model that decide pixels, for the ids of all rows. Made once, by `pixel_settings`."""

    values: Mapping[str, Any]

    def digest(self, row_values: Mapping[str, Any]) -> str:
        """32 hexadecimal digits of SHA-256 over the settings and `row_values`."""
        text = json.dumps({"settings": self.values, "row": row_values}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def pixel_settings(config: GenerateConfig, fingerprint: str) -> PixelSettings:
    """The settings that change pixels. Execution settings (actors, threads, devices) are excluded."""
    return PixelSettings(values=pixel_identity(config, fingerprint))


@dataclass(frozen=True, kw_only=True)
class _ImageIdentity:
    """The row's part of an image_id. A field more is another id for every image that was ever made."""

    sku: str
    image: str
    mask: str | None
    category: str | None
    scene: str
    variant: int
    prompt: str
    negative_prompt: str | None
    layout: Mapping[str, Any]
    seed: int


def wanted_images(
    row: CatalogRow, scenes: Scenes, config: GenerateConfig, settings: PixelSettings, decision: str = ""
) -> tuple[WantedImage, ...]:
    """The images of one row, scene by scene, variant by variant. decision: as in ProductRow.

    A seed is the row's plus the variant, or else a hash of (job seed, sku, scene, variant).
    """
    if row.prompts:
        named = [(f"prompt-{index}", prompt) for index, prompt in enumerate(row.prompts)]
    else:
        found = scenes.prompts_for(row.category, row.title, config.catalog.scenes_per_product, row.brand)
        named = [(scene.name, scene.prompt) for scene in found]
    mask = None if row.mask is None else image_identity(row.mask)
    if decision:
        mask = f"review:{decision}"  # in place of the row's own, which is not used
    num_variants = row.num_variants or config.catalog.num_variants
    images = []
    for scene, prompt in named:
        for variant in range(num_variants):
            seed = _seed(row, config.sampling.seed, scene, variant)
            identity = _ImageIdentity(
                sku=row.sku,
                image=image_identity(row.image),
                mask=mask,
                category=row.category,
                scene=scene,
                variant=variant,
                prompt=prompt,
                negative_prompt=row.negative_prompt,
                layout=layout_identity(merged_layout(config.layout, row.placement)),
                seed=seed,
            )
            image_id = settings.digest(dataclasses.asdict(identity))
            images.append(WantedImage(image_id=image_id, scene=scene, variant=variant, prompt=prompt, seed=seed))
    return tuple(images)


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt at an image, counted from 0; the first attempt has the image's own seed."""
    return seed if attempt == 0 else _hash63("attempt", seed, attempt)


def _seed(row: CatalogRow, job_seed: int, scene: str, variant: int) -> int:
    if row.seed is not None:
        return (row.seed + variant) % 2**63
    return _hash63(job_seed, row.sku, scene, variant)


def _hash63(*parts: object) -> int:
    # 63 bits: Arrow's and torch's seeds are signed.
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1
