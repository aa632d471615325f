"""Tiny random checkpoints of every method's kind, as folders: Stable Diffusion 1.5's shape with hardly any width."""

import sys
from pathlib import Path

import torch
from diffusers import (
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

sys.path.append(str(Path(__file__).parents[1] / "model"))

import tiny_models

BASELINES = "refadgen.evaluation.baselines"
WIDTH_PX, HEIGHT_PX = 64, 128  # T2I-Adapter wants multiples of 64
SIZE = (f"sampling.width_px={WIDTH_PX}", f"sampling.height_px={HEIGHT_PX}")


def write_all(folder: Path) -> dict[str, list[str]]:
    """Writes the checkpoints. Returns the settings of each method by its name, without steps."""
    base = f"method.settings.base={tiny_models.write_base(folder / 'base')}"
    controlnet = write_controlnet(folder / "controlnet")
    adapter = write_t2i_adapter(folder / "t2i_adapter")
    editor = write_editor(folder / "editor")
    ip_adapter, image_encoder = write_ip_adapter(folder / "ip_adapter")
    return {
        "stable_diffusion:TextToImage": [base],
        "edges:ControlNet": [base, f"method.settings.controlnet={controlnet}"],
        "edges:T2IAdapter": [base, f"method.settings.adapter={adapter}"],
        "ip_adapter:IPAdapter": [
            base,
            f"method.settings.adapter={ip_adapter}",
            f"method.settings.image_encoder={image_encoder}",
        ],
        "instructions:InstructPix2Pix": [f"method.settings.base={editor}"],
        "instructions:InstructionEditor": [f"method.settings.model={editor}"],
        "product_paste:PixelPaste": [base],
        "product_paste:PlainPaste": [],
    }


def words(name: str, settings: list[str]) -> list[str]:
    """The words that choose a method on the command line, with few steps."""
    steps = [] if name.endswith("PlainPaste") else ["method.settings.num_inference_steps=2"]
    return [f"method.class={BASELINES}.{name}", *settings, *steps, *SIZE]


def write_controlnet(folder: Path, *, text_width: int = tiny_models.TEXT_WIDTH) -> Path:
    torch.manual_seed(10)
    controlnet = ControlNetModel(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=tiny_models.CROSS_BLOCKS[0],
        attention_head_dim=2,
        cross_attention_dim=text_width,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
    )
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)  # zero at the start of a training: it would steer nothing
    torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.1)
    controlnet.save_pretrained(folder)
    return folder


def write_t2i_adapter(folder: Path, *, channels: tuple[int, ...] = (16, 32, 32, 32)) -> Path:
    torch.manual_seed(11)
    T2IAdapter(in_channels=1, channels=list(channels), num_res_blocks=1, downscale_factor=8).save_pretrained(folder)
    return folder


def write_ip_adapter(folder: Path, *, text_width: int = tiny_models.TEXT_WIDTH) -> tuple[Path, Path]:
    """Returns the adapter's file, and the folder of its image encoder."""
    folder.mkdir()
    encoder = tiny_models.make_image_encoder()
    encoder.save_pretrained(folder / "image_encoder")
    unet = tiny_models.make_unet()
    generator = torch.Generator().manual_seed(12)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        "image_proj.proj.weight": noise(4 * text_width, encoder.config.projection_dim),
        "image_proj.proj.bias": noise(4 * text_width),
        "image_proj.norm.weight": torch.ones(text_width),
        "image_proj.norm.bias": torch.zeros(text_width),
    }
    for index, name in enumerate(unet.attn_processors):
        if "attn2" in name:  # IP-Adapter counts all attentions, and has weights for every other one
            layer = unet.get_submodule(name.removesuffix(".processor"))
            width = layer.to_k.out_features
            state |= {f"ip_adapter.{index}.{key}.weight": noise(width, text_width) for key in ("to_k_ip", "to_v_ip")}
    save_file(state, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors", folder / "image_encoder"


def write_editor(folder: Path) -> Path:
    """An InstructPix2Pix as its pipeline saves it: an image beside the latents."""
    torch.manual_seed(13)
    config = {k: v for k, v in tiny_models.make_unet().config.items() if not k.startswith("_")} | {"in_channels": 8}
    tokenizer = tiny_models.make_tokenizer()
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=tiny_models.make_vae(),
        text_encoder=tiny_models.make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**config),
        scheduler=tiny_models.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_kontext(folder: Path) -> Path:
    """A FLUX Kontext: flow matching, two text encoders, the image's latents beside the noisy ones."""
    torch.manual_seed(14)
    tokenizer = tiny_models.make_tokenizer()
    letters = [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer_2 = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer_2), d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    vae = tiny_models.make_vae()
    vae.register_to_config(shift_factor=0.1)
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=tiny_models.make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(config).eval(),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=tiny_models.TEXT_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipeline.save_pretrained(folder)
    return folder
