"""Tiny models for the tests of refadgen.model; no test reaches a hub."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
sys.path.insert(0, str(Path(__file__).parent))  # tiny_models.py, oracle.py
torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other


@pytest.fixture(params=["no_encoder", "image_encoder"], scope="session")
def pipeline(request):
    """A tiny pipeline with random weights everywhere, with and without an image encoder. Tests leave it as it was."""
    from tiny_models import make_pipeline

    return make_pipeline(image_encoder=request.param == "image_encoder")


@pytest.fixture(scope="session")
def encoder_pipeline():
    """The tiny pipeline with an image encoder only."""
    from tiny_models import make_pipeline

    return make_pipeline(image_encoder=True)


@pytest.fixture
def base_folder(tmp_path):
    """A Stable Diffusion folder at tiny width."""
    from tiny_models import write_base

    return write_base(tmp_path / "base")
