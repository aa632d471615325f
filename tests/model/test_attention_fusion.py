"""Eq. 1, attaching and detaching, and the exact list of trained parameters."""

import copy
import math

import pytest
import torch
from tiny_models import (
    CROSS_BLOCKS,
    LOW_BLOCKS,
    TEXT_WIDTH,
    make_pipeline,
    make_unet,
    perturb,
    product,
    relative_difference,
    run,
    start,
)

from refadgen.model.attention_fusion import (
    Conditioning,
    PromptFeatures,
    ReferenceFeatures,
    attach_capture,
    attach_fusion,
    capture,
    condition,
    detach,
    detached,
    fusion_processors,
    project,
    project_prompt,
    prompt_attention_layers,
    self_attention_layers,
)
from refadgen.model.unets import (
    make_generation_unet,
    make_reference_unet,
    parameters_without_gradient,
    predict,
    trainable_parameters,
)


def test_layers_are_all_sixteen_in_running_order():
    unet = make_unet()
    ran = []
    for layer in self_attention_layers(unet):
        unet.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    unet(torch.randn(1, 4, 11, 9), 0, torch.randn(1, 7, TEXT_WIDTH))
    assert len(ran) == 16
    assert ran == self_attention_layers(unet)
    assert [name.replace("attn2", "attn1") for name in prompt_attention_layers(unet)] == ran


def test_equation_1_equals_a_loop_over_queries():
    """O = softmax(Q Kᵀ / √d) V + λ softmax(Q K_refᵀ / √d) V_ref, one query, head and row at a time, λ per row."""
    unet = make_generation_unet(make_unet())
    layer = self_attention_layers(unet)[3]
    attn, afm = unet.get_submodule(layer), fusion_processors(unet)[layer]
    torch.manual_seed(1)
    with torch.no_grad():
        afm.to_k_ref.weight.add_(torch.randn_like(afm.to_k_ref.weight))
        afm.to_v_ref.weight.add_(torch.randn_like(afm.to_v_ref.weight))
    hidden, hidden_ref = torch.randn(2, 5, 32), torch.randn(2, 7, 32)  # as many reference tokens as there are
    scales = [0.7, 1.9]

    def heads(tensor):
        return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    with torch.no_grad():
        key_ref, value_ref = heads(afm.to_k_ref(hidden_ref)), heads(afm.to_v_ref(hidden_ref))
        conditioning = Conditioning(
            num_rows=2,
            num_branches=1,
            prompt={},
            reference={layer: (key_ref, value_ref)},
            fusion_scale=torch.tensor(scales).view(-1, 1, 1, 1),
            reference_in_uncond=True,
            shared_layer=None,
        )
        fused = attn(hidden, conditioning=conditioning)

        query, key, value = heads(attn.to_q(hidden)), heads(attn.to_k(hidden)), heads(attn.to_v(hidden))
        width = query.shape[-1]
        expected = torch.zeros(2, 5, attn.heads, width)
        for row in range(2):
            for head in range(attn.heads):
                for index in range(5):
                    q = query[row, head, index]
                    for k, v, scale in ((key, value, 1.0), (key_ref, value_ref, scales[row])):
                        weights = [math.exp(float(q @ one) / math.sqrt(width)) for one in k[row, head]]
                        for weight, one in zip(weights, v[row, head], strict=True):
                            expected[row, index, head] += scale * weight / sum(weights) * one
        expected = attn.to_out[0](expected.flatten(2))
    assert relative_difference(fused, expected) < 1e-5  # fp32 rounding


def test_without_product_and_mask_it_is_the_base():
    """λ = 0 and a zero mask channel: the base U-Net's own guided loop, although the mask is not empty."""
    pipeline = make_pipeline(image_encoder=False, trained=False)
    perturb_only_fusion(pipeline.generation_unet)
    row = start(pipeline, 1, "a cup", fusion_scale=0.0, guidance_scale=5.0)
    latents = row.latents.clone()
    assert row.mask_latents.any()
    (fused,) = run(pipeline, [row])

    base, scheduler = make_unet(), copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(20)
    with torch.no_grad():
        text = pipeline._text_states(["ugly", "a cup, hq"])
        for timestep in scheduler.timesteps:
            unconditional, conditional = base(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
            guided = unconditional + 5.0 * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    assert relative_difference(fused, latents) < 2e-5


def perturb_only_fusion(generation_unet):
    with torch.no_grad():
        for afm in fusion_processors(generation_unet).values():
            afm.to_k_ref.weight.add_(0.1)


def test_projections_and_conv_in_start_as_copies():
    base = make_unet()
    unet = make_generation_unet(base)
    for layer, afm in fusion_processors(unet).items():
        assert torch.equal(afm.to_k_ref.weight, base.get_submodule(layer).to_k.weight)
        assert torch.equal(afm.to_v_ref.weight, base.get_submodule(layer).to_v.weight)
        assert afm.to_k_ref.weight.data_ptr() != unet.get_submodule(layer).to_k.weight.data_ptr()
    assert unet.config.in_channels == 5
    assert torch.equal(unet.conv_in.weight[:, :4], base.conv_in.weight)
    assert not unet.conv_in.weight[:, 4:].any()
    assert torch.equal(unet.conv_in.bias, base.conv_in.bias)


def test_attach_and_detach_leave_the_base_untouched():
    base = make_unet()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    inputs = (torch.randn(2, 4, 11, 9), torch.tensor([3, 500]), torch.randn(2, 7, TEXT_WIDTH))
    with torch.no_grad():
        output = base(*inputs).sample
        for attach in (attach_capture, attach_fusion):
            attach(base)
            assert torch.equal(base(*inputs).sample, output)  # attached, but told nothing
            with detached(base):
                assert base.state_dict().keys() == before.keys()
            assert (base.state_dict().keys() == before.keys()) == (attach is attach_capture)
            detach(base)
            assert base.state_dict().keys() == before.keys()
            assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
            assert torch.equal(base(*inputs).sample, output)
        attach_fusion(base)
        afms = fusion_processors(base)
        with detached(base), pytest.raises(ValueError, match="no Attention Fusion Modules"):
            fusion_processors(base)
        assert fusion_processors(base) == afms  # the very same modules are back


def test_making_the_networks_leaves_the_base_untouched():
    base = make_unet()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    perturb(make_reference_unet(base), make_generation_unet(base))
    assert base.config.in_channels == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_base_of_another_architecture_is_refused():
    base = make_unet()
    base.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ValueError, match="addition_embed_type"):
        make_generation_unet(base)


