"""The Generation U-Net's own forward pass: the same numbers as diffusers' from fewer rows."""

import dataclasses

import pytest
import torch
from tiny_models import CROSS_BLOCKS, LOW_BLOCKS, make_pipeline, product, relative_difference

from refadgen.model import RefAdGenPipeline
from refadgen.model.attention_fusion import Conditioning, condition, self_attention_layers
from refadgen.model.unets import predict

TOLERANCE = 2e-5  # a pass on another number of rows sums in another order

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(
    pipeline: RefAdGenPipeline, *, guidance: bool = True, reference_in_uncond: bool = True
) -> tuple[Inputs, Conditioning]:
    """Three rows of different products, masks, prompts, λ and timesteps, and their conditioning."""
    seeds, prompts = (1, 2, 3), ("a red cup", "on sand", "")
    pictures = [product(seed) for seed in seeds]
    mask_latents = torch.cat([pipeline.mask_latents(mask) for _, mask in pictures])
    noisy_latents = torch.randn(3, 4, *mask_latents.shape[-2:], generator=torch.Generator().manual_seed(0))
    conditioning = condition(
        [pipeline.encode_prompt(prompt) for prompt in prompts],
        [pipeline.encode_reference([image]) for image, _ in pictures],
        torch.tensor([0.3, 1.0, 2.0]),
        guidance=guidance,
        reference_in_uncond=reference_in_uncond,
    )
    return (noisy_latents, mask_latents, torch.tensor([10, 500, 999])), conditioning


def unshared(conditioning: Conditioning) -> Conditioning:
    """The same for a network that runs N rows everywhere: K_ref and V_ref of the shared layer repeated."""
    reference, layer = dict(conditioning.reference), conditioning.shared_layer
    if layer is not None and conditioning.reference_in_uncond and len(reference[layer][0]) == conditioning.num_rows:
        key, value = reference[layer]
        reference[layer] = (torch.cat([key] * 2), torch.cat([value] * 2))
    return dataclasses.replace(conditioning, reference=reference, shared_layer=None)


def plain_forward(pipeline: RefAdGenPipeline, inputs: Inputs, conditioning: Conditioning) -> torch.Tensor:
    """diffusers' own forward pass on doubled inputs."""
    noisy_latents, mask_latents, timesteps = inputs
    branches = conditioning.num_branches
    return pipeline.generation_unet(
        torch.cat([torch.cat([noisy_latents, mask_latents], dim=1)] * branches),
        torch.cat([timesteps] * branches),
        None,
        cross_attention_kwargs={"conditioning": unshared(conditioning)},
    ).sample


@pytest.mark.parametrize("blocks", [CROSS_BLOCKS, LOW_BLOCKS], ids=["sd15", "low"])
@pytest.mark.parametrize("image_encoder", [True, False], ids=["image_encoder", "no_encoder"])
@pytest.mark.parametrize(
    ("guidance", "reference_in_uncond"), [(True, True), (True, False), (False, True)], ids=["both", "one", "unguided"]
)
@torch.no_grad()
def test_predict_equals_diffusers_forward_on_doubled_inputs(
    blocks: tuple, image_encoder: bool, guidance: bool, reference_in_uncond: bool
) -> None:
    pipeline = make_pipeline(image_encoder=image_encoder, blocks=blocks)
    inputs, conditioning = make_inputs(pipeline, guidance=guidance, reference_in_uncond=reference_in_uncond)
    predicted, _ = predict(pipeline.generation_unet, *inputs, conditioning)
    assert len(predicted) == (6 if guidance else 3)
    assert relative_difference(predicted, plain_forward(pipeline, inputs, conditioning)) < TOLERANCE


def rows_seen(pipeline: RefAdGenPipeline, modules: list[str]) -> dict[str, int]:
    """Leading size of each module's input in one guided pass of three rows."""
    rows: dict[str, int] = {}
    handles = []
    for name in modules:

        def note(_module: torch.nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            rows[name] = len(args[0] if args else kwargs["hidden_states"])

        handles.append(pipeline.generation_unet.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    inputs, conditioning = make_inputs(pipeline)
    with torch.no_grad():
        predict(pipeline.generation_unet, *inputs, conditioning)
    for handle in handles:
        handle.remove()
    return rows


def test_rows_at_each_point_are_those_of_the_table() -> None:
    """B = 3 and N = 6, as `predict` documents them, for Stable Diffusion 1.5's blocks."""
    first = self_attention_layers(make_pipeline(image_encoder=True).generation_unet)[0]
    block = first.removesuffix(".attn1")
    once = ["conv_in", "down_blocks.0.resnets.0", f"{first}.to_q", f"{first}.to_k"]
    twice = ["down_blocks.0.attentions.0.proj_in", f"{block}.norm1", first, f"{block}.attn2", f"{block}.ff"]
    twice += ["down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0"]
    twice += ["mid_block", "up_blocks.0", "up_blocks.3.resnets.2", "conv_out"]
    rows = rows_seen(make_pipeline(image_encoder=True), once + twice)
    assert {name: rows[name] for name in once} == dict.fromkeys(once, 3)
    assert {name: rows[name] for name in twice} == dict.fromkeys(twice, 6)


def test_a_first_block_without_attention_runs_once() -> None:
    once = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0"]
    twice = ["down_blocks.1.attentions.0.proj_in", "down_blocks.2.resnets.0", "mid_block", "conv_out"]
    rows = rows_seen(make_pipeline(image_encoder=True, blocks=LOW_BLOCKS), once + twice)
    assert {name: rows[name] for name in once} == dict.fromkeys(once, 3)
    assert {name: rows[name] for name in twice} == dict.fromkeys(twice, 6)
