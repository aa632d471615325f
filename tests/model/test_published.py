"""Models in the layouts that people download: they give what the plain folder gives, or are refused in words."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from original_names import single_file
from safetensors.torch import load_file, save_file
from tiny_models import (
    MAX_TOKENS,
    make_image_encoder,
    make_pipeline,
    make_text_encoder,
    make_tokenizer,
    relative_difference,
    run,
    start,
    states,
    write_base,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionModelWithProjection

from refadgen.model import RefAdGenPipeline
from refadgen.model.checkpoint import load_model, load_processor
from refadgen.model.folder import find_part, fingerprint

COMPONENTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="session")
def half_base(tmp_path_factory) -> Path:
    """A Stable Diffusion folder whose numbers are fp16's, so that fp16 files hold the same ones."""
    folder = write_base(tmp_path_factory.mktemp("half"))
    for name in COMPONENTS:
        (file,) = (folder / name).glob("*.safetensors")
        halves = {key: tensor.half().float() for key, tensor in load_file(file).items()}
        save_file(halves, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def expected(half_base) -> torch.Tensor:
    return latents_of(half_base)


@pytest.fixture
def base(half_base, tmp_path) -> Path:
    return shutil.copytree(half_base, tmp_path / "base")


def latents_of(base: Path) -> torch.Tensor:
    """Latents after 20 guided steps of the untrained pipeline that a base makes."""
    pipeline = RefAdGenPipeline.from_stable_diffusion(base, prompt_suffix=", hq", negative_prompt="ugly")
    return run(pipeline, [start(pipeline, 1, "a cup", num_inference_steps=20)])[0]


def assert_same(base: Path, other: Path) -> None:
    """Both bases give the same weights, bit for bit."""
    found, expected = (states(RefAdGenPipeline.from_stable_diffusion(place)) for place in (base, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def weights_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def to_fp16(component: Path) -> None:
    """As `download --variant fp16` leaves it."""
    file = weights_file(component)
    halves = {key: tensor.half() for key, tensor in load_file(file).items()}
    save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    file.unlink()


def to_bin(component: Path) -> None:
    """As published before safetensors."""
    file = weights_file(component)
    name = file.stem if file.stem.startswith("diffusion_") else f"pytorch_{file.stem}"
    torch.save(load_file(file), component / f"{name}.bin")
    file.unlink()


@pytest.mark.parametrize("change", [to_fp16, to_bin])
def test_a_base_of_other_files_gives_the_plain_ones_pictures(base, change, expected):
    for name in COMPONENTS:
        change(base / name)
    assert relative_difference(latents_of(base), expected) < 1e-6


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_plain_file_wins(base, name, half_base):
    plain = weights_file(base / name)
    noise = {key: torch.randn_like(tensor).half() for key, tensor in load_file(plain).items()}
    save_file(noise, plain.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    torch.save(noise, plain.with_suffix(".bin"))
    assert_same(base, half_base)


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_pickle_that_runs_code_is_refused_and_not_run(base, name, tmp_path):
    to_bin(base / name)
    (file,) = (base / name).glob("*.bin")
    torch.save({"weight": Attack(tmp_path / "proof")}, file)
    with pytest.raises(ValueError, match=f"{name}: cannot be loaded"):
        RefAdGenPipeline.from_stable_diffusion(base)
    assert not (tmp_path / "proof").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "proof").exists()  # the attack itself works


def test_our_own_folders_hold_no_pickles_and_the_error_is_the_conversion(tmp_path):
    pipeline = make_pipeline(image_encoder=False)
    pipeline.save_pretrained(tmp_path)
    for name in ("vae", "text_encoder"):
        to_bin(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}/.*pickled weights") as caught:
            RefAdGenPipeline.from_pretrained(tmp_path)
        code = str(caught.value).partition('python -c "')[2].removesuffix('"')
        exec(code)
        loaded = RefAdGenPipeline.from_pretrained(tmp_path)
        before, after = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_component_without_weights_is_named(base):
    weights_file(base / "vae").unlink()
    with pytest.raises(ValueError, match="vae: holds no weights"):
        RefAdGenPipeline.from_stable_diffusion(base)


# Single files.

PUBLISHED_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_single_file(base: Path) -> Path:
    """Turns a base into a single file beside its configurations."""
    parts = RefAdGenPipeline.from_stable_diffusion(base)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    state = single_file(unet, parts.vae, parts.text_encoder)
    for name in COMPONENTS:
        weights_file(base / name).unlink()
    save_file(state, base / "realisticVision.safetensors")
    (base / "model_index.json").write_text(json.dumps(PUBLISHED_INDEX))
    return base / "realisticVision.safetensors"


@pytest.fixture(scope="session")
def single(half_base, tmp_path_factory) -> Path:
    return write_single_file(shutil.copytree(half_base, tmp_path_factory.mktemp("single") / "base"))


def test_a_single_file_gives_the_folders_pictures(single, expected):
    assert relative_difference(latents_of(single), expected) < 1e-6


def test_a_single_file_of_half_precision_is_the_same(single, half_base, tmp_path):
    shutil.copytree(single.parent, tmp_path, dirs_exist_ok=True)
    file = tmp_path / single.name
    save_file({key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}, file)
    assert_same(file, half_base)


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(f"{UNET}out.2.bias"), "tensors model.diffusion_model.…, but unet/config.json"),
        (lambda state: state.pop(f"{VAE}quant_conv.bias"), "tensors first_stage_model.…, but vae/config.json"),
        (lambda state: state.pop(f"{TEXT}text_model.final_layer_norm.bias"), "but text_encoder/config.json"),
        (lambda state: drop(state, TEXT), "not a Stable Diffusion 1.5 file"),
        (lambda state: drop(state, UNET), "not a Stable Diffusion 1.5 file"),
        (lambda state: drop(state, VAE), "holds no VAE"),
        (lambda state: widen(state), "its unet takes 9 channels, .* inpainting"),
        (lambda state: state.update({f"{UNET}out.2.weight": torch.zeros(4, 8, 3, 3)}), "does not fit"),
    ],
)
def test_a_single_file_that_does_not_fit_is_refused_by_name(single, tmp_path, change, named):
    shutil.copytree(single.parent, tmp_path, dirs_exist_ok=True)
    state = load_file(single)
    change(state)
    save_file(state, tmp_path / single.name)
    with pytest.raises(ValueError, match=named):
        RefAdGenPipeline.from_stable_diffusion(tmp_path / single.name)


