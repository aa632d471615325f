"""The parameters that train, for each `model.trains` and each kind of base; the one scheduler; wrong bases."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_image_encoder
from tiny_training import config_of, random_batch

import refadgen.training
from refadgen.config import TrainConfig, load_config
from refadgen.config.loading import preset_file
from refadgen.model import RefAdGenPipeline
from refadgen.model.attention_fusion import fusion_processors
from refadgen.model.image_projection import ProductImageProjection
from refadgen.model.ip_adapter import resampler_names
from refadgen.model.unets import parameters_without_gradient
from refadgen.training.checkpoints import Checkpoint
from refadgen.training.finished import HeldOut, export, put_trained, sample_sheet
from refadgen.training.loop import attention_kernel
from refadgen.training.networks import Parts, TrainingModule, load_parts

BASES = ["stable_diffusion_base", "refadgen_base", "encoder_base"]


def module_of(base: Path, *words: str) -> tuple[Parts, TrainingModule]:
    config = config_of(base, *words)
    parts = load_parts(config)
    return parts, TrainingModule(parts, config)


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_product_trains_exactly_the_papers_set(base: Path) -> None:
    parts, module = module_of(base)
    assert parts.reference_unet is not None
    assert parts.generation_unet is not None
    without = parameters_without_gradient(parts.reference_unet)
    wanted = {f"reference_unet.{name}" for name, _ in parts.reference_unet.named_parameters() if name not in without}
    wanted |= {"generation_unet.conv_in.weight", "generation_unet.conv_in.bias"}
    for layer in fusion_processors(parts.generation_unet):
        wanted |= {f"generation_unet.{layer}.processor.{name}.weight" for name in ("to_k_ref", "to_v_ref")}
    if parts.image_projection is not None:
        wanted |= {f"image_projection.{name}" for name, _ in parts.image_projection.named_parameters()}
    assert module.trained().keys() == wanted
    assert module.text_encoder is None
    assert (parts.image_projection is not None) == (base.name == "refadgen-encoder")


def test_everything_trains_all_that_can(base: Path) -> None:
    parts, module = module_of(base, "model.trains=everything")
    assert parts.reference_unet is not None
    without = {f"reference_unet.{name}" for name in parameters_without_gradient(parts.reference_unet)}
    names = {name for name, _ in module.named_parameters()}
    assert without < names
    assert module.trained().keys() == names - without
    assert any(name.startswith("text_encoder.") for name in names)


def test_text_to_image_trains_the_base(stable_diffusion_base: Path) -> None:
    parts, module = module_of(stable_diffusion_base, "model.trains=text_to_image")
    assert parts.unet is not None
    assert parts.reference_unet is parts.generation_unet is None
    names = {f"unet.{name}" for name, _ in parts.unet.named_parameters()}
    names |= {f"text_encoder.{name}" for name, _ in parts.text_encoder.named_parameters()}
    assert module.trained().keys() == names


@pytest.mark.parametrize(
    ("base_name", "trains"),
    [(base, trains) for base in BASES for trains in ("product", "everything")]
    + [("stable_diffusion_base", "text_to_image")],
)
def test_what_trains_gets_a_gradient_and_nothing_else(
    base_name: str, trains: str, request: pytest.FixtureRequest
) -> None:
    parts, module = module_of(request.getfixturevalue(base_name), f"model.trains={trains}")
    module(random_batch(2)).sum().backward()
    networks = {name: value for name, value in vars(parts).items() if isinstance(value, torch.nn.Module)}
    trained = {id(parameter) for parameter in module.trained().values()}
    for network, value in networks.items():
        for name, parameter in value.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained), f"{network}.{name}"
    zero = {name for name, parameter in module.trained().items() if not parameter.grad.any()}
    # The mask channel's weights of an untrained base are zero, not their gradient.
    assert not {name for name in zero if "_ref" in name or "conv_in" in name}


@pytest.mark.parametrize("trains", ["product", "everything"])
def test_the_description_adds_up(trains: str, encoder_base: Path) -> None:
    _, module = module_of(encoder_base, f"model.trains={trains}")
    first, *lines = module.describe().splitlines()

    def numbers(line: str) -> list[int]:
        return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d|\d", line)]

    trained = sum(parameter.numel() for parameter in module.trained().values())
    everything = sum(parameter.numel() for parameter in module.parameters())
    assert first == (
        f"trained parameters: {trained:,} in {len(module.trained())} tensors; frozen: {everything - trained:,}"
    )
    by_network = [line for line in lines if "of these" not in line]
    assert {line.split(":")[0].strip() for line in by_network} == {name for name, _ in module.named_children()}
    counts = [numbers(line) for line in by_network]
    assert [sum(column) for column in zip(*counts, strict=True)] == [trained, everything - trained]
    conv_in, projections = numbers(next(line for line in lines if "of these" in line))
    assert conv_in == sum(p.numel() for p in module.generation_unet.conv_in.parameters())
    fusion = fusion_processors(module.generation_unet).values()
    assert projections == sum(p.numel() for afm in fusion for p in afm.parameters())
    if trains == "product":
        ours = next(numbers(line)[0] for line in by_network if "generation_unet" in line)
        assert ours == conv_in + projections


@pytest.mark.parametrize("base_name", ["stable_diffusion_base", "refadgen_base"])
def test_gradient_checkpointing_gives_equal_gradients(base_name: str, request: pytest.FixtureRequest) -> None:
    base, found = request.getfixturevalue(base_name), []
    for word in ("false", "true"):
        _, module = module_of(base, f"run.gradient_checkpointing={word}")
        module.train()
        with attention_kernel("cpu"):
            losses = module(random_batch(2))
            losses.sum().backward()
        found.append((losses.detach(), {name: p.grad for name, p in module.trained().items()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        # The same products again, but sums of gradients that meet may come in another order.
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_fresh_start_is_the_base(stable_diffusion_base: Path) -> None:
    """With the AFM off, the loss is that of the base for any mask: a check of how the networks are made."""
    _, product = module_of(stable_diffusion_base)
    _, plain = module_of(stable_diffusion_base, "model.trains=text_to_image")
    batch = random_batch(3)
    with torch.no_grad():
        states = plain.text_encoder(torch.cat([batch["token_ids"], batch["empty_token_ids"]]))[0]
        batch |= {"text_states": states[:3], "empty_text_states": states[3:], "fusion_scale": torch.zeros(3)}
        # Attention runs in one kernel or another, which round differently.
        torch.testing.assert_close(product(batch), plain(batch), rtol=1e-5, atol=0)


def checkpoint_of(module: TrainingModule) -> Checkpoint:
    weights = {name: parameter.detach() + 0.01 for name, parameter in module.trained().items()}
    return Checkpoint(1, {}, weights, {}, {})


@pytest.mark.parametrize(
    "words", [(), ("objective.prediction_type=v_prediction", "objective.zero_terminal_snr=true")], ids=["epsilon", "v"]
)
def test_one_scheduler_trains_and_is_exported(words: tuple[str, ...], encoder_base: Path, tmp_path: Path) -> None:
    config = config_of(encoder_base, *words)
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    assert module.scheduler is parts.scheduler
    put_trained(module, checkpoint_of(module))
    export(config, parts, tmp_path, "card")
    exported = RefAdGenPipeline.from_pretrained(tmp_path).scheduler
    assert type(exported) is type(parts.scheduler)
    theirs, ours = (
        {name: value for name, value in each.config.items() if not name.startswith("_")}
        for each in (exported, parts.scheduler)
    )
    assert theirs == ours
    assert torch.equal(exported.alphas_cumprod, parts.scheduler.alphas_cumprod)
    assert exported.config.prediction_type == config.objective.prediction_type
    assert (exported.alphas_cumprod[-1] < 1e-6) == config.objective.zero_terminal_snr
    assert exported.config.timestep_spacing == ("trailing" if config.objective.zero_terminal_snr else "leading")


def test_the_scheduler_keeps_the_bases_noise_and_samples_as_the_authors_do(
    stable_diffusion_base: Path, tmp_path: Path
) -> None:
    folder = copied(stable_diffusion_base, tmp_path / "other")
    file = folder / "scheduler" / "scheduler_config.json"
    changes = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "_class_name": "PNDMScheduler"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}), encoding="utf-8")
    config = load_parts(config_of(folder)).scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.001, 0.02, "linear")
    assert config.num_train_timesteps == 1000
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (1, False, False)


def test_the_export_holds_the_trained_weights(encoder_base: Path, tmp_path: Path) -> None:
    config = config_of(encoder_base)
    parts, module = module_of(encoder_base)
    checkpoint = checkpoint_of(module)
    put_trained(module, checkpoint)
    export(config, parts, tmp_path, "card")
    again = TrainingModule(load_parts(config_of(tmp_path)), config)
    for name, parameter in again.trained().items():
        assert torch.equal(parameter, checkpoint.weights[name]), name


def test_previews_and_the_finished_model_have_the_steps_that_the_base_recommends(
    refadgen_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(refadgen_base, tmp_path / "base")
    file = folder / "model_index.json"
    own = {"num_inference_steps": 3, "gpu_dtype": "float16"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own), encoding="utf-8")
    steps: list[int] = []
    start = RefAdGenPipeline.start

    def counting(*parts: Any, **words: Any) -> Any:
        steps.append(words["num_inference_steps"])
        return start(*parts, **words | {"num_inference_steps": 1})

    monkeypatch.setattr(RefAdGenPipeline, "start", counting)
    _, module = module_of(folder)
    picture = np.full((80, 64, 3), 200, np.uint8)
    rows = [HeldOut(product_image=picture, mask=picture[..., 0], ad_image=picture, prompt="a cup")]
    for base, *words in [(folder,), (folder, "run.sample_steps=2"), (refadgen_base,)]:
        sample_sheet(config_of(base, *words), checkpoint_of(module), rows, torch.device("cpu"))
    assert steps == [3, 2, 20]
    config = config_of(folder, "model.negative_prompt_context=true")
    export(config, load_parts(config), tmp_path / "finished", "card")
    index = json.loads((tmp_path / "finished" / "model_index.json").read_text())
    assert {name: index[name] for name in own} == own
    assert index["negative_prompt_context"] is True


def test_a_context_that_the_model_does_not_have_is_refused(encoder_base: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.negative_prompt_context=True: .*without an image encoder"):
        load_parts(config_of(encoder_base, "model.negative_prompt_context=true"))


def test_the_authors_noise_is_in_training_only(encoder_base: Path, tmp_path: Path) -> None:
    """Pure noise at the last timestep, and ε; the finished model samples with the plain schedule, as theirs."""
    config = config_of(encoder_base, "objective.authors_noise=true")
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    assert (module.scheduler.config.prediction_type, module.scheduler.config.timestep_spacing) == (
        "epsilon",
        "trailing",
    )
    assert module.scheduler.alphas_cumprod[-1] < 1e-6
    assert module(random_batch(2) | {"timesteps": torch.tensor([999, 0])}).isfinite().all()
    export(config, parts, tmp_path, "card")
    exported, plain = (
        RefAdGenPipeline.from_pretrained(tmp_path).scheduler,
        load_parts(config_of(encoder_base)).scheduler,
    )
    assert torch.equal(exported.alphas_cumprod, plain.alphas_cumprod)
    assert (exported.config.timestep_spacing, exported.config.rescale_betas_zero_snr) == ("leading", False)


def test_an_exported_text_to_image_base_is_open_to_who_may_read_its_index(
    stable_diffusion_base: Path, tmp_path: Path
) -> None:
    """Its layout is written by diffusers' own pipeline."""
    config = config_of(stable_diffusion_base, "model.trains=text_to_image")
    export(config, load_parts(config), tmp_path, "card")
    modes = {file.stat().st_mode for file in tmp_path.rglob("*.safetensors")}
    assert modes == {(tmp_path / "model_index.json").stat().st_mode}


