"""Tiny bases to train from; no test reaches a hub."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tiny_training.py
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))  # tiny_models.py, oracle.py
torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other


@pytest.fixture(scope="session")
def stable_diffusion_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with all sixteen self-attentions."""
    from tiny_models import write_base

    return write_base(tmp_path_factory.mktemp("bases") / "stable-diffusion")


@pytest.fixture(scope="session")
def refadgen_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefAdGen folder without an image encoder, of few layers, for tests that run many steps."""
    from tiny_models import LOW_BLOCKS, make_pipeline

    folder = tmp_path_factory.mktemp("bases") / "refadgen"
    make_pipeline(image_encoder=False, blocks=LOW_BLOCKS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefAdGen folder with an image encoder and its projection."""
    from tiny_models import make_pipeline

    folder = tmp_path_factory.mktemp("bases") / "refadgen-encoder"
    make_pipeline(image_encoder=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vision model's folder."""
    from tiny_models import make_image_encoder

    folder = tmp_path_factory.mktemp("bases") / "clip"
    make_image_encoder().save_pretrained(folder)
    return folder
