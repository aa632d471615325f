"""Which files of a folder are its weights."""

import pytest

from refadgen.model.weights import WeightFiles, choose_weights

PLAIN, FP16, BIN = "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([BIN, FP16, PLAIN, "config.json"], WeightFiles((PLAIN,), None, False)),
        ([BIN, FP16, "model.bf16.safetensors"], WeightFiles((FP16,), "fp16", False)),
        (
            ["diffusion_pytorch_model.non_ema.safetensors"],
            WeightFiles(("diffusion_pytorch_model.non_ema.safetensors",), "non_ema", False),
        ),
        ([BIN, "pytorch_model.fp16.bin"], WeightFiles((BIN,), None, True)),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            WeightFiles(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), None, False),
        ),
        (
            ["model.fp16-00001-of-00001.safetensors"],
            WeightFiles(("model.fp16-00001-of-00001.safetensors",), "fp16", False),
        ),
        (["attention_fusion.safetensors", "open_clip_pytorch_model.bin", "config.json"], None),
    ],
)
def test_safetensors_before_pickles_and_plain_before_variants(names, expected):
    assert choose_weights(names) == expected
    assert choose_weights(reversed(names)) == expected
