"""Makes the base of the built-in model: a Stable Diffusion folder with a trained VAE and randomly initialised networks.

    python -m refadgen.mini.untrained --data renders --output work/untrained

The VAE is trained on crops of the studio's pictures; a VAE that is already in `OUTPUT/vae` is trained further. The
tokenizer is learned from every caption that the studio can write. A complete folder stays as it is.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from refadgen.mini.architecture import MAX_TOKENS, make_scheduler, make_text_encoder, make_unet, make_vae
from refadgen.mini.autoencoder import train_autoencoder
from refadgen.mini.vocabulary import learn_tokenizer
from refadgen.storage.modes import follow_umask
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS, captions, make_scene
from refadgen.studio.shapes import NOUNS
from refadgen.training.finished import make_text_to_image_pipeline
from refadgen.training.networks import Parts
from refadgen.triplets import schema as triplets


def make_tokenizer() -> CLIPTokenizer:
    """A tokenizer learned from every caption that the studio can write."""
    scenes = [make_scene(s, w, light, seed=0) for s in SURFACES for w in WALLS for light in LIGHTS]
    texts = [text for noun in NOUNS for scene in scenes for text in captions(noun, scene)]
    return learn_tokenizer(texts, vocab_size=1200, max_tokens=MAX_TOKENS)


def read_pictures(uri: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Ads and product photographs of the first training rows, and the product's centre in each.

    limit: number of pictures, about. Returns: uint8 n×H×W×3; int n×2 of (y, x).
    """
    storage, keys = triplets.dataset_files(uri)
    images: list[np.ndarray] = []
    centers: list[tuple[int, int]] = []
    for key in keys:
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            for row in pq.read_table(handle).to_pylist():
                if row["split"] != "train":
                    continue
                triplet = triplets.decode(row)
                photo = next((v for v in triplet.variants if v.kind == "relit"), triplet.variants[0])
                ys, xs = np.nonzero(photo.mask)
                # In turns a row gives ad and photograph, or the ad alone: two thirds of the pictures are ads.
                images += [triplet.ad_image, photo.image][: 2 if len(images) % 3 == 0 else 1]
                centers += [(round(ys.mean()), round(xs.mean()))] * (len(images) - len(centers))
                if len(images) >= limit:
                    return np.stack(images), np.array(centers)
    return np.stack(images), np.array(centers)


def untrained_parts(vae: AutoencoderKL) -> Parts:
    """The base around a VAE. Weights are randomly initialised from a fixed seed, so everyone starts from the same."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)  # after the VAE, whose training has drawn an unknown number of values
    unet = make_unet()
    text_encoder = make_text_encoder(
        len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    )
    return Parts(vae, text_encoder, tokenizer, make_scheduler(), unet=unet)


def main() -> None:
    """Trains the VAE and writes the folder."""
    parser = argparse.ArgumentParser(description="Make the untrained base of the built-in model.")
    parser.add_argument("--data", required=True, help="triplets of the studio, a path or s3://")
    parser.add_argument("--output", type=Path, required=True, help="folder of the Stable Diffusion base")
    parser.add_argument("--vae-steps", type=int, default=19000)
    parser.add_argument("--pictures", type=int, default=8000, help="pictures to learn the VAE from")
    parser.add_argument("--bf16", action="store_true", help="where the processor has AVX-512 BF16 or AMX")
    arguments = parser.parse_args()
    if (arguments.output / "model_index.json").exists():
        print(f"{arguments.output} is complete")
        return
    trained = arguments.output / "vae"
    if trained.is_dir():
        vae = AutoencoderKL.from_pretrained(trained)
    else:
        torch.manual_seed(0)
        vae = make_vae()
    if arguments.vae_steps:
        images, centers = read_pictures(arguments.data, arguments.pictures)
        # Not by default: without such instructions bfloat16 is emulated and slower than float32.
        dtype = torch.bfloat16 if arguments.bf16 else torch.float32
        train_autoencoder(vae, images, centers_yx=centers, num_steps=arguments.vae_steps, dtype=dtype)
    make_text_to_image_pipeline(untrained_parts(vae)).save_pretrained(arguments.output)
    follow_umask(arguments.output)


if __name__ == "__main__":
    main()
