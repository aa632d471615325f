"""The authors' DeepSpeed file at tiny width, into our layout: complete, strict, safe, and the same pictures.

What the file holds is written down here once more, independently of the importer.
"""

import functools
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from oracle import ImageTokens, Oracle, plain_unet, softmax_attention
from safetensors.torch import load_file
from tiny_models import (
    TEXT_WIDTH,
    make_image_encoder,
    make_unet,
    make_vae,
    product,
    relative_difference,
    run,
    start,
    states,
    write_base,
)

from refadgen.model import RefAdGenPipeline
from refadgen.model.authors_checkpoint import import_checkpoint, read_state

JOB = Path(__file__).parents[2] / "jobs" / "import_checkpoint.py"
DEPTH, HEADS, QUERIES, HEAD_WIDTH = 4, 12, 16, 64  # of the authors' Resampler, whatever the width


# The file.


def fused_layers() -> list[str]:
    """Every attention in the authors' counting: down, up, mid; in each transformer block attn1, then attn2."""
    places = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    places += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
    places += ["mid_block.attentions.0"]
    return [f"{place}.transformer_blocks.0.{kind}" for place in places for kind in ("attn1", "attn2")]


def resampler_state(width: int = TEXT_WIDTH, features: int = 24) -> dict[str, torch.Tensor]:
    """A Resampler of random weights, in IP-Adapter's names."""
    generator = torch.Generator().manual_seed(21)

    def random(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def norm(name):
        return {f"{name}.weight": 1 + 0.1 * random(width), f"{name}.bias": 0.1 * random(width)}

    inner = HEADS * HEAD_WIDTH
    state = {"latents": random(1, QUERIES, width), **norm("norm_out")}
    state |= {"proj_in.weight": random(width, features), "proj_in.bias": random(width)}
    state |= {"proj_out.weight": random(width, width), "proj_out.bias": random(width)}
    for j in range(DEPTH):
        state |= {**norm(f"layers.{j}.0.norm1"), **norm(f"layers.{j}.0.norm2"), **norm(f"layers.{j}.1.0")}
        state[f"layers.{j}.0.to_q.weight"] = random(inner, width)
        state[f"layers.{j}.0.to_kv.weight"] = random(2 * inner, width)
        state[f"layers.{j}.0.to_out.weight"] = random(width, inner)
        state[f"layers.{j}.1.1.weight"] = random(4 * width, width)
        state[f"layers.{j}.1.3.weight"] = random(width, 4 * width)
    return state


def make_module() -> dict[str, torch.Tensor]:
    """The flat state: every key that the authors' file has. A dictionary of the caller's own."""
    return dict(_module())


@functools.cache
def _module() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    unet, reference = make_unet(seed=7).state_dict(), make_unet(seed=8).state_dict()
    weight = unet["conv_in.weight"]
    mask_channel = 0.1 * torch.randn(weight[:, :1].shape, generator=generator)
    unet["conv_in.weight"] = torch.cat([weight, mask_channel], dim=1)
    adapters = {}
    for index, layer in enumerate(fused_layers()):
        for kind in ("k", "v") if layer.endswith("attn1") else ():
            own = unet[f"{layer}.to_{kind}.weight"]
            tensor = own + 0.1 * torch.randn(own.shape, generator=generator)
            unet[f"{layer}.processor.to_{kind}_ref.weight"] = tensor
            adapters[f"{index}.to_{kind}_ref.weight"] = tensor
    networks = {"unet": unet, "ref_unet": reference, "proj": resampler_state(), "adapter_modules": adapters}
    return {f"{network}.{key}": tensor for network, state in networks.items() for key, tensor in state.items()}


def deepspeed_classes() -> dict[str, type]:
    """Classes that pickle under DeepSpeed's names, in the ways that DeepSpeed's own do."""

    class LossScaler:
        def __init__(self):
            self.cur_scale, self.dynamic, self.dtype = 65536.0, True, torch.float16

    class ZeroStageEnum(int, Enum):
        gradients = 2

    class fragment_address:
        def __init__(self, numel, start):
            self.numel, self.start = numel, start

    places = {
        "deepspeed.runtime.fp16.loss_scaler": LossScaler,
        "deepspeed.runtime.zero.config": ZeroStageEnum,
        "deepspeed.utils.tensor_fragment": fragment_address,
    }
    for module, cls in places.items():
        cls.__module__, cls.__qualname__ = module, cls.__name__
    return places


def write_file(file: Path, module: dict[str, torch.Tensor], **beside) -> Path:
    """A file as DeepSpeed's engine writes it, with its own objects beside `module`."""
    classes = deepspeed_classes()
    scaler, stage, fragment = classes.values()
    content = {
        "module": OrderedDict(module),
        "buffer_names": [],
        "optimizer": {
            "loss_scaler": scaler(),
            "zero_stage": stage.gradients,
            "param_slice_mappings": [OrderedDict({"proj.latents": fragment(256, 0)})],
            "clip_grad": 1.0,
        },
        "param_shapes": [OrderedDict({"proj.latents": torch.Size([1, 16, 16])})],
        "frozen_param_shapes": None,
        "lr_scheduler": {"base_lrs": [1e-5], "last_epoch": 3, "lr_lambdas": [None]},
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 3,
        "ds_config": {"train_batch_size": 3, "fp16": {"enabled": True}, "zero_optimization": {"stage": 2}},
        "ds_version": "0.16.0",
        **beside,
    }
    modules = {}
    for name, cls in classes.items():  # so that pickle finds the classes where they say they are
        for index in range(1, name.count(".") + 2):
            parent = ".".join(name.split(".")[:index])
            modules[parent] = modules.get(parent) or types.ModuleType(parent)
        setattr(modules[name], cls.__name__, cls)
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in modules.items():
            patch.setitem(sys.modules, name, stand_in)
        torch.save(content, file)
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The base, the VAE and the image encoder that the weights are completed with."""
    root = tmp_path_factory.mktemp("import")
    write_base(root / "base")
    make_vae(seed=31).save_pretrained(root / "vae")
    make_image_encoder(seed=32).save_pretrained(root / "image_encoder")
    return root


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location("import_checkpoint_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(folders: Path, file: Path, output: Path) -> list[str]:
    parts = [str(file), "--base", str(folders / "base"), "--vae", str(folders / "vae")]
    return [*parts, "--image-encoder", str(folders / "image_encoder"), "--output", str(output)]


@pytest.fixture(scope="module")
def imported(folders, job, tmp_path_factory):
    """The job's folder from a complete file."""
    root = tmp_path_factory.mktemp("imported")
    assert job.main(arguments(folders, write_file(root / "file.pt", make_module()), root / "model")) == 0
    return root / "model"


# The weights arrive.


def test_settings_are_the_authors(imported):
    pipeline = RefAdGenPipeline.from_pretrained(imported)
    assert pipeline.config.prompt_suffix == ", best quality, high quality"
    assert pipeline.config.negative_prompt.startswith("bare, naked, nude, undressed, monochrome, bad anatomy")
    assert (pipeline.config.guidance_scale, pipeline.config.reference_in_uncond) == (7.5, True)
    assert (pipeline.config.width_px, pipeline.config.height_px) == (512, 640)
    assert (pipeline.config.num_inference_steps, pipeline.config.gpu_dtype) == (30, "float16")
    config = pipeline.scheduler.config
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (1, False, False)
    assert (config.prediction_type, config.timestep_spacing) == ("epsilon", "leading")
    assert {path.name for path in imported.parent.iterdir()} == {"file.pt", "model"}  # nothing half-written is left


def authors_resampler(state: dict[str, torch.Tensor]):
    """The Resampler's forward pass from its flat keys."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def forward(features):
        x = linear(features, "proj_in")
        latents = state["latents"].expand(len(x), -1, -1)
        for j in range(DEPTH):
            queries = norm(latents, f"layers.{j}.0.norm2")
            context = torch.cat([norm(x, f"layers.{j}.0.norm1"), queries], dim=1)
            key, value = linear(context, f"layers.{j}.0.to_kv").chunk(2, dim=-1)
            attended = softmax_attention(linear(queries, f"layers.{j}.0.to_q"), key, value, HEADS)
            latents = latents + linear(attended, f"layers.{j}.0.to_out")
            hidden = F.gelu(linear(norm(latents, f"layers.{j}.1.0"), f"layers.{j}.1.1"))
            latents = latents + linear(hidden, f"layers.{j}.1.3")
        return norm(linear(latents, "proj_out"), "norm_out")

    return forward


def test_imported_pictures_are_the_authors(imported, folders):
    """20 guided steps: the reference once per call at t = 0, K and V projected at every step, the VAE's mean, the
    zero image's tokens in the unconditional branch; everything straight from the flat keys."""
    pipeline = RefAdGenPipeline.from_pretrained(imported)
    # The authors' suffix and negative prompt do not fit this tiny tokenizer.
    pipeline.register_to_config(prompt_suffix=", hq", negative_prompt="ugly")
    image_u8, mask_u8 = product(5)
    row = pipeline.start(
        pipeline.encode_reference([image_u8]), mask_u8, pipeline.encode_prompt("a cup"), seed=9, fusion_scale=1.0
    )
    (latents,) = run(pipeline, [row])

    module = make_module()

    def part(network):
        return {key.removeprefix(f"{network}."): t for key, t in module.items() if key.startswith(f"{network}.")}

    config = UNet2DConditionModel.load_config(folders / "base" / "unet")
    unet = {key: tensor for key, tensor in part("unet").items() if ".processor." not in key}
    fusion = {
        f"{layer}.to_{kind}_ref.weight": module[f"adapter_modules.{index}.to_{kind}_ref.weight"]
        for index, layer in enumerate(fused_layers())
        for kind in ("k", "v")
        if layer.endswith("attn1")
    }
    authors = Oracle(
        vae=make_vae(seed=31),
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        reference_unet=plain_unet(config, part("ref_unet")),
        generation_unet=plain_unet(config, unet),
        fusion=fusion,
        scheduler=type(pipeline.scheduler).from_config(pipeline.scheduler.config),
        image_tokens=ImageTokens(
            pipeline.feature_extractor, make_image_encoder(seed=32), authors_resampler(part("proj"))
        ),
    )
    expected = authors.sample([image_u8], [mask_u8], ["a cup, hq"], ["ugly"], [9], fusion_scales=[1.0])
    assert relative_difference(latents, expected) < 2e-5  # other orders of summation over 20 guided steps


def test_files_without_the_mask_channel_get_a_zero_one(folders, job, tmp_path):
    module = make_module()
    module["unet.conv_in.weight"] = module["unet.conv_in.weight"][:, :4].clone()
    file = write_file(tmp_path / "old.pt", module)
    assert job.main(arguments(folders, file, tmp_path / "model")) == 0
    weight = RefAdGenPipeline.from_pretrained(tmp_path / "model").generation_unet.conv_in.weight
    assert torch.equal(weight[:, :4], module["unet.conv_in.weight"])
    assert not weight[:, 4:].any()


def test_half_precision_is_kept(folders, job, tmp_path):
    """As DeepSpeed keeps it under mixed precision: nothing is rounded, nothing grows."""
    module = {key: tensor.half() for key, tensor in make_module().items()}
    assert job.main(arguments(folders, write_file(tmp_path / "half.pt", module), tmp_path / "model")) == 0
    pipeline = RefAdGenPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float16)
    state = pipeline.reference_unet.state_dict()
    assert all(torch.equal(tensor, module[f"ref_unet.{key}"]) for key, tensor in state.items())
    written = (tmp_path / "model" / "reference_unet" / "diffusion_pytorch_model.safetensors").stat()
    assert written.st_size < 2.2 * sum(tensor.numel() for tensor in state.values())
    assert written.st_mode == (tmp_path / "model" / "model_index.json").stat().st_mode  # whoever reads this reads that


