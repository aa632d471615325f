"""The stand-in for a device: it sleeps as long as a step would take, and everything around it is the product's own.

Job and endpoint are measured on the same one: `StandIn` takes the place of the loaded pipeline, `StandInDenoiser` that
of the step engine's denoiser. Works with older checkouts too, whose `refadgen` is imported in functions only.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BATCH, STEPS = 8, 20


@dataclass(eq=False)
class Row:
    """An image on its way."""

    canvas: Any = None
    num_steps: int = STEPS
    steps: int = 0
    latents: Any = None
    next_pass: Any = None
    """All steps are of one kind."""

    @property
    def step_index(self) -> int:
        return self.steps


@dataclass
class Features:
    """K_ref and V_ref of a product."""

    canvas: np.ndarray
    nbytes: int = 60_000_000


@dataclass
class Prompt:
    """K and V of a prompt and its negative prompt."""

    nbytes: int = 8_000_000


@dataclass
class StandIn:
    """The pipeline of a model whose work is a sleep: a step takes as long with one row as with a full batch."""

    step_s: float
    batch_size: int = BATCH
    rows: list[Row] = field(default_factory=list)
    taken: int = 0
    """Places in batches that an image had."""
    places: int = 0
    """Places in all batches."""
    host_s: float = 0.0
    """Processor time of the thread that steps."""
    log: Path | None = None
    """Gets a line for each image: when its last step was done."""
    config: Any = None
    device: str = "cpu"

    def encode_prompt(self, prompt: str, negative_prompt: str | None) -> Prompt:
        return Prompt()

    def encode_reference(self, canvases: list[np.ndarray]) -> Features:
        return Features(canvases[0])

    def start(self, reference: Features, mask: np.ndarray, prompt: Prompt, **settings: Any) -> Row:
        import torch

        return Row(reference.canvas, settings.get("num_inference_steps", STEPS), latents=torch.zeros(1))

    def batch(self, **settings: Any) -> "StandIn":
        return self

    def replace(self, rows: list[Row]) -> None:
        self.rows = rows

    def step(self) -> list[Row]:
        self.taken, self.places, self.host_s = (
            self.taken + len(self.rows),
            self.places + self.batch_size,
            time.thread_time(),
        )
        time.sleep(self.step_s)
        for row in self.rows:
            row.steps += 1
        finished = [row for row in self.rows if row.steps == row.num_steps]
        if self.log is not None and finished:
            with self.log.open("a") as file:
                file.write(f"{time.time()}\n" * len(finished))
        return finished

    def uneven_places(self, num_rows: int) -> tuple[int, ...]:
        return ()

    def denoise(self, rows: list[Row], **settings: Any) -> Iterator[int]:
        self.replace(rows)
        for step in range(max(row.num_steps for row in rows)):
            self.step()
            yield step

    def decode(self, rows: list[Row]) -> np.ndarray:
        return np.stack([row.canvas for row in rows])


class StandInDenoiser:
    """The same device behind the step engine. An order is a number of steps, or has `num_inference_steps`."""

    def __init__(self, step_s: float, batch_size: int = BATCH) -> None:
        self.batch_size = batch_size
        self.num_kinds = 1
        self._device = StandIn(step_s, batch_size)

    def kind(self, row: Row) -> int:
        return 0

    def num_steps(self, row: Row) -> int:
        return row.num_steps

    def start(self, order: Any) -> Row:
        return Row(getattr(order, "canvas", None), getattr(order, "num_inference_steps", order))

    def step(self, rows: list[Row], batch_size: int | None = None) -> list[Row]:
        """batch_size: of the engine's batches; older engines leave it out."""
        self._device.replace(rows)
        return self._device.step()

    def finish(self, order: Any, row: Row) -> Any:
        return row.canvas

    def preview(self, row: Row) -> bytes:
        return b""

    def check_device(self) -> None:
        pass


def step_seconds(device_ms: float) -> float:
    """Seconds of a step of a full batch, where the device takes `device_ms` for an image."""
    return device_ms / 1000 * BATCH / STEPS


def install(device: StandIn) -> StandIn:
    """Makes every model that this process loads be `device`."""
    import refadgen.model.inference

    def load(*_: Any, **__: Any) -> StandIn:
        return device

    refadgen.model.inference.load_for_inference = load  # type: ignore[assignment]
    return device


def settings(width_px: int, height_px: int) -> list[str]:
    """`section.field=value` words that stand for what a model would recommend."""
    return [
        f"sampling.width_px={width_px}",
        f"sampling.height_px={height_px}",
        f"sampling.batch_size={BATCH}",
        f"sampling.num_inference_steps={STEPS}",
        "sampling.guidance_scale=2",
        "sampling.reference_in_uncond=false",
    ]


def bare_images_per_s(device_ms: float, num_images: int) -> float:
    """Images per second of full batches on the stand-in; a few batches tell, since nothing else happens."""
    device = StandIn(step_seconds(device_ms))
    batches = max(1, min(4, num_images // BATCH))
    started = time.perf_counter()
    for _ in range(batches):
        for _ in device.denoise([Row() for _ in range(BATCH)]):
            pass
    return batches * BATCH / (time.perf_counter() - started)
