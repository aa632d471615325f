"""Folders of weights: the round trip is exact, and whatever does not fit is refused by name."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_pipeline, product, run, start, states, write_base

from refadgen.model import RefAdGenPipeline
from refadgen.model.checkpoint import load_scheduler
from refadgen.model.folder import find_model, fingerprint, scheduler_config, step_bounds

FUSION = "generation_unet/attention_fusion.safetensors"
UNET = "generation_unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A saved pipeline with an image encoder. Tests damage copies."""
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline(image_encoder=True).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_round_trip_is_bitwise(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    # Whoever may read the index may read the weights.
    modes = {file.stat().st_mode for file in tmp_path.rglob("*.safetensors")}
    assert modes == {(tmp_path / "model_index.json").stat().st_mode}
    loaded = RefAdGenPipeline.from_pretrained(tmp_path)
    before, after = states(pipeline), states(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(component.training for component in loaded.components.values() if hasattr(component, "training"))
    for name in ("prompt_suffix", "negative_prompt", "guidance_scale", "reference_in_uncond", "width_px", "height_px"):
        assert loaded.config[name] == pipeline.config[name]
    assert type(loaded.scheduler) is type(pipeline.scheduler)
    public = [{k: v for k, v in model.scheduler.config.items() if k[0] != "_"} for model in (pipeline, loaded)]
    assert public[0] == public[1]
    rows = [start(model, 1, "a red cup", num_inference_steps=3) for model in (pipeline, loaded)]
    one, other = [run(model, [row])[0] for model, row in zip((pipeline, loaded), rows, strict=True)]
    assert torch.equal(one, other)
    assert (pipeline.decode(rows[:1]) == loaded.decode(rows[1:])).all()


def test_settings_travel_with_the_checkpoint(tmp_path):
    settings = {"guidance_scale": 3.5, "reference_in_uncond": False, "prompt_suffix": ", x", "negative_prompt": "no"}
    make_pipeline(image_encoder=False, **settings).save_pretrained(tmp_path)
    loaded = RefAdGenPipeline.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in settings} == settings
    assert start(loaded, 1, "cup").guidance_scale == 3.5


def test_layout_is_stock_diffusers_but_for_one_file(folder):
    """A stock U-Net loads each folder; the AFM weights lie beside the Generation U-Net's."""
    assert not [key for key in load_file(folder / UNET) if "processor" in key]
    assert len(load_file(folder / FUSION)) == 32
    assert not list(folder.rglob("*.bin"))


def edit(file, change) -> None:
    """Rewrites a safetensors file after `change(state)`."""
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


COMPONENTS = {
    UNET: "conv_in.weight",
    FUSION: "mid_block.attentions.0.transformer_blocks.0.attn1.to_k_ref.weight",
    "reference_unet/diffusion_pytorch_model.safetensors": "conv_out.bias",
    "vae/diffusion_pytorch_model.safetensors": "decoder.conv_in.bias",
    "text_encoder/model.safetensors": "final_layer_norm.weight",
    "image_encoder/model.safetensors": "post_layernorm.weight",
    "image_projection/diffusion_pytorch_model.safetensors": "resampler.latents",
}


def missing(state, key):
    del state[key]


def extra(state, key):
    state["surplus.weight"] = torch.zeros(3)


def reshaped(state, key):
    state[key] = torch.zeros(3, 3, 3)


@pytest.mark.parametrize("damage", [missing, extra, reshaped])
@pytest.mark.parametrize("file", COMPONENTS)
def test_weights_that_do_not_fit_are_refused_by_name(folder, file, damage):
    key = next(key for key in load_file(folder / file) if key.endswith(COMPONENTS[file]))
    edit(folder / file, lambda state: damage(state, key))
    with pytest.raises(ValueError, match=file.split("/")[0]) as caught:
        RefAdGenPipeline.from_pretrained(folder)
    named = "surplus.weight" if damage is extra else COMPONENTS[file]
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "component", ["vae", "reference_unet", "generation_unet", "text_encoder", "tokenizer", "scheduler"]
)
def test_a_missing_component_is_named(folder, component):
    shutil.rmtree(folder / component)
    with pytest.raises(ValueError, match=f"{component}/ is missing"):
        RefAdGenPipeline.from_pretrained(folder)
    (folder / component).mkdir()
    with pytest.raises(ValueError, match=component):
        RefAdGenPipeline.from_pretrained(folder)


def test_half_an_image_encoder_is_refused(folder):
    shutil.rmtree(folder / "image_projection")
    with pytest.raises(ValueError, match="image_projection"):
        RefAdGenPipeline.from_pretrained(folder)


def test_a_missing_fusion_file_is_named(folder):
    (folder / FUSION).unlink()
    with pytest.raises(ValueError, match=r"attention_fusion\.safetensors: missing"):
        RefAdGenPipeline.from_pretrained(folder)


