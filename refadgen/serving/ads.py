"""One request from its checked fields to its images: what is wanted, what is known already, what must be made."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import Scenes
from refadgen.config import GenerateConfig, ServeConfig
from refadgen.engine.cache import ByteBoundedCache
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.wanted import WantedImage, pixel_settings, wanted_images
from refadgen.serving import metrics
from refadgen.serving.errors import ApiError
from refadgen.serving.orders import AdResult, ImageOrder, StepDone
from refadgen.serving.products import PlacedAd
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import AdFields

_ALL_SCENES = 100
_NEXT_TRY_S = 0.2


class Backend(Protocol):
    """The deployments as one request sees them."""

    async def ready(self) -> bool:
        """Whether every deployment has a warm replica."""

    async def place(self, given: ProductInput, category: str | None, config: GenerateConfig) -> PlacedAd:
        """Raises: ApiError."""

    def generate(self, order: ImageOrder) -> AsyncIterator[StepDone | AdResult]:
        """Steps, then one result. Closing the iterator gives the image up. Raises: ApiError."""


@dataclass(frozen=True)
class ServedImage:
    """One image of an answer."""

    wanted: WantedImage
    result: AdResult
    cached: bool


@dataclass(frozen=True)
class Update:
    """Something to tell a client that watches. index: of the image in the request."""

    placed: PlacedAd | None = None
    index: int | None = None
    step: StepDone | None = None
    image: ServedImage | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A request as the main job sees a catalogue row."""

    row: CatalogRow
    images: tuple[WantedImage, ...]
    config: GenerateConfig


