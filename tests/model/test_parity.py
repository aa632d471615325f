"""The pipeline against the plain oracle, after 20 guided steps in fp32."""

import pytest
import torch
from oracle import Oracle
from tiny_models import LOW_BLOCKS, make_pipeline, product, relative_difference, run, start

TOLERANCE = 2e-5  # other orders of summation, amplified by 20 steps of guidance 7.5; seen: about 2e-6


@pytest.mark.parametrize("reference_in_uncond", [True, False])
def test_equals_the_oracle(pipeline, reference_in_uncond):
    """Two rows of different products, prompts, seeds and λ, through the oracle's batch-global loop."""
    seeds, prompts, scales = [3, 4], ["a red cup", "on sand"], [0.9, 1.7]
    rows = [start(pipeline, s, p, fusion_scale=f) for s, p, f in zip(seeds, prompts, scales, strict=True)]
    latents = torch.cat(run(pipeline, rows, reference_in_uncond=reference_in_uncond))
    expected = Oracle.of(pipeline).sample(
        [product(seed)[0] for seed in seeds],
        [product(seed)[1] for seed in seeds],
        [f"{prompt}, hq" for prompt in prompts],
        ["ugly"] * 2,
        seeds,
        fusion_scales=scales,
        reference_in_uncond=reference_in_uncond,
    )
    for row_latents, row_expected in zip(latents, expected, strict=True):
        assert relative_difference(row_latents, row_expected) < TOLERANCE


def test_the_oracle_sees_every_input(encoder_pipeline):
    """Nothing is zero or equal by accident: each input that the oracle is given changes its latents."""
    oracle = Oracle.of(encoder_pipeline)

    def latents(prompt="a cup", negative="ugly", image=1, mask=1, seed=1, fusion_scale=1.0, in_uncond=True, zero=False):
        oracle.image_tokens.resampler = (lambda x: torch.zeros(1, 5, 16)) if zero else resampler
        return oracle.sample(
            [product(image)[0]],
            [product(mask)[1]],
            [prompt],
            [negative],
            [seed],
            fusion_scales=[fusion_scale],
            num_inference_steps=4,
            reference_in_uncond=in_uncond,
        )

    resampler = oracle.image_tokens.resampler
    usual = latents()
    changes = [{"prompt": "a mug"}, {"negative": "grey"}, {"image": 2}, {"mask": 2}, {"seed": 2}]
    changes += [{"fusion_scale": 0.8}, {"in_uncond": False}, {"zero": True}]
    for change in changes:
        assert relative_difference(latents(**change), usual) > 1e-3, change


def test_the_negative_prompt_as_context_equals_the_oracle():
    """As the authors' code has it without an image encoder: the unconditional branch has K_ref and V_ref of its own."""
    empty, theirs = (make_pipeline(image_encoder=False, negative_prompt_context=each) for each in (None, True))
    rows = [start(each, 3, "a cup", fusion_scale=1.3, num_inference_steps=2) for each in (empty, theirs)]
    (plain,), (own,) = (run(each, [row]) for each, row in zip((empty, theirs), rows, strict=True))
    expected = Oracle.of(theirs).sample(
        [product(3)[0]],
        [product(3)[1]],
        ["a cup, hq"],
        ["ugly"],
        [3],
        fusion_scales=[1.3],
        num_inference_steps=2,
        negative_prompt_context=True,
    )
    assert relative_difference(own, expected) < TOLERANCE
    assert relative_difference(own, plain) > 1e-3
    with pytest.raises(ValueError, match="negative_prompt_context=True: is for models without an image encoder"):
        make_pipeline(image_encoder=True, negative_prompt_context=True)


@pytest.mark.parametrize(("image_encoder", "reference_in_uncond"), [(True, True), (False, False)])
def test_equals_the_oracle_at_520_by_648(image_encoder, reference_in_uncond):
    """Latents of 65×81: no level halves evenly. The first block has no attention, which keeps 5265 tokens affordable
    and shares a complete block between the guidance branches."""
    pipeline = make_pipeline(image_encoder=image_encoder, blocks=LOW_BLOCKS)
    image_u8, mask_u8 = product(2, 520, 648)
    row = start(pipeline, 2, "cup", size_px=(520, 648))
    (latents,) = run(pipeline, [row], reference_in_uncond=reference_in_uncond)
    expected = Oracle.of(pipeline).sample(
        [image_u8],
        [mask_u8],
        ["cup, hq"],
        ["ugly"],
        [2],
        fusion_scales=[1.0],
        reference_in_uncond=reference_in_uncond,
    )
    assert latents.shape == (1, 4, 81, 65)
    assert relative_difference(latents, expected) < TOLERANCE
