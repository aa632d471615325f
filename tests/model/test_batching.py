"""Rows are independent: rows that share a batch, join it or leave it never change another row's latents."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import make_pipeline, make_scheduler, relative_difference, run, start
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refadgen.model.denoising import DenoisingBatch
from refadgen.model.passes import FastMode, Pass

TOLERANCE = 2e-5  # a batch of another size sums in another order


def mixed_rows(pipeline) -> list:
    """Four rows that differ in everything, steps included."""
    return [
        start(pipeline, 1, "a red cup", fusion_scale=1.0, guidance_scale=7.5, num_inference_steps=20),
        start(pipeline, 2, "on sand", fusion_scale=0.3, guidance_scale=3.0, num_inference_steps=7),
        start(pipeline, 3, "", fusion_scale=0.0, guidance_scale=1.0, num_inference_steps=12),
        start(pipeline, 4, "blue", fusion_scale=2.0, guidance_scale=12.0, num_inference_steps=20),
    ]


def alone(pipeline, make_rows=mixed_rows) -> list[torch.Tensor]:
    return [run(pipeline, [row])[0] for row in make_rows(pipeline)]


def assert_equal(latents, expected):
    for index, (one, other) in enumerate(zip(latents, expected, strict=True)):
        assert relative_difference(one, other) < TOLERANCE, f"row {index}"


def test_a_mixed_batch_equals_its_rows_alone(pipeline):
    assert_equal(run(pipeline, mixed_rows(pipeline)), alone(pipeline))


def test_a_padded_batch_equals_an_unpadded_one(pipeline):
    rows = mixed_rows(pipeline)[:3]
    assert_equal(run(pipeline, mixed_rows(pipeline)[:3], batch_size=5), run(pipeline, rows))
    assert pipeline.decode(rows).shape == (3, 88, 72, 3)


def test_rows_join_and_leave_a_running_batch(encoder_pipeline):
    first, second, third, fourth = mixed_rows(encoder_pipeline)
    expected = alone(encoder_pipeline)
    batch = encoder_pipeline.batch()
    finished = []
    batch.add(first)
    for step in range(40):
        if step == 3:
            batch.add(second)
            batch.add(third)
        if step == 6:
            batch.remove(third)  # a request given up
        if step == 11:
            batch.add(fourth)
        if batch.rows:
            finished += batch.step()
    assert [row is other for row, other in zip(finished, (second, first, fourth), strict=True)] == [True] * 3
    assert third.step_index == 3
    assert_equal([first.latents, second.latents, fourth.latents], [expected[i] for i in (0, 1, 3)])
    batch.add(third)  # and resumed
    while batch.rows:
        batch.step()
    assert_equal([third.latents], [expected[2]])


WITH_HISTORY = [
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
]


class Crossings(TorchDispatchMode):
    """Collects the operations that copy between the CPU and the meta device, which stands for a GPU.

    On a GPU the host waits for each. One number on the CPU may take part in arithmetic there: it travels with the
    kernel. Reading back, as `item()` or `nonzero()` do, raises on the meta device.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {a.device.type for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
        made = {r.device.type for r in tree_leaves(result) if isinstance(r, torch.Tensor)}
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if (copies and given | made == {"cpu", "meta"}) or (given == {"cpu"} and made == {"meta"}):
            self.found.append(func.overloadpacket.__name__)
        return result


@pytest.fixture
def on_meta(monkeypatch):
    """Two rows, of a scheduler, on the meta device, and a batch of them with a stand-in for the network."""

    def make(scheduler, **settings):
        options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
        made = scheduler.from_config(make_scheduler().config, **options)
        pipeline = make_pipeline(image_encoder=False, scheduler=made)
        encoded = {"reference": start(pipeline, 1, "a cup").reference, "prompt": start(pipeline, 1, "a cup").prompt}
        monkeypatch.setattr(type(pipeline), "device", torch.device("meta"))
        mask = np.full((88, 72), 255, np.uint8)
        settings = {"num_inference_steps": 5, **settings}
        rows = [pipeline.start(**encoded, product_mask=mask, seed=seed, **settings) for seed in (1, 2)]

        def predict(latents, mask_latents, timesteps, conditioning, deep):
            assert {latents.device.type, mask_latents.device.type, timesteps.device.type} == {"meta"}
            predicted = torch.cat([latents] * conditioning.num_branches)
            return predicted, predicted

        batch = DenoisingBatch(predict, reference_in_uncond=True)
        batch.replace(rows)
        return batch, rows

    return make


# Copies of two rows in three steps that are diffusers' own: noise that is drawn on the CPU.
OWN_COPIES = {EulerAncestralDiscreteScheduler: 6}


@pytest.mark.parametrize("scheduler", [DDIMScheduler, *WITH_HISTORY])
def test_a_step_never_waits_for_the_device(scheduler, on_meta):
    batch, rows = on_meta(scheduler)
    batch.step()  # builds what all steps share
    with Crossings() as crossings:
        batch.step()
        batch.step()
        batch.replace(list(rows))  # the same rows again: nothing is built anew
        batch.step()
    assert len(crossings.found) <= OWN_COPIES.get(scheduler, 0), crossings.found
    while batch.rows:
        batch.step()
    assert all(row.latents.device.type == "meta" and row.finished for row in rows)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler])