class AdService:
    """Follows requests; one for each ingress replica."""

    def __init__(self, config: ServeConfig, model: ModelIdentity, scenes: Scenes, backend: Backend) -> None:
        """config: with the model's own settings filled in."""
        self.config = config
        self.model = model
        self.scenes = scenes
        self._backend = backend
        self._generation = config.generation()
        self._results: ByteBoundedCache[tuple[AdResult, PlacedAd]] = ByteBoundedCache(config.limits.result_cache_bytes)
        self._products: ByteBoundedCache[PlacedAd] = ByteBoundedCache(config.limits.product_cache_bytes)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Canvases that may be asked for, width and height; the first is the default."""
        sampling = self.config.sampling
        assert sampling.width_px is not None
        assert sampling.height_px is not None
        own = (sampling.width_px, sampling.height_px)
        listed = [tuple(map(int, size.split("x"))) for size in self.config.limits.sizes]
        return tuple(dict.fromkeys([own, *(listed or [(own[0], own[0]), own[::-1]])]))

    async def ready(self) -> bool:
        return await self._backend.ready()

    def wanted(self, fields: AdFields, given: ProductInput) -> Wanted:
        """The images that are asked for, with their ids. Raises: ApiError naming the field."""
        config = self._overridden(fields)
        image: str | bytes = given.image if given.image is not None else str(given.image_url)
        if given.image is None and not self.config.access.allow_image_urls:
            message = "image_url: this server does not fetch images (access.allow_image_urls); send the image itself"
            raise ApiError(422, "urls_off", message, param="image_url")
        known_by = image if isinstance(image, bytes) else image.encode()
        prompts = (fields.prompt,) if isinstance(fields.prompt, str) else tuple(fields.prompt or ())
        if prompts and fields.scene is not None:
            raise ApiError(422, "prompt_and_scene", "scene: give prompt or scene, not both", param="scene")
        row = CatalogRow(
            row=0,
            sku=fields.sku or hashlib.sha256(known_by).hexdigest()[:16],
            image=image,
            title=fields.title,
            category=fields.category,
            prompts=prompts,
            negative_prompt=fields.negative_prompt,
            num_variants=fields.num_variants,
            seed=fields.seed,
            mask=given.mask,
        )
        if fields.scene is not None:
            every = dataclasses.replace(config.catalog, scenes_per_product=_ALL_SCENES)
            config = dataclasses.replace(config, catalog=every)
        images = wanted_images(row, self.scenes, config, pixel_settings(config, self.model.fingerprint))
        if fields.scene is not None:
            names = list(dict.fromkeys(image.scene for image in images))
            images = tuple(image for image in images if image.scene == fields.scene)
            if not images:
                message = f"scene: {fields.scene!r} is not one of {', '.join(names)}"
                raise ApiError(422, "unknown_scene", message, param="scene")
        if len(images) > self.config.limits.max_images:
            limit = self.config.limits.max_images
            message = f"num_variants: {len(images)} images (scenes × variants); at most {limit}, see limits.max_images"
            raise ApiError(422, "too_many_images", message, param="num_variants")
        return Wanted(row=row, images=images, config=config)

    def _overridden(self, fields: AdFields) -> GenerateConfig:
        """The server's settings with the request's in their place."""
        config = self._generation
        own = {name: getattr(fields, name) for name in ("fusion_scale", "guidance_scale", "num_inference_steps")}
        sampling = {name: value for name, value in own.items() if value is not None}
        if sampling.get("num_inference_steps", 0) > self.config.limits.max_steps:
            message = f"num_inference_steps: at most {self.config.limits.max_steps} (limits.max_steps)"
            raise ApiError(422, "too_many_steps", message, param="num_inference_steps")
        if fields.size is not None:
            allowed = {f"{width}x{height}": (width, height) for width, height in self.sizes}
            if fields.size not in allowed:
                message = f"size: {fields.size!r} is not one of {', '.join(allowed)}"
                raise ApiError(422, "unknown_size", message, param="size")
            sampling["width_px"], sampling["height_px"] = allowed[fields.size]
        layout = {} if fields.layout is None else fields.layout.model_dump(exclude_none=True)
        output = {name: getattr(fields, name) for name in ("format", "quality") if getattr(fields, name) is not None}
        return dataclasses.replace(
            config,
            sampling=dataclasses.replace(config.sampling, **sampling),
            layout=dataclasses.replace(config.layout, **layout),
            output=dataclasses.replace(config.output, **output),
        )

    async def make(self, wanted: Wanted, given: ProductInput, *, preview_every: int = 0) -> AsyncIterator[Update]:
        """The placed product, then steps and images as they come. Raises: ApiError."""
        placed: PlacedAd | None = None
        missing: list[int] = []
        for index, image in enumerate(wanted.images):
            # Behind an address the bytes may have changed: what is kept counts once they are fetched.
            kept = None if given.image is None else self._results.get(image.image_id)
            if kept is None:
                missing.append(index)
                continue
            if placed is None:
                placed = kept[1]
                yield Update(placed=placed)
            metrics.count("result_cache", hit=True)
            yield Update(index=index, image=ServedImage(image, kept[0], cached=True))
        if not missing:
            return
        if placed is None:
            placed = await self._place(wanted, given)
            yield Update(placed=placed)
        admitted = asyncio.Event()
        streams = [
            self._one(wanted, index, placed, preview_every, admitted, leads=index == missing[0]) for index in missing
        ]
        async with contextlib.aclosing(_merged(streams)) as all_:
            async for update in all_:
                yield update

    async def _place(self, wanted: Wanted, given: ProductInput) -> PlacedAd:
        key = None
        if given.image is not None:
            config, category = wanted.config, wanted.row.category
            size = (config.sampling.width_px, config.sampling.height_px)
            mask = None if given.mask is None else hashlib.sha256(given.mask).digest()
            key = (hashlib.sha256(given.image).digest(), mask, category, config.layout, size)
            placed = self._products.get(key)
            metrics.count("product_cache", hit=placed is not None)
            if placed is not None:
                return placed
        placed = await self._backend.place(given, wanted.row.category, wanted.config)
        if key is not None:
            self._products.put(key, placed, placed.num_bytes)
        return placed

    async def _one(
        self, wanted: Wanted, index: int, placed: PlacedAd, preview_every: int, admitted: asyncio.Event, *, leads: bool
    ) -> AsyncIterator[Update]:
        """Steps and the result of the image `index`.

        A request is let in whole or not at all: the image that `leads` is refused when all places are taken; the others
        start once it has a place, and then wait for theirs.
        """
        image = wanted.images[index]
        metrics.count("result_cache", hit=False)
        order = ImageOrder(
            wanted=image,
            config=wanted.config,
            placed=placed,
            facts={
                "sku": wanted.row.sku,
                "category": wanted.row.category,
                "negative_prompt": wanted.row.negative_prompt or "",
                "input_sha256": placed.input_sha256,
            },
            preview_every=preview_every,
        )
        if not leads:
            await admitted.wait()
        while True:
            try:
                async with contextlib.aclosing(self._backend.generate(order)) as events:
                    async for event in events:
                        admitted.set()
                        if isinstance(event, AdResult):
                            if event.status == "done" and isinstance(wanted.row.image, bytes):
                                size = len(event.encoded) + placed.num_bytes
                                self._results.put(image.image_id, (event, placed), size)
                            yield Update(index=index, image=ServedImage(image, event, cached=False))
                        elif event.step:
                            yield Update(index=index, step=event)
                return
            except ApiError as error:
                if leads or error.status != 429:
                    raise
            await asyncio.sleep(_NEXT_TRY_S)

    async def collect(self, wanted: Wanted, given: ProductInput) -> tuple[PlacedAd, list[ServedImage]]:
        """The placed product and all images in their order. Raises: ApiError, 504 after `limits.timeout_s`."""
        placed: PlacedAd | None = None
        images: dict[int, ServedImage] = {}
        limit_s = self.config.limits.timeout_s
        try:
            async with asyncio.timeout(limit_s), contextlib.aclosing(self.make(wanted, given)) as updates:
                async for update in updates:
                    placed = update.placed or placed
                    if update.image is not None and update.index is not None:
                        images[update.index] = update.image
        except TimeoutError:
            message = f"no answer within {limit_s:g} s (limits.timeout_s)"
            raise ApiError(504, "timeout", message, retry_after_s=5) from None
        assert placed is not None
        return placed, [images[index] for index in range(len(wanted.images))]

    def describe(self, wanted: Wanted, placed: PlacedAd, image: ServedImage) -> dict[str, Any]:
        """The fields of AdImage."""
        result = image.result
        return {
            **dataclasses.asdict(image.wanted),
            "sku": wanted.row.sku,
            "category": wanted.row.category,
            "negative_prompt": wanted.row.negative_prompt or "",
            "width_px": wanted.config.sampling.width_px,
            "height_px": wanted.config.sampling.height_px,
            "model": self.model.label,
            "cached": image.cached,
            "format": wanted.config.output.format,
            **{
                name: getattr(placed, name)
                for name in ("input_sha256", "mask_source", "mask_score", "mask_area", "fetch_s", "segment_s")
            },
            **{
                name: getattr(result, name)
                for name in (
                    *("status", "reason", "detail", "attempts", "seed", "color_similarity", "structure_similarity"),
                    *("waited_s", "generate_s"),
                )
            },
            "image_base64": base64.b64encode(result.encoded).decode() if result.encoded else None,
        }


async def _merged(streams: list[AsyncIterator[Update]]) -> AsyncIterator[Update]:
    """All streams' updates as they come. The first error ends all; closing this closes them."""
    queue: asyncio.Queue[Update | BaseException | None] = asyncio.Queue()

    async def drain(stream: AsyncIterator[Update]) -> None:
        try:
            async with contextlib.aclosing(stream) as updates:
                async for update in updates:
                    queue.put_nowait(update)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(drain(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            update = await queue.get()
            if isinstance(update, BaseException):
                raise update
            if update is None:
                left -= 1
            else:
                yield update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
