"""Times one guided step at full Stable Diffusion 1.5 size through the real pipeline, randomly initialised, on the CPU.

    python tests/benchmarks/full_size_step.py [--image-encoder]

512×640 px, batch 1, guidance 7.5, fp32. Needs about 10 GB (14 GB with the image encoder) and a minute or two. Prints
the seconds of the reference pass and of the step, and the peak memory of the process. The last line is JSON.
"""

import argparse
import json
import resource
import sys
import time

import torch
from diffusers import DDIMScheduler
from step_flops import HEIGHT_PX, WIDTH_PX, make_pipeline, product
from torch import nn


def fill(module: nn.Module) -> None:
    """Gives a module of meta tensors its memory and random weights, in place and without a second copy.

    Weights have the deviation that keeps activations at the size of their input; norms start as the identity.
    """
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        for name, buffer in module.named_buffers():
            assert name.endswith("position_ids"), name
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-encoder", action="store_true", help="with CLIP ViT-H and the Resampler")
    options = parser.parse_args()
    started = time.monotonic()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    with torch.device("meta"):
        pipeline = make_pipeline(image_encoder=options.image_encoder, scheduler=scheduler)
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    for network in networks:
        fill(network)
    built_s, started = time.monotonic() - started, time.monotonic()
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    print(
        f"{parameters / 1e6:.0f} M parameters built in {built_s:.1f} s, {torch.get_num_threads()} threads", flush=True
    )

    image_u8, mask_u8 = product()
    mask_u8[: HEIGHT_PX // 2, : WIDTH_PX // 2] = 0
    reference = pipeline.encode_reference([image_u8])
    reference_s, started = time.monotonic() - started, time.monotonic()
    prompt = pipeline.encode_prompt("a cup")
    print(f"reference pass {reference_s:.1f} s; K_ref and V_ref {reference.nbytes / 2**20:.1f} MiB", flush=True)

    started = time.monotonic()
    row = pipeline.start(reference, mask_u8, prompt, seed=0, guidance_scale=7.5, num_inference_steps=20)
    before = row.latents
    batch = pipeline.batch()
    batch.add(row)
    batch.step()
    step_s = time.monotonic() - started
    assert row.step_index == 1
    assert row.latents.isfinite().all()
    assert not torch.equal(row.latents, before)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"guided step {step_s:.1f} s; peak memory {peak_gb:.2f} GB", flush=True)
    numbers = {
        "parameters": parameters,
        "reference_s": round(reference_s, 2),
        "step_s": round(step_s, 2),
        "peak_rss_gb": round(peak_gb, 2),
        "reference_mib": round(reference.nbytes / 2**20, 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