@pytest.mark.parametrize("layout", ["file", "folder", "deepspeed", "accelerate"])
def test_the_folder_of_the_file_is_enough(tmp_path, layout):
    inside = {"deepspeed": "global_step900", "accelerate": "pytorch_model"}.get(layout, ".")
    (tmp_path / inside).mkdir(exist_ok=True)
    if layout == "deepspeed":
        (tmp_path / "latest").write_text("global_step900\n")
    file = write_file(tmp_path / inside / "mp_rank_00_model_states.pt", {"proj.latents": torch.ones(2)})
    write_file(file.with_name("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), {})
    assert read_state(file if layout == "file" else tmp_path)["proj.latents"].tolist() == [1, 1]


def test_an_optimizers_file_is_refused_for_what_it_is(tmp_path):
    file = tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {"zero_stage": 2}, "ds_version": "0.16.0"}, file)
    shutil.copy(file, tmp_path / "renamed.pt")
    for path in (file, tmp_path / "renamed.pt"):
        with pytest.raises(
            ValueError, match=r"DeepSpeed's optimizer, and no weights; give mp_rank_00_model_states\.pt"
        ):
            read_state(path)
    with pytest.raises(ValueError, match=r"no mp_rank_00_model_states\.pt in"):
        read_state(tmp_path)


