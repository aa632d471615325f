"""One request from its checked fields to its images: the wanted images, those in the cache, those to make."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from refadgen.catalog.rows import CatalogRow
from refadgen.catalog.scenes import Scenes
from refadgen.channels.rules import ChannelRule
from refadgen.config import GenerateConfig, ServeConfig
from refadgen.engine.cache import ByteBoundedCache
from refadgen.engine.previews import Previews
from refadgen.generation.model_settings import ModelIdentity
from refadgen.generation.wanted import WantedImage, pixel_settings, wanted_images
from refadgen.serving import metrics
from refadgen.serving.canvases import (
    canvas_for,
    canvas_size,
    channel_canvas,
    requested_channel,
    served_channels,
    served_source_type,
)
from refadgen.serving.errors import ApiError
from refadgen.serving.layouts import over, requested_layout
from refadgen.serving.orders import AdResult, ImageOrder, StepDone
from refadgen.serving.products import FoundMask, PlacedAd
from refadgen.serving.requests import ProductInput
from refadgen.serving.schema import AdFields, AdImage, MaskFields
from refadgen.storage.addresses import image_identity

_ALL_SCENES = 100
"""More scenes than any category has: a scene asked for by name is looked up among all of them."""
_NEXT_TRY_S = 0.2


class Backend(Protocol):
    """The deployments as one request sees them."""

    async def ready(self) -> bool:
        """Whether every deployment has a warm replica."""

    async def place(self, given: ProductInput, category: str | None, config: GenerateConfig) -> PlacedAd:
        """The product, segmented and placed. Raises: ApiError."""

    async def find_mask(self, given: ProductInput, category: str | None) -> FoundMask:
        """The product's mask, or the doubtful one. Raises: ApiError."""

    def generate(self, order: ImageOrder) -> AsyncGenerator[StepDone | AdResult, None]:
        """Yields steps, then one result. Closing the generator cancels the image. Raises: ApiError."""


@dataclass(frozen=True, kw_only=True)
class RequestedImages:
    """The images of one request. row: the request as the catalogue row that asks for the same images.

    config: the server's settings with the request's own over them. size: the files' size in px, where it is another
    than the canvas's.
    """

    row: CatalogRow
    images: tuple[WantedImage, ...]
    config: GenerateConfig
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ServedImage:
    """One image of an answer. cached: it was made for an earlier request."""

    wanted: WantedImage
    result: AdResult
    cached: bool


@dataclass(frozen=True)
class ProductUpdate:
    """The product is placed; comes once, before all others."""

    placed: PlacedAd


@dataclass(frozen=True)
class StepUpdate:
    """One step of one image. index: the image's position in the request."""

    index: int
    step: StepDone


@dataclass(frozen=True)
class ImageUpdate:
    """One image is ready. index: its position in the request."""

    index: int
    image: ServedImage


Update = ProductUpdate | StepUpdate | ImageUpdate


