"""Weights under the names of the original Stable Diffusion, as single files have them; written down by hand."""

import re

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(unet, vae, text_encoder) -> dict[str, Tensor]:
    """The state of one file. unet: of two layers a block, as Stable Diffusion's."""
    state = {f"model.diffusion_model.{_unet_name(name, unet)}": tensor for name, tensor in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        # Attention was made of convolutions once.
        is_matrix = ".attentions." in name and tensor.ndim == 2
        state[f"first_stage_model.{_vae_name(name, vae)}"] = tensor[:, :, None, None] if is_matrix else tensor
    for name, tensor in text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    length = text_encoder.config.max_position_embeddings
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(length)[None]
    state["alphas_cumprod"] = torch.ones(1000)  # buffers of the sampler are in these files, too
    return {key: tensor.clone().contiguous() for key, tensor in state.items()}


def _unet_name(name: str, unet) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in _AROUND:
        return f"{_AROUND[layer]}.{kind}"
    where, block, part, index, rest = re.fullmatch(
        r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.+)", name
    ).groups()
    if part == "resnets":
        layer, _, kind = rest.rpartition(".")
        rest = f"{_RESNET[layer]}.{kind}"
    if where == "mid":
        return f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{rest}"
    if part == "downsamplers":
        return f"input_blocks.{3 * int(block) + 3}.0.{rest.replace('conv', 'op')}"
    if part == "upsamplers":
        after = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
        return f"output_blocks.{3 * int(block) + 2}.{after}.{rest}"
    number = 3 * int(block) + int(index) + (where == "down")
    return f"{'input' if where == 'down' else 'output'}_blocks.{number}.{int(part == 'attentions')}.{rest}"


def _vae_name(name: str, vae) -> str:
    last = len(vae.config.block_out_channels) - 1
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{last - int(found[1])}", name).replace("down_blocks", "down")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        for ours, theirs in _ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("resnets", "block")
    name = name.replace("samplers.0.conv", "sample.conv").replace("conv_shortcut", "nin_shortcut")
    return name.replace("conv_norm_out", "norm_out")
