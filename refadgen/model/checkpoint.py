"""Folders of weights: our layout (diffusers'), strictly loaded and saved.

    model_index.json  scheduler/  tokenizer/  text_encoder/  vae/  reference_unet/
    generation_unet/  (attention_fusion.safetensors beside the U-Net's own weights)
    image_encoder/  image_projection/  feature_extractor/    where the model has them

Each component loads with its own diffusers or transformers class. Our own folders are safetensors only; of a base,
pickled weights (`.bin`) are read, too, as plain tensors (`weights_only`). `weights` says which files are taken.
"""

import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)
from transformers.utils import logging as transformers_logging

from refadgen.model.attention_fusion import attach_capture, attach_fusion, detached, fusion_processors
from refadgen.model.folder import find_model, read_index, read_json, require_refadgen
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.weights import FUSION_FILE, choose_weights
from refadgen.storage.modes import follow_umask

_MODELS = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "reference_unet": UNet2DConditionModel,
    "generation_unet": UNet2DConditionModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "image_projection": ProductImageProjection,
}
_PROCESSORS = {"tokenizer": CLIPTokenizer, "feature_extractor": CLIPImageProcessor}
_PROCESSOR_FILES = {"tokenizer": ("tokenizer.json", "vocab.json"), "feature_extractor": ("preprocessor_config.json",)}
"""At least one of them must be there: without any, transformers makes an empty processor, or asks the hub."""
SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Those whose loop needs nothing but the network's prediction, and whose noise follows the row's generator."""
_OTHER_TOWER = {
    CLIPVisionModelWithProjection: ("text_model.", "text_projection.", "logit_scale"),
    CLIPTextModel: ("vision_model.", "visual_projection.", "text_projection.", "logit_scale"),
}
"""Beginnings of a complete CLIP's keys that are not of the tower we load."""
_OPTIONAL = ("image_encoder", "image_projection", "feature_extractor")


def load(path_or_id: str | Path, dtype: torch.dtype) -> dict[str, Any]:
    """Components and settings of a RefAdGen folder, as keywords of `RefAdGenPipeline`. Raises: ValueError."""
    folder = find_model(path_or_id)
    index = read_index(folder)
    require_refadgen(folder, index)
    settings = {name: value for name, value in index.items() if not name.startswith("_") and not _is_component(value)}
    absent = [name for name in _OPTIONAL if not (folder / name).is_dir()]
    names = [name for name in (*_MODELS, *_PROCESSORS) if name not in absent]
    parts: dict[str, Any] = {name: _load_component(folder, name, dtype) for name in names}
    parts["scheduler"] = load_scheduler(folder)
    return {**parts, **settings}