def test_a_missing_weights_file_is_named(folder):
    (folder / UNET).unlink()
    with pytest.raises(ValueError, match="generation_unet"):
        RefAdGenPipeline.from_pretrained(folder)


def test_another_kind_of_folder_is_refused(tmp_path, base_folder):
    with pytest.raises(ValueError, match="StableDiffusionPipeline, not a RefAdGenPipeline"):
        RefAdGenPipeline.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="no readable model_index"):
        RefAdGenPipeline.from_pretrained(tmp_path)
    for path in ("/no/such/folder", "./gone", "one-word"):
        with pytest.raises(ValueError, match="no such folder"):
            find_model(path)


def test_an_unknown_scheduler_is_named(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="must be a scheduler of diffusers"):
        RefAdGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler': must be a scheduler"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "'DPMSolverSDEScheduler': it draws noise that follows no seed"),
        ({"_class_name": "DDIMInverseScheduler"}, "'DDIMInverseScheduler': must be a scheduler"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "is set to flow matching"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow matching"),
    ],
)
def test_a_scheduler_that_cannot_sample_is_refused_by_name(tmp_path, config, named):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        load_scheduler(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("scipy") is not None, reason="LMS works where SciPy is")
def test_lms_names_what_it_needs(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LMSDiscreteScheduler"}')
    with pytest.raises(ValueError, match="LMSDiscreteScheduler needs SciPy"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "DDIMScheduler"}, 1000),
        ({"_class_name": "LCMScheduler"}, 50),
        ({"_class_name": "TCDScheduler", "original_inference_steps": 8}, 8),
    ],
)
def test_the_most_steps_are_the_schedulers(tmp_path, config, expected):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert step_bounds(config["_class_name"], scheduler_config(tmp_path)) == (1, expected)
    scheduler = load_scheduler(tmp_path)
    scheduler.set_timesteps(expected)
    with pytest.raises(ValueError, match=r"cannot be larger|is smaller than"):
        scheduler.set_timesteps(expected + 1)


def test_a_base_becomes_an_untrained_pipeline(base_folder, tmp_path):
    made = RefAdGenPipeline.from_stable_diffusion(base_folder, guidance_scale=4.0)
    assert made.config.guidance_scale == 4.0
    base = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, base[name]) for name, tensor in made.reference_unet.state_dict().items())
    assert made.generation_unet.config.in_channels == 5
    made.save_pretrained(tmp_path / "made")
    assert RefAdGenPipeline.from_pretrained(tmp_path / "made").config.guidance_scale == 4.0


def test_files_as_old_as_stable_diffusion_load(tmp_path):
    """Its text encoder's file still holds `position_ids`, and its VAE's attention the names of 2022."""
    folder = write_base(tmp_path)
    edit(
        folder / "text_encoder" / "model.safetensors",
        lambda state: state.update({"text_model.embeddings.position_ids": torch.arange(24)[None]}),
    )
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for key in [key for key in state if ".attentions.0." in key]:
            for new, old in names.items():
                if f".{new}." in key:
                    state[key.replace(f".{new}.", f".{old}.")] = state.pop(key)

    expected = RefAdGenPipeline.from_stable_diffusion(write_base(tmp_path / "new"))
    edit(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    loaded = RefAdGenPipeline.from_stable_diffusion(folder)
    after = states(loaded)
    assert all(torch.equal(tensor, after[name]) for name, tensor in states(expected).items())


def test_a_fingerprint_is_of_contents_not_of_places(folder, saved):
    assert fingerprint(folder) == fingerprint(saved)
    edit(folder / FUSION, lambda state: next(iter(state.values())).add_(1e-3))
    assert fingerprint(folder) != fingerprint(saved)


def test_a_prompt_beyond_the_text_encoder_is_refused(encoder_pipeline):
    fits = "a " * 18  # 18 letters, suffix of 3 tokens (", h q"), start and end
    assert encoder_pipeline.num_tokens(fits) <= encoder_pipeline.tokenizer.model_max_length
    encoder_pipeline.encode_prompt(fits)
    with pytest.raises(ValueError, match=r"tokens: the text encoder takes 24"):
        encoder_pipeline.encode_prompt("a " * 25)
    with pytest.raises(ValueError, match=r"tokens: the text encoder takes 24"):
        encoder_pipeline.encode_prompt("cup", "b " * 25)


@pytest.mark.parametrize("size", [(70, 88), (72, 84), (73, 89)])
def test_an_odd_canvas_is_refused(encoder_pipeline, size):
    _, mask_u8 = product(1, *size)
    reference = encoder_pipeline.encode_reference([product(1)[0]])
    with pytest.raises(ValueError, match=f"canvas of {size[0]}×{size[1]} px: both must be multiples of 8"):
        encoder_pipeline.start(reference, mask_u8, encoder_pipeline.encode_prompt("cup"), seed=1)
