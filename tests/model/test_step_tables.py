"""Tables of steps: what comes out is what diffusers' own schedulers make of it."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import make_pipeline, make_scheduler, relative_difference, start

from refadgen.model.denoising import DenoisingBatch, RowScheduler
from refadgen.model.step_tables import StepTable, advance, check_finite, step_tables

# Of Stable Diffusion 1.5; DDIM clips by default.
BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TABLED = [
    (DDIMScheduler, {"clip_sample": False}),
    (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}),
    (EulerDiscreteScheduler, {}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    (DPMSolverMultistepScheduler, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True}),
    (DPMSolverMultistepScheduler, {"solver_type": "heun", "euler_at_final": True}),
    (UniPCMultistepScheduler, {}),
    (UniPCMultistepScheduler, {"solver_order": 3, "disable_corrector": [0, 3]}),
]


def prediction(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Stands for the network: depends on all that it is given, and is not linear."""
    return torch.tanh(0.4 * latents + timesteps.view(-1, 1, 1, 1) / 1000) + 0.3 * latents.flip(-1)


def own_run(scheduler, noise: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The loop that diffusers' documentation shows."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        predicted = prediction(scheduler.scale_model_input(latents, timestep), timestep[None])
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def noise_of(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 11, 9, generator=torch.Generator("cpu").manual_seed(seed))


@pytest.fixture
def stand_in_batch(monkeypatch):
    """`make(scheduler, steps)`: a batch of rows of these numbers of steps, with `prediction` as its network."""

    def make(scheduler, steps: list[int]):
        pipeline = make_pipeline(image_encoder=False, scheduler=scheduler)
        encoded = start(pipeline, 1, "a cup", num_inference_steps=2)
        mask = np.full((88, 72), 255, np.uint8)
        rows = [
            pipeline.start(
                encoded.reference, mask, encoded.prompt, seed=seed, num_inference_steps=count, guidance_scale=1.0
            )
            for seed, count in enumerate(steps)
        ]

        def predict(latents, _, timesteps, *__):
            predicted = prediction(latents, timesteps)
            return predicted, predicted

        batch = DenoisingBatch(predict, True, batch_size=4)
        return batch, rows

    return make


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize(("scheduler", "options"), TABLED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_rows_at_different_steps_equal_diffusers_own_runs(scheduler, options, predicts, stand_in_batch):
    made = scheduler(**BASE, **options, prediction_type=predicts)
    batch, rows = stand_in_batch(made, [20, 20, 7])
    assert all(isinstance(row.solver, StepTable) for row in rows)
    batch.add(rows[0])
    batch.step()
    batch.step()
    batch.add(rows[1])
    batch.add(rows[2])
    while batch.rows:
        batch.step()
    for seed, (row, steps) in enumerate(zip(rows, [20, 20, 7], strict=True)):
        assert relative_difference(row.latents, own_run(made, noise_of(seed), steps)) < 2e-5, f"row {seed}"


NOT_TABLED = [
    (DDIMScheduler, {"clip_sample": True}),
    (DDIMScheduler, {"clip_sample": False, "thresholding": True}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (UniPCMultistepScheduler, {"thresholding": True}),
    (EulerAncestralDiscreteScheduler, {}),
    (PNDMScheduler, {"skip_prk_steps": True}),
]


@pytest.mark.parametrize(("scheduler", "options"), NOT_TABLED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_steps_that_clip_or_draw_noise_are_diffusers_own(scheduler, options, stand_in_batch):
    made = scheduler(**BASE, **options)
    assert step_tables(made) is None
    if scheduler is DDIMScheduler:
        batch, rows = stand_in_batch(made, [6])
        assert isinstance(rows[0].solver, RowScheduler)
        batch.replace(rows)
        while batch.rows:
            batch.step()
        assert torch.equal(rows[0].latents, own_run(made, noise_of(0), 6))


DRAWING = [
    (DDPMScheduler, {}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (EulerAncestralDiscreteScheduler, {}),
    (KDPM2AncestralDiscreteScheduler, {}),
    (LCMScheduler, {}),
    (SASolverScheduler, {}),
    (TCDScheduler, {}),  # whose own eta is 0.3, where diffusers' pipelines give 0
]


@pytest.mark.parametrize(("scheduler", "options"), DRAWING, ids=lambda value: getattr(value, "__name__", str(value)))
def test_noise_follows_the_rows_seed_alone(scheduler, options, stand_in_batch):
    """Twice with other global seeds, in company of a row of other steps, and as diffusers' own loop."""
    made = scheduler(**{**BASE, **options})
    found = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        batch, rows = stand_in_batch(made, [6, 9][: 1 + global_seed])
        batch.replace(rows)
        while batch.rows:
            batch.step()
        found.append(rows[0].latents)
    assert torch.equal(*found)
    own, generator = copy.deepcopy(made), torch.Generator().manual_seed(0)
    own.set_timesteps(6)
    latents = torch.randn(1, 4, 11, 9, generator=generator) * own.init_noise_sigma
    eta = {"eta": 0.0} if scheduler is TCDScheduler else {}
    for timestep in own.timesteps:
        predicted = prediction(own.scale_model_input(latents, timestep), timestep[None])
        latents = own.step(predicted, timestep, latents, generator=generator, **eta).prev_sample
    assert torch.equal(found[0], latents)


def test_steps_that_a_scheduler_cannot_make_are_refused_in_words(stand_in_batch):
    with pytest.raises(ValueError, match="num_inference_steps=51: the model's LCMScheduler cannot"):
        stand_in_batch(LCMScheduler(**BASE), [51])


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_the_predicted_image_of_each_step_is_known(scheduler, stand_in_batch):
    """Also of solvers whose own step does not tell it: the endpoint's previews show it."""
    batch, rows = stand_in_batch(scheduler(**BASE, prediction_type="sample"), [8])
    batch.replace(rows)
    for _ in range(3):
        before = rows[0].latents
        scale, timestep = rows[0].solver.input_scale, rows[0].solver.timesteps
        step = rows[0].step_index
        batch.step()
        assert (
            relative_difference(rows[0].predicted_original, prediction(before * scale[step], timestep[step : step + 1]))
            < 1e-5
        )


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])  # what all of them take
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (PNDMScheduler, {"skip_prk_steps": True}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (UniPCMultistepScheduler, {"predict_x0": False}),
        (DEISMultistepScheduler, {}),
        (LCMScheduler, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_network_that_knows_the_image_shows_it_at_every_step(scheduler, options, predicts, stand_in_batch):
    """A preview is the predicted x₀ with every scheduler, and not the noise of the latents."""
    base = BASE | ({"steps_offset": 0} if scheduler is DEISMultistepScheduler else {})
    made = scheduler(**base, **options, prediction_type=predicts)
    batch, rows = stand_in_batch(made, [8])
    image = noise_of(7)
    log_sigmas = ((1 - made.alphas_cumprod) / made.alphas_cumprod).log().double().numpy() / 2

    def knows(latents, _, timesteps, *__):
        sigma = np.exp(np.interp(timesteps[0].item(), np.arange(1000), log_sigmas))
        signal, noise = 1 / np.sqrt(sigma**2 + 1), sigma / np.sqrt(sigma**2 + 1)
        epsilon = (latents - signal * image) / noise
        predicted = epsilon if predicts == "epsilon" else signal * epsilon - noise * image
        return predicted, predicted

    batch = DenoisingBatch(knows, True, batch_size=4)
    batch.add(rows[0])
    while batch.rows:
        batch.step()
        assert relative_difference(rows[0].predicted_original, image) < 1e-3


def test_a_row_advances_alike_at_every_place():
    """Byte for byte, at sizes that are no multiple of what a processor takes at once."""
    weights = step_tables(UniPCMultistepScheduler(**BASE)).of(20).weights[5:6]
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(1, weights.shape[1] - 1, 4, 5, 3, generator=generator)
    predicted = torch.randn(1, 4, 5, 3, generator=generator)
    alone = advance(state, predicted, weights)
    together = advance(state.repeat(7, 1, 1, 1, 1), predicted.repeat(7, 1, 1, 1), weights.repeat(7, 1, 1))
    assert all(torch.equal(row, alone[0]) for row in together)


def test_a_scheduler_that_is_replaced_has_tables_of_its_own():
    pipeline = make_pipeline(image_encoder=False)
    assert isinstance(start(pipeline, 1, "a cup", num_inference_steps=4).solver, StepTable)
    pipeline.scheduler = PNDMScheduler.from_config(make_scheduler().config, skip_prk_steps=True)
    assert isinstance(start(pipeline, 1, "a cup", num_inference_steps=4).solver, RowScheduler)


def test_a_setting_changed_in_place_gives_other_tables():
    pipeline = make_pipeline(image_encoder=False)
    before = start(pipeline, 1, "a cup", num_inference_steps=4).solver
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    after = start(pipeline, 1, "a cup", num_inference_steps=4).solver
    assert not torch.equal(before.weights, after.weights)


def test_a_scheduler_of_few_training_steps_has_tables(stand_in_batch):
    made = DDIMScheduler(**(BASE | {"steps_offset": 0}), clip_sample=False, num_train_timesteps=10)
    batch, rows = stand_in_batch(made, [5])
    batch.replace(rows)
    while batch.rows:
        batch.step()
    assert relative_difference(rows[0].latents, own_run(made, noise_of(0), 5)) < 2e-5


def test_a_row_that_another_batch_has_moved_goes_on_from_there(stand_in_batch):
    made = UniPCMultistepScheduler(**BASE)
    batch, rows = stand_in_batch(made, [9])
    other, _ = stand_in_batch(made, [9])
    for each in (batch, other, batch, batch, other):
        each.replace(rows)
        each.step()
    batch.replace(rows)
    while batch.rows:
        batch.step()
    assert relative_difference(rows[0].latents, own_run(made, noise_of(0), 9)) < 2e-5


def test_rows_of_different_schedulers_share_no_batch(stand_in_batch):
    batch, rows = stand_in_batch(UniPCMultistepScheduler(**BASE), [4])
    _, others = stand_in_batch(DDIMScheduler(**BASE, clip_sample=False), [4])
    batch.add(rows[0])
    with pytest.raises(ValueError, match="different schedulers"):
        batch.add(others[0])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler])
def test_a_scheduler_that_works_passes_the_check(scheduler):
    check_finite(scheduler(**BASE))


def test_a_scheduler_whose_configuration_gives_nan_is_refused_by_name():
    made = UniPCMultistepScheduler(**BASE, solver_type="bh1")  # its last step divides by zero
    with pytest.raises(ValueError, match=r"UniPCMultistepScheduler gives NaN or infinity at step 20 of 20"):
        check_finite(made)
