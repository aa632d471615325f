"""Eq. 2 and the loop: targets, dropout of the reference, and resume that repeats an uninterrupted run."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from refadgen.mini.architecture import make_scheduler
from refadgen.mini.recipe import make_networks, make_tokenizer
from refadgen.training.loop import LatentTriplets, Networks, TrainingSchedule, make_batch, train
from refadgen.training.objective import diffusion_loss, draw_noise, weighted_mean_square

SCHEDULE = TrainingSchedule(num_steps=4, batch_size=2, warmup_steps=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return make_tokenizer()


@pytest.fixture
def networks(tokenizer: object) -> Networks:
    return make_networks(tokenizer)


@pytest.fixture(scope="module")
def data() -> LatentTriplets:
    generator = torch.Generator().manual_seed(0)
    return LatentTriplets(
        latents=torch.randn(6, 8, 20, 16, generator=generator),
        reference_latents=torch.randn(6, 8, 20, 16, generator=generator),
        mask_latents=(torch.rand(6, 1, 20, 16, generator=generator) > 0.5).float(),
        token_ids=torch.randint(10, 500, (6, 2, 64), generator=generator),
        empty_token_ids=torch.full((64,), 7),
    )


def test_the_noise_offset_moves_whole_channels() -> None:
    plain = draw_noise((500, 4, 8, 8), 0.0, torch.Generator().manual_seed(0))
    moved = draw_noise((500, 4, 8, 8), 0.5, torch.Generator().manual_seed(0))
    offset = (moved - plain).mean((2, 3))
    assert torch.allclose(moved - plain, offset[..., None, None].expand_as(plain), atol=1e-5)
    assert offset.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_eq_2(prediction_type: str, networks: Networks, data: LatentTriplets) -> None:
    scheduler = DDIMScheduler.from_config(
        make_scheduler().config, prediction_type=prediction_type, rescale_betas_zero_snr=False
    )
    batch = make_batch(networks, scheduler, data, SCHEDULE, step=0)
    # A network that answers zero leaves the mean square of the target.
    for parameter in networks.generation_unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    alpha = scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    target = batch.noise if prediction_type == "epsilon" else velocity
    loss = diffusion_loss(networks.reference_unet, networks.generation_unet, scheduler, batch)
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-5)


def test_a_dropped_reference_does_not_reach_the_loss(networks: Networks, data: LatentTriplets) -> None:
    scheduler = make_scheduler()
    batch = dataclasses.replace(make_batch(networks, scheduler, data, SCHEDULE, 0), fusion_scale=torch.zeros(2))
    other = dataclasses.replace(batch, reference_latents=torch.randn_like(batch.reference_latents))
    losses = [diffusion_loss(networks.reference_unet, networks.generation_unet, scheduler, b) for b in (batch, other)]
    assert losses[0].item() == losses[1].item()
    kept = [dataclasses.replace(b, fusion_scale=torch.ones(2)) for b in (batch, other)]
    losses = [diffusion_loss(networks.reference_unet, networks.generation_unet, scheduler, b) for b in kept]
    assert losses[0].item() != losses[1].item()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tokenizer: object, data: LatentTriplets, tmp_path: Path
) -> None:
    scheduler = make_scheduler()
    whole = train(make_networks(tokenizer), scheduler, data, SCHEDULE, tmp_path / "whole.pt")
    stopped = _Stop()
    with pytest.raises(KeyboardInterrupt):
        train(make_networks(tokenizer), scheduler, data, SCHEDULE, tmp_path / "parts.pt", stopped)
    resumed = train(make_networks(tokenizer), scheduler, data, SCHEDULE, tmp_path / "parts.pt")
    for name, module in whole.modules().items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, resumed.modules()[name].state_dict()[key]), (name, key)


class _Stop:
    """A report that ends the run at its first checkpoint, as Ctrl-C would."""

    def __call__(self, _: str) -> None:
        raise KeyboardInterrupt


def test_a_loss_that_is_no_number_stops_and_names_the_step(
    networks: Networks, data: LatentTriplets, tmp_path: Path
) -> None:
    broken = dataclasses.replace(data, latents=torch.full_like(data.latents, float("nan")))
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        train(networks, make_scheduler(), broken, SCHEDULE, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_two_workers_train_like_one(networks: Networks, data: LatentTriplets, tmp_path: Path) -> None:
    schedule = dataclasses.replace(SCHEDULE, num_steps=2, text_dropout=0.0)
    alone = train(networks, make_scheduler(), data, schedule, tmp_path / "alone.pt", lambda _: None)
    torch.multiprocessing.spawn(_work, (data, schedule, tmp_path), nprocs=2)
    together = torch.load(tmp_path / "together.pt", weights_only=True)["ema"]
    for name, weights in alone.state_dict().items():
        for key, tensor in weights.items():
            # Adam divides by the gradient's own size: where that is rounding, so is the step (at most two rates).
            torch.testing.assert_close(together[name][key], tensor, rtol=0, atol=2e-3)
            assert (together[name][key] - tensor).abs().mean() < 1e-4


def _work(rank: int, data: LatentTriplets, schedule: TrainingSchedule, folder: Path) -> None:
    meeting = (folder / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    networks = make_networks(make_tokenizer())
    train(networks, make_scheduler(), data, schedule, folder / "together.pt", lambda _: None)
    torch.distributed.destroy_process_group()


def test_the_product_weighs_more_where_it_is_said() -> None:
    errors = torch.tensor([1.0, 1.0, 2.0, 2.0]).view(1, 1, 2, 2)
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    assert weighted_mean_square(errors, mask, 1.0).item() == pytest.approx(2.5)
    assert weighted_mean_square(errors, mask, 3.0).item() == pytest.approx((1 + 1 + 3 * 4 + 3 * 4) / 8)