CLIENT_STATE = {
    "loss": np.float64(0.1),
    "best": np.float32(0.2),
    "step": np.int64(3),
    "done": np.bool_(True),
    "rng": np.random.RandomState(0).get_state(),
    "bytes": np.random.default_rng(0).bytes(4),
}
"""What users keep beside the weights."""


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_beside_the_weights_are_harmless(tmp_path, module):
    """Also as NumPy 1 wrote them: its modules had other names."""
    file = write_file(tmp_path / "file.pt", {"proj.latents": torch.ones(2)}, client_state=CLIENT_STATE)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in entries if name.endswith("data.pkl"))
    assert b"numpy._core.multiarray" in entries[pickled]
    entries[pickled] = entries[pickled].replace(b"numpy._core.multiarray", module.encode())
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert read_state(file).keys() == {"proj.latents"}


def test_published_layouts_of_base_vae_and_encoder_give_the_same_model(folders, imported, tmp_path):
    """A base and an encoder of `.bin` files, IP-Adapter's root, a VAE of an fp16 variant, NumPy beside the weights."""
    base = shutil.copytree(folders / "base", tmp_path / "base")
    encoder = shutil.copytree(folders / "image_encoder", tmp_path / "IP-Adapter" / "models" / "image_encoder")
    vae = shutil.copytree(folders / "vae", tmp_path / "vae")
    for place in (base / "text_encoder", encoder):
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "step").mkdir()
    write_file(tmp_path / "step" / "mp_rank_00_model_states.pt", make_module(), client_state=CLIENT_STATE)
    made = import_checkpoint(tmp_path / "step", base=base, vae=vae, image_encoder=tmp_path / "IP-Adapter")
    found, expected = states(made), states(RefAdGenPipeline.from_pretrained(imported))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    for pipeline in (made, plain := RefAdGenPipeline.from_pretrained(imported)):
        pipeline.register_to_config(prompt_suffix=", hq", negative_prompt="ugly")
    ((one,), (other,)) = (run(each, [start(each, 1, "a cup", num_inference_steps=20)]) for each in (made, plain))
    assert relative_difference(one, other) < 1e-6


