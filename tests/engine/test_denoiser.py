"""The denoiser of the engine keeps what a batch shares between steps, and no pixel depends on it."""

import dataclasses
import queue

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler, PNDMScheduler

from refadgen.config import ModelConfig, SamplingConfig
from refadgen.engine.cache import ByteBoundedCache
from refadgen.engine.denoiser import AdDenoiser
from refadgen.engine.orders import AdOrder
from refadgen.engine.step_engine import Finished, OutOfDeviceMemoryError, Progress, StepEngine
from refadgen.errors import RowError
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
    while not denoiser.step(list(rows), 3):
        pass
    assert built == [3]  # padded
    alone = denoiser.start(order(2))
    other = denoiser.start(order(1))
    assert denoiser.step([alone], 3) == []
    assert denoiser.step([alone, other], 3) == []  # the engine lets another in
    finished = denoiser.step([alone], 3)  # and gives it up
    assert built == [3] * 4
    assert finished[0] is alone
    assert np.array_equal(denoiser.finish(order(2), alone), denoiser.finish(order(2), rows[1]))


def test_too_little_memory_is_told_to_the_engine_and_fewer_rows_then_fit(denoiser, monkeypatch):
    alone = denoiser.start(order(1))
    while not denoiser.step([alone], 1):
        pass
    expected = denoiser.finish(order(1), alone)
    predict = denoising.DenoisingBatch.step

    def short_of_memory(batch):
        if batch.batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return predict(batch)

    monkeypatch.setattr(denoising.DenoisingBatch, "step", short_of_memory)
    rows = [denoiser.start(order(seed)) for seed in (1, 2)]
    with pytest.raises(OutOfDeviceMemoryError, match="Tried to allocate 2 GiB") as raised:
        denoiser.step(rows, 3)
    assert raised.value.__context__ is None  # which would hold the tensors of the step that failed
    assert len(denoiser._features) == 0
    again = denoiser.start(order(1))
    while not denoiser.step([again], 1):
        pass
    assert np.array_equal(denoiser.finish(order(1), again), expected)
    monkeypatch.setattr(denoiser._pipeline, "encode_reference", lambda *_: raise_out_of_memory())
    with pytest.raises(OutOfDeviceMemoryError):
        denoiser.start(order(3))


def test_what_is_kept_of_products_and_prompts_is_bound_together(denoiser, monkeypatch):
    encoded = []
    for name in ("encode_prompt", "encode_reference"):
        encode = getattr(denoiser._pipeline, name)
        monkeypatch.setattr(
            denoiser._pipeline, name, lambda *given, name=name, encode=encode: encoded.append(name) or encode(*given)
        )
    denoiser._features.clear()
    row = denoiser.start(order(1))
    both = denoiser._features.num_bytes
    assert both == row.reference.nbytes + row.prompt.nbytes
    denoiser.start(dataclasses.replace(order(1), seed=2))
    assert sorted(encoded) == ["encode_prompt", "encode_reference"]
    monkeypatch.setattr(denoiser, "_features", ByteBoundedCache(both - 1))
    for seed in (3, 4):
        denoiser.start(order(seed))
    assert 0 < denoiser._features.num_bytes < both


def test_a_device_that_rounds_by_place_is_named_once(denoiser, monkeypatch, caplog):
    """The padding is the same row at other places."""
    rows = [denoiser.start(order(seed)) for seed in (1, 2)]
    denoiser.step(rows[:1], 3)
    assert caplog.messages == []  # this machine does not
    predict = denoiser._batch.predict

    def uneven(*inputs):
        predicted, deep = predict(*inputs)
        predicted[-1] += 1e-6  # the last place, of the branch with the prompt
        return predicted, deep

    monkeypatch.setattr(denoiser._batch, "predict", uneven)
    denoiser._checked.clear()
    denoiser.step(rows, 3)
    denoiser.step(rows[::-1], 3)
    assert len(caplog.messages) == 1
    assert "in batches of 3 this device rounds otherwise at the places 2 than" in caplog.text