def test_fast_mode_waits_for_the_device_only_where_guidance_changes_for_the_first_time(scheduler, on_meta):
    """Guidance in the middle, deep features for two steps: of the passes that are left, all have been there."""
    fast = FastMode(guidance_interval=(0.3, 0.7), reuse_steps=2)
    batch, rows = on_meta(scheduler, num_inference_steps=9, guidance_scale=3.0, fast=fast)
    passes = rows[0].passes
    assert set(passes) == {Pass(guided, full) for guided in (True, False) for full in (True, False)}
    first = passes.index(Pass(True))
    assert not passes[-1].guided
    for _ in range(first + 1):  # without guidance, and the first step with it
        batch.step()
    with Crossings() as crossings:
        while batch.rows:
            batch.step()
    assert crossings.found == []
    assert all(row.finished for row in rows)


def test_a_change_of_rows_builds_what_they_share_anew(on_meta):
    """And the test above can fail: the build copies."""
    batch, rows = on_meta(DDIMScheduler)
    batch.step()
    with Crossings() as crossings:
        batch.replace(rows[::-1])
        batch.step()
    assert crossings.found
    batch.batch_size = 1
    with pytest.raises(ValueError, match="full"):
        batch.replace(rows)


@pytest.mark.parametrize("scheduler", WITH_HISTORY)
def test_schedulers_with_history_keep_it_per_row(scheduler):
    """Also the one that draws noise at each step: it draws from the row's own generator."""
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    made = scheduler.from_config(make_scheduler().config, **options)
    pipeline = make_pipeline(image_encoder=False, scheduler=made)

    def make_rows(pipeline):
        return [
            start(pipeline, seed, prompt, num_inference_steps=steps)
            for seed, prompt, steps in [(1, "a cup", 8), (2, "sand", 5), (3, "red", 8)]
        ]

    expected = alone(pipeline, make_rows)
    rows = make_rows(pipeline)
    batch = pipeline.batch()
    batch.add(rows[0])
    batch.add(rows[1])
    batch.step()
    batch.step()
    batch.add(rows[2])
    while batch.rows:
        batch.step()
    assert_equal([row.latents for row in rows], expected)
    assert pipeline.scheduler.num_inference_steps is None  # the pipeline's own is untouched


def test_a_batch_refuses_other_sizes_and_more_rows_than_it_holds(encoder_pipeline):
    batch = encoder_pipeline.batch(batch_size=1)
    batch.add(start(encoder_pipeline, 1, "cup"))
    with pytest.raises(ValueError, match="full"):
        batch.add(start(encoder_pipeline, 2, "cup"))
    batch.batch_size = None
    with pytest.raises(ValueError, match="latents of"):
        batch.add(start(encoder_pipeline, 2, "cup", size_px=(64, 64)))


def test_a_call_equals_its_parts(encoder_pipeline):
    """`__call__` is encode, start, denoise and decode, and its images are reproducible."""
    from PIL import Image
    from tiny_models import product

    pictures = [product(seed) for seed in (1, 2)]
    images = [Image.fromarray(image_u8) for image_u8, _ in pictures]
    masks = [Image.fromarray(mask_u8) for _, mask_u8 in pictures]
    encoder_pipeline.set_progress_bar_config(disable=True)
    made = encoder_pipeline(images, masks, ["cup", "sand"], seeds=[1, 2], num_inference_steps=3).images
    rows = [start(encoder_pipeline, s, p, num_inference_steps=3) for s, p in [(1, "cup"), (2, "sand")]]
    run(encoder_pipeline, rows)
    assert [Image.fromarray(image).tobytes() for image in encoder_pipeline.decode(rows)] == [i.tobytes() for i in made]
    with pytest.raises(ValueError, match="mask of"):
        encoder_pipeline(images[:1], [masks[0].resize((64, 64))], ["cup"], seeds=[1])
