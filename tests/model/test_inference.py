"""Loading the model by its settings, and reading its folder without loading it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import LOW_BLOCKS, make_pipeline

from refadgen.config import ModelConfig
from refadgen.model import inference
from refadgen.model.inference import load_for_inference
from refadgen.model.pipeline import RefAdGenPipeline
from refadgen.model.unets import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    make_pipeline(image_encoder=False, blocks=LOW_BLOCKS).save_pretrained(path)
    return path


def test_the_defaults_on_a_cpu(folder: Path) -> None:
    pipeline = load_for_inference(ModelConfig(path=str(folder), device="cpu"), gpu_expected=False)
    assert (pipeline.device.type, pipeline.dtype) == ("cpu", torch.float32)
    assert torch.get_num_threads() == 1
    assert pipeline._predict is predict


def test_every_setting_reaches_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[object, str]] = []
    monkeypatch.setattr(torch, "compile", lambda function, mode: compiled.append((function, mode)) or function)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: compiled.append(("threads", count)))
    # A device without arithmetic stands for a GPU: channels-last is refused on the CPU.
    monkeypatch.setattr(inference, "resolve_device", lambda name, **_: torch.device("meta"))
    config = ModelConfig(
        path=str(folder),
        dtype="bfloat16",
        channels_last=True,
        compile=True,
        cuda_graphs=True,
        torch_threads=3,
    )
    pipeline = load_for_inference(config, gpu_expected=False)
    assert {parameter.dtype for parameter in pipeline.generation_unet.parameters()} == {torch.bfloat16}
    assert pipeline.generation_unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert compiled == [("threads", 3), (predict, "reduce-overhead")]


@pytest.fixture(scope="module")
def recommending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "recommending"
    pipeline = make_pipeline(image_encoder=False, blocks=LOW_BLOCKS, num_inference_steps=7, gpu_dtype="float16")
    pipeline.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("device", "dtype", "used"),
    [("cuda", "auto", "float16"), ("cuda", "bfloat16", "bfloat16"), ("cpu", "auto", "float32")],
)
def test_a_model_recommends_the_number_format_of_gpus(
    recommending: Path, monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, used: str
) -> None:
    class Loaded(Exception):
        pass

    def load(folder: Path, *, torch_dtype: torch.dtype, device: torch.device) -> None:
        raise Loaded(torch_dtype)

    monkeypatch.setattr(inference, "resolve_device", lambda name, **_: torch.device(device))
    monkeypatch.setattr(inference.RefAdGenPipeline, "from_pretrained", load)
    with pytest.raises(Loaded) as loaded:
        load_for_inference(ModelConfig(path=str(recommending), dtype=dtype), gpu_expected=False)
    assert loaded.value.args == (getattr(torch, used),)


def test_an_unknown_number_format_is_named(recommending: Path, tmp_path: Path) -> None:
    index = json.loads((recommending / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"gpu_dtype": "int8"}))
    with pytest.raises(ValueError, match=r"model_index\.json: gpu_dtype='int8': must be float32, bfloat16 or float16"):
        load_for_inference(ModelConfig(path=str(tmp_path)), gpu_expected=False)


def test_a_model_without_recommendations_is_written_as_before_there_were_any(folder: Path, recommending: Path) -> None:
    plain, named = (json.loads((each / "model_index.json").read_text()) for each in (folder, recommending))
    assert named == plain | {"num_inference_steps": 7, "gpu_dtype": "float16"}
    pipeline = RefAdGenPipeline.from_pretrained(recommending)
    steps = []
    start = pipeline.start
    pipeline.start = lambda *parts, **words: steps.append(words["num_inference_steps"]) or start(*parts, **words)
    picture = Image.new("RGB", (pipeline.config.width_px, pipeline.config.height_px))
    pipeline.set_progress_bar_config(disable=True)
    pipeline([picture], [picture.convert("L")], ["a cup"], seeds=[1])
    assert steps == [7]


def test_channels_last_on_the_cpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the device is only known in the process that loads the model."""
    with pytest.raises(
        ValueError, match=r"^model\.channels_last=True: is for GPUs, and model\.device=cpu; set it to fa"
    ):
        ModelConfig(device="cpu", channels_last=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^model\.channels_last=True: .* runs on the CPU here; set it to false"):
        load_for_inference(ModelConfig(path=str(folder), channels_last=True), gpu_expected=False)


def test_a_gpu_that_is_missing_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^model\.device=auto: num_gpus asks for a GPU"):
        load_for_inference(ModelConfig(path="/no/such/folder"), gpu_expected=True)


def test_a_models_folder_is_read_without_torch() -> None:
    """Planning and the drivers know a model by its folder alone: torch would cost them seconds."""
    program = (
        "import sys; from refadgen.model.folder import find_model, fingerprint, read_index;"
        "folder = find_model('mini'); read_index(folder); fingerprint(folder);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
