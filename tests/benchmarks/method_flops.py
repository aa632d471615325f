"""Operations of an image by RefAdGen and by the other methods, at full size, without weights.

Networks of Stable Diffusion 1.5's size on the meta device run through the pipelines that the methods use, 512×640 px,
20 guided steps; FLUX.1 Kontext as it is used, 28 steps without a second branch. A multiply-add is two operations.
Prints a table and a line of JSON.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import step_flops
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from step_flops import Tflop
from transformers import T5Config, T5EncoderModel

from refadgen.evaluation.baselines.edges import ControlNet, ControlNetSettings, T2IAdapterSettings
from refadgen.evaluation.baselines.edges import T2IAdapter as T2IAdapterMethod
from refadgen.evaluation.baselines.instructions import InstructPix2Pix, InstructPix2PixSettings
from refadgen.evaluation.baselines.ip_adapter import IPAdapter, IPAdapterSettings
from refadgen.evaluation.baselines.stable_diffusion import StableDiffusionMethod, StableDiffusionSettings, TextToImage
from refadgen.generation.method import AdRequest

STEPS, EDITOR_STEPS = 20, 28
PLACE = "-"


def request() -> AdRequest:
    canvas, mask = step_flops.product()
    return AdRequest(canvas=canvas, mask=mask, prompt="a", negative_prompt=None, seed=0)


def unet(channels_in: int = 4) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=channels_in,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,  # heads, in spite of its name
        cross_attention_dim=step_flops.TEXT_WIDTH,
    ).eval()


def base(channels_in: int = 4) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1.5."""
    return {
        "vae": step_flops.make_vae(),
        "text_encoder": step_flops.make_text_encoder(),
        "tokenizer": step_flops.make_tokenizer(),
        "unet": unet(channels_in),
        "scheduler": step_flops.ShapeScheduler(beta_schedule="scaled_linear", steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def ip_adapter_pipeline(parts: Mapping[str, Any]) -> StableDiffusionPipeline:
    """With IP-Adapter's plain weights: CLIP ViT-H's embedding as four tokens."""
    parts_of_image = step_flops.make_image_parts()
    own = {name: parts_of_image[name] for name in ("image_encoder", "feature_extractor")}
    pipeline = StableDiffusionPipeline(**{**parts, **own})
    width = step_flops.TEXT_WIDTH
    state = {"proj.weight": torch.empty(4 * width, 1024), "proj.bias": torch.empty(4 * width)}
    state |= {f"norm.{kind}": torch.empty(width) for kind in ("weight", "bias")}
    layers: dict[str, torch.Tensor] = {}
    for index, name in enumerate(pipeline.unet.attn_processors):
        if "attn2" in name:
            rows = pipeline.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers |= {f"{index}.{key}.weight": torch.empty(rows, width) for key in ("to_k_ip", "to_v_ip")}
    pipeline.unet._load_ip_adapter_weights([{"image_proj": state, "ip_adapter": layers}], low_cpu_mem_usage=False)
    return pipeline


@contextlib.contextmanager
def parts_at_hand(**models: Any) -> Iterator[None]:
    """`make_pipeline` of a method gets its own network from here, in place of a folder."""
    with (
        mock.patch("refadgen.evaluation.baselines.edges.find_model", lambda place, **_: place),
        mock.patch("refadgen.model.checkpoint.load_model", lambda folder, name, cls, dtype: models[cls.__name__]),
    ):
        yield


def count(cls: type[StableDiffusionMethod], settings: StableDiffusionSettings, **models: Any) -> float:
    """TFLOP of one image, through the method's own pipeline and arguments; texts, loop and decoder included."""
    with torch.device("meta"):
        method = cls.__new__(cls)
        method.settings, method.dtype = settings, torch.float32
        parts = base(cls.channels_in)
        with parts_at_hand(**models):
            method.pipeline = ip_adapter_pipeline(parts) if cls is IPAdapter else method.make_pipeline(parts)
    method.pipeline.set_progress_bar_config(disable=True)
    one, two = (_count_steps(method, num_steps) for num_steps in (1, 2))
    return one + (STEPS - 1) * (two - one) + count_decoder(parts["vae"])


def _count_steps(method: StableDiffusionMethod, num_steps: int) -> float:
    """TFLOP of all before the decoder, with so many steps. All steps are alike."""
    arguments = method.arguments(request()) | {"num_inference_steps": num_steps}
    with Tflop() as tflop, torch.no_grad():
        method.pipeline(**arguments, generator=torch.Generator(), output_type="latent")
    return tflop.value


@torch.no_grad()
def count_decoder(vae: AutoencoderKL) -> float:
    with torch.device("meta"):
        latents = torch.empty(1, 4, step_flops.HEIGHT_PX // 8, step_flops.WIDTH_PX // 8)
    with Tflop() as tflop:
        vae.decode(latents)
    return tflop.value


def count_ours(*, image_encoder: bool) -> float:
    """TFLOP of one image of RefAdGen, the first of its product: what is computed once for a product is in it."""
    pipeline = step_flops.make_meta_pipeline(image_encoder=image_encoder)
    step, once = step_flops.count_ours(pipeline)
    return STEPS * step + once["reference"] + once["prompt"] + count_decoder(pipeline.vae)


@torch.no_grad()
def count_kontext() -> float:
    """TFLOP of one image of FLUX.1 Kontext: both texts, the image's latents, the transformer, the decoder.

    Sizes are those of its published configuration, which are diffusers' defaults but for the guidance embedding.
    """
    width, height = step_flops.WIDTH_PX, step_flops.HEIGHT_PX
    tokens, words = (width // 16) * (height // 16), 512
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True).eval()
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu")
        ).eval()
        clip = step_flops.make_text_encoder()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
            use_quant_conv=False, use_post_quant_conv=False,
        ).eval()  # fmt: skip
        image, latents = torch.empty(1, 3, height, width), torch.empty(1, 16, height // 8, width // 8)
        ids = torch.empty(1, words, dtype=torch.long)
        with Tflop() as once:
            t5(ids)
            clip(ids[:, :77])
            vae.encode(image)
            vae.decode(latents)
        with Tflop() as step:
            transformer(
                hidden_states=torch.empty(1, 2 * tokens, 64),  # the noisy latents, and beside them the image's
                encoder_hidden_states=torch.empty(1, words, 4096),
                pooled_projections=torch.empty(1, 768),
                timestep=torch.empty(1),
                guidance=torch.empty(1),
                img_ids=torch.empty(2 * tokens, 3),
                txt_ids=torch.empty(words, 3),
            )
    return EDITOR_STEPS * step.value + once.value


def measure() -> dict[str, float]:
    """TFLOP of one image by method."""
    with torch.device("meta"):
        controlnet = ControlNetModel(cross_attention_dim=step_flops.TEXT_WIDTH).eval()
        adapter = T2IAdapter(in_channels=1, channels=[320, 640, 1280, 1280], downscale_factor=8).eval()
    text_to_image = count(TextToImage, StableDiffusionSettings(base=PLACE))
    return {
        "TextToImage, PixelPaste": text_to_image,
        "T2IAdapter": count(T2IAdapterMethod, T2IAdapterSettings(base=PLACE, adapter=PLACE), T2IAdapter=adapter),
        "IPAdapter": count(IPAdapter, IPAdapterSettings(base=PLACE, adapter="a.safetensors", image_encoder=PLACE)),
        "RefAdGen, without an image encoder": count_ours(image_encoder=False),
        "RefAdGen, with the authors' image encoder": count_ours(image_encoder=True),
        "ControlNet": count(ControlNet, ControlNetSettings(base=PLACE, controlnet=PLACE), ControlNetModel=controlnet),
        "InstructPix2Pix": count(InstructPix2Pix, InstructPix2PixSettings(base=PLACE)),
        "InstructionEditor with FLUX.1 Kontext": count_kontext(),
    }


def main() -> int:
    warnings.filterwarnings("ignore")
    found = measure()
    plain = found["TextToImage, PixelPaste"]
    print("| method | TFLOP an image | of text-to-image |\n|---|---|---|")
    for name, tflop in found.items():
        print(f"| {name} | {tflop:.1f} | {tflop / plain:.2f} |")
    print(json.dumps({name: round(tflop, 3) for name, tflop in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
