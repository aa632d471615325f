"""What a step costs on the host beside the network: steps as tables against diffusers' own steps, row by row.

    python tests/benchmarks/step_host.py --rows 8

Both run in turns, on latents of 64×80, with a network that does nothing, on PyTorch's meta device: it computes nothing
either, so that what remains is what Python does to launch it all. Last line: JSON, milliseconds a step.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
from tiny_models import make_pipeline, make_scheduler, start

from refadgen.model.denoising import DenoisingBatch

CANVAS = (640, 512)


def seconds_of_a_step(scheduler, num_rows: int, num_steps: int = 20) -> float:
    pipeline = make_pipeline(image_encoder=False, scheduler=scheduler)
    encoded = start(pipeline, 1, "a cup")
    mask = np.full(CANVAS, 255, np.uint8)
    batch = DenoisingBatch(lambda latents, *_: (latents, latents), True)
    with mock.patch.object(type(pipeline), "device", torch.device("meta")):
        for seed in range(num_rows):
            batch.add(pipeline.start(encoded.reference, mask, encoded.prompt, seed=seed, guidance_scale=1.0))
    batch.step()  # builds what all steps share
    started = time.perf_counter()
    for _ in range(num_steps - 2):
        batch.step()
    return (time.perf_counter() - started) / (num_steps - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        config = make_scheduler().config
        # A class of another name steps row by row.
        kinds = {"tables": scheduler, "row by row": type("RowByRow", (scheduler,), {})}
        times = {name: [] for name in kinds}
        for _ in range(options.repeats):
            for name, kind in kinds.items():
                times[name].append(1000 * seconds_of_a_step(kind.from_config(config), options.rows))
        found[scheduler.__name__] = {name: round(statistics.median(values), 3) for name, values in times.items()}
        print(scheduler.__name__, found[scheduler.__name__], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
