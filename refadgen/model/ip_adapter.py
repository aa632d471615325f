"""The Resampler's weights as IP-Adapter names them: inside its own files, and inside the authors' checkpoint.

image_proj.<Resampler key>    ip_adapter.<…>     `ip-adapter-plus_sd15`, as .safetensors; nested as .bin
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from refadgen.model.checkpoint import check_keys
from refadgen.model.image_projection import ProductImageProjection

_PREFIX = "image_proj."


def resampler_names(depth: int) -> dict[str, tuple[str, ...]]:
    """The Resampler's keys in IP-Adapter's names, each with its names in `ProductImageProjection`.

    Two for `to_kv`, which holds to_k's rows above to_v's.
    """
    names: dict[str, tuple[str, ...]] = {"latents": ("resampler.latents",)}
    for layer in ("proj_in", "proj_out", "norm_out"):
        names |= {f"{layer}.{kind}": (f"resampler.{layer}.{kind}",) for kind in ("weight", "bias")}
    for index in range(depth):
        theirs, ours = f"layers.{index}", f"resampler.layers.{index}"
        for their_norm, our_norm in (("0.norm1", "ln0"), ("0.norm2", "ln1"), ("1.0", "ff.0")):
            names |= {f"{theirs}.{their_norm}.{kind}": (f"{ours}.{our_norm}.{kind}",) for kind in ("weight", "bias")}
        names[f"{theirs}.0.to_q.weight"] = (f"{ours}.attn.to_q.weight",)
        names[f"{theirs}.0.to_kv.weight"] = (f"{ours}.attn.to_k.weight", f"{ours}.attn.to_v.weight")
        names[f"{theirs}.0.to_out.weight"] = (f"{ours}.attn.to_out.0.weight",)
        names[f"{theirs}.1.1.weight"] = (f"{ours}.ff.1.net.0.proj.weight",)
        names[f"{theirs}.1.3.weight"] = (f"{ours}.ff.1.net.2.weight",)
    return names


def fill_projection(projection: ProductImageProjection, state: Mapping[str, Tensor], prefix: str, source: str) -> None:
    """Puts the Resampler `state` (IP-Adapter's names) into `projection`, which may be on the meta device.

    prefix: of the keys as the file has them, for errors. Raises: ValueError naming keys of `source` that are missing,
    unexpected or of another shape.
    """
    names, shapes = resampler_names(len(projection.resampler.layers)), projection.state_dict()
    wanted = {f"{prefix}{theirs}": torch.cat([shapes[name] for name in ours]) for theirs, ours in names.items()}
    check_keys(source, wanted, {f"{prefix}{key}": tensor for key, tensor in state.items()})
    filled: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        # contiguous: safetensors saves no views.
        filled.update(zip(ours, (part.contiguous() for part in state[theirs].chunk(len(ours))), strict=True))
    projection.load_state_dict(filled, assign=True)  # tensors on the meta device cannot be copied into


def load_ip_adapter(file: str | Path, projection: ProductImageProjection) -> None:
    """Starts `projection` with the Resampler of an IP-Adapter-Plus file, .safetensors or .bin, in its number format.

    Nothing in the file is executed. Raises: ValueError naming the file where it is none, of another shape, or where a
    weight is not finite.
    """
    try:
        if str(file).endswith(".safetensors"):
            state = {k.removeprefix(_PREFIX): v for k, v in load_file(file).items() if k.startswith(_PREFIX)}
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
            state = dict(content["image_proj"])
        state = {name: tensor.float() for name, tensor in state.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    except Exception as error:  # damaged or foreign pickles surface as anything
        raise ValueError(f"{file}: holds no plain weights under image_proj ({type(error).__name__})") from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError(f"{file}: has NaN or infinite weights; get the file anew")
    dtype = projection.dtype
    fill_projection(projection, state, _PREFIX, str(file))
    if projection.dtype != dtype:  # diffusers warns even where nothing is cast
        projection.to(dtype)