def drop(state: dict[str, torch.Tensor], prefix: str) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def widen(state: dict[str, torch.Tensor]) -> None:
    weight = state[f"{UNET}input_blocks.0.0.weight"]
    state[f"{UNET}input_blocks.0.0.weight"] = torch.cat([weight, torch.zeros(len(weight), 5, 3, 3)], dim=1)


def test_a_single_file_alone_names_what_it_needs_beside_it(single, tmp_path):
    file = Path(shutil.copy(single, tmp_path))
    with pytest.raises(ValueError, match=r"beside it are no model_index.json, .*tokenizer/; .*hf download"):
        RefAdGenPipeline.from_stable_diffusion(file)
    old = Path(shutil.copy(single, tmp_path / "old.ckpt"))
    with pytest.raises(ValueError, match=r"must be \.safetensors"):
        RefAdGenPipeline.from_stable_diffusion(old)
    with pytest.raises(ValueError, match="a single file is no RefAdGen"):
        RefAdGenPipeline.from_pretrained(file)


def test_a_fingerprint_sees_what_is_loaded(base, single, tmp_path):
    """Of a single file also the configurations beside it, and of a folder also pickled weights."""
    shutil.copytree(single.parent, tmp_path / "single")
    config = tmp_path / "single" / "vae" / "config.json"
    file = tmp_path / "single" / single.name
    before = fingerprint(file)
    assert before == fingerprint(single)
    config.write_text(config.read_text() + " ")
    assert fingerprint(file) != before
    plain = fingerprint(base)
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"not loaded: there are safetensors")
    assert fingerprint(base) == plain
    to_bin(base / "vae")
    pickled = fingerprint(base)
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"other weights")
    assert fingerprint(base) != pickled