def test_a_zero_terminal_snr_needs_v_prediction(encoder_base: Path) -> None:
    with pytest.raises(ValueError, match=r"objective\.zero_terminal_snr=True with objective\.prediction_type=epsilon"):
        config_of(encoder_base, "objective.zero_terminal_snr=true")


def test_an_image_encoder_of_its_own(stable_diffusion_base: Path, encoder_base: Path, image_encoder: Path) -> None:
    config = config_of(stable_diffusion_base, f"model.image_encoder={image_encoder}")
    parts, again = load_parts(config), load_parts(config)
    assert parts.image_projection is not None
    assert parts.feature_extractor.crop_size["height"] == 32
    for one, two in zip(parts.image_projection.parameters(), again.image_projection.parameters(), strict=True):
        assert torch.equal(one, two)  # all workers start alike
    assert TrainingModule(parts, config)(random_batch(2)).isfinite().all()
    # A base's own projection stays.
    kept = load_parts(config_of(encoder_base, f"model.image_encoder={image_encoder}")).image_projection
    own = load_parts(config_of(encoder_base)).image_projection
    assert all(torch.equal(one, two) for one, two in zip(kept.parameters(), own.parameters(), strict=True))


def ip_adapter_file(place: Path, **changes: int) -> dict[str, torch.Tensor]:
    """Writes a Resampler of the tiny models' widths as IP-Adapter-Plus does. Returns: its weights in our names."""
    torch.manual_seed(9)
    made = ProductImageProjection(**{"embed_dims": 24, "output_dims": 16, "hidden_dims": 16, "heads": 1, **changes})
    ours = made.state_dict()
    state = {
        theirs: torch.cat([ours[name] for name in names]).half()
        for theirs, names in resampler_names(len(made.resampler.layers)).items()
    }
    others = {"1.to_k_ip.weight": torch.zeros(2, 2)}
    if place.suffix == ".bin":
        torch.save({"image_proj": state, "ip_adapter": others}, place)
    else:
        flat = {f"image_proj.{name}": tensor for name, tensor in state.items()}
        save_file(flat | {f"ip_adapter.{name}": tensor for name, tensor in others.items()}, place)
    return {name: tensor.half().float() for name, tensor in ours.items()}