class AdService:
    """Handles requests; one for each ingress replica."""

    def __init__(self, config: ServeConfig, model: ModelIdentity, scenes: Scenes, backend: Backend) -> None:
        """config: with the model's recommended settings filled in (see `with_model_settings`)."""
        self.config = config
        self.model = model
        self.scenes = scenes
        self._backend = backend
        self._generation = config.generation()
        self._results: ByteBoundedCache[tuple[AdResult, PlacedAd]] = ByteBoundedCache(config.limits.result_cache_bytes)
        self._products: ByteBoundedCache[PlacedAd] = ByteBoundedCache(config.limits.product_cache_bytes)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Canvases that a request may ask for, as (width, height) in px; the first is the default."""
        own = canvas_size(self._generation)
        listed = [(int(w), int(h)) for w, h in (text.split("x") for text in self.config.limits.sizes)]
        return tuple(dict.fromkeys([own, *(listed or [(own[0], own[0]), own[::-1]])]))

    @functools.cached_property
    def channels(self) -> Mapping[str, ChannelRule]:
        """The channels that a request may name: those whose ratio has a canvas of about the model's area."""
        return served_channels(self._generation)

    async def ready(self) -> bool:
        """Whether requests would be served now."""
        return await self._backend.ready()

    def requested_images(
        self, fields: AdFields, given: ProductInput, size: tuple[int, int] | None = None
    ) -> RequestedImages:
        """The wanted images of a request, with their ids. Raises: ApiError naming the field.

        size: of the files in px, made on a canvas of its ratio and of the default canvas's area; None: the canvas's, or
        those of the request's channel.
        """
        config = self._overridden(fields)
        canvas = channel_canvas(config)
        if canvas is not None:
            size = canvas.rules[0].size
        elif size is not None:
            width_px, height_px = canvas_for(size, canvas_size(config))
            sampling = dataclasses.replace(config.sampling, width_px=width_px, height_px=height_px)
            config = dataclasses.replace(config, sampling=sampling)
        self._check_address(given)
        source = given.image.encode() if isinstance(given.image, str) else given.image
        prompts = (fields.prompt,) if isinstance(fields.prompt, str) else tuple(fields.prompt or ())
        if prompts and fields.scene is not None:
            raise ApiError(422, "prompt_and_scene", "scene: give prompt or scene, not both", param="scene")
        row = CatalogRow(
            row=0,
            sku=fields.sku or hashlib.sha256(source).hexdigest()[:16],
            image=given.image,
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
        # The catalogue job's own function: the same product and settings have the same image_id in both.
        decision = image_identity(given.mask) if given.mask is not None and given.decided else ""
        settings = pixel_settings(config, self.model.fingerprint)
        row = settings.branded(row)
        config = dataclasses.replace(config, layout=settings.layout(config.layout, row.category))
        images = wanted_images(row, self.scenes, config, settings, decision)
        if canvas is not None:  # after the ids, which hold the format that is asked for, as the job's do
            format = canvas.rules[0].format(config.output.format)
            config = dataclasses.replace(config, output=dataclasses.replace(config.output, format=format))
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
        return RequestedImages(row=row, images=images, config=config, size=size)

    def _check_address(self, given: ProductInput) -> None:
        """Raises: ApiError where the request names an address and this server fetches none."""
        if isinstance(given.image, str) and not self.config.access.allow_image_urls:
            message = "image_url: this server does not fetch images (access.allow_image_urls); send the image itself"
            raise ApiError(422, "urls_off", message, param="image_url")

    async def find_mask(self, fields: MaskFields, given: ProductInput) -> FoundMask:
        """The mask that an ad of this product would have, or the doubtful one. Raises: ApiError, 504 as `collect`."""
        self._check_address(given)
        async with self._time_limit():
            return await self._backend.find_mask(given, fields.category)

    async def place(self, requested: RequestedImages, given: ProductInput) -> PlacedAd:
        """The placed product, of which nothing is generated. Raises: ApiError, 504 as `collect`."""
        async with self._time_limit():
            return await self._place(requested, given)

    def _overridden(self, fields: AdFields) -> GenerateConfig:
        """The server's settings with the request's over them. Raises: ApiError naming the field."""
        config, limits = self._generation, self.config.limits
        sampling, layout, output = config.sampling, config.layout, config.output
        if fields.num_inference_steps is not None and fields.num_inference_steps > limits.max_steps:
            message = f"num_inference_steps: at most {limits.max_steps} (limits.max_steps)"
            raise ApiError(422, "too_many_steps", message, param="num_inference_steps")
        steps, fewest, most = fields.num_inference_steps, self.model.fewest_steps, self.model.most_steps
        if steps is not None and not fewest <= steps <= most:
            message = f"num_inference_steps: the model's scheduler makes {fewest} to {most}"
            raise ApiError(
                422, "too_few_steps" if steps < fewest else "too_many_steps", message, param="num_inference_steps"
            )
        width_px, height_px = canvas_size(config)
        if fields.size is not None:
            allowed = {f"{width}x{height}": (width, height) for width, height in self.sizes}
            if fields.size not in allowed:
                message = f"size: {fields.size!r} is not one of {', '.join(allowed)}"
                raise ApiError(422, "unknown_size", message, param="size")
            width_px, height_px = allowed[fields.size]
        sampling = dataclasses.replace(
            sampling,
            fusion_scale=over(fields.fusion_scale, sampling.fusion_scale),
            guidance_scale=over(fields.guidance_scale, sampling.guidance_scale),
            num_inference_steps=over(fields.num_inference_steps, sampling.num_inference_steps),
            width_px=width_px,
            height_px=height_px,
        )
        layout = layout if fields.layout is None else requested_layout(fields.layout, layout)
        output = dataclasses.replace(
            output, format=over(fields.format, output.format), quality=over(fields.quality, output.quality)
        )
        channels = () if fields.channel is None else requested_channel(fields, layout, self.channels)
        return dataclasses.replace(config, sampling=sampling, layout=layout, output=output, channels=channels)

    async def make(
        self, requested: RequestedImages, given: ProductInput, *, previews: Previews | None = None
    ) -> AsyncGenerator[Update, None]:
        """Yields the placed product, then steps and images as they come.

        previews: which steps have one; None: no step updates. Raises: ApiError.
        """
        placed: PlacedAd | None = None
        missing: list[int] = []
        for index, image in enumerate(requested.images):
            # An image_id holds the address of a product image, not its bytes, and those may have changed since.
            kept = None if isinstance(given.image, str) else self._results.get((image.image_id, requested.size))
            if kept is None:
                missing.append(index)
                continue
            if placed is None:
                placed = kept[1]
                yield ProductUpdate(placed)
            metrics.count("result_cache", hit=True)
            yield ImageUpdate(index, ServedImage(image, kept[0], cached=True))
        if not missing:
            return
        if placed is None:
            placed = await self._place(requested, given)
            yield ProductUpdate(placed)
        admitted = asyncio.Event()
        streams = [
            self._one(requested, index, placed, previews, admitted, leads=index == missing[0]) for index in missing
        ]
        async with contextlib.aclosing(_merged(streams)) as all_:
            async for update in all_:
                yield update

    async def _place(self, requested: RequestedImages, given: ProductInput) -> PlacedAd:
        key = None
        if isinstance(given.image, bytes):
            config, category = requested.config, requested.row.category
            mask = None if given.mask is None else hashlib.sha256(given.mask).digest()
            image = hashlib.sha256(given.image).digest()
            key = (image, mask, given.decided, category, config.layout, canvas_size(config), config.channels)
            placed = self._products.get(key)
            metrics.count("product_cache", hit=placed is not None)
            if placed is not None:
                return placed
        placed = await self._backend.place(given, requested.row.category, requested.config)
        if key is not None:
            self._products.put(key, placed, placed.num_bytes)
        return placed

    async def _one(
        self,
        requested: RequestedImages,
        index: int,
        placed: PlacedAd,
        previews: Previews | None,
        admitted: asyncio.Event,
        *,
        leads: bool,
    ) -> AsyncGenerator[Update, None]:
        """Yields steps and the result of the image `index`.

        A request is admitted with all its images or refused with all: the image that `leads` is refused when the queue
        is full. The others start once it is `admitted`, and retry until they are.
        """
        image = requested.images[index]
        metrics.count("result_cache", hit=False)
        order = ImageOrder(
            wanted=image,
            config=requested.config,
            placed=placed,
            sku=requested.row.sku,
            negative_prompt=requested.row.negative_prompt,
            size=requested.size,
            previews=previews,
        )
        if not leads:
            await admitted.wait()
        while True:
            try:
                async with contextlib.aclosing(self._backend.generate(order)) as events:
                    async for event in events:
                        admitted.set()
                        if isinstance(event, AdResult):
                            # A failed image is not kept: its next attempt may pass the gate.
                            if event.status == "done" and isinstance(requested.row.image, bytes):
                                size = len(event.encoded) + placed.num_bytes
                                self._results.put((image.image_id, requested.size), (event, placed), size)
                            yield ImageUpdate(index, ServedImage(image, event, cached=False))
                        elif event.step:
                            yield StepUpdate(index, event)
                return
            except ApiError as error:
                if leads or error.status != 429:
                    raise
            await asyncio.sleep(_NEXT_TRY_S)

    async def collect(self, requested: RequestedImages, given: ProductInput) -> tuple[PlacedAd, list[ServedImage]]:
        """The placed product and all images in their order. Raises: ApiError, 504 after `limits.timeout_s`."""
        placed: PlacedAd | None = None
        images: dict[int, ServedImage] = {}  # they finish in any order
        async with self._time_limit(), contextlib.aclosing(self.make(requested, given)) as updates:
            async for update in updates:
                if isinstance(update, ProductUpdate):
                    placed = update.placed
                elif isinstance(update, ImageUpdate):
                    images[update.index] = update.image
        assert placed is not None
        return placed, [images[index] for index in range(len(requested.images))]

    @contextlib.asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        """Raises: ApiError, 504, where the body takes longer than `limits.timeout_s`."""
        limit_s = self.config.limits.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            message = f"no answer within {limit_s:g} s (limits.timeout_s)"
            raise ApiError(504, "timeout", message, retry_after_s=5) from None

    def describe(self, requested: RequestedImages, placed: PlacedAd, image: ServedImage) -> AdImage:
        """One image as clients get it."""
        wanted, result = image.wanted, image.result
        width_px, height_px = requested.size or placed.file_size
        return AdImage(
            image_id=wanted.image_id,
            sku=requested.row.sku,
            category=requested.row.category,
            scene=wanted.scene,
            variant=wanted.variant,
            status=result.status,
            reason=result.reason,
            detail=result.detail,
            attempts=result.attempts,
            rung=result.rung,
            digital_source_type=served_source_type(requested.config, result.rung) if result.encoded else "",
            seed=result.seed,
            prompt=wanted.prompt,
            negative_prompt=requested.row.negative_prompt or "",
            input_sha256=placed.input_sha256,
            ratio=wanted.ratio,
            width_px=width_px,
            height_px=height_px,
            mask_source=placed.mask_source,
            mask_score=placed.mask_score,
            mask_area=placed.mask_area,
            **dataclasses.asdict(result.scores),
            fetch_s=placed.fetch_s,
            segment_s=placed.segment_s,
            waited_s=result.waited_s,
            generate_s=result.generate_s,
            batch_size=result.batch_size,
            model=self.model.label,
            as_photographed=requested.config.layout.as_photographed,
            cached=image.cached,
            format=requested.config.output.format,
            image_base64=base64.b64encode(result.encoded).decode() if result.encoded else None,
        )


async def _merged(streams: list[AsyncGenerator[Update, None]]) -> AsyncGenerator[Update, None]:
    """All streams' updates as they come. The first error ends all; closing this closes them."""
    queue: asyncio.Queue[Update | Exception | None] = asyncio.Queue()

    async def drain(stream: AsyncGenerator[Update, None]) -> None:
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
            if isinstance(update, Exception):
                raise update
            if update is None:
                left -= 1
            else:
                yield update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
