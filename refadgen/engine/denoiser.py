"""RefAdGen as the step engine's denoiser: orders become rows, rows become scored images."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from refadgen.config import ServeConfig
from refadgen.config.devices import resolve_device, resolve_dtype
from refadgen.engine.cache import ByteBoundedCache
from refadgen.engine.orders import AdOrder
from refadgen.errors import RowError
from refadgen.model import RefAdGenPipeline
from refadgen.model.attention_fusion import PromptFeatures, ReferenceFeatures
from refadgen.model.folder import find_model
from refadgen.model.pipeline import DenoisingBatch, DenoisingRow

_PROMPTS_KEPT = 64


class AdDenoiser:
    """The model on its device, with the product features it has seen lately."""

    def __init__(self, config: ServeConfig, count_reference: Callable[[bool], None] = lambda hit: None) -> None:
        """count_reference: told of each product, whether its features were kept from before.

        Raises: ValueError for a model, device or number format that cannot be.
        """
        torch.set_num_threads(config.model.torch_threads)
        gpu_expected = config.deployments.generation.num_gpus > 0
        device = resolve_device(config.model.device, gpu_expected=gpu_expected, field="model.device")
        self._pipeline = RefAdGenPipeline.from_pretrained(
            find_model(config.model.path), torch_dtype=resolve_dtype(config.model.dtype, device), device=device
        )
        self._pipeline.optimize(
            channels_last=config.model.channels_last,
            compile=config.model.compile,
            cuda_graphs=config.model.cuda_graphs,
        )
        self.batch_size = config.sampling.batch_size
        self._reference_in_uncond = config.sampling.reference_in_uncond
        self._references: ByteBoundedCache[ReferenceFeatures] = ByteBoundedCache(config.limits.reference_cache_bytes)
        self._count_reference = count_reference
        self._encode_prompt = functools.lru_cache(_PROMPTS_KEPT)(self._pipeline.encode_prompt)

    def warm_up(self) -> None:
        """One image of one step at the model's own size: compiles, allocates, and fails now if it ever does."""
        config = self._pipeline.config
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
            num_inference_steps=1,
        )
        row = self.start(order)
        self.step([row])
        self.finish(order, row)

    def start(self, order: AdOrder) -> DenoisingRow:
        """Raises: RowError `prompt_too_long`."""
        prompt = self._prompt(order)
        reference = self._references.get(order.product_key)
        self._count_reference(reference is not None)
        if reference is None:
            reference = self._pipeline.encode_reference([order.canvas])
            self._references.put(order.product_key, reference, _num_bytes(reference))
        return self._pipeline.start(
            reference,
            order.mask,
            prompt,
            seed=order.seed,
            fusion_scale=order.fusion_scale,
            guidance_scale=order.guidance_scale,
            num_inference_steps=order.num_inference_steps,
        )

    def _prompt(self, order: AdOrder) -> PromptFeatures:
        try:
            return self._encode_prompt(order.prompt, order.negative_prompt)
        except ValueError as error:
            limit = self._pipeline.tokenizer.model_max_length
            count = self._pipeline.num_tokens(order.prompt)
            field = "prompt" if count > limit else "negative_prompt"
            detail = f"{field}: too long: the model takes {limit} tokens"  # of its text nothing: errors are logged
            raise RowError(f"{field}_too_long", detail) from error

    def step(self, rows: list[DenoisingRow]) -> list[DenoisingRow]:
        """One step of all rows, padded to `batch_size`: who else is in the batch changes no pixel."""
        batch = DenoisingBatch(
            self._pipeline, batch_size=self.batch_size, reference_in_uncond=self._reference_in_uncond, rows=list(rows)
        )
        return batch.step()

    def finish(self, order: AdOrder, row: DenoisingRow) -> npt.NDArray[np.uint8]:
        """The image, uint8 H×W×3."""
        return self._pipeline.decode([row])[0]

    def preview(self, row: DenoisingRow) -> bytes:
        """A small WebP."""
        sink = io.BytesIO()
        Image.fromarray(self._pipeline.preview(row)).save(sink, "WEBP", quality=70, method=0)
        return sink.getvalue()


def _num_bytes(value: Any) -> int:
    """Of all tensors inside a ReferenceFeatures."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else vars(value).values()
    return sum(_num_bytes(part) for part in parts if part is not None)
