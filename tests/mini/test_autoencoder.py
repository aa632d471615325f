"""The built-in model's VAE: its loss, and that a short training brings it down and sets the latents' scale."""

import numpy as np
import pytest
import torch
from tiny_models import make_vae

from refadgen.mini.autoencoder import encode_images, reconstruction_loss, train_autoencoder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Boxes of one colour on another: uint8 8×48×48×3."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (8, 1, 1, 3), np.uint8), 48, 1).repeat(48, 2)
    images[:, 10:30, 12:36] = rng.integers(0, 256, (8, 1, 1, 3), np.uint8)
    return images


def loss_of(vae: torch.nn.Module, images: np.ndarray) -> float:
    torch.manual_seed(0)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return reconstruction_loss(vae, pixels).item()


def test_a_short_training_lowers_the_loss_and_scales_the_latents(images: np.ndarray) -> None:
    vae, lines = make_vae(), []
    before = loss_of(vae, images)
    centers = np.full((8, 2), 24)
    train_autoencoder(
        vae,
        images,
        num_steps=100,
        centers_yx=centers,
        batch_size=4,
        crop_px=32,
        learning_rate=1e-2,
        report=lines.append,
    )
    assert loss_of(vae, images) < 0.7 * before
    assert len(lines) == 1
    assert lines[0].startswith("vae step 100/100 loss ")
    assert not vae.training
    scaled = (encode_images(vae, images) - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.shape == (8, 4, 6, 6)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-3)  # both numbers are rounded to five places
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)


def test_training_repeats_itself(images: np.ndarray) -> None:
    states = []
    for _ in range(2):
        vae = make_vae()
        train_autoencoder(vae, images, num_steps=3, batch_size=2, crop_px=32, seed=4, report=lambda _: None)
        states.append(vae.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_images_are_encoded_in_pieces(images: np.ndarray) -> None:
    vae = make_vae()
    # Convolutions of another batch size may round differently.
    torch.testing.assert_close(
        encode_images(vae, images, batch_size=3), encode_images(vae, images), rtol=1e-4, atol=1e-5
    )
