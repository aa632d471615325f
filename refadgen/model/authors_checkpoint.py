"""The authors' released weights, a DeepSpeed file, as a RefAdGenPipeline in our layout.

`read_state` reads the file's `module` without running code from it. `split_state` sorts its flat keys by network.
`import_checkpoint` puts them into the networks that the configs of the base and of the image encoder describe. All of
it is strict: every key is used once, none is missing, every shape fits.

    unet.<U-Net key>                                  the Generation U-Net, frozen weights too
    unet.<block>.attn1.processor.to_k_ref.weight …    the AFM weights inside it
    adapter_modules.{i}.to_k_ref.weight …             the same again, i counting `unet.attn_processors`
    ref_unet.<U-Net key>                              the Reference U-Net
    proj.<Resampler key>                              the image-prompt Resampler, in IP-Adapter's names
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPVisionModelWithProjection

from refadgen.model.attention_fusion import self_attention_layers
from refadgen.model.base import load_single_file
from refadgen.model.checkpoint import check_keys, load_model, load_processor
from refadgen.model.folder import find_model, find_part, part_folders, read_json
from refadgen.model.hub import download
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.ip_adapter import fill_projection
from refadgen.model.pipeline import RefAdGenPipeline
from refadgen.model.unets import make_generation_unet, make_reference_unet
from refadgen.model.weights import STATES_FILE

SETTINGS: dict[str, Any] = {
    "prompt_suffix": ", best quality, high quality",
    "negative_prompt": "bare, naked, nude, undressed, monochrome, bad anatomy, worst quality, low quality",
    "guidance_scale": 7.5,
    "reference_in_uncond": True,
    "width_px": 512,
    "height_px": 640,
    "num_inference_steps": 30,
    "gpu_dtype": "float16",
}
"""The authors' sampling settings."""

HARMLESS_CLASSES = (
    "deepspeed.checkpoint.universal_checkpoint.SubparamShape",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScalerBase",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
)
"""Plain records that DeepSpeed keeps beside `module` for its optimizer, and NumPy's numbers in what its users keep
there. They are read as `_Inert` instead of their own class: DeepSpeed need not be installed, and no code of these
classes runs. Exact names; all others are refused."""


