"""What all tests share: no model hub, no browser or server outside loopback, and small random networks."""

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


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random Grounding DINO with its processor."""
    import torch
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "product", "shoes", "mug", "a", "##s"]
    folder = tmp_path_factory.mktemp("grounding_dino")
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=20,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 128}
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(size=size), BertTokenizerFast(vocab={word: k for k, word in enumerate(words)})
    )
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sam2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """File of random SAM2 weights, in the layout of the released ones, of the smallest configuration."""
    import torch
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sam2") / "sam2.pt"
    torch.save({"model": build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()}, path)
    return str(path)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random image classifier with the labels Normal, NSFW and Sexy."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    labels = {0: "Normal", 1: "NSFW", 2: "Sexy"}
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label=labels, label2id={label: index for index, label in labels.items()}, initializer_range=0.5,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