@pytest.mark.parametrize("name", ["ip-adapter-plus_sd15.bin", "ip-adapter-plus_sd15.safetensors"])
def test_the_resampler_starts_from_ip_adapter_plus(
    name: str, stable_diffusion_base: Path, image_encoder: Path, tmp_path: Path
) -> None:
    wanted = ip_adapter_file(tmp_path / name)
    words = [f"model.image_encoder={image_encoder}", f"model.image_projection={tmp_path / name}"]
    parts, module = module_of(stable_diffusion_base, *words)
    assert parts.image_projection is not None
    found = parts.image_projection.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items())
    assert {f"image_projection.{key}" for key in wanted} <= module.trained().keys()


def test_resampler_files_that_do_not_fit_are_named(
    stable_diffusion_base: Path, encoder_base: Path, image_encoder: Path, tmp_path: Path
) -> None:
    def fails(base: Path, start: Path | str) -> str:
        words = [f"model.image_encoder={image_encoder}", f"model.image_projection={start}"]
        return load_fails(config_of(base, *words))

    place = tmp_path / "adapter.safetensors"
    for changes, key in (
        ({"hidden_dims": 32}, r"image_proj\.latents has shape \(1, 16, 32\), must be \(1, 16, 16\)"),
        ({"embed_dims": 32}, r"image_proj\.proj_in\.weight has shape \(16, 32\), must be \(16, 24\)"),
        ({"depth": 2}, r"missing keys: \['image_proj\.layers\.2"),
    ):
        ip_adapter_file(place, **changes)
        assert re.match(rf"model\.image_projection='{place}': {place}: {key}", fails(stable_diffusion_base, place))
    ip_adapter_file(place)
    broken = {name: tensor.fill_(float("nan")) for name, tensor in load_file(place).items()}
    save_file(broken, place)
    assert f"{place}: has NaN or infinite weights" in fails(stable_diffusion_base, place)
    (tmp_path / "cut.bin").write_bytes(b"PK\x03\x04")
    assert "cut.bin: holds no plain weights under image_proj" in fails(stable_diffusion_base, tmp_path / "cut.bin")
    place.write_bytes(b"no weights")
    assert f"{place}: cannot be read" in fails(stable_diffusion_base, place)
    assert "model.base has a Resampler of its own; leave it out" in fails(encoder_base, place)
    with pytest.raises(ValueError, match=r"model\.image_projection='\S+': is for the states of model\.image_encoder"):
        config_of(stable_diffusion_base, f"model.image_projection={place}")