def raise_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_scheduler_that_gives_nan_fails_its_row_by_name_and_no_other(denoiser):
    bad, good = denoiser.start(order(1)), denoiser.start(order(2))
    bad.solver = dataclasses.replace(bad.solver, weights=bad.solver.weights * float("nan"))
    while not denoiser.step([bad, good], 3):
        pass
    with pytest.raises(RowError, match="NaN or infinity after 3 steps of DDIMScheduler") as raised:
        denoiser.finish(order(1), bad)
    assert raised.value.reason == "not_finite"
    assert denoiser.finish(order(2), good).std() > 0


def test_a_vae_that_gives_nan_fails_its_row_by_name(denoiser, monkeypatch):
    row = denoiser.start(order(1))
    while not denoiser.step([row], 3):
        pass
    vae = denoiser._pipeline.vae
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda latents: decode(latents * float("inf")))
    with pytest.raises(RowError, match="the VAE gives NaN or infinity in torch") as raised:
        denoiser.finish(order(1), row)
    assert raised.value.reason == "not_finite"
    assert denoiser.preview(row)  # of an unfinished image: no reason to end it


def test_a_device_that_works_passes_its_check(denoiser):
    denoiser.check_device()


FAST = {"scheduler": "dpm++", "guidance_interval": (0.3, 0.9), "reuse_steps": 2}


def test_in_fast_mode_steps_differ_in_kind_and_company_changes_no_byte(random_model):
    """The engine puts rows of one kind together, whatever their steps are: each is as it is alone."""
    made = AdDenoiser(
        ModelConfig(path=str(random_model), device="cpu"),
        SamplingConfig(batch_size=3, **FAST),
        reference_cache_bytes=10**9,
        gpu_expected=False,
    )
    assert made.num_kinds == 4
    orders = [dataclasses.replace(order(seed), num_inference_steps=3 + seed) for seed in (1, 2, 3, 4)]
    alone = []
    for one in orders:
        row = made.start(one)
        while not made.step([row], 3):
            pass
        alone.append(made.finish(one, row))
    engine = StepEngine(made, max_waiting=10)
    results: queue.SimpleQueue = queue.SimpleQueue()
    for number, one in enumerate(orders):
        engine.submit(one, one.shape, lambda event, number=number: results.put((number, event)))
    finished = {}
    while len(finished) < len(orders):
        number, event = results.get(timeout=60)
        if not isinstance(event, Progress):
            finished[number] = event.result
    engine.stop()
    assert all(np.array_equal(finished[number], expected) for number, expected in enumerate(alone))


@pytest.mark.parametrize(("solver", "steps"), [(HeunDiscreteScheduler, 5), (KDPM2DiscreteScheduler, 5), (None, 3)])
def test_progress_tells_the_steps_that_the_solver_takes(denoiser, solver, steps):
    """Solvers of second order call the network twice in all but one of the three steps that were asked for."""
    if solver is not None:
        denoiser._pipeline.scheduler = solver.from_config(denoiser._pipeline.scheduler.config)
    engine = StepEngine(denoiser, max_waiting=1)
    events: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit(order(1), order(1).shape, events.put)
    heard = [events.get(timeout=60)]
    while isinstance(heard[-1], Progress):
        heard.append(events.get(timeout=60))
    engine.stop()
    assert isinstance(heard[-1], Finished)
    assert heard[:-1] == [Progress(step, steps) for step in range(1, steps)]


def test_a_solver_that_cannot_take_one_step_is_warmed_up_with_more(denoiser):
    """PNDM's Runge-Kutta steps at the start need four."""
    denoiser._pipeline.scheduler = PNDMScheduler.from_config(denoiser._pipeline.scheduler.config, skip_prk_steps=False)
    denoiser.warm_up()
