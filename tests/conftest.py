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

    from refadgen.config import TrainConfig
    from refadgen.config.train import TrainDataConfig, TrainModelConfig
    from refadgen.mini.architecture import HEIGHT_PX, WIDTH_PX, make_vae
    from refadgen.mini.untrained import untrained_parts
    from refadgen.model.attention_fusion import fusion_processors
    from refadgen.model.unets import make_generation_unet, make_reference_unet
    from refadgen.training.finished import make_pipeline

    torch.manual_seed(0)
    vae = make_vae().eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    parts = untrained_parts(vae)
    parts.reference_unet, parts.generation_unet = make_reference_unet(parts.unet), make_generation_unet(parts.unet)
    for afm in fusion_processors(parts.generation_unet).values():
        torch.nn.init.normal_(afm.to_v_ref.weight, std=0.2)
    config = TrainConfig(
        data=TrainDataConfig(width_px=WIDTH_PX, height_px=HEIGHT_PX),
        model=TrainModelConfig(guidance_scale=2.0, reference_in_uncond=False),
    )
    folder = tmp_path_factory.mktemp("model") / "random"
    make_pipeline(config, parts).to(dtype=torch.float16, silence_dtype_warnings=True).save_pretrained(folder)
    return folder