def test_the_papers_preset_asks_where_the_resampler_starts(stable_diffusion_base: Path, image_encoder: Path) -> None:
    def load(*words: str) -> Parts:
        return load_parts(
            load_config(
                TrainConfig, preset_file("paper", refadgen.training), [f"model.base={stable_diffusion_base}", *words]
            )
        )

    assert load().image_projection is None
    with pytest.raises(ValueError, match=r"^model\.image_projection: name the file of IP-Adapter-Plus .*, or random"):
        load(f"model.image_encoder={image_encoder}")
    assert load(f"model.image_encoder={image_encoder}", "model.image_projection=random").image_projection is not None


def copied(base: Path, folder: Path, index: dict[str, object] | None = None) -> Path:
    shutil.copytree(base, folder)
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def load_fails(config: TrainConfig) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 — the caller looks at all of the message
        load_parts(config)
    return str(caught.value)


def test_wrong_bases_are_named(
    stable_diffusion_base: Path, refadgen_base: Path, image_encoder: Path, tmp_path: Path
) -> None:
    assert load_fails(config_of("''")).startswith("model.base: name a Stable Diffusion 1.5 folder")
    missing = load_fails(config_of(tmp_path / "nothing"))
    assert missing.startswith(f"model.base='{tmp_path}/nothing': no such folder, and not of the form of a hub id")

    (tmp_path / "empty").mkdir()
    empty = load_fails(config_of(tmp_path / "empty"))
    assert empty.startswith(f"model.base='{tmp_path}/empty'")
    assert "model_index.json" in empty

    half = copied(stable_diffusion_base, tmp_path / "half")
    shutil.rmtree(half / "unet")
    assert re.fullmatch(
        r"model\.base='\S+/half': \S+/half: the component unet/ is missing", load_fails(config_of(half))
    )

    part = copied(refadgen_base, tmp_path / "part")
    (part / "generation_unet" / "attention_fusion.safetensors").unlink()
    assert re.match(r"model\.base='\S+': \S+attention_fusion\.safetensors: missing", load_fails(config_of(part)))

    other = load_fails(config_of(refadgen_base, "model.trains=text_to_image"))
    assert re.match(r"model\.base='\S+': is a RefAdGen; model\.trains=text_to_image needs a Stable", other)

    encoder = load_fails(config_of(refadgen_base, f"model.image_encoder={tmp_path}/nothing"))
    assert encoder.startswith("model.image_encoder=")
    assert "no such folder" in encoder


def test_a_unet_of_other_channels_is_refused(stable_diffusion_base: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = copied(stable_diffusion_base, tmp_path / "inpainting")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    changed = UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
    changed.save_pretrained(folder / "unet")
    assert "model.base=" in (text := load_fails(config_of(folder)))
    assert "its unet takes 9 channels, not the 4 of its vae's latents" in text


def test_an_image_encoder_that_does_not_fit_is_refused(encoder_base: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    config = make_image_encoder().config
    config.hidden_size = 32
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    text = load_fails(config_of(encoder_base, f"model.image_encoder={tmp_path}/clip"))
    assert "model.image_encoder=" in text
    assert "its states have 32 channels, model.base projects from 24" in text
