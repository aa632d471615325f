"""The two U-Nets made from one base: their changes to it, their trained parameters, and predicting with guidance."""

import copy
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refadgen.model.attention_fusion import (
    Conditioning,
    attach_capture,
    attach_fusion,
    fusion_processors,
    repeat_rows,
    self_attention_layers,
)

_PLAIN_CONFIG = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "time_cond_proj_dim": None,
    "timestep_post_act": None,
}
"""Parts of diffusers' U-Net that Stable Diffusion 1.5 does not have and this forward pass does not run."""


def require_plain(unet: UNet2DConditionModel) -> None:
    """Raises: ValueError naming the config entry that Stable Diffusion 1.5's architecture does not know."""
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"unet config in_channels={unet.config.in_channels}: it takes more than the {unet.config.out_channels} "
            "channels of latents, as models for inpainting (9), depth (5) or instructions (8) do; take the plain "
            "model, such as stable-diffusion-v1-5/stable-diffusion-v1-5 in place of its -inpainting"
        )
    for name, plain in _PLAIN_CONFIG.items():
        if unet.config.get(name, plain) != plain:
            raise ValueError(
                f"unet config {name}={unet.config[name]!r}: RefAdGen's base is Stable Diffusion 1.5's U-Net"
            )


def make_reference_unet(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of `base` whose self-attentions' inputs can be captured. Raises: ValueError as `require_plain`."""
    require_plain(base)
    unet = copy.deepcopy(base)
    attach_capture(unet)
    return unet


def make_generation_unet(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of `base` with one more input channel, the product mask M′, and an AFM in each self-attention.

    The new channel's weights are zero, so that before training the network is the base whatever the mask.
    """
    require_plain(base)
    unet = copy.deepcopy(base)
    widen_conv_in(unet)
    attach_fusion(unet)
    return unet


def widen_conv_in(unet: UNet2DConditionModel) -> None:
    """Adds the mask channel to `conv_in`, in place: the old channels copied, the new one zero."""
    old = unet.conv_in
    new = nn.Conv2d(old.in_channels + 1, old.out_channels, old.kernel_size, padding=old.padding)
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


# Why `predict` is a forward pass of our own: both guidance branches start from the same latents and first differ inside
# the first transformer block, so the work before that is done once. At Stable Diffusion 1.5's size this saves 2.3 to
# 3.7 % of a guided step's arithmetic (counted by tests/benchmarks/test_step_flops.py). B images, N = 2B rows:
#
#     point                                            rows in and out    time embedding    skip
#     conv_in                                          B                                    B
#     first down block with attention, first resnet    B                  B
#       its first attention: norm and projection       N
#       its first self-attention                       N, inside B
#       its cross-attention and the rest of the block  N                  N                 N
#     down blocks before it (without attention)        B                  B                 B
#     down blocks after it                             N                  N                 N
#     mid block, up blocks, conv_out                   N                  N                 B repeated to N
def predict(
    unet: UNet2DConditionModel,
    noisy_latents: Tensor,
    mask_latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    deep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The Generation U-Net's prediction for both guidance branches of a batch, and its deep features.

    noisy_latents: B×4×h×w, as the scheduler scaled them. mask_latents: M′ at latent size, B×1×h×w, 0 or 1.
    timesteps: B. deep: deep features of an earlier step of these rows, to be used again: only the first down block and
    the last up block then run (Ma et al. 2024, DeepCache, Sec. 3.2). Returns: the prediction, N×4×h×w, unconditional
    rows first (N = 2B with guidance, else B); and the deep features, N×C×h×w: what enters the last up block.

    Without `deep` equals `UNet2DConditionModel.forward` on doubled inputs, with less work: see the table above.
    """
    num_rows = noisy_latents.shape[0] * conditioning.num_branches
    kwargs = {"encoder_hidden_states": None, "cross_attention_kwargs": {"conditioning": conditioning}}
    sample = torch.cat([noisy_latents, mask_latents], dim=1)
    shared_temb = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))
    temb = repeat_rows(shared_temb, num_rows)

    sample = unet.conv_in(sample)
    skips = [sample]
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            # As many rows as the sample has: B until the first attention has made the branches differ.
            of_rows = shared_temb if sample.shape[0] == shared_temb.shape[0] else temb
            if block.gradient_checkpointing and torch.is_grad_enabled():
                # Blocks checkpoint in their own forward, which is not called here; attentions do it by themselves.
                sample = checkpoint(resnet, sample, of_rows, use_reentrant=False)
            else:
                sample = resnet(sample, of_rows)
            if attention is not None:
                sample = attention(repeat_rows(sample, num_rows), return_dict=False, **kwargs)[0]
            skips.append(sample)
        if deep is not None:
            break
        for downsample in block.downsamplers or []:
            sample = downsample(sample)
            skips.append(sample)

    sample = repeat_rows(sample, num_rows) if deep is None else deep
    skips = [repeat_rows(skip, num_rows) for skip in skips]
    if deep is None and unet.mid_block is not None:
        sample = unet.mid_block(sample, temb, **kwargs)

    *inner, last = unet.up_blocks
    for block in inner if deep is None else []:
        sample = _up(block, sample, skips, temb, kwargs)
    deep = sample
    sample = _up(last, sample, skips, temb, kwargs)

    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    return unet.conv_out(sample), deep


