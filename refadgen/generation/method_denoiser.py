"""An `AdMethod` as the step engine's denoiser: an image is made in a single step.

So a method has what the engine gives to RefAdGen: full batches from several blocks at once, failures that cost one
image, smaller batches where memory does not suffice, and a new process where the device is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from refadgen.config import GenerateConfig
from refadgen.config.devices import resolve_device, resolve_dtype
from refadgen.engine.device import lack_of_memory, require_device
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import OutOfDeviceMemoryError
from refadgen.generation.method import AdRequest, ImageU8
from refadgen.generation.method_settings import method_of


@dataclass(eq=False)
class _Row:
    """A request on its way. made: its image, or the error of its failure."""

    request: AdRequest
    made: ImageU8 | Exception | None = None


class MethodDenoiser:
    """The method of a run on its device."""

    num_kinds = 1

    def __init__(self, config: GenerateConfig) -> None:
        """config: as `with_method_settings` completes it. Raises: ValueError naming the setting that cannot be."""
        torch.set_num_threads(config.model.torch_threads)
        gpu_expected = config.stages.generate.num_gpus > 0
        self._device = resolve_device(config.model.device, gpu_expected=gpu_expected, field="model.device")
        method, settings = method_of(config)
        self._name = method.__name__
        self._method = method(settings, self._device, resolve_dtype(config.model.dtype, self._device))
        self.batch_size = config.sampling.batch_size

    def kind(self, row: _Row) -> None:
        """All steps are alike."""

    def num_steps(self, row: _Row) -> int:
        return 1

    def start(self, order: AdOrder) -> _Row:
        return _Row(
            AdRequest(
                canvas=order.canvas,
                mask=order.mask,
                prompt=order.prompt,
                negative_prompt=order.negative_prompt,
                seed=order.seed,
            )
        )

    def step(self, rows: list[_Row], batch_size: int) -> list[_Row]:
        """Makes the images of all rows, in a batch filled up to `batch_size`. A row that fails costs no other."""
        requests = [row.request for row in rows]
        requests += [requests[-1]] * (batch_size - len(rows))
        try:
            with torch.no_grad():
                images = self._method.generate(requests)
            self._require(len(images) == len(requests), f"{len(images)} images for {len(requests)} requests")
        except Exception as error:
            if problem := lack_of_memory(error):
                raise OutOfDeviceMemoryError(problem) from None  # the error's frames would hold their tensors
            if len(rows) == 1:
                rows[0].made = error
                return rows
            return [made for row in rows for made in self.step([row], batch_size)]
        for row, image in zip(rows, images, strict=False):  # without the repeated ones
            row.made = image
        return rows

    def finish(self, order: AdOrder, row: _Row) -> ImageU8:
        """The image, uint8 H×W×3. Raises: what the method raised, or ValueError for what is no such image."""
        if isinstance(row.made, Exception):
            raise row.made
        image = np.asarray(row.made)
        wanted = (*row.request.mask.shape, 3)
        ok = image.shape == wanted and image.dtype == np.uint8
        self._require(ok, f"{image.dtype} of {_times(image.shape)}, not uint8 of {_times(wanted)}")
        return image

    def _require(self, ok: bool, problem: str) -> None:
        if not ok:
            raise ValueError(f"{self._name}.generate gave {problem}")

    def preview(self, row: _Row) -> bytes:
        raise AssertionError("the main job asks for no previews")

    def check_device(self) -> None:
        """Raises: RuntimeError where the device is lost."""
        require_device(self._device)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "no size"
