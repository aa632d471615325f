"""What all tests share: no model hub, no browser or server outside loopback, and a small random model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray on loopback that ends with the tests
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefAdGen folder of the built-in model's architecture with random weights: fast, and nothing like an ad."""
    import torch

    from refadgen.mini.architecture import make_vae
    from refadgen.mini.recipe import export, make_networks, make_tokenizer
    from refadgen.model.attention_fusion import fusion_processors

    tokenizer = make_tokenizer()
    networks = make_networks(tokenizer)
    torch.manual_seed(0)
    for afm in fusion_processors(networks.generation_unet).values():
        torch.nn.init.normal_(afm.to_v_ref.weight, std=0.2)
    vae = make_vae().eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    folder = tmp_path_factory.mktemp("model") / "random"
    export(vae, tokenizer, networks, folder)
    return folder