# Components.


def test_a_tokenizer_without_configurations_takes_the_text_encoders_length(base, expected):
    """As early repositories and single downloads have it: `vocab.json` and `merges.txt` alone."""
    plain = load_processor(base, "tokenizer")
    shutil.rmtree(base / "tokenizer")
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(plain.get_vocab()))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\nc u\ncu p</w>\n")
    pipeline = RefAdGenPipeline.from_stable_diffusion(base)
    assert pipeline.tokenizer.model_max_length == MAX_TOKENS
    assert pipeline.tokenizer("a Cup, 12").input_ids == plain("a Cup, 12").input_ids
    assert relative_difference(latents_of(base), expected) < 1e-6
    with pytest.raises(ValueError, match=f"the text encoder takes {MAX_TOKENS}"):
        pipeline.encode_prompt("a " * 30)


def make_inpainting(base: Path) -> None:
    """A U-Net of nine input channels, as Stable Diffusion's for inpainting."""
    file, config = weights_file(base / "unet"), base / "unet" / "config.json"
    state = load_file(file)
    weight = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([weight, torch.zeros(len(weight), 5, 3, 3)], dim=1)
    save_file(state, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))


def test_an_inpainting_base_is_refused_in_words(base):
    make_inpainting(base)
    with pytest.raises(ValueError, match=r"unet config in_channels=9: .* inpainting .* take the plain model"):
        RefAdGenPipeline.from_stable_diffusion(base)


@pytest.mark.parametrize(
    ("cls", "tower"), [(CLIPVisionModelWithProjection, "image_encoder"), (CLIPTextModel, "text_encoder")]
)
def test_a_complete_clip_gives_the_tower_that_is_wanted(tmp_path, cls, tower):
    torch.manual_seed(0)
    text, vision = make_text_encoder(make_tokenizer()).config, make_image_encoder().config
    # The vision part says another width than the complete model has, as published ones do.
    both = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict() | {"projection_dim": 512},
        projection_dim=vision.projection_dim,
    )
    complete = CLIPModel(both)
    complete.save_pretrained(tmp_path / tower)
    expected = complete.state_dict()
    state = load_model(tmp_path, tower, cls, torch.float32).state_dict()
    assert len(state) > 20
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name if name in expected else f"text_model.{name}"]), name
    file = weights_file(tmp_path / tower)
    save_file({**load_file(file), "third_model.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected keys: \['third_model.weight'\]"):
        load_model(tmp_path, tower, cls, torch.float32)


def test_a_complete_clip_as_text_encoder_gives_the_plain_ones_pictures(base, expected):
    text = CLIPTextModel.from_pretrained(base / "text_encoder")
    vision = make_image_encoder().config
    complete = CLIPModel(CLIPConfig(text_config=text.config.to_dict(), vision_config=vision.to_dict()))
    own = complete.state_dict()
    taken = {name if name in own else f"text_model.{name}": tensor for name, tensor in text.state_dict().items()}
    complete.load_state_dict({**own, **taken})
    shutil.rmtree(base / "text_encoder")
    complete.save_pretrained(base / "text_encoder")
    assert relative_difference(latents_of(base), expected) < 1e-6


@pytest.mark.parametrize("inside", [".", "image_encoder", "models/image_encoder"])
def test_an_image_encoder_is_found_where_repositories_have_it(tmp_path, inside):
    """IP-Adapter's root holds another one for SDXL, which is not taken."""
    for place in (inside, "sdxl_models/image_encoder"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "config.json").touch()
    assert find_part(tmp_path, "image_encoder") == tmp_path / inside
