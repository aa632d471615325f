"""One training step and one image beside the plain oracle, through the real encoders and the real cache."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import Oracle
from tiny_models import relative_difference
from tiny_training import TINY, config_of
from torch import Tensor

from refadgen.config import TrainConfig
from refadgen.model import RefAdGenPipeline
from refadgen.storage.store import Storage
from refadgen.training.cache import Cache, part_groups
from refadgen.training.choices import RowChooser
from refadgen.training.finished import make_pipeline
from refadgen.training.loop import BatchMaker
from refadgen.training.networks import Parts, TrainingModule, load_parts
from refadgen.training.plan import Plan
from refadgen.training.precompute import TripletEncoder, constants_of, shapes_of
from refadgen.training.rows import Arrays, CachedRows
from refadgen.training.worker import constant_tensors
from refadgen.triplets import schema as triplets

ROWS, TOLERANCE = 6, 1e-5
HALF = 2.0**-11
"""Largest relative error of a number that is kept as float16."""
WORDS = (
    *(f"run.batch_size={ROWS}", "objective.noise_offset=0.05", "run.dtype=float32"),
    *("objective.image_dropout=0.2", "objective.text_dropout=0.2", "objective.both_dropout=0.2"),
)


@dataclass
class Step:
    """The first step of a training from the cache."""

    config: TrainConfig
    parts: Parts
    module: TrainingModule
    plan: Plan
    chooser: RowChooser
    arrays: Arrays
    batch: dict[str, Tensor]


@pytest.fixture(scope="module", params=["refadgen_base", "encoder_base"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def step(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Step:
    folder = str(tmp_path_factory.mktemp("cache"))
    config = config_of(base, *WORDS)
    encode = TripletEncoder(config, str(TINY), folder)
    encode({"key": [TINY.name], "group": [0], "part": ["part.parquet"]})
    parts = load_parts(config)
    encoders = parts.encoders(config, torch.device("cpu"), torch.float32)
    groups = {"part.parquet": part_groups(Storage(folder), "part.parquet")}
    cache = Cache(folder, "", shapes_of(config, encoders), groups, constants_of(encoders))
    chooser = RowChooser(config.data, config.objective)
    source = CachedRows(cache, chooser)
    plan = Plan(source.groups("train"), config.run.seed, ROWS, 1, config.data.shuffle_rows)
    (segment,) = plan.segments(0)
    arrays = source.load(plan, segment, rank=0, world_size=1)
    timesteps = parts.scheduler.config.num_train_timesteps
    make_batch = BatchMaker(config, constant_tensors(cache.constants), timesteps, torch.device("cpu"), None)
    return Step(config, parts, TrainingModule(parts, config), plan, chooser, arrays, make_batch(arrays))


@pytest.fixture(scope="module")
def oracle(base: Path) -> Oracle:
    return Oracle.of(RefAdGenPipeline.from_pretrained(base))


def stored_rows() -> dict[str, triplets.Triplet]:
    rows = (triplets.decode(row) for row in pq.read_table(TINY).to_pylist())
    return {row.row_id: row for row in rows}


def as_kept(kept: np.ndarray, own: Tensor) -> Tensor:
    """The cache's own numbers, which must be float16 of `own`."""
    found = torch.from_numpy(kept.astype(np.float32))
    assert ((found - own).abs() <= HALF * own.abs() + TOLERANCE).all()
    return found


def pixels_of(image_u8: np.ndarray) -> Tensor:
    return torch.from_numpy(image_u8.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1


@torch.no_grad()
def inputs_of(step: Step, oracle: Oracle) -> Iterator[tuple[Tensor, ...]]:
    """Latents, product latents, mask, text and image states of each row, each encoded alone."""
    triplets_by_id = stored_rows()
    (segment,) = step.plan.segments(0)
    for index, place in enumerate(step.plan.rows(segment)):
        row = triplets_by_id[step.arrays["row_id"][index]]
        kinds = [variant.kind for variant in row.variants]
        chosen = step.chooser.choose(step.plan, place, row_id=row.row_id, kinds=kinds, num_captions=len(row.captions))
        variant = row.variants[chosen.variant]
        latents, product = (
            oracle.vae.encode(pixels_of(image)).latent_dist.mean[0] * oracle.vae.config.scaling_factor
            for image in (row.ad_image, variant.image)
        )
        assert chosen.mask is not None
        mask = torch.from_numpy(row.variants[chosen.mask].mask[::8, ::8] > 127).float()[None]
        assert torch.equal(mask, torch.from_numpy(step.arrays["mask_latents"][index]).float())
        text = oracle.text_states(["" if chosen.caption is None else row.captions[chosen.caption]])[0]
        states = torch.zeros(0)
        if oracle.image_tokens is not None:
            pixels = oracle.image_tokens.feature_extractor(images=[variant.image], return_tensors="pt").pixel_values
            pixels = pixels * (not chosen.image_dropped)
            states = oracle.image_tokens.image_encoder(pixels, output_hidden_states=True).hidden_states[-2][0]
            states = as_kept(step.arrays["image_states"][index], states)
        yield (
            as_kept(step.arrays["latents"][index], latents),
            as_kept(step.arrays["reference_latents"][index], product),
            mask,
            as_kept(step.arrays["text_states"][index], text),
            states,
        )


def plain_loss(step: Step, oracle: Oracle, inputs: list[tuple[Tensor, ...]], empty: Tensor) -> Tensor:
    """Eq. 2 of the batch, row by row: noise with its offset, noise schedule, both U-Nets, mean square.

    empty: states of the empty prompt.
    """
    # In float32, as diffusers' schedulers have them: a table in float64 moves gradients by 5e-6.
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)
    losses = []
    for index, (latents, product, mask, text, states) in enumerate(inputs):
        generator = torch.Generator().manual_seed(int(step.arrays["noise_seed"][index]))
        noise = torch.randn(latents.shape, generator=generator)
        noise = (noise + 0.05 * torch.randn((4, 1, 1), generator=generator)).to(latents.dtype)
        timestep = int(step.arrays["timestep"][index] * 1000)
        alpha = alphas[timestep].to(latents.dtype)
        noisy_latents = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        context = empty if oracle.image_tokens is None else oracle.image_tokens.resampler(states[None])
        references = oracle.reference_hidden_states(product[None], context)
        sample = torch.cat([noisy_latents, mask])[None]
        predicted = oracle.predict(
            sample, torch.tensor(timestep), text[None], references, torch.ones(1, dtype=text.dtype)
        )
        losses.append((predicted[0] - noise).square().mean())
    return torch.stack(losses).mean()


