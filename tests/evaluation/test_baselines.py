"""Every method from a tiny random checkpoint by path, from placed product to ledger row; and what does not fit."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))

import tiny_checkpoints
from tiny_checkpoints import BASELINES, HEIGHT_PX, WIDTH_PX, tiny_models

from refadgen.batch.rows import from_table, to_table
from refadgen.catalog.images import encode_png
from refadgen.config import GenerateConfig, load_config
from refadgen.evaluation.baselines.edges import edges
from refadgen.generation.generator import AdGenerator
from refadgen.generation.ledger import AdLedgerRow
from refadgen.generation.method import AdRequest
from refadgen.generation.method_settings import method_of, with_method_settings
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.rows import PlacedProduct
from refadgen.generation.wanted import WantedImage
from refadgen.model import RefAdGenPipeline

SEES_THE_PRODUCT = {
    "stable_diffusion:TextToImage": False,
    "edges:ControlNet": True,
    "edges:T2IAdapter": True,
    "ip_adapter:IPAdapter": True,
    "instructions:InstructPix2Pix": True,
    "instructions:InstructionEditor": True,
    "product_paste:PixelPaste": True,
    "product_paste:PlainPaste": True,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The settings of each method by its name."""
    torch.set_num_threads(1)
    return tiny_checkpoints.write_all(tmp_path_factory.mktemp("checkpoints"))


def placed(number: int, *prompts: str, seed: int = 3) -> PlacedProduct:
    canvas, mask = tiny_models.product(number, WIDTH_PX, HEIGHT_PX)
    wanted = tuple(
        WantedImage(image_id=f"{number:016x}{index:016x}", scene="s", variant=index, prompt=prompt, seed=seed)
        for index, prompt in enumerate(prompts or ("a cup",))
    )
    return PlacedProduct(
        row=number, sku=f"sku-{number}", category=None, image="", negative_prompt=None, wanted=wanted, input_sha256="",
        fetch_s=0, segment_s=0, canvas=encode_png(canvas), product_mask=encode_png(mask), product=b"p",
        product_uri=f"products/{number}.webp", width_px=WIDTH_PX, height_px=HEIGHT_PX, error=None,
    )  # fmt: skip


def ledgers_of(config: GenerateConfig, folder: Path, *blocks: Sequence[PlacedProduct]) -> list[list[AdLedgerRow]]:
    """The ledger rows of blocks of placed products, as the job's last two stages give them."""
    config, identity = with_method_settings(config)
    generator, publisher = AdGenerator(config, "run-1"), AdPublisher(config, "run-1", str(folder), identity)
    try:
        made = [pa.concat_tables(generator(to_table(rows, PlacedProduct))) for rows in blocks]
        return [from_table(publisher(table), AdLedgerRow) for table in made]
    finally:
        generator._engine.stop()


def ledger_of(config: GenerateConfig, folder: Path, *rows: PlacedProduct) -> list[AdLedgerRow]:
    return ledgers_of(config, folder, rows)[0]


def configured(name: str, settings: list[str], *more: str) -> GenerateConfig:
    words = [*tiny_checkpoints.words(name, settings), "output.format=png", "sampling.batch_size=1", *more]
    return load_config(GenerateConfig, None, words)


def pixels(folder: Path, row: AdLedgerRow) -> np.ndarray:
    return cv2.imread(str(folder / row.uri))


