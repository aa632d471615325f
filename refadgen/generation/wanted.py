"""Wanted images: the images that a catalogue row asks for, with ids and seeds known before anything is fetched."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from refadgen.catalog.brand import Brand, KeepFree, load_brand
from refadgen.catalog.layout import merged_layout
from refadgen.catalog.placement import Placement
from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import RowNoun, Scenes
from refadgen.channels.canvases import canvases_of
from refadgen.config import GenerateConfig, LayoutConfig
from refadgen.config.identity import layout_identity, pixel_identity
from refadgen.storage.addresses import image_identity

_EVERY_SCENE = 1000
_MOST_LAYOUTS = 10_000
"""Layouts of other rows that are remembered: the sizes of products may all differ."""


@dataclass(frozen=True)
class WantedImage:
    """One image that should exist: (sku, scene, variant). `image_id` names its file and its ledger rows."""

    image_id: str
    scene: str
    variant: int
    prompt: str
    seed: int
    ratio: str = ""
    """Of its canvas, such as 1.91:1, where the run makes images for channels; empty: the canvas of `sampling`."""


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """The settings and the model that decide pixels, for the ids of all rows. Made once, by `pixel_settings`."""

    values: Mapping[str, Any]
    brand: Brand | None = None

    def branded(self, row: CatalogRow) -> CatalogRow:
        """The row as `WantedImages` takes it: with the brand's negative prompt behind its own."""
        return row if self.brand is None else self.brand.over(row)

    def layout(self, layout: LayoutConfig, category: str | None) -> LayoutConfig:
        """`layout` with what the brand keeps free."""
        return layout if self.brand is None else self.brand.part(category).layout(layout)


def pixel_settings(config: GenerateConfig, fingerprint: str) -> PixelSettings:
    """The settings that change pixels. Execution settings (actors, threads, devices) are excluded.

    Raises: ValueError for a brand file that cannot be used.
    """
    values, brand = pixel_identity(config, fingerprint), load_brand(config.brand.file)
    return PixelSettings(values=values if brand is None else values | {"brand": brand.fingerprint}, brand=brand)


class RowImages(NamedTuple):
    """What a row asks for. images: the fields of WantedImage, in their order.

    noun: what the row's prompts call the product; None where it has prompts of its own.
    layout: the job's, with the row's placement merged in.
    """

    images: list[tuple[str, str, int, str, int, str]]
    layout: LayoutConfig
    noun: RowNoun | None


class WantedImages:
    """Names the images that rows ask for.

    An image_id is 32 hexadecimal digits of SHA-256 over a JSON text of the row's part and the settings, with sorted
    keys. The text is put together here piece by piece, for a catalogue has millions of images. A field more is another
    id for every image that was ever made.
    """

    def __init__(self, scenes: Scenes, config: GenerateConfig, settings: PixelSettings) -> None:
        self._scenes, self._config = scenes, config
        self._settings = _json(settings.values)
        self._seed = f"[{config.sampling.seed}, "
        self._num_variants = config.catalog.num_variants
        self._brand = settings.brand
        self._canvases = [
            (ratio, f'"canvas": {_json(canvas.identity())}, ') for ratio, canvas in canvases_of(config).items()
        ] or [("", "")]
        self._layouts: dict[tuple[Placement | None, KeepFree | None], tuple[LayoutConfig, str]] = {}

    def of(self, row: CatalogRow, decision: str = "") -> RowImages:
        """The images of one row: canvas by canvas, scene by scene, variant by variant. decision: as in ProductRow.

        A seed is the row's plus the variant, or else a hash of (job seed, sku, scene, variant).
        """
        part = None if self._brand is None else self._brand.part(row.category)
        noun, named = None, [(f"prompt-{index}", prompt) for index, prompt in enumerate(row.prompts)]
        if not named:
            noun = self._scenes.noun_of(row.category, row.title, row.brand)
            count = self._config.catalog.scenes_per_product if part is None else _EVERY_SCENE
            found = self._scenes.prompts_of(noun, row.title, count)
            named = [(scene.name, scene.prompt) for scene in found]
        if part is not None:
            named = part.scenes(named, own=noun is None, count=self._config.catalog.scenes_per_product)
        mask = None if row.mask is None else image_identity(row.mask)
        if decision:
            mask = f"review:{decision}"  # in place of the row's own, which is not used
        layout, layout_json = self._layout(row.placement, None if part is None else part.keep_free)
        category, negative_prompt, sku = _text(row.category), _text(row.negative_prompt), _text(row.sku)
        head = f'"category": {category}, "image": {_text(image_identity(row.image))}, "layout": {layout_json}'
        head += f', "mask": {_text(mask)}, "negative_prompt": {negative_prompt}, "prompt": '
        images = []
        for (ratio, canvas_json), (scene, prompt) in itertools.product(self._canvases, named):
            scene_json = _text(scene)
            before = f'{{"row": {{{canvas_json}{head}{_text(prompt)}, "scene": {scene_json}, "seed": '
            for variant in range(row.num_variants or self._num_variants):
                if row.seed is None:
                    seed = _hash63(f"{self._seed}{sku}, {scene_json}, {variant}]")
                else:
                    seed = (row.seed + variant) % 2**63
                text = f'{before}{seed}, "sku": {sku}, "variant": {variant}}}, "settings": {self._settings}}}'
                image_id = hashlib.sha256(text.encode()).hexdigest()[:32]
                images.append((image_id, scene, variant, prompt, seed, ratio))
        return RowImages(images, layout, noun)

    def _layout(self, placement: Placement | None, keep_free: KeepFree | None) -> tuple[LayoutConfig, str]:
        """The layout of a row, and its part in ids. keep_free: the brand's, in place of the job's."""
        key = placement, keep_free
        if key not in self._layouts:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = merged_layout(self._config.layout, placement)
            if keep_free is not None:
                layout = replace(layout, keep_free=keep_free)
            self._layouts[key] = layout, _json(layout_identity(layout))
        return self._layouts[key]


def wanted_images(
    row: CatalogRow, scenes: Scenes, config: GenerateConfig, settings: PixelSettings, decision: str = ""
) -> tuple[WantedImage, ...]:
    """The images of one row, as `WantedImages` gives them."""
    return tuple(WantedImage(*each) for each in WantedImages(scenes, config, settings).of(row, decision).images)


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt at an image, counted from 0; the first attempt has the image's own seed."""
    return seed if attempt == 0 else _hash63(json.dumps(("attempt", seed, attempt)))


def _hash63(text: str) -> int:
    # 63 bits: Arrow's and torch's seeds are signed.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _text(value: str | None) -> str:
    """JSON of a text or of None."""
    return "null" if value is None else encode_basestring_ascii(value)
