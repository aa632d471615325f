"""How the built-in model is made, from the studio's triplets to the shipped folder; every stage resumes.

    python -m refadgen.mini.recipe --triplets DIR --work DIR --output refadgen/mini/weights

Stages: the VAE on crops; latents of all triplets; both U-Nets and the text encoder jointly by Eq. 2; export in half
precision. The README of this folder holds the model card.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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

SCHEDULE = {"batch_size": 32, "learning_rate": 6e-4, "product_weight": 3.0}
"""Where the built-in model departs from `TrainingSchedule`'s defaults."""


def make_tokenizer() -> object:
    """The tokenizer, learned from every caption that the studio can write."""
    scenes = [make_scene(s, w, light, seed=0) for s in SURFACES for w in WALLS for light in LIGHTS]
    texts = [text for noun in NOUNS for scene in scenes for text in captions(noun, scene)]
    return learn_tokenizer(texts, vocab_size=1200, max_tokens=MAX_TOKENS)


def make_autoencoder(triplets: TripletArrays, folder: Path, num_steps: int, dtype: torch.dtype) -> AutoencoderKL:
    """The trained VAE: read from `folder`, or trained and saved there."""
    if not folder.exists():
        torch.manual_seed(0)
        vae = make_vae()
        images = np.concatenate([triplets.ad_images, triplets.ad_images, triplets.product_images])
        train_autoencoder(vae, images, num_steps=num_steps, dtype=dtype)
        vae.save_pretrained(folder)
    return load_autoencoder(folder)


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The VAE of `folder`, ready to encode."""
    return AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last).eval()


def make_latents(shards: list[Path], work: Path, workers: int, dtype: torch.dtype) -> LatentTriplets:
    """Latents (half precision), masks and caption tokens of all shards; what `work` holds already is not made again."""
    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{shard.stem}.safetensors" for shard in shards]
    missing = [
        (shard, file, work / "vae", dtype) for shard, file in zip(shards, files, strict=True) if not file.exists()
    ]
    with mp.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        pool.starmap(_encode_shard, missing, chunksize=1)
    parts = [load_file(file) for file in files]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return LatentTriplets(**tensors, empty_token_ids=_token_ids(make_tokenizer(), [""])[0])


def _encode_shard(shard: Path, file: Path, vae_folder: Path, dtype: torch.dtype) -> None:
    triplets = read_triplets(shard, "train")
    vae, tokenizer = load_autoencoder(vae_folder), make_tokenizer()

    def latents(images_u8: np.ndarray) -> torch.Tensor:
        unscaled = encode_images(vae, images_u8, dtype=dtype)
        return ((unscaled - vae.config.shift_factor) * vae.config.scaling_factor).half().contiguous()

    ads = latents(triplets.ad_images)
    masks = torch.from_numpy((triplets.product_masks > 127).astype(np.float32))[:, None]
    texts = [text for options in triplets.captions for text in options]
    tensors = {
        "latents": ads,
        "reference_latents": latents(triplets.product_images),
        "mask_latents": torch.nn.functional.interpolate(masks, size=ads.shape[-2:], mode="nearest").half(),
        "token_ids": _token_ids(tokenizer, texts).view(len(triplets), -1, MAX_TOKENS).short(),
    }
    hidden = file.with_name(f".{file.name}")
    save_file(tensors, hidden)
    os.replace(hidden, file)


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
    vae.register_to_config(_name_or_path="")  # diffusers would publish the folder it was read from
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


def _train_worker(
    rank: int, workers: int, data: LatentTriplets, schedule: TrainingSchedule, work: Path, output: Path
) -> None:
    """One of `workers` processes with one thread each: on two cores a third faster than one process with two."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = work / "meeting"
    if workers > 1:
        dist.init_process_group("gloo", init_method=meeting.resolve().as_uri(), rank=rank, world_size=workers)
    tokenizer = make_tokenizer()
    averaged = train(
        make_networks(tokenizer),
        make_scheduler(),
        data,
        schedule,
        work / "joint.pt",
        lambda line: print(line, flush=True),
    )
    if rank == 0:
        export(AutoencoderKL.from_pretrained(work / "vae"), tokenizer, averaged, output)
    if workers > 1:
        dist.destroy_process_group()


def main() -> None:
    """Runs all stages."""
    parser = argparse.ArgumentParser(description="Make the built-in model from the studio's triplets.")
    parser.add_argument("--triplets", type=Path, required=True, help="folder that refadgen.studio.build_triplets wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and latents")
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--vae-steps", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--bf16", action="store_true", help="where the processor has AVX-512 BF16 or AMX")
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    arguments.work.mkdir(parents=True, exist_ok=True)
    shards = sorted(arguments.triplets.glob("triplets-*.parquet"))
    if not (arguments.work / "vae").exists():
        make_autoencoder(read_triplets(arguments.triplets, "train"), arguments.work / "vae", arguments.vae_steps, dtype)
    data = make_latents(shards, arguments.work, arguments.workers, dtype)
    print(f"{len(data)} training rows", flush=True)
    schedule = TrainingSchedule(num_steps=arguments.steps, dtype=dtype, **SCHEDULE)
    (arguments.work / "meeting").unlink(missing_ok=True)
    # Ended by a signal, this process takes its workers along: left behind, they go on writing the checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    mp.spawn(
        _train_worker,
        (arguments.workers, data, schedule, arguments.work, arguments.output),
        nprocs=arguments.workers,
        daemon=True,
    )


if __name__ == "__main__":
    main()
