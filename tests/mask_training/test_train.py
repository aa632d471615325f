"""Training of the mask network: samples, the loss, and a run that goes on where it was."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from refadgen.mask_training.scenes import KINDS, make_scene
from refadgen.mask_training.train import (
    CLOSER,
    Recipe,
    Training,
    closer,
    mask_loss,
    quality,
    sample_of,
    tensors_of,
    train,
)
from refadgen.segmentation.classes import NUM_CLASSES, PRODUCT
from refadgen.segmentation.mask_network import network_input

RECIPE = Recipe(minutes=0.02, side_px=64, batch_size=2, learning_rate=1e-3, num_workers=1, kept=40, num_checks=1)


def test_a_sample_keeps_what_the_network_would_see() -> None:
    scene = make_scene(np.random.default_rng(3), "coloured", "train", 240)
    planes = torch.from_numpy(sample_of(scene, 64))[None]
    inputs, coverage, classes = tensors_of(planes)
    assert np.abs(inputs[0].numpy() - network_input(scene.image, 64)).max() <= 0.5 / 127 + 1e-6
    assert abs(float(coverage.mean()) - float(scene.coverage.mean())) < 0.01
    assert ((classes[0] == PRODUCT) == (coverage[0] > 0.5)).float().mean() > 0.98


def test_half_of_the_samples_come_closer_and_stay_true_to_their_masks() -> None:
    scene = make_scene(np.random.default_rng(3), "coloured", "train", 240)
    inputs, coverage, classes = tensors_of(torch.from_numpy(sample_of(scene, 64))[None].repeat(40, 1, 1, 1))
    nearer = closer(inputs, coverage, classes, torch.Generator().manual_seed(0))
    as_before = [torch.allclose(one, other, atol=1e-4) for one, other in zip(nearer[1], coverage, strict=True)]
    assert 10 < sum(as_before) < 30
    assert ((nearer[2] == PRODUCT) == (nearer[1] > 0.5)).float().mean() > 0.98
    growth = nearer[1].mean(dim=(1, 2)) / coverage.mean(dim=(1, 2))  # nothing of this product is cut off
    assert growth.min() > 0.98
    assert 1.1 < growth.max() <= 1 / (1 - CLOSER) ** 2
    assert torch.allclose(nearer[0][as_before.index(True)], inputs[0], atol=1e-4)


def test_the_loss_falls_towards_the_truth() -> None:
    classes = torch.zeros(1, 8, 8, dtype=torch.long)
    classes[:, 2:6, 2:6] = PRODUCT
    coverage = (classes == PRODUCT).float()
    right = 8 * torch.nn.functional.one_hot(classes, NUM_CLASSES).permute(0, 3, 1, 2).float()
    wrong = right.clone()
    wrong[:, PRODUCT, 2:4, 2:6] = -8
    assert mask_loss(right, coverage, classes) < 0.06 < mask_loss(wrong, coverage, classes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("network")
    train(output, RECIPE, bank=None, held_out=None)
    assert multiprocessing.active_children() == []  # those that drew have ended
    return output


def test_a_run_leaves_weights_and_goes_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose minutes are over says so; with more minutes it goes on where it was."""
    before = Training(trained, RECIPE)
    assert before.num_steps > 0
    assert before.seconds >= 60 * RECIPE.minutes
    weights = load_file(trained / "mask_network.safetensors")
    assert {value.dtype for value in weights.values()} <= {torch.float16, torch.int64}
    mode = (trained / "mask_network.safetensors").stat().st_mode
    assert mode == (trained / "checkpoint.pt").stat().st_mode
    with pytest.raises(ValueError, match=r"--minutes 0\.02: are over"):
        train(trained, RECIPE, bank=None, held_out=None)
    train(trained, replace(RECIPE, minutes=before.seconds / 60 + 0.005), bank=None, held_out=None)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["step"] > before.num_steps
    assert len(line["iou"]) == len(KINDS)


def test_quality_is_the_iou_of_each_kind() -> None:
    class Knows(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(inputs), NUM_CLASSES, *inputs.shape[-2:])
            logits[:, PRODUCT] = torch.where(inputs[:, 0] > 0, 1.0, -1.0)
            return logits

    planes = torch.zeros(2, 8, 4, 4, dtype=torch.uint8)
    planes[:, 0, :2] = 254  # the network says: the upper half
    planes[0, 6, :2] = 255
    planes[1, 6] = 255
    assert quality(Knows(), ["one", "other"], planes) == {"one": 1.0, "other": 0.5}  # type: ignore[arg-type]
