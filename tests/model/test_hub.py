"""Which files of a repository are downloaded."""

from refadgen.model.hub import needed_files

STABLE_DIFFUSION = [
    "README.md",
    "model_index.json",
    "v1-5-pruned.safetensors",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
]
IP_ADAPTER = [
    "models/image_encoder/config.json",
    "models/image_encoder/model.safetensors",
    "models/image_encoder/pytorch_model.bin",
    "models/ip-adapter_sd15.safetensors",
    "sdxl_models/image_encoder/model.safetensors",
]


def test_weights_are_downloaded_once_and_single_files_not():
    expected = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"]
    expected += ["text_encoder/model.safetensors", "tokenizer/merges.txt", "unet/config.json"]
    assert needed_files(STABLE_DIFFUSION) == [*expected, "unet/diffusion_pytorch_model.fp16.safetensors"]


def test_only_the_folders_that_are_asked_for():
    found = needed_files(STABLE_DIFFUSION, ["text_encoder"], configs=["unet"])
    assert found == ["text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json"]
    found = needed_files(IP_ADAPTER, ["", "image_encoder", "models/image_encoder"])
    assert found == ["models/image_encoder/config.json", "models/image_encoder/model.safetensors"]


def test_a_refadgen_and_a_repository_of_one_component_are_complete():
    own = ["generation_unet/attention_fusion.safetensors", "generation_unet/diffusion_pytorch_model.safetensors"]
    assert needed_files([*own, "model_index.json"]) == [*own, "model_index.json"]
    assert needed_files(["config.json", "model.safetensors", "x.msgpack"]) == ["config.json", "model.safetensors"]
