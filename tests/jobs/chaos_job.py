"""The main job with a stand-in for the model, as a process of its own: `python chaos_job.py STEP_SECONDS words …`."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "jobs")]


def stand_in(step_s: float) -> type:
    """A generating stage whose picture is the canvas, moved by the seed. Of a function: actors get it by value."""
    from refadgen.generation.generator import AdGenerator

    class Painter:
        batch_size, num_kinds = 2, 1

        def start(self, order: Any) -> Any:
            return order

        def kind(self, row: Any) -> int:
            return 0

        num_steps = kind

        def step(self, rows: list[Any], batch_size: int) -> list[Any]:
            time.sleep(step_s)
            return rows

        def finish(self, order: Any, row: Any) -> Any:
            return np.roll(order.canvas, order.seed % 7, axis=0)

        def preview(self, row: Any) -> bytes:
            return b""

        def check_device(self) -> None:
            pass

    class StandInGenerator(AdGenerator):
        def _make_denoiser(self) -> Any:
            return Painter()

    return StandInGenerator


if __name__ == "__main__":
    import generate_catalog

    from refadgen.generation import job

    job.AdGenerator = stand_in(float(sys.argv[1]))  # type: ignore[misc]
    sys.exit(generate_catalog.main(sys.argv[2:]))