def test_the_step_drops_texts_and_images(step: Step) -> None:
    """Else the comparison below would not see them."""
    empty = step.batch["empty_token_ids"][0].numpy()
    dropped = [bool((ids == empty).all()) for ids in step.arrays["token_ids"]]
    assert 0 < sum(dropped) < ROWS
    assert len(set(step.arrays["variant"])) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_step_are_the_oracles(step: Step, oracle: Oracle, dtype: torch.dtype) -> None:
    module = copy.deepcopy(step.module).to(dtype)
    batch = {name: each.to(dtype) if each.is_floating_point() else each for name, each in step.batch.items()}
    loss = module(batch).mean()
    names, parameters = zip(*module.trained().items(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    oracle = copy.deepcopy(oracle)
    inputs = [tuple(each.to(dtype) for each in row) for row in inputs_of(step, oracle)]
    empty = torch.from_numpy(oracle.text_states([""]).detach().numpy().astype(np.float16)).to(dtype)
    oracle.reference_unet.to(dtype)
    oracle.generation_unet.to(dtype)
    oracle.fusion = {name: each.detach().to(dtype).requires_grad_(True) for name, each in oracle.fusion.items()}
    if oracle.image_tokens is not None:
        oracle.image_tokens.resampler.to(dtype)
    expected_loss = plain_loss(step, oracle, inputs, empty)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=TOLERANCE)
    networks = {"reference_unet": oracle.reference_unet, "generation_unet": oracle.generation_unet}
    own = {f"{prefix}.{name}": each for prefix, unet in networks.items() for name, each in unet.named_parameters()}
    own |= {f"generation_unet.{name.replace('.attn1.', '.attn1.processor.')}": w for name, w in oracle.fusion.items()}
    if oracle.image_tokens is not None:
        resampler = oracle.image_tokens.resampler
        own |= {f"image_projection.resampler.{name}": each for name, each in resampler.named_parameters()}
    assert len(names) > 50
    expected = torch.autograd.grad(expected_loss, [own[name] for name in names])
    differences = []
    for name, theirs in zip(names, expected, strict=True):
        assert theirs.any(), name
        differences.append((gradients[name] - theirs).flatten())
        if dtype == torch.float64:  # the loss squares in float32; seen: 2e-7
            assert relative_difference(gradients[name], theirs) < TOLERANCE / 10, name
    # In float32 sums of another order move single small gradients by up to 1e-5.
    whole = torch.cat([each.flatten() for each in expected])
    assert torch.cat(differences).norm() / whole.norm() < TOLERANCE


def test_latents_after_30_guided_steps_are_the_oracles(step: Step, oracle: Oracle) -> None:
    """The model as the training would write it, on a product of the data set."""
    row = next(iter(stored_rows().values()))
    variant = row.variants[0]
    pipeline = make_pipeline(step.config, step.parts)
    with torch.no_grad():
        reference = pipeline.encode_reference([variant.image])
        prompt = pipeline.encode_prompt("a red cup")
    started = pipeline.start(reference, variant.mask, prompt, seed=5, guidance_scale=7.5, num_inference_steps=30)
    for _ in pipeline.denoise([started]):
        pass
    suffix, negative = pipeline.config.prompt_suffix, pipeline.config.negative_prompt
    expected = oracle.sample(
        [variant.image],
        [variant.mask],
        [f"a red cup{suffix}"],
        [negative],
        [5],
        fusion_scales=[1.0],
        num_inference_steps=30,
        reference_in_uncond=pipeline.config.reference_in_uncond,
    )
    assert relative_difference(started.latents, expected) < TOLERANCE
