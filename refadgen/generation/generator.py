"""The stage that makes the images: placed products in, scored images out, by fixed padded batches on one model."""

import functools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refadgen.batch.row_stage import RowFailure, UnexpectedErrors
from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig
from refadgen.errors import RowError
from refadgen.generation.rows import GeneratedImage, GeneratedProduct, PlacedProduct
from refadgen.generation.scores import FidelityScores, below_gate, score_fidelity
from refadgen.generation.wanted import WantedImage, attempt_seed
from refadgen.storage.pictures import from_png

if TYPE_CHECKING:
    from refadgen.model.attention_fusion import PromptFeatures, ReferenceFeatures

_PROMPTS_KEPT = 64
_IMAGES_PER_ROW = 8
"""Images of one product that travel in one row: at full size some 5 MB, since Ray Data wants rows under 10 MB."""


@dataclass
class _Product:
    """A product on its way: its row, the images that are finished, and how many are not."""

    row: PlacedProduct
    num_open: int
    finished: list[GeneratedImage] = field(default_factory=list)

    def finish(self, image: GeneratedImage) -> None:
        self.finished.append(image)
        self.num_open -= 1

    def take_rows(self) -> Iterator[GeneratedProduct]:
        """Rows of the finished images, once the product has no open ones or a row is full."""
        while self.finished and (not self.num_open or len(self.finished) >= _IMAGES_PER_ROW):
            images, self.finished = self.finished[:_IMAGES_PER_ROW], self.finished[_IMAGES_PER_ROW:]
            yield GeneratedProduct.of(self.row, tuple(images))


@dataclass
class _Task:
    """One wanted image on its way."""

    product: _Product
    wanted: WantedImage
    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    reference: "ReferenceFeatures"
    prompt: "PromptFeatures"
    seed: int = 0
    attempts: int = 0
    generate_s: float = 0.0

    def finish(
        self,
        *,
        error: RowFailure | None = None,
        image: npt.NDArray[np.uint8] | None = None,
        scores: FidelityScores | None = None,
    ) -> None:
        """Hands the image to its product. image: None where it must not be published."""
        self.product.finish(
            GeneratedImage(
                wanted=self.wanted,
                error=error,
                ad=b"" if image is None else encode_png(image),
                seed=self.seed,
                attempts=self.attempts,
                color_similarity=None if scores is None else scores.color_similarity,
                structure_similarity=None if scores is None else scores.structure_similarity,
                generate_s=self.generate_s,
            )
        )


class AdGenerator:
    """Runs the Reference U-Net once per product, then denoises all its images in batches of `sampling.batch_size`.

    INPUT: PlacedProduct. OUTPUT: GeneratedProduct, one row per product and eight of its images. One GPU, or
    `model.torch_threads` CPU threads. A retried task makes the same images again.
    """

    def __init__(self, config: GenerateConfig, run_id: str) -> None:
        """Loads the model. Raises: ValueError for a model, device or number format that cannot be."""
        # Only here: planning and the driver import this module without waiting for torch.
        from refadgen.model.inference import load_for_inference

        self._config = config
        self._errors = UnexpectedErrors(AdGenerator.__name__, run_id)
        self._pipeline = load_for_inference(config.model, gpu_expected=config.stages.generate.num_gpus > 0)
        self._encode_prompt = functools.lru_cache(_PROMPTS_KEPT)(self._pipeline.encode_prompt)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        rows = deque(from_table(table, PlacedProduct))
        products: list[_Product] = []
        tasks: list[_Task] = []
        size = self._config.sampling.batch_size
        while rows or tasks:
            # No more products than a batch needs: each holds K_ref and V_ref of every layer.
            while rows and len(tasks) < size:
                products.append(_Product(rows[0], num_open=len(rows[0].wanted)))
                tasks += self._prepare(products[-1])
                rows.popleft()
            batch, tasks = tasks[:size], tasks[size:]
            if batch:
                tasks = self._run(batch) + tasks
            # At once: a row that leaves early is published early, and a crash then costs less.
            finished = [row for product in products for row in product.take_rows()]
            products = [product for product in products if product.num_open]
            if finished:
                yield to_table(finished, GeneratedProduct)

    def _prepare(self, product: _Product) -> list[_Task]:
        """The tasks of a product; images that cannot be started are finished with their error."""
        row, started = product.row, time.monotonic()
        error = row.error
        if error is None:
            try:
                canvas, mask = from_png(row.canvas), from_png(row.product_mask)
                reference = self._pipeline.encode_reference([canvas])
            except Exception as problem:  # of the device, or a fault of ours: the images may be tried again
                error = self._errors.failure(problem, row.label, "generation_error")
        tasks: list[_Task] = []
        for wanted in row.wanted:
            failure = error
            if failure is None:
                try:
                    prompt = self._encode_prompt(wanted.prompt, row.negative_prompt)
                    tasks.append(_Task(product, wanted, canvas, mask, reference, prompt))
                except ValueError as problem:
                    failure = RowFailure.of(RowError("prompt_too_long", f"row {row.row}: {problem}"))
                except Exception as problem:
                    failure = self._errors.failure(problem, row.label, "generation_error")
            if failure is not None:
                product.finish(GeneratedImage(wanted=wanted, error=failure, seed=wanted.seed))
        for task in tasks:  # the reference pass serves all images of the product: each bears its share
            task.generate_s = (time.monotonic() - started) / len(tasks)
        return tasks

    def _run(self, batch: list[_Task]) -> list[_Task]:
        """One denoising batch. Returns the tasks whose image the gate sends back for another seed."""
        started = time.monotonic()
        for task in batch:
            task.seed = attempt_seed(task.wanted.seed, task.attempts)
            task.attempts += 1
        try:
            images = self._denoise(batch)
        except Exception as problem:  # out of memory, a lost device: these images fail, the others go on
            for task in batch:
                # Without an earlier attempt's picture: only images that are done are published.
                task.finish(error=self._errors.failure(problem, task.product.row.label, "generation_error"))
            return []
        again = []
        for task, image in zip(batch, images, strict=True):
            task.generate_s += (time.monotonic() - started) / len(batch)
            scores = score_fidelity(image, task.canvas, task.mask)
            problem_text = below_gate(scores, self._config.quality)
            if not problem_text:
                task.finish(image=image, scores=scores)
            elif task.attempts < self._config.quality.max_attempts:
                again.append(task)
            else:
                failure = RowError("low_fidelity", f"{problem_text} after {task.attempts} attempts")
                task.finish(error=RowFailure.of(failure), scores=scores)
        return again

    def _denoise(self, batch: list[_Task]) -> npt.NDArray[np.uint8]:
        """The images of a batch, uint8 B×H×W×3."""
        sampling = self._config.sampling
        rows = [
            self._pipeline.start(
                task.reference,
                task.mask,
                task.prompt,
                seed=task.seed,
                fusion_scale=sampling.fusion_scale,
                guidance_scale=sampling.guidance_scale,
                num_inference_steps=sampling.num_inference_steps,
            )
            for task in batch
        ]
        steps = self._pipeline.denoise(
            rows, batch_size=sampling.batch_size, reference_in_uncond=sampling.reference_in_uncond
        )
        deque(steps, maxlen=0)  # runs the generator to its end; nobody watches the steps of a batch job
        images: npt.NDArray[np.uint8] = self._pipeline.decode(rows)
        return images
