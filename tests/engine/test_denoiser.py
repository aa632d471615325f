"""The denoiser of the engine keeps what a batch shares between steps, and no pixel depends on it."""

import numpy as np
import pytest

from refadgen.config import ModelConfig, SamplingConfig
from refadgen.engine.denoiser import AdDenoiser
from refadgen.engine.orders import AdOrder
from refadgen.model import denoising


@pytest.fixture
def denoiser(random_model):
    return AdDenoiser(
        ModelConfig(path=str(random_model), device="cpu"),
        SamplingConfig(batch_size=3),
        reference_cache_bytes=10**9,
        gpu_expected=False,
    )


def order(seed: int) -> AdOrder:
    canvas = np.full((160, 128, 3), 255, np.uint8)
    canvas[40:120, 30 + seed : 90] = 40 * seed
    return AdOrder(
        canvas=canvas,
        mask=255 - canvas[..., 0],
        product_key=str(seed),
        prompt="a cup",
        negative_prompt=None,
        seed=seed,
        fusion_scale=1.0,
        guidance_scale=3.0,
        num_inference_steps=3,
    )


def test_the_same_rows_are_put_together_once(denoiser, monkeypatch):
    built = []
    condition = denoising.condition
    monkeypatch.setattr(denoising, "condition", lambda *a, **k: built.append(len(a[0])) or condition(*a, **k))
    rows = [denoiser.start(order(seed)) for seed in (1, 2)]
    while not denoiser.step(list(rows)):
        pass
    assert built == [3]  # padded
    alone = denoiser.start(order(2))
    other = denoiser.start(order(1))
    assert denoiser.step([alone]) == []
    assert denoiser.step([alone, other]) == []  # the engine lets another in
    finished = denoiser.step([alone])  # and gives it up
    assert built == [3] * 4
    assert finished[0] is alone
    assert np.array_equal(denoiser.finish(order(2), alone), denoiser.finish(order(2), rows[1]))
