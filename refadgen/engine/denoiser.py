"""RefAdGen as the step engine's denoiser: orders become rows, rows become images."""

import io
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from refadgen.config import ModelConfig, SamplingConfig
from refadgen.engine.cache import ByteBoundedCache
from refadgen.engine.device import lack_of_memory, require_device
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import OutOfDeviceMemoryError
from refadgen.errors import RowError
from refadgen.model.attention_fusion import PromptFeatures, ReferenceFeatures
from refadgen.model.denoising import DenoisingBatch, DenoisingRow
from refadgen.model.folder import step_bounds
from refadgen.model.inference import load_for_inference
from refadgen.model.passes import FastMode, Pass

_log = logging.getLogger("refadgen.engine")
P = ParamSpec("P")
T = TypeVar("T")


class AdDenoiser:
    """The model on its device, with the features of recently seen products and prompts."""

    def __init__(
        self,
        model: ModelConfig,
        sampling: SamplingConfig,
        *,
        reference_cache_bytes: int,
        gpu_expected: bool,
        count_reference: Callable[[bool], None] = lambda hit: None,
    ) -> None:
        """Loads the model.

        sampling: what is the same for all orders is read: `batch_size`, `reference_in_uncond`, the scheduler and fast
        mode; the rest comes with each order.
        reference_cache_bytes: of K and V of products and prompts kept in the device's memory. gpu_expected: whether the
        cluster gave this process a GPU. count_reference: called once per started order; true where the product's
        features were kept.
        Raises: ValueError naming the field whose model, device or number format cannot be.
        """
        self._pipeline = load_for_inference(model, scheduler=sampling.scheduler, gpu_expected=gpu_expected)
        self._fast = FastMode(guidance_interval=sampling.guidance_interval, reuse_steps=sampling.reuse_steps)
        self.num_kinds = sampling.kinds_of_steps
        self.batch_size = sampling.batch_size
        self._reference_in_uncond = sampling.reference_in_uncond
        self._batch = self._new_batch(self.batch_size)
        self._checked: set[tuple[int, torch.Size, Pass]] = set()
        """Batch size, size of latents and kind of the steps whose places were compared."""
        self._features: ByteBoundedCache[Any] = ByteBoundedCache(reference_cache_bytes)
        """ReferenceFeatures by the product's key, PromptFeatures by prompt and negative prompt: an ad's attempts, and
        scenes that several products share, repeat them."""
        self._count_reference = count_reference

    def _new_batch(self, batch_size: int) -> DenoisingBatch:
        return self._pipeline.batch(batch_size=batch_size, reference_in_uncond=self._reference_in_uncond)

    def warm_up(self) -> None:
        """One step of an image at the model's own size, and its pixels: what compiles or lacks memory does so now."""
        config, scheduler = self._pipeline.config, self._pipeline.scheduler
        canvas = np.full((config.height_px, config.width_px, 3), 255, np.uint8)
        order = AdOrder(
            canvas=canvas,
            mask=canvas[..., 0],
            product_key="warm-up",
            prompt="a product",
            negative_prompt=None,
            seed=0,
            fusion_scale=1.0,
            guidance_scale=config.guidance_scale,
            num_inference_steps=step_bounds(type(scheduler).__name__, scheduler.config)[0],
        )
        row = self.start(order)
        self.step([row], self.batch_size)
        self.finish(order, row)

    def _in_memory(self, work: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
        """Calls `work`. Raises: OutOfDeviceMemoryError, with what is kept for later given back."""
        try:
            return work(*arguments, **settings)
        except RuntimeError as error:
            problem = lack_of_memory(error)
            if not problem:
                raise
        # Outside the clause: an error that is being handled holds the tensors of its frames.
        self._features.clear()
        self._batch = self._new_batch(self.batch_size)
        raise OutOfDeviceMemoryError(problem)

    def start(self, order: AdOrder) -> DenoisingRow:
        """A row at its first timestep. Raises: RowError `prompt_too_long` or `negative_prompt_too_long`."""
        return self._in_memory(self._start, order)

    def _start(self, order: AdOrder) -> DenoisingRow:
        prompt = self._prompt(order)
        reference: ReferenceFeatures | None = self._features.get(order.product_key)
        self._count_reference(reference is not None)
        if reference is None:
            reference = self._pipeline.encode_reference([order.canvas])
            self._features.put(order.product_key, reference, reference.nbytes)
        return self._pipeline.start(
            reference,
            order.mask,
            prompt,
            seed=order.seed,
            fusion_scale=order.fusion_scale,
            guidance_scale=order.guidance_scale,
            num_inference_steps=order.num_inference_steps,
            fast=self._fast,
        )

    def kind(self, row: DenoisingRow) -> Pass:
        """The pass of the network at the row's next step."""
        return row.next_pass

    def num_steps(self, row: DenoisingRow) -> int:
        """Steps of the row's solver: those of second order take nearly two for one that was asked for."""
        return row.num_steps

    def _prompt(self, order: AdOrder) -> PromptFeatures:
        key = (order.prompt, order.negative_prompt)
        kept: PromptFeatures | None = self._features.get(key)
        if kept is not None:
            return kept
        try:
            prompt: PromptFeatures = self._pipeline.encode_prompt(order.prompt, order.negative_prompt)
        except ValueError as error:
            limit = self._pipeline.tokenizer.model_max_length
            count = self._pipeline.num_tokens(order.prompt)
            field = "prompt" if count > limit else "negative_prompt"
            # Without the prompt's text: the error is logged, and prompts belong to customers.
            raise RowError(f"{field}_too_long", f"{field}: too long: the model takes {limit} tokens") from error
        self._features.put(key, prompt, prompt.nbytes)
        return prompt

    def step(self, rows: list[DenoisingRow], batch_size: int) -> list[DenoisingRow]:
        """One step of all rows, padded to `batch_size`: the other rows of a batch change no pixel of a row."""
        return self._in_memory(self._step, rows, batch_size)

    def _step(self, rows: list[DenoisingRow], batch_size: int) -> list[DenoisingRow]:
        if self._batch.batch_size != batch_size:
            self._batch = self._new_batch(batch_size)
        # The engine decides before each step who shares it; mostly these are the rows of the step before, and then
        # their stacked K and V are kept.
        self._batch.replace(rows)
        kind = (batch_size, rows[0].latents.shape, self.kind(rows[0]))
        finished: list[DenoisingRow] = self._batch.step()
        if len(rows) < batch_size and kind not in self._checked:
            self._checked.add(kind)
            self._warn_of_uneven_places(len(rows), batch_size)
        return finished

    def _warn_of_uneven_places(self, num_rows: int, batch_size: int) -> None:
        """The padding repeats a row, so a padded step shows whether the places of a batch are alike, at no cost."""
        if places := self._batch.uneven_places(num_rows):
            _log.warning(
                "sampling.batch_size: in batches of %d this device rounds otherwise at the places %s than at the first "
                "(of 0 to %d): the last bits of an image then depend on its place; other sizes may do better",
                batch_size,
                ", ".join(map(str, places)),
                batch_size - 1,
            )

    def finish(self, order: AdOrder, row: DenoisingRow) -> npt.NDArray[np.uint8]:
        """The finished image, uint8 H×W×3. Raises: RowError `not_finite` where loop or VAE end in NaN or infinity."""
        return self._in_memory(self._finish, row)

    def _finish(self, row: DenoisingRow) -> npt.NDArray[np.uint8]:
        # Here and not in the loop: each look waits for the device, and the image is about to be waited for anyway.
        if not torch.isfinite(row.latents).all():
            raise RowError(
                "not_finite",
                f"NaN or infinity after {row.step_index} steps of {type(self._pipeline.scheduler).__name__}: "
                "try another model.dtype, or another scheduler in the model's folder",
            )
        try:
            image_u8: npt.NDArray[np.uint8] = self._pipeline.decode([row])[0]
        except ArithmeticError as error:
            raise RowError("not_finite", str(error)) from error
        return image_u8

    def check_device(self) -> None:
        """Raises: RuntimeError where the device is lost."""
        require_device(self._pipeline.device)

    def preview(self, row: DenoisingRow) -> bytes:
        """An unfinished row's predicted image as a small WebP."""
        sink = io.BytesIO()
        # method=0, the fastest: the engine's thread encodes it between two steps, and all rows wait meanwhile.
        Image.fromarray(self._in_memory(self._pipeline.preview, row)).save(sink, "WEBP", quality=70, method=0)
        return sink.getvalue()
