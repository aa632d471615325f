"""Eq. 2 row by row: against a plain loop, its targets and weights against numbers made by hand."""

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from oracle import Oracle
from tiny_models import LOW_BLOCKS, make_pipeline, make_scheduler
from tiny_training import random_batch
from torch import Tensor

from refadgen.training.objective import (
    TrainingBatch,
    diffusion_losses,
    draw_noise,
    min_snr_weights,
    target,
    weighted_mean_square,
)


def scheduler_of(prediction_type: str, **changes: Any) -> DDIMScheduler:
    return DDIMScheduler.from_config(make_scheduler().config, prediction_type=prediction_type, **changes)


def batch_of(rows: int, seed: int = 0) -> TrainingBatch:
    tensors = random_batch(rows, seed)
    tensors["prompt_embeds"] = tensors["text_states"]
    tensors["reference_context"] = tensors["empty_text_states"].expand(rows, -1, -1)
    return TrainingBatch(**{field.name: tensors[field.name] for field in dataclasses.fields(TrainingBatch)})


def part_of(batch: TrainingBatch, rows: list[int]) -> TrainingBatch:
    return TrainingBatch(**{name: tensor[rows] for name, tensor in vars(batch).items()})


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline(image_encoder=False, blocks=LOW_BLOCKS)


@pytest.fixture(scope="module")
def oracle(pipeline: Any) -> Oracle:
    return Oracle.of(pipeline)


def losses_of(pipeline: Any, scheduler: DDIMScheduler, batch: TrainingBatch, **settings: Any) -> Tensor:
    with torch.no_grad():
        return diffusion_losses(pipeline.reference_unet, pipeline.generation_unet, scheduler, batch, **settings)