def test_lambda_is_per_row(encoder_pipeline):
    """One product, prompt and seed with λ of 0, 0.5 and 1: three images; a row's λ is only its own."""
    latents = run(encoder_pipeline, [start(encoder_pipeline, 1, "cup", fusion_scale=s) for s in (0.0, 0.5, 1.0, 0.5)])
    assert relative_difference(latents[1], latents[3]) < 2e-5
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert relative_difference(latents[one], latents[other]) > 1e-2


def test_features_are_one_set_or_two(pipeline):
    """Both branches share K_ref and V_ref unless an image encoder gives them different contexts."""
    features = pipeline.encode_reference([product(1)[0], product(2)[0]])
    assert features.num_rows == 2
    assert (features.unconditional is None) == (pipeline.image_encoder is None)
    sets = 1 if features.unconditional is None else 2
    numbers = sum(key.numel() + value.numel() for key, value in features.conditional.values())
    assert features.nbytes == sets * 4 * numbers
    alone = pipeline.encode_reference([product(2)[0]])
    row = features.row(1)
    for layer, (key, value) in row.conditional.items():
        assert relative_difference(key, alone.conditional[layer][0]) < 2e-5
        assert relative_difference(value, alone.conditional[layer][1]) < 2e-5
    with pytest.raises(IndexError, match="row 2 of 2"):
        features.row(2)


def backward(reference_unet, generation_unet) -> None:
    """One training-like backward pass through both networks."""
    torch.manual_seed(0)
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 7, TEXT_WIDTH)
    features = ReferenceFeatures(project(generation_unet, capture(reference_unet, latents, context)))
    prompt = PromptFeatures(project_prompt(generation_unet, context))
    conditioning = condition([prompt], [features], torch.ones(2), guidance=False, reference_in_uncond=True)
    mask = torch.ones(2, 1, 16, 16)
    predicted, _ = predict(generation_unet, latents, mask, torch.tensor([10, 900]), conditioning)
    predicted.square().mean().backward()


@pytest.mark.parametrize("blocks", [CROSS_BLOCKS, LOW_BLOCKS])
def test_parameters_without_gradient_are_exactly_those(blocks):
    base = make_unet(blocks=blocks)
    reference_unet, generation_unet = make_reference_unet(base), make_generation_unet(base)
    backward(reference_unet, generation_unet)
    without = {name for name, parameter in reference_unet.named_parameters() if parameter.grad is None}
    assert parameters_without_gradient(reference_unet) == without
    assert without


def test_trainable_parameters_are_exactly_the_papers():
    base = make_unet()
    reference_unet, generation_unet = make_reference_unet(base), make_generation_unet(base)
    last = "up_blocks.3.attentions.2"
    behind = (f"{last}.proj_out", "conv_norm_out", "conv_out")
    behind += tuple(f"{last}.transformer_blocks.0.{part}." for part in ("attn1", "attn2", "norm2", "norm3", "ff"))
    expected = {f"reference_unet.{name}" for name in base.state_dict() if not name.startswith(behind)}
    expected |= {"generation_unet.conv_in.weight", "generation_unet.conv_in.bias"}
    for layer in self_attention_layers(base):
        expected |= {f"generation_unet.{layer}.processor.to_{kind}_ref.weight" for kind in "kv"}
    chosen = trainable_parameters(reference_unet, generation_unet)
    assert chosen.keys() == expected
    assert sum(name.startswith("generation_unet.") for name in chosen) == 2 + 2 * 16
    backward(reference_unet, generation_unet)
    assert all(parameter.grad is not None for parameter in chosen.values())
