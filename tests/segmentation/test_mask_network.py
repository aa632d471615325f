"""The mask network without its weights: what it sees, its shapes, and the file it fits into."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import disk, photograph
from safetensors.torch import load_file, save_file

from refadgen.segmentation.classes import NUM_CLASSES
from refadgen.segmentation.mask_network import NUM_INPUTS, SIDE_PX, MaskNetwork, network_input


@pytest.fixture(scope="module")
def network() -> MaskNetwork:
    torch.manual_seed(0)
    return MaskNetwork().eval()


def random_inputs(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 1), (30, 700), (320, 320), (900, 600)])
def test_every_photograph_becomes_a_square(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    seen = network_input(image)
    assert (seen.shape, seen.dtype) == ((NUM_INPUTS, SIDE_PX, SIDE_PX), np.float32)
    assert np.abs(seen).max() <= 1
    assert network_input(image, 64).shape == (NUM_INPUTS, 64, 64)
    assert (network_input(image) == seen).all()


def test_colours_are_scaled_and_differences_from_the_backdrop_magnified() -> None:
    product = disk((160, 160), 80, (320, 320))
    seen = network_input(photograph(product, (200, 40, 40), 240))
    inside, outside = disk((160, 160), 75, (320, 320)), ~disk((160, 160), 85, (320, 320))
    assert seen[:3, outside] == pytest.approx(240 / 127.5 - 1, abs=1e-6)
    assert seen[0, inside].mean() > seen[1, inside].mean() + 0.5
    assert np.abs(seen[3:, outside]).max() < 0.05
    assert seen[3, inside].max() < -0.95, "darker than the backdrop"
    assert seen[4:, inside].min() > 0.8, "coloured, and far from it in all"


def test_a_white_product_on_white_shows() -> None:
    product = disk((160, 160), 80, (320, 320))
    image = np.where(product[..., None], 251, 255).astype(np.uint8).repeat(3, axis=-1)
    seen = network_input(image)
    assert np.abs(seen[:3, product].mean() - seen[:3, ~product].mean()) < 0.04
    assert seen[3, product].mean() < seen[3, ~product].mean() - 0.2


def test_a_mirrored_photograph_is_seen_mirrored() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(40, axis=0).repeat(40, axis=1)
    assert np.abs(network_input(scene[:, ::-1].copy())[..., ::-1] - network_input(scene)).max() < 0.02


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 96, 64), (1, SIDE_PX, SIDE_PX)])
def test_each_pixel_gets_a_logit_for_each_class(network: MaskNetwork, shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    inputs = random_inputs(count, NUM_INPUTS, height, width)
    with torch.inference_mode():
        logits, again = network(inputs), network(inputs)
    assert logits.shape == (count, NUM_CLASSES, height, width)
    assert logits.isfinite().all()
    assert torch.equal(logits, again)


def test_pictures_of_a_batch_do_not_mix(network: MaskNetwork) -> None:
    inputs = random_inputs(2, NUM_INPUTS, 64, 64)
    with torch.inference_mode():
        together, alone = network(inputs), torch.cat([network(each[None]) for each in inputs])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_the_number_of_parameters(network: MaskNetwork) -> None:
    # Another number means other weights: the shipped file would no longer fit.
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_702_548


def test_all_parameters_learn() -> None:
    torch.manual_seed(0)
    network = MaskNetwork()
    network(random_inputs(2, NUM_INPUTS, 64, 64)).square().mean().backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_the_weights_fit_into_a_small_file_of_half_precision(network: MaskNetwork, tmp_path: Path) -> None:
    path = tmp_path / "mask_network.safetensors"
    halves = {name: v.half() if v.is_floating_point() else v for name, v in network.state_dict().items()}
    save_file(halves, path)
    assert path.stat().st_size < 5e6
    loaded = MaskNetwork().eval()
    loaded.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    inputs = random_inputs(1, NUM_INPUTS, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(loaded(inputs), network(inputs), atol=0.02)