def _up(block: nn.Module, sample: Tensor, skips: list[Tensor], temb: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """One up block; takes its own from the end of `skips`."""
    own = tuple(skips[-len(block.resnets) :])
    del skips[-len(block.resnets) :]
    # The next skip's size, not twice this one's: sizes that the downsampling rounded.
    upsample_size = skips[-1].shape[2:] if skips else None
    block_kwargs = kwargs if getattr(block, "has_cross_attention", False) else {}
    raised: Tensor = block(sample, own, temb, upsample_size=upsample_size, **block_kwargs)
    return raised


def parameters_without_gradient(reference_unet: UNet2DConditionModel) -> set[str]:
    """Names of the Reference U-Net's parameters that run after its last captured input, or beside it.

    They never get a gradient: freeze them, or DistributedDataParallel waits for them for ever.
    """
    last = self_attention_layers(reference_unet)[-1]
    transformer_block = last.rsplit(".", 1)[0]
    transformer = transformer_block.rsplit(".transformer_blocks.", 1)[0]
    after = [f"{transformer_block}.{part}." for part in ("attn1", "norm2", "attn2", "norm3", "ff")]
    block = transformer.partition(".attentions.")[0]
    after += [f"{transformer}.proj_out.", f"{block}.upsamplers.", "conv_norm_out.", "conv_out."]
    # Bases whose last levels have no attention: complete blocks run after it.
    in_order = ["mid_block", *(f"up_blocks.{index}" for index in range(len(reference_unet.up_blocks)))]
    after += [f"{later}." for later in in_order[in_order.index(block) + 1 :]]
    return {name for name, _ in reference_unet.named_parameters() if name.startswith(tuple(after))}


def trainable_parameters(
    reference_unet: UNet2DConditionModel, generation_unet: UNet2DConditionModel
) -> dict[str, nn.Parameter]:
    """The parameters that the paper trains, by full name: the Reference U-Net, `conv_in` and the AFM projections.

    A model with an image encoder also trains its Resampler, which the caller adds.
    """
    without = parameters_without_gradient(reference_unet)
    chosen = {f"reference_unet.{k}": p for k, p in reference_unet.named_parameters() if k not in without}
    chosen |= {f"generation_unet.conv_in.{k}": p for k, p in generation_unet.conv_in.named_parameters()}
    for layer, afm in fusion_processors(generation_unet).items():
        chosen |= {f"generation_unet.{layer}.processor.{k}": p for k, p in afm.named_parameters()}
    return chosen