@torch.no_grad()
def plain_loss(oracle: Oracle, batch: TrainingBatch, row: int, prediction_type: str, product_weight: float) -> float:
    """One row of Eq. 2, written down."""
    alpha = 1.0
    for step in range(int(batch.timesteps[row]) + 1):
        alpha *= 1 - (0.00085**0.5 + step / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
    latents, noise, mask = batch.latents[row], batch.noise[row], batch.mask_latents[row]
    noisy_latents = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
    wanted = noise if prediction_type == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * latents
    references = oracle.reference_hidden_states(batch.reference_latents[row][None], batch.reference_context[row][None])
    sample = torch.cat([noisy_latents, mask])[None]
    predicted = oracle.predict(
        sample, batch.timesteps[row], batch.prompt_embeds[row][None], references, batch.fusion_scale[row][None]
    )[0]
    total = weight = 0.0
    for channel in range(4):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                each = product_weight if mask[0, y, x] else 1.0
                total += each * float(predicted[channel, y, x] - wanted[channel, y, x]) ** 2
                weight += each
    return total / weight


@pytest.mark.parametrize(("prediction_type", "product_weight"), [("epsilon", 1.0), ("v_prediction", 3.0)])
def test_each_row_is_eq_2(pipeline: Any, oracle: Oracle, prediction_type: str, product_weight: float) -> None:
    batch = batch_of(3)
    batch.fusion_scale[1] = 0
    batch.timesteps[:] = torch.tensor([0, 617, 999])
    losses = losses_of(pipeline, scheduler_of(prediction_type), batch, product_weight=product_weight)
    assert losses.shape == (3,)
    for row in range(3):
        # Another order of sums in float32 through thirty layers.
        assert losses[row].item() == pytest.approx(
            plain_loss(oracle, batch, row, prediction_type, product_weight), rel=1e-5
        )


def test_a_rows_loss_does_not_depend_on_its_batch(pipeline: Any) -> None:
    scheduler, batch = scheduler_of("v_prediction"), batch_of(5)
    whole = losses_of(pipeline, scheduler, batch)
    for rows in ([0], [4, 2], [3, 1, 0]):
        # Matrix products of another size sum in another order.
        torch.testing.assert_close(losses_of(pipeline, scheduler, part_of(batch, rows)), whole[rows], rtol=1e-5, atol=0)


def test_a_dropped_reference_does_not_reach_the_loss(pipeline: Any) -> None:
    scheduler, batch = scheduler_of("v_prediction"), batch_of(3)
    batch.fusion_scale[:] = torch.tensor([0.0, 1.0, 0.0])
    other = dataclasses.replace(
        batch,
        reference_latents=batch_of(3, seed=1).reference_latents,
        reference_context=batch_of(3, seed=1).reference_context,
    )
    one, two = losses_of(pipeline, scheduler, batch), losses_of(pipeline, scheduler, other)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert one[1] != two[1]


def test_a_dropped_reference_trains_nothing_of_the_reference_unet(pipeline: Any) -> None:
    batch = dataclasses.replace(batch_of(2), fusion_scale=torch.zeros(2))
    reference_unet = pipeline.reference_unet
    losses = diffusion_losses(reference_unet, pipeline.generation_unet, scheduler_of("epsilon"), batch)
    found = torch.autograd.grad(losses.sum(), list(reference_unet.parameters()), allow_unused=True)
    assert not any(gradient.any() for gradient in found if gradient is not None)


def test_the_mask_reaches_the_network(pipeline: Any) -> None:
    batch = batch_of(2)
    without = dataclasses.replace(batch, mask_latents=torch.zeros_like(batch.mask_latents))
    scheduler = scheduler_of("epsilon")
    assert (losses_of(pipeline, scheduler, batch) != losses_of(pipeline, scheduler, without)).all()


def test_noise_is_normal_and_its_offset_moves_whole_channels() -> None:
    seeds = list(range(500))
    plain, moved = draw_noise(seeds, (4, 8, 8), 0.0), draw_noise(seeds, (4, 8, 8), 0.5)
    assert plain.shape == (500, 4, 8, 8)
    assert plain.dtype == torch.float32
    assert plain.mean().item() == pytest.approx(0, abs=0.014)  # 128 000 numbers: a deviation of 0.0028
    assert plain.std().item() == pytest.approx(1, abs=0.01)
    offset = (moved - plain).mean((2, 3))
    torch.testing.assert_close(moved - plain, offset[..., None, None].expand_as(plain), rtol=0, atol=1e-5)
    assert offset.std().item() == pytest.approx(0.5, rel=0.08)  # 2 000 numbers: a deviation of 1.6 %
    assert offset.mean().item() == pytest.approx(0, abs=0.056)
    assert (torch.corrcoef(offset.T) - torch.eye(4)).abs().max() < 0.22  # each channel has its own: five deviations
    assert abs(torch.corrcoef(torch.stack([offset.flatten(), plain.mean((2, 3)).flatten()]))[0, 1]) < 0.11


def test_noise_follows_from_each_rows_seed() -> None:
    together = draw_noise([5, 2**62 + 1, 9], (4, 3, 2), 0.05)
    assert torch.equal(together[1:2], draw_noise([2**62 + 1], (4, 3, 2), 0.05))
    assert not torch.equal(together[0], together[2])


def test_targets() -> None:
    tensors = random_batch(3)
    latents, noise, timesteps = tensors["latents"], tensors["noise"], torch.tensor([0, 500, 999])
    assert torch.equal(target(scheduler_of("epsilon"), latents, noise, timesteps), noise)
    scheduler = scheduler_of("v_prediction")
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    velocity = target(scheduler, latents, noise, timesteps)
    torch.testing.assert_close(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)
    # From z_t and v both come back.
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(
        alpha.sqrt() * noisy_latents - (1 - alpha).sqrt() * velocity, latents, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        target(scheduler_of("sample"), latents, noise, timesteps)


def test_the_last_target_of_a_zero_terminal_snr_is_the_image() -> None:
    scheduler = scheduler_of("v_prediction", rescale_betas_zero_snr=True)
    tensors, last = random_batch(1), torch.tensor([999])
    latents, noise = tensors["latents"], tensors["noise"]
    torch.testing.assert_close(scheduler.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(target(scheduler, latents, noise, last), -latents)
    assert min_snr_weights(scheduler, last, 5.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction_type", "weights"),
    # SNR = ᾱ / (1 − ᾱ) is 9, 4, 1 and 1/4.
    [("epsilon", [5 / 9, 1, 1, 1]), ("v_prediction", [5 / 10, 4 / 5, 1 / 2, 1 / 5])],
)
def test_min_snr_weights(prediction_type: str, weights: list[float]) -> None:
    scheduler = scheduler_of(prediction_type)
    scheduler.alphas_cumprod = torch.tensor([0.9, 0.8, 0.5, 0.2])
    found = min_snr_weights(scheduler, torch.tensor([0, 1, 2, 3]), 5.0)
    assert found.tolist() == pytest.approx(weights, rel=1e-5)  # 1 − ᾱ in float32


def test_min_snr_weighs_whole_rows(pipeline: Any) -> None:
    scheduler, batch = scheduler_of("epsilon"), batch_of(3)
    batch.timesteps[:] = torch.tensor([10, 300, 900])
    weights = min_snr_weights(scheduler, batch.timesteps, 5.0)
    assert weights[0] < 0.1
    assert weights[2] == 1
    plain = losses_of(pipeline, scheduler, batch)
    assert torch.equal(losses_of(pipeline, scheduler, batch, min_snr_gamma=5.0), plain * weights)


def test_the_product_weighs_more_where_it_is_said() -> None:
    errors = torch.tensor([1.0, -1.0, 2.0, -2.0]).view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    mask[1] = 0
    assert weighted_mean_square(errors, mask, 1.0).tolist() == pytest.approx([2.5, 2.5])
    assert weighted_mean_square(errors, mask, 3.0).tolist() == pytest.approx([(1 + 1 + 3 * 4 + 3 * 4) / 8, 2.5])
    assert weighted_mean_square(errors, mask, 0.5).tolist() == pytest.approx([(1 + 1 + 0.5 * 8) / 3, 2.5])
