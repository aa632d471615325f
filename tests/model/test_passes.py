"""Fast mode: which pass each step of an image has, what a pass computes, and that company changes nothing."""

import pytest
import torch
from PIL import Image
from tiny_models import make_pipeline, product, relative_difference, run, start

from refadgen.model.passes import FastMode, Pass, passes_of

GUIDED, UNGUIDED = Pass(True), Pass(False)
GUIDED_AGAIN, UNGUIDED_AGAIN = Pass(True, full=False), Pass(False, full=False)
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
FAST = FastMode(guidance_interval=(0.3, 0.9), reuse_steps=2)


@pytest.mark.parametrize(
    ("guided", "fast", "passes"),
    [
        (True, FastMode(), [GUIDED] * 5),
        (False, FastMode(), [UNGUIDED] * 5),
        (True, FastMode(guidance_interval=(0.4, 0.8)), [UNGUIDED, GUIDED, GUIDED, GUIDED, UNGUIDED]),
        (True, FastMode(reuse_steps=3), [GUIDED, GUIDED_AGAIN, GUIDED_AGAIN, GUIDED, GUIDED_AGAIN]),
        # Where guidance begins there are no features of the unconditional branch; where it ends there are enough.
        (True, FAST, [UNGUIDED, GUIDED, GUIDED_AGAIN, GUIDED, UNGUIDED_AGAIN]),
        (
            True,
            FastMode(guidance_interval=(0.0, 0.7), reuse_steps=9),
            [UNGUIDED, UNGUIDED_AGAIN, GUIDED, GUIDED_AGAIN, GUIDED_AGAIN],
        ),
    ],
)
def test_the_pass_of_each_step(guided, fast, passes):
    assert list(passes_of(SHARES, guided=guided, fast=fast)) == passes


def test_bounds_of_0_and_1_hold_for_timesteps_of_any_kind():
    """EDM's schedulers count timesteps by the logarithm of the noise, below zero as well."""
    assert set(passes_of([-0.3, 0.0, 2.0], guided=True, fast=FastMode())) == {GUIDED}


@torch.no_grad()
@pytest.mark.parametrize("guidance", [True, False], ids=["guided", "unguided"])
def test_a_pass_with_its_own_deep_features_is_the_full_pass(pipeline, guidance):
    row = start(pipeline, 1, "a cup", guidance_scale=3.0 if guidance else 1.0)
    batch = pipeline.batch()
    batch.add(row)
    given = []
    predict = batch.predict
    batch.predict = lambda *inputs: given.append(inputs) or predict(*inputs)
    batch.step()
    full, deep = predict(*given[0])
    again, same = predict(*given[0][:4], deep)
    assert torch.equal(again, full)
    assert torch.equal(same, deep)
    other, _ = predict(*given[0][:4], torch.zeros_like(deep))
    assert relative_difference(other, full) > 1e-3


@torch.no_grad()
def test_a_pass_on_kept_features_runs_the_outer_blocks_only(pipeline):
    ran: list[str] = []
    unet = pipeline.generation_unet
    blocks = ["conv_in", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0", "mid_block"]
    blocks += [f"up_blocks.{number}" for number in range(4)]
    handles = [
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name in blocks
    ]
    batch = pipeline.batch()
    batch.add(start(pipeline, 1, "a cup", num_inference_steps=2, fast=FastMode(reuse_steps=2)))
    batch.step()
    assert ran == blocks
    ran.clear()
    batch.step()
    assert ran == ["conv_in", "up_blocks.3"]
    for handle in handles:
        handle.remove()


def test_guidance_outside_its_interval_is_no_guidance(pipeline):
    never = FastMode(guidance_interval=(0.0, 0.0))  # DDIM's last timestep is above 0
    (fast,) = run(pipeline, [start(pipeline, 1, "a cup", guidance_scale=3.0, num_inference_steps=4, fast=never)])
    (plain,) = run(pipeline, [start(pipeline, 1, "a cup", guidance_scale=1.0, num_inference_steps=4)])
    (guided,) = run(pipeline, [start(pipeline, 1, "a cup", guidance_scale=3.0, num_inference_steps=4)])
    assert torch.equal(fast, plain)
    assert not torch.equal(fast, guided)


def fast_rows(pipeline) -> list:
    """Rows at whose steps the passes differ."""
    return [
        start(pipeline, 1, "a red cup", guidance_scale=7.5, num_inference_steps=6, fast=FAST),
        start(pipeline, 2, "on sand", guidance_scale=3.0, num_inference_steps=5, fast=FAST),
        start(pipeline, 3, "", guidance_scale=1.0, num_inference_steps=4, fast=FAST),
        start(pipeline, 4, "blue", guidance_scale=2.0, num_inference_steps=7),
    ]


@pytest.mark.parametrize("image_encoder", [True, False], ids=["image_encoder", "no_encoder"])
def test_rows_of_different_passes_in_one_batch_are_those_alone_to_the_bit(image_encoder):
    pipeline = make_pipeline(image_encoder=image_encoder)
    alone = [run(pipeline, [row], batch_size=4)[0] for row in fast_rows(pipeline)]
    together = fast_rows(pipeline)
    batch = pipeline.batch(batch_size=4)
    for row in together[:3]:
        batch.add(row)
    batch.step()
    batch.add(together[3])  # joins when the others are a step ahead
    while batch.rows:
        batch.step()
    assert all(torch.equal(row.latents, expected) for row, expected in zip(together, alone, strict=True))
    assert all(row.deep is None for row in together)


def test_a_call_takes_fast_mode(pipeline):
    image_u8, mask_u8 = product(1)
    inputs = ([Image.fromarray(image_u8)], [Image.fromarray(mask_u8)], ["a cup"])
    made = {
        fast: pipeline(*inputs, seeds=[1], num_inference_steps=4, fast=fast).images[0].tobytes()
        for fast in (FastMode(), FAST)
    }
    assert made[FAST] != made[FastMode()]
