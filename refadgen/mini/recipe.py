"""How the built-in model is made, from the studio's triplets to the shipped folder; every stage resumes.

    python -m refadgen.mini.recipe --triplets DIR --work DIR --output refadgen/mini/weights

Stages: the VAE on crops; latents of all triplets, in two colourings each; both U-Nets and the text encoder jointly by
Eq. 2; export in half precision. The README of this folder holds the model card.
"""

import argparse
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from refadgen.mini.architecture import (
    HEIGHT_PX,
    MAX_TOKENS,
    WIDTH_PX,
    make_scheduler,
    make_text_encoder,
    make_unet,
    make_vae,
)
from refadgen.mini.vocabulary import learn_tokenizer
from refadgen.model import RefAdGenPipeline
from refadgen.model.unets import make_generation_unet, make_reference_unet
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS, captions, make_scene
from refadgen.studio.shapes import NOUNS
from refadgen.training.autoencoder import encode_images, train_autoencoder
from refadgen.training.loop import LatentTriplets, Networks, TrainingSchedule, train
from refadgen.training.triplets import TripletArrays, read_triplets

COLOURINGS = 2
"""Pictures made of each triplet: as rendered, and with the product's colour channels permuted in photograph and ad."""


def make_tokenizer() -> object:
    """The tokenizer, learned from every caption that the studio can write."""
    scenes = [make_scene(s, w, light, seed=0) for s in SURFACES for w in WALLS for light in LIGHTS]
    texts = [text for noun in NOUNS for scene in scenes for text in captions(noun, scene)]
    return learn_tokenizer(texts, vocab_size=1200, max_tokens=MAX_TOKENS)


def make_autoencoder(triplets: TripletArrays, folder: Path, num_steps: int) -> AutoencoderKL:
    """The trained VAE: read from `folder`, or trained and saved there."""
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).eval()
    torch.manual_seed(0)
    vae = make_vae()
    images = np.concatenate([triplets.ad_images, triplets.ad_images, triplets.product_images])
    train_autoencoder(vae, images, num_steps=num_steps)
    vae.save_pretrained(folder)
    return vae


def recoloured(triplets: TripletArrays, colouring: int) -> tuple[np.ndarray, np.ndarray]:
    """Product images and ads with each product's channels in another order: more products from the same renders.

    Colouring 0 is the original. The scene around the product stays.
    """
    if colouring == 0:
        return triplets.product_images, triplets.ad_images
    orders = list(permutations(range(3)))[1:]
    products, ads = triplets.product_images.copy(), triplets.ad_images.copy()
    for index, mask in enumerate(triplets.product_masks > 127):
        order = list(orders[(triplets.seeds[index] * 7 + colouring) % len(orders)])
        for images in (products, ads):
            images[index][mask] = images[index][mask][:, order]
    return products, ads


def make_latents(triplets: TripletArrays, vae: AutoencoderKL, tokenizer: object, file: Path) -> LatentTriplets:
    """Latents, masks and caption tokens of all triplets: read from `file`, or made and saved there."""
    if not file.exists():
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        parts: dict[str, list[torch.Tensor]] = {"latents": [], "reference_latents": []}
        for colouring in range(COLOURINGS):
            products, ads = recoloured(triplets, colouring)
            parts["reference_latents"].append((encode_images(vae, products) - shift) * scale)
            parts["latents"].append((encode_images(vae, ads) - shift) * scale)
        masks = torch.from_numpy((triplets.product_masks > 127).astype(np.float32))[:, None]
        masks = torch.nn.functional.interpolate(masks, size=parts["latents"][0].shape[-2:], mode="nearest")
        texts = [text for options in triplets.captions for text in options]
        ids = _token_ids(tokenizer, texts).view(len(triplets), -1, MAX_TOKENS)
        tensors = {
            **{name: torch.cat(tensors).contiguous() for name, tensors in parts.items()},
            "mask_latents": masks.repeat(COLOURINGS, 1, 1, 1).contiguous(),
            "token_ids": ids.repeat(COLOURINGS, 1, 1),
            "empty_token_ids": _token_ids(tokenizer, [""])[0],
        }
        save_file(tensors, file)
    return LatentTriplets(**load_file(file))


def _token_ids(tokenizer: object, texts: list[str]) -> torch.Tensor:
    padded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")  # type: ignore[operator]
    return padded.input_ids


def make_networks(tokenizer: object) -> Networks:
    """Untrained networks; both U-Nets start from the same base."""
    torch.manual_seed(1)
    base = make_unet()
    text_encoder = make_text_encoder(
        len(tokenizer),  # type: ignore[arg-type]
        tokenizer.eos_token_id,  # type: ignore[attr-defined]
        tokenizer.bos_token_id,  # type: ignore[attr-defined]
        tokenizer.pad_token_id,  # type: ignore[attr-defined]
    )
    return Networks(make_reference_unet(base), make_generation_unet(base), text_encoder)


def export(vae: AutoencoderKL, tokenizer: object, networks: Networks, folder: Path) -> None:
    """Writes the pipeline in half precision."""
    pipeline = RefAdGenPipeline(
        vae=vae,
        text_encoder=networks.text_encoder.eval(),
        tokenizer=tokenizer,
        reference_unet=networks.reference_unet.eval(),
        generation_unet=networks.generation_unet.eval(),
        scheduler=make_scheduler(),
        guidance_scale=2.0,
        reference_in_uncond=False,
        width_px=WIDTH_PX,
        height_px=HEIGHT_PX,
    )
    pipeline.to(dtype=torch.float16, silence_dtype_warnings=True).save_pretrained(folder)


def main() -> None:
    """Runs all stages."""
    parser = argparse.ArgumentParser(description="Make the built-in model from the studio's triplets.")
    parser.add_argument("--triplets", type=Path, required=True, help="folder that refadgen.studio.build_triplets wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and latents")
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    triplets = read_triplets(arguments.triplets, "train")
    tokenizer = make_tokenizer()
    vae = make_autoencoder(triplets, arguments.work / "vae", arguments.vae_steps)
    data = make_latents(triplets, vae, tokenizer, arguments.work / "latents.safetensors")
    print(f"{len(triplets)} triplets, {len(data)} training rows", flush=True)
    schedule = TrainingSchedule(num_steps=arguments.steps)
    networks = train(
        make_networks(tokenizer),
        make_scheduler(),
        data,
        schedule,
        arguments.work / "joint.pt",
        lambda line: print(line, flush=True),
    )
    export(vae, tokenizer, networks, arguments.output)


if __name__ == "__main__":
    main()