@pytest.mark.parametrize("name", SEES_THE_PRODUCT)
def test_a_method_makes_ads_end_to_end(name: str, checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    config, alone = configured(name, checkpoints[name]), placed(1)
    other_seed = dataclasses.replace(alone.wanted[0], image_id="3" * 32, seed=4)
    once_more = dataclasses.replace(alone, wanted=(dataclasses.replace(alone.wanted[0], image_id="4" * 32),))
    block = [placed(2), dataclasses.replace(alone, wanted=(alone.wanted[0], other_seed))]
    (other, first, another_seed), (again,) = ledgers_of(config, tmp_path, block, [once_more])
    for row in (first, other, another_seed, again):
        assert (row.status, row.detail, row.rung, row.attempts) == ("done", "", "first", 1)
        assert row.color_similarity is not None
        assert row.model.startswith(f"{BASELINES}.{name}@")
    ad = pixels(tmp_path, first)
    assert ad.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert ad.std() > 1
    assert np.array_equal(ad, pixels(tmp_path, again))  # in other company
    assert np.array_equal(ad, pixels(tmp_path, other)) != SEES_THE_PRODUCT[name]
    assert np.array_equal(ad, pixels(tmp_path, another_seed)) == name.endswith("PlainPaste")


def test_the_same_seed_is_the_same_noise_as_ours(checkpoints: dict[str, list[str]]) -> None:
    """An untrained RefAdGen at λ = 0 is its base: the two ads are equal but for rounding."""
    (base,) = checkpoints["stable_diffusion:TextToImage"]
    config, _ = with_method_settings(configured("stable_diffusion:TextToImage", [base]))
    method, settings = method_of(config)
    canvas, mask = tiny_models.product(1, WIDTH_PX, HEIGHT_PX)
    request = AdRequest(canvas=canvas, mask=mask, prompt="a cup", negative_prompt="ugly", seed=3)
    (theirs,) = method(settings, torch.device("cpu"), torch.float32).generate([request])
    pipeline = RefAdGenPipeline.from_stable_diffusion(base.partition("=")[2])
    prompt = pipeline.encode_prompt("a cup", "ugly")
    row = pipeline.start(
        pipeline.encode_reference([canvas]), mask, prompt, seed=3, fusion_scale=0.0, guidance_scale=7.5,
        num_inference_steps=2,
    )  # fmt: skip
    for _ in pipeline.denoise([row]):
        pass
    assert np.abs(pipeline.decode([row])[0].astype(int) - theirs).max() <= 1


def test_pasted_pixels_are_the_products_own(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    name = "product_paste:PixelPaste"
    (row,) = ledger_of(configured(name, checkpoints[name]), tmp_path, placed(1))
    canvas, mask = tiny_models.product(1, WIDTH_PX, HEIGHT_PX)
    inside = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
    assert np.array_equal(pixels(tmp_path, row)[..., ::-1][inside], canvas[inside])
    assert row.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in (tmp_path / row.uri).read_bytes()
    (plain,) = ledger_of(configured("product_paste:PlainPaste", []), tmp_path, placed(2))
    assert plain.digital_source_type == "composite"
    assert (pixels(tmp_path, plain)[0, 0] == 0xE6).all()


def test_the_edges_are_the_products(checkpoints: dict[str, list[str]]) -> None:
    canvas = np.full((64, 64, 3), 255, np.uint8)
    canvas[20:40, 20:40] = (200, 30, 40)
    request = AdRequest(canvas=canvas, mask=canvas[..., 0], prompt="", negative_prompt=None, seed=0)
    found = np.asarray(edges(request))[..., 0] > 0
    assert found[18:42, 18:42].any()
    found[18:42, 18:42] = False
    assert not found.any()


def test_a_prompt_that_is_too_long_costs_its_row(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    name = "stable_diffusion:TextToImage"
    rows = ledger_of(configured(name, checkpoints[name]), tmp_path, placed(1, "a cup", "q" * 30))
    assert [(row.status, row.reason) for row in rows] == [("done", ""), ("rejected", "prompt_too_long")]
    assert rows[1].detail == "row 1: prompt: too long: the model takes 24 tokens"


def refusal(name: str, settings: list[str]) -> str:
    with pytest.raises(ValueError, match=r"^method\.settings") as refused:
        with_method_settings(configured(name, settings))
    return str(refused.value)


def test_weights_of_another_architecture_are_refused(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    (base,) = checkpoints["stable_diffusion:TextToImage"]
    wide = tiny_checkpoints.write_controlnet(tmp_path / "wide", text_width=24)
    told = refusal("edges:ControlNet", [base, f"method.settings.controlnet={wide}"])
    assert told.endswith("is for another base: its cross_attention_dim is 24, that of method.settings.base 16")
    adapter = tiny_checkpoints.write_t2i_adapter(tmp_path / "adapter", channels=(16, 32, 32, 48))
    told = refusal("edges:T2IAdapter", [base, f"method.settings.adapter={adapter}"])
    assert told.endswith("is for another base: its channels is [48], that of method.settings.base [32]")
    assert "holds a T2IAdapter, not a ControlNetModel" in refusal(
        "edges:ControlNet", [base, f"method.settings.controlnet={adapter}"]
    )
    file, encoder = tiny_checkpoints.write_ip_adapter(tmp_path / "ip", text_width=24)
    own = [base, f"method.settings.adapter={file}", f"method.settings.image_encoder={encoder}"]
    assert refusal("ip_adapter:IPAdapter", own).endswith("is for a base of width 24, and method.settings.base has 16")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"projection_dim": 9}))
    good = checkpoints["ip_adapter:IPAdapter"][1]
    told = refusal("ip_adapter:IPAdapter", [base, good, f"method.settings.image_encoder={encoder}"])
    assert told.endswith("has a width of 9, and method.settings.adapter takes 8")
    told = refusal("instructions:InstructPix2Pix", [base])
    assert told.endswith("its U-Net takes 4 channels, and InstructPix2Pix needs 8")
    (editor,) = checkpoints["instructions:InstructPix2Pix"]
    assert refusal("stable_diffusion:TextToImage", [editor]).endswith("takes 8 channels, and TextToImage needs 4")


def test_an_ip_adapter_that_lacks_a_layer_is_refused(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    """Its first layer fits: what is wrong is seen when it is loaded."""
    base, adapter, encoder = checkpoints["ip_adapter:IPAdapter"]
    state = load_file(adapter.partition("=")[2])
    del state["ip_adapter.31.to_k_ip.weight"]
    save_file(state, tmp_path / "short.safetensors")
    config, _ = with_method_settings(
        configured("ip_adapter:IPAdapter", [base, f"method.settings.adapter={tmp_path}/short.safetensors", encoder])
    )
    method, settings = method_of(config)
    with pytest.raises(ValueError, match=r"^method\.settings\.adapter=.*: does not fit the base"):
        method(settings, torch.device("cpu"), torch.float32)


def test_an_editor_must_take_an_image(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    name = "instructions:InstructionEditor"
    place = f"method.settings.model={tmp_path}"
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert refusal(name, [place]).endswith("StableDiffusionPipeline takes no image")
    index.write_text(json.dumps({"_class_name": ["my_code", "MyPipeline"]}))
    assert "its pipeline ['my_code', 'MyPipeline'] is none of this diffusers' own" in refusal(name, [place])
    (good,) = checkpoints[name]
    assert refusal(name, [good, "method.settings.arguments.true_cfg_scale=4"]).endswith("takes no such argument")
    assert refusal(name, [good, "method.settings.arguments.image=x"]).endswith("is the job's to give")
    assert refusal(name, [good, "method.settings.instruction=do it"]).endswith("must be a text with {prompt} in it")
    assert refusal(name, []).endswith("method.settings.model='': must be a folder or a hub id")


def test_an_editor_without_all_its_weights_is_refused(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    (good,) = checkpoints["instructions:InstructionEditor"]
    folder = tmp_path / "editor"
    shutil.copytree(good.partition("=")[2], folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.bias"]
    save_file(state, file, metadata={"format": "pt"})
    config, _ = with_method_settings(configured("instructions:InstructionEditor", [f"method.settings.model={folder}"]))
    method, settings = method_of(config)
    with pytest.raises(ValueError, match=r"unet: 1 weights are missing, the first is conv_in\.bias"):
        method(settings, torch.device("cpu"), torch.float32)


def test_arguments_reach_the_editor(checkpoints: dict[str, list[str]], tmp_path: Path) -> None:
    name = "instructions:InstructionEditor"
    plain, other = (
        ledger_of(configured(name, [*checkpoints[name], *more]), tmp_path / str(index), placed(1))[0]
        for index, more in enumerate(([], ["method.settings.arguments.image_guidance_scale=4"]))
    )
    assert not np.array_equal(pixels(tmp_path / "0", plain), pixels(tmp_path / "1", other))


def test_a_newer_editor_runs_too(tmp_path: Path) -> None:
    """FLUX Kontext: flow matching, and it enlarges the image that it is given unless it is told not to."""
    folder = tiny_checkpoints.write_kontext(tmp_path / "kontext")
    settings = [f"method.settings.model={folder}", "method.settings.arguments._auto_resize=false"]
    first, other = ledger_of(configured("instructions:InstructionEditor", settings), tmp_path, placed(1), placed(2))
    assert (first.status, first.detail) == ("done", "")
    assert pixels(tmp_path, first).shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert not np.array_equal(pixels(tmp_path, first), pixels(tmp_path, other))
