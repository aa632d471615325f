"""Settings of speed and precision: the pictures stay close."""

import functools
import os

import pytest
import torch
from tiny_models import LOW_BLOCKS, make_pipeline, relative_difference, run, start


def latents_of(pipeline, steps: int = 5) -> torch.Tensor:
    rows = [start(pipeline, seed, "a red cup", num_inference_steps=steps) for seed in (1, 2)]
    return torch.cat(run(pipeline, rows)).float()


@pytest.fixture(scope="module")
def usual():
    return latents_of(make_pipeline(image_encoder=True))


def test_bfloat16_runs(usual, tmp_path):
    """From the same folder: every tensor of the networks is in the asked-for type; latents add up in float32."""
    from refadgen.model import RefAdGenPipeline

    make_pipeline(image_encoder=True).save_pretrained(tmp_path)
    pipeline = RefAdGenPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.bfloat16}
    row = start(pipeline, 1, "a red cup", num_inference_steps=5)
    assert (row.latents.dtype, row.mask_latents.dtype) == (torch.float32, torch.bfloat16)
    latents = latents_of(pipeline)
    assert latents.isfinite().all()
    assert relative_difference(latents, usual) < 0.25  # 8 bits of mantissa, five steps of guidance 7.5
    run(pipeline, [row])
    assert pipeline.decode([row]).shape == (1, 88, 72, 3)


def test_channels_last_is_close(usual):
    pipeline = make_pipeline(image_encoder=True)
    pipeline.optimize(channels_last=True)
    weight = pipeline.generation_unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert relative_difference(latents_of(pipeline), usual) < 2e-5  # convolutions sum in another order


def test_compiled_step_is_close(monkeypatch):
    """The step is captured as one graph. No code is generated from it: that takes a C++ compiler minutes."""
    from torch._dynamo.utils import counters

    pipeline = make_pipeline(image_encoder=False, blocks=LOW_BLOCKS)
    expected = latents_of(pipeline, steps=2)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    pipeline.optimize(compile=True)
    assert relative_difference(latents_of(pipeline, steps=2), expected) < 2e-5  # other kernels round differently
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif("REFADGEN_TEST_INDUCTOR" not in os.environ, reason="minutes of C++: set REFADGEN_TEST_INDUCTOR=1")
def test_generated_code_is_close():
    """The same with the code that `model.compile` runs, at the smallest size there is."""
    blocks = (("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",))
    pipeline = make_pipeline(image_encoder=False, blocks=blocks)
    expected = latents_of(pipeline, steps=2)
    pipeline.optimize(compile=True)
    assert relative_difference(latents_of(pipeline, steps=2), expected) < 2e-5  # fused kernels round differently
