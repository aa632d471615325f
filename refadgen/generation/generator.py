"""The stage that makes the images: placed products in, scored images out, by fixed padded batches on one model."""

import dataclasses
import functools
import io
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from refadgen.batch.stage_rows import error_json, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig
from refadgen.errors import RowError
from refadgen.generation.scores import FidelityScores, below_gate, score_fidelity
from refadgen.generation.stages import SEGMENT_SCHEMA
from refadgen.generation.wanted import WantedImage, attempt_seed
from refadgen.model.folder import find_model

if TYPE_CHECKING:
    from refadgen.model.attention_fusion import PromptFeatures, ReferenceFeatures

GENERATE_SCHEMA = pa.schema(
    [
        *(item for item in SEGMENT_SCHEMA if item.name not in ("negative_prompt", "wanted")),
        ("image_id", pa.string()),
        ("scene", pa.string()),
        ("variant", pa.int32()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),  # of the attempt that is kept
        ("attempts", pa.int32()),
        ("ad", pa.binary()),  # PNG; empty after an error
        ("color_similarity", pa.float32()),
        ("structure_similarity", pa.float32()),
        ("generate_s", pa.float32()),
    ]
)
_PROMPTS_KEPT = 64


@dataclass
class _Task:
    """One wanted image on its way."""

    row: dict[str, Any]
    wanted: WantedImage
    canvas: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    reference: "ReferenceFeatures"
    prompt: "PromptFeatures"
    attempts: int = 0
    seed: int = 0
    generate_s: float = 0.0
    ad: npt.NDArray[np.uint8] | None = None
    scores: FidelityScores | None = None


class AdGenerator:
    """Runs the Reference U-Net once per product, then denoises all its images in batches of `sampling.batch_size`.

    INPUT: SEGMENT_SCHEMA, one row per product. OUTPUT: GENERATE_SCHEMA, one row per wanted image. One GPU, or
    `model.torch_threads` CPU threads. A retried task makes the same images again.
    """

    def __init__(self, config: GenerateConfig) -> None:
        """Loads the model. Raises: ValueError for a model, device or number format that cannot be."""
        # Only here: planning and the driver import this module without waiting for torch.
        import torch

        from refadgen.config.devices import resolve_device, resolve_dtype
        from refadgen.model import RefAdGenPipeline

        torch.set_num_threads(config.model.torch_threads)
        self._config = config
        device = resolve_device(
            config.model.device, gpu_expected=config.stages.generate.num_gpus > 0, field="model.device"
        )
        self._pipeline = RefAdGenPipeline.from_pretrained(
            find_model(config.model.path), torch_dtype=resolve_dtype(config.model.dtype, device), device=device
        )
        self._pipeline.optimize(
            channels_last=config.model.channels_last,
            compile=config.model.compile,
            cuda_graphs=config.model.cuda_graphs,
        )
        self._encode_prompt = functools.lru_cache(_PROMPTS_KEPT)(self._pipeline.encode_prompt)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        tasks: list[_Task] = []
        rows = deque(table.to_pylist())
        size = self._config.sampling.batch_size
        while rows or tasks:
            # No more products than a batch needs: each holds K_ref and V_ref of every layer.
            while rows and len(tasks) < size:
                prepared, failures = self._prepare(rows.popleft())
                tasks += prepared
                if failures:
                    yield to_table(failures, GENERATE_SCHEMA)
            batch, tasks = tasks[:size], tasks[size:]
            if not batch:
                continue
            outputs, again = self._run(batch)
            tasks = again + tasks
            if outputs:
                yield to_table(outputs, GENERATE_SCHEMA)

    def _prepare(self, row: dict[str, Any]) -> tuple[list[_Task], list[dict[str, Any]]]:
        """A product's tasks, and rows for the images that cannot be begun."""
        wanted = [WantedImage(**item) for item in json.loads(row["wanted"])]
        tasks: list[_Task] = []
        failures: list[dict[str, Any]] = []
        started = time.monotonic()
        error = row["error"]
        if not error:
            try:
                canvas, mask = _image(row["canvas"]), _image(row["product_mask"])
                reference = self._pipeline.encode_reference([canvas])
            except Exception as problem:  # of the device or a fault of ours: the images may be tried again
                error = _internal_error(problem)
        for image in wanted:
            problem_json = error
            if not error:
                try:
                    prompt = self._encode_prompt(image.prompt, row["negative_prompt"])
                    tasks.append(_Task(row, image, canvas, mask, reference, prompt))
                except ValueError as problem:
                    problem_json = error_json(RowError("prompt_too_long", f"row {row['row']}: {problem}"))
                except Exception as problem:
                    problem_json = _internal_error(problem)
            if problem_json:
                failures.append(self._output(row, image) | {"error": problem_json})
        for task in tasks:
            task.generate_s = (time.monotonic() - started) / len(tasks)
        return tasks, failures

    def _run(self, batch: list[_Task]) -> tuple[list[dict[str, Any]], list[_Task]]:
        """One denoising batch: finished rows, and tasks whose image the gate sends back for another seed."""
        started = time.monotonic()
        sampling, size = self._config.sampling, self._config.sampling.batch_size
        for task in batch:
            task.seed = attempt_seed(task.wanted.seed, task.attempts)
            task.attempts += 1
        try:
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
            for _ in self._pipeline.denoise(rows, batch_size=size, reference_in_uncond=sampling.reference_in_uncond):
                pass
            images = self._pipeline.decode(rows)
        except Exception as problem:  # out of memory, a lost device: these images fail, the others go on
            # Without an earlier attempt's picture: only what is done is published.
            error = {"error": _internal_error(problem), "ad": b""}
            return [self._output(task.row, task.wanted, task) | error for task in batch], []
        outputs, again = [], []
        for task, image in zip(batch, images, strict=True):
            task.generate_s += (time.monotonic() - started) / len(batch)
            task.ad, task.scores = image, score_fidelity(image, task.canvas, task.mask)
            problem_text = below_gate(task.scores, self._config.quality)
            if problem_text and task.attempts < self._config.quality.max_attempts:
                again.append(task)
                continue
            output = self._output(task.row, task.wanted, task)
            if problem_text:
                detail = f"{problem_text} after {task.attempts} attempts"
                output |= {"error": error_json(RowError("low_fidelity", detail)), "ad": b""}
            outputs.append(output)
        return outputs, again

    def _output(self, row: dict[str, Any], wanted: WantedImage, task: _Task | None = None) -> dict[str, Any]:
        output = {
            **row,
            **dataclasses.asdict(wanted),
            "negative_prompt": row["negative_prompt"] or "",
            "attempts": 0,
            "ad": b"",
        }
        if task is not None:
            output |= {"attempts": task.attempts, "seed": task.seed, "generate_s": task.generate_s}
            output |= {} if task.scores is None else dataclasses.asdict(task.scores)
            output["ad"] = b"" if task.ad is None else encode_png(task.ad)
        return output


def _image(png: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def _internal_error(problem: Exception) -> str:
    return error_json(RowError("generation_error", f"{type(problem).__name__}: {str(problem)[:200]}"))