class _Inert:
    """Stands in for an object that is not needed. Accepts any arguments and any state, and keeps nothing."""

    def __new__(cls, *_: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def make_scheduler() -> DDIMScheduler:
    """The authors' sampler. They trained with another schedule, but sample the weights with this one."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="epsilon",
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def import_checkpoint(
    file: str | Path, *, base: str | Path, vae: str | Path, image_encoder: str | Path | None = None
) -> RefAdGenPipeline:
    """The pipeline of the authors' `file`; the U-Nets and the Resampler keep the file's number type, the rest is fp32.

    base: Stable Diffusion 1.5 (folder, single file or hub id): tokenizer, text encoder and the U-Net's config are its.
    vae: folder or hub id of a VAE, or of a pipeline with one. image_encoder: likewise; None only for a file without a
    Resampler. A hub id may name a folder of the repository: `owner/name/folder`.
    Raises: ValueError naming the file, the keys or the component that does not fit.
    """
    networks = split_state(read_state(file), str(file))
    unet_config, text_parts = _load_base(base)
    with torch.device("meta"):  # no memory for weights that the file replaces
        base_unet = UNet2DConditionModel.from_config(unet_config)
        reference_unet, generation_unet = make_reference_unet(base_unet), make_generation_unet(base_unet)
    _fill(reference_unet, networks["ref_unet"], "ref_unet.", str(file))
    _fill_generation_unet(generation_unet, networks["unet"], networks["adapter_modules"], str(file))
    parts = _load_image_parts(image_encoder, networks["proj"], base_unet.config.cross_attention_dim, str(file))
    return RefAdGenPipeline(
        vae=_load_part("vae", vae, AutoencoderKL),
        **text_parts,
        reference_unet=reference_unet.eval(),
        generation_unet=generation_unet.eval(),
        scheduler=make_scheduler(),
        **parts,
        **SETTINGS,
    )


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors under `module` of a DeepSpeed file, by their flat keys. They stay on disk (mmap) until they are used.

    file: or the folder that DeepSpeed or accelerate wrote.
    Raises: ValueError when it is no such file, or when it holds an object that is not known to be harmless.
    """
    path = _states_file(Path(file))
    try:
        # weights_only refuses every class but those named here, and makes an `_Inert` of each of these.
        with torch.serialization.safe_globals([(_Inert, name) for name in HARMLESS_CLASSES]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: refused, it holds {found[1]}, which is neither a tensor nor known to be harmless"
            ) from error
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise ValueError(
            f"{path}: refused, not a file of plain weights: {reason[1] if reason else _first_line(error)}"
        ) from error
    except Exception as error:  # damaged bytes surface as anything: RuntimeError, KeyError, EOFError, UnicodeError …
        raise ValueError(
            f"{path}: not a readable PyTorch file ({type(error).__name__}: {_first_line(error)})"
        ) from error
    module = content.get("module") if isinstance(content, dict) else None
    if isinstance(content, dict) and module is None and "optimizer_state_dict" in content:
        raise ValueError(f"{path}: {_OPTIMIZER}")
    if not isinstance(module, Mapping):
        raise ValueError(f"{path}: holds no `module`: not a DeepSpeed file of model states")
    state: dict[str, Tensor] = {}
    for key, value in module.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise ValueError(f"{path}: module entry {key!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise ValueError(f"{path}: {key} is {value.layout}, {value.dtype}, {value.device}: not plain weights")
        state[key] = value.detach()
    return state


_OPTIMIZER = f"holds the state of DeepSpeed's optimizer, and no weights; give {STATES_FILE} beside it"


def _states_file(path: Path) -> Path:
    """The file of model states: `path`, or the one in that folder or in the folder that its `latest` names."""
    if path.is_file():
        if path.name.endswith("optim_states.pt"):
            raise ValueError(f"{path}: {_OPTIMIZER}")
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such file")
    # accelerate writes its own files around DeepSpeed's folder, which it calls pytorch_model.
    folders = [path, path / "pytorch_model"]
    if (path / "latest").is_file():
        folders.append(path / (path / "latest").read_text(encoding="utf-8").strip())
    for folder in folders:
        if (folder / STATES_FILE).is_file():
            return folder / STATES_FILE
    raise ValueError(f"{path}: no {STATES_FILE} in {', '.join(map(str, folders))}; give that file, or its folder")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def split_state(state: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """The flat state by network: `unet`, `ref_unet`, `proj`, `adapter_modules`.

    Raises: ValueError naming keys of none of them.
    """
    networks: dict[str, dict[str, Tensor]] = {"unet": {}, "ref_unet": {}, "proj": {}, "adapter_modules": {}}
    unknown = []
    for key, tensor in state.items():
        network, _, rest = key.partition(".")
        if network in networks and rest:
            networks[network][rest] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{source}: unexpected keys: {sorted(unknown)[:8]}")
    return networks


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, source: str) -> None:
    """Puts the tensors of `state` into `module` without copies. Raises: ValueError naming keys that do not fit."""
    _check(prefix, module.state_dict(), state, source)
    # assign: the module's own tensors are on the meta device and cannot be copied into. contiguous: safetensors saves
    # no views.
    module.load_state_dict({key: tensor.contiguous() for key, tensor in state.items()}, assign=True)


def _check(prefix: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """`check_keys` with the keys named as they are in the file."""
    full_names = [{f"{prefix}{key}": tensor for key, tensor in state.items()} for state in (expected, given)]
    check_keys(source, *full_names)


def _fill_generation_unet(
    unet: UNet2DConditionModel, state: Mapping[str, Tensor], adapters: Mapping[str, Tensor], source: str
) -> None:
    """Fills the Generation U-Net. The file holds its AFM weights twice, and both copies must be equal."""
    state = dict(state)
    if "conv_in.weight" in state:
        state["conv_in.weight"] = _pad_conv_in(state["conv_in.weight"], unet.config.in_channels)
    _fill(unet, state, "unet.", source)
    fused = {f"{layer}.processor" for layer in self_attention_layers(unet)}
    twins = {
        f"{index}.{name}": f"{processor}.{name}"
        for index, processor in enumerate(unet.attn_processors)
        if processor in fused
        for name in ("to_k_ref.weight", "to_v_ref.weight")
    }
    _check("adapter_modules.", {twin: state[name] for twin, name in twins.items()}, adapters, source)
    for twin, name in twins.items():
        if not torch.equal(adapters[twin], state[name]):
            raise ValueError(f"{source}: adapter_modules.{twin} and unet.{name} must hold the same weights, and differ")


def _pad_conv_in(weight: Tensor, channels: int) -> Tensor:
    """conv_in's weight with a zero mask channel added where an old file has none."""
    if weight.ndim != 4 or weight.shape[1] != channels - 1:
        return weight
    return torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1)


def _load_image_parts(
    image_encoder: str | Path | None, state: dict[str, Tensor], text_width: int, source: str
) -> dict[str, Any]:
    """`image_encoder`, `image_projection`, `feature_extractor`; nothing for a file without a Resampler."""
    if image_encoder is None:
        if state:
            raise ValueError(f"{source}: holds a Resampler (proj.*): give the image encoder it reads (--image-encoder)")
        return {}
    encoder = _load_part("image_encoder", image_encoder, CLIPVisionModelWithProjection)
    width = encoder.config.hidden_size
    with torch.device("meta"):
        projection = ProductImageProjection(embed_dims=width, output_dims=text_width, hidden_dims=text_width)
    fill_projection(projection, state, "proj.", source)
    size = encoder.config.image_size
    return {
        "image_encoder": encoder,
        "image_projection": projection.eval(),
        # The authors take the class's defaults, 224 px; the encoder's own size is the same for theirs.
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
    }


def _load_base(base: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the base's `unet`; its `text_encoder` and `tokenizer`."""
    place = Path(base).expanduser()
    if place.is_file():
        place = find_model(place, field="base")
        parts = load_single_file(place, torch.float32)
        return _unet_config(place.parent), {name: parts[name] for name in ("text_encoder", "tokenizer")}
    folder = _fetch("base", base, ["", "text_encoder", "tokenizer"], configs=["unet"])
    config = _unet_config(folder)
    return config, {
        "text_encoder": load_model(folder, "text_encoder", CLIPTextModel, torch.float32, pickled=True),
        "tokenizer": load_processor(folder, "tokenizer"),
    }


def _unet_config(base: Path) -> dict[str, Any]:
    place = base / "unet" / "config.json"
    try:
        config = read_json(place)
    except ValueError as error:
        raise ValueError(f"{place}: unreadable: the base must be a Stable Diffusion 1.5 folder ({error})") from error
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"{place}: describes a {config.get('_class_name')}, must be a UNet2DConditionModel")
    return config


def _load_part(name: str, path_or_id: str | Path, cls: type) -> Any:
    """A component from its own folder, or from a model's folder that has it (see `find_part`)."""
    place = find_part(_fetch(name, path_or_id, part_folders(name)), name)
    return load_model(place.parent, place.name, cls, torch.float32, pickled=True)


def _fetch(argument: str, path_or_id: str | Path, folders: Sequence[str], configs: Sequence[str] = ()) -> Path:
    """The local folder of `path_or_id`; of a hub id, only the needed files. Raises: ValueError naming `argument`.

    folders, configs: below the folder that is named, as of `hub.needed_files`.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    owner, name, *inside = [*str(path_or_id).split("/"), ""]
    try:
        if path.is_absolute() or not name:
            raise ValueError("no such folder")
        below = [["/".join([*inside[:-1], folder]).strip("/") for folder in names] for names in (folders, configs)]
        folder = download(f"{owner}/{name}", *below).joinpath(*inside[:-1])
        if not folder.is_dir():
            raise ValueError(f"no folder {'/'.join(inside[:-1])} in {owner}/{name}")
    except Exception as error:  # the hub's client raises its own, httpx' and OS errors
        raise ValueError(
            f"{argument}={str(path_or_id)!r}: neither a folder nor a reachable hub id, owner/name or owner/name/folder "
            f"({_first_line(error)})"
        ) from error
    return folder