def _is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler in `folder/scheduler`, of the diffusers class its config names. Raises: ValueError."""
    try:
        config = read_json(folder / "scheduler" / "scheduler_config.json")
    except ValueError as error:
        raise ValueError(f"{folder}: the component scheduler/ is missing or unreadable ({error})") from error
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        why = "it draws noise that follows no seed; " if name == "DPMSolverSDEScheduler" else ""
        raise ValueError(
            f"{folder}/scheduler: _class_name is {name!r}: {why}must be a scheduler of diffusers for Stable Diffusion "
            f"1.5: {', '.join(SCHEDULERS)}"
        )
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise ValueError(
            f"{folder}/scheduler: {name} is set to flow matching (use_flow_sigmas, prediction_type), which Stable "
            "Diffusion 1.5 was not trained for; set use_flow_sigmas to false and prediction_type to the model's"
        )
    cls = getattr(importlib.import_module("diffusers"), name)
    if not issubclass(cls, SchedulerMixin):  # a stand-in: LMS wants SciPy
        raise ValueError(f"{folder}/scheduler: {name} needs SciPy, which is not installed: pip install scipy")
    try:
        scheduler: SchedulerMixin = cls.from_config(config)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        needs = "needs SciPy for that (pip install scipy)" if isinstance(error, ImportError) else "does not take that"
        raise ValueError(f"{folder}/scheduler: {name} {needs}: {error}; change its scheduler_config.json") from error
    return scheduler


def _load_component(folder: Path, name: str, dtype: torch.dtype) -> Any:
    if name in _PROCESSORS:
        return load_processor(folder, name)
    model = load_model(folder, name, _MODELS[name], dtype)
    if name == "reference_unet":
        attach_capture(model)
    if name == "generation_unet":
        attach_fusion(model)
        _load_fusion(model, folder / name / FUSION_FILE)
    return model


def has_processor(folder: Path, name: str) -> bool:
    """Whether `folder/name` holds the tokenizer or feature extractor."""
    return any((folder / name / file).is_file() for file in _PROCESSOR_FILES[name])


def load_processor(folder: Path, name: str) -> Any:
    """The tokenizer or feature extractor in `folder/name`. Raises: ValueError when it is missing or unreadable."""
    if not has_processor(folder, name):
        raise ValueError(f"{folder}: the component {name}/ is missing")
    try:
        processor = _PROCESSORS[name].from_pretrained(folder / name)
        if name == "tokenizer" and (folder / "text_encoder" / "config.json").is_file():
            # Without a tokenizer_config.json the tokenizer knows no length, which is 10^30 then.
            takes = CLIPTextConfig.from_pretrained(folder / "text_encoder").max_position_embeddings
            processor.model_max_length = min(processor.model_max_length, takes)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ValueError(f"{folder}/{name}: cannot be loaded: {error}") from error
    return processor


def load_model(folder: Path, name: str, cls: type, dtype: torch.dtype, *, pickled: bool = False) -> Any:
    """`folder/name` as a `cls` in evaluation mode. Every key of the file is used once.

    pickled: whether `.bin` files are read where there are no safetensors; no code of theirs runs.
    Raises: ValueError naming the keys that are missing, unexpected or of another shape.
    """
    place = folder / name
    if not place.is_dir():
        raise ValueError(f"{folder}: the component {name}/ is missing")
    kwargs = {"output_loading_info": True, **_weights_of(place, pickled)}
    if issubclass(cls, ModelMixin):
        kwargs |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    else:
        kwargs |= {"dtype": dtype, "ignore_mismatched_sizes": True}  # its own error does not name the keys; ours does
        kwargs |= _tower_config(place, cls)
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # it warns of missing and unexpected keys, which are errors below
    transformers_logging.disable_progress_bar()
    try:
        model, info = cls.from_pretrained(place, **kwargs)  # type: ignore[attr-defined]
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{place}: cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
    surplus = _OTHER_TOWER[cls] if "config" in kwargs else ()
    info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not key.startswith(surplus)]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise ValueError(f"{place}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[:8]}")
    return model.eval()


def _tower_config(place: Path, cls: type) -> dict[str, Any]:
    """`config` of the tower `cls` where `place` holds a complete CLIP, as openai/clip-vit-large-patch14 does."""
    if cls not in _OTHER_TOWER or not (place / "config.json").is_file():
        return {}
    if read_json(place / "config.json").get("model_type") != "clip":
        return {}
    both = CLIPConfig.from_pretrained(place)
    if cls is CLIPTextModel:
        return {"config": both.text_config}
    both.vision_config.projection_dim = both.projection_dim  # the complete model's, which its weights follow
    return {"config": both.vision_config}


def _weights_of(place: Path, pickled: bool) -> dict[str, Any]:
    """The keywords by which diffusers and transformers take the weights in `place`."""
    weights = choose_weights(file.name for file in place.iterdir())
    if weights is None:
        raise ValueError(f"{place}: holds no weights: no model.safetensors or diffusion_pytorch_model.safetensors")
    if weights.pickled and not pickled:
        file = place / weights.names[0]
        raise ValueError(
            f"{file}: pickled weights, where a RefAdGen folder holds safetensors; convert them: python -c "
            f"\"import torch, safetensors.torch as s; s.save_file(torch.load('{file}', weights_only=True), "
            f"'{place / _converted(file.name)}', {{'format': 'pt'}})\""
        )
    return {"use_safetensors": not weights.pickled, "variant": weights.variant}


def _converted(name: str) -> str:
    """The name of a `.bin` file's weights as safetensors."""
    stem = name.removesuffix(".bin")
    return f"{stem if stem.startswith('diffusion_') else stem.removeprefix('pytorch_')}.safetensors"


def _load_fusion(unet: UNet2DConditionModel, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: missing; it holds the Attention Fusion Modules' projections")
    load_fusion_state(unet, load_file(file), str(file))


def load_fusion_state(unet: UNet2DConditionModel, state: dict[str, torch.Tensor], source: str) -> None:
    """Copies AFM weights (`<layer>.to_k_ref.weight`, …) into an attached `unet`.

    Raises: ValueError naming keys of `source` that are missing, unexpected or of another shape.
    """
    parameters = fusion_state(unet)
    check_keys(source, parameters, state)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def fusion_state(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The AFM weights of an attached `unet` by `<layer>.to_k_ref.weight` and `<layer>.to_v_ref.weight`."""
    return {
        f"{layer}.{name}": tensor
        for layer, afm in fusion_processors(unet).items()
        for name, tensor in afm.state_dict().items()
    }


def check_keys(source: str, expected: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> None:
    """Raises: ValueError naming the first keys of `given` that are missing, unexpected or of another shape."""
    if missing := sorted(expected.keys() - given.keys()):
        raise ValueError(f"{source}: missing keys: {missing[:8]}")
    if extra := sorted(given.keys() - expected.keys()):
        raise ValueError(f"{source}: unexpected keys: {extra[:8]}")
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape:
            raise ValueError(f"{source}: {name} has shape {tuple(given[name].shape)}, must be {tuple(tensor.shape)}")


def save(components: Mapping[str, Any], settings: Mapping[str, Any], directory: str | Path) -> None:
    """Writes the components and settings of a RefAdGenPipeline; the inverse of `load`.

    components: by name; None where the model has none. settings: plain values for `model_index.json`.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": "RefAdGenPipeline", **settings}
    for name, component in components.items():
        if component is None:
            continue
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
        if name == "generation_unet":
            # The U-Net's own file holds a plain diffusers network: with AFM keys in it diffusers could not load it.
            with detached(component):
                component.save_pretrained(folder / name)
            tensors = {key: value.detach().contiguous() for key, value in fusion_state(component).items()}
            save_file(tensors, folder / name / FUSION_FILE, metadata={"format": "pt"})
        else:
            component.save_pretrained(folder / name)
        follow_umask(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