def test_an_inpainting_base_is_refused(folders, tmp_path):
    base = shutil.copytree(folders / "base", tmp_path / "base")
    config = base / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    file = write_file(tmp_path / "file.pt", make_module())
    with pytest.raises(ValueError, match=r"in_channels=9: .* inpainting"):
        import_checkpoint(file, base=base, vae=folders / "vae", image_encoder=folders / "image_encoder")


# What does not fit is refused by name.

KEYS = [
    "unet.mid_block.resnets.0.conv1.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_v_ref.weight",
    "ref_unet.conv_out.bias",
    "proj.layers.2.0.to_kv.weight",
    "proj.layers.3.1.0.bias",
    "adapter_modules.30.to_k_ref.weight",
]


def refused(job, folders, file: Path, capsys) -> str:
    """The job's one line for a file that it refuses."""
    output = file.parent / "model"
    capsys.readouterr()
    assert job.main(arguments(folders, file, output)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not output.exists()
    return error


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_and_a_wrong_shape_are_named(job, folders, tmp_path, capsys, key):
    module = make_module()
    tensor = module.pop(key)
    assert f"missing keys: ['{key}']" in refused(job, folders, write_file(tmp_path / "file.pt", module), capsys)
    module[key] = torch.zeros(*tensor.shape, 2)
    error = refused(job, folders, write_file(tmp_path / "file.pt", module), capsys)
    assert f"{key} has shape" in error
    assert str(tuple(tensor.shape)) in error


@pytest.mark.parametrize(
    "key",
    [
        "unet.surplus.weight",
        "ref_unet.conv_in.surplus",
        "proj.layers.4.0.to_q.weight",
        "adapter_modules.1.to_k_ref.weight",  # an attn2: has none
        "optimizer.state",
        "unet",
    ],
)
def test_an_extra_key_is_named(job, folders, tmp_path, capsys, key):
    file = write_file(tmp_path / "file.pt", {**make_module(), key: torch.zeros(2)})
    assert f"unexpected keys: ['{key}']" in refused(job, folders, file, capsys)


def test_duplicates_that_disagree_are_named(job, folders, tmp_path, capsys):
    module = make_module()
    module["adapter_modules.4.to_v_ref.weight"] = module["adapter_modules.4.to_v_ref.weight"] + 1e-3
    error = refused(job, folders, write_file(tmp_path / "file.pt", module), capsys)
    assert "adapter_modules.4.to_v_ref.weight" in error
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_v_ref.weight" in error


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(job, folders, tmp_path, capsys, zipped):
    file, proof = tmp_path / "file.pt", tmp_path / "proof"
    if zipped:
        write_file(file, make_module(), client_state=Attack(proof))
    else:
        file.write_bytes(pickle.dumps({"module": {}, "x": Attack(proof)}))
    error = refused(job, folders, file, capsys)
    assert not proof.exists()
    assert "posix.system" in error or not zipped
    pickle.loads(pickle.dumps(Attack(proof)))
    assert proof.exists()  # the attack itself works


def test_unknown_objects_are_refused_by_class(job, folders, tmp_path, capsys):
    """Also one of DeepSpeed's that is not on the list, and a known one in place of a weight."""
    file = write_file(tmp_path / "file.pt", make_module(), client_state=Path("x"))
    assert "holds pathlib." in refused(job, folders, file, capsys)
    stage = deepspeed_classes()["deepspeed.runtime.fp16.loss_scaler"]
    stage.__name__ = stage.__qualname__ = "LossScalerOfTomorrow"
    name = stage.__module__
    with pytest.MonkeyPatch.context() as patch:
        for parent in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16", name):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        setattr(sys.modules[name], stage.__name__, stage)
        torch.save({"module": make_module(), "x": stage()}, tmp_path / "file.pt")
    assert f"{name}.LossScalerOfTomorrow" in refused(job, folders, tmp_path / "file.pt", capsys)
    module = {**make_module(), "proj.latents": 3.0}
    assert "'proj.latents' is a float" in refused(job, folders, write_file(tmp_path / "file.pt", module), capsys)


def test_other_files_are_refused(job, folders, tmp_path, capsys):
    file = tmp_path / "file.pt"
    assert "no such file" in refused(job, folders, file, capsys)
    file.write_bytes(b"not a checkpoint")
    assert "not a readable PyTorch file" in refused(job, folders, file, capsys)
    torch.save(make_module(), file)
    assert "holds no `module`" in refused(job, folders, file, capsys)
    write_file(file, make_module())
    file.write_bytes(file.read_bytes()[:5000])
    assert "not a readable PyTorch file" in refused(job, folders, file, capsys)
    with pytest.raises(ValueError, match="not plain weights"):
        read_state(write_file(file, {**make_module(), "proj.latents": torch.zeros(2, dtype=torch.int64)}))


def test_other_arguments_are_refused(job, folders, tmp_path, capsys):
    file = write_file(tmp_path / "file.pt", make_module())
    plain = ["--base", str(folders / "base"), "--vae", str(folders / "vae"), "--output", str(tmp_path / "model")]
    assert job.main([str(file), *plain]) == 2
    assert "--image-encoder" in capsys.readouterr().err
    for option, place, named in (
        ("--base", tmp_path / "gone", "base="),
        ("--base", "gone/and/lost", "base='gone/and/lost': neither a folder nor a reachable hub id"),
        ("--base", folders / "vae", "unet/config.json"),
        ("--vae", folders / "image_encoder", "image_encoder"),
        ("--image-encoder", tmp_path / "gone", "image_encoder="),
    ):
        words = arguments(folders, file, tmp_path / "model")
        words[words.index(option) + 1] = str(place)
        assert job.main(words) == 2, option
        assert named in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert job.main(arguments(folders, file, tmp_path / "full")) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_command_ends_with_2_and_one_line(folders, tmp_path):
    command = [sys.executable, str(JOB), *arguments(folders, tmp_path / "gone.pt", tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [f"error: {tmp_path / 'gone.pt'}: no such file"]
