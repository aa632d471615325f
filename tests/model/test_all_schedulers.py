"""Every scheduler of diffusers, in the variants that its class has: as diffusers' own loop, or refused by name."""

import copy
import importlib.util
import inspect
import json
import re

import diffusers
import numpy as np
import pytest
import torch
from tiny_models import make_pipeline, product, relative_difference

from refadgen.model.checkpoint import SCHEDULERS, load_scheduler
from refadgen.model.denoising import DenoisingBatch
from refadgen.model.folder import step_bounds
from refadgen.model.step_tables import StepTable, check_finite

HAS_SCIPY = importlib.util.find_spec("scipy") is not None
STEPS = 5
BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
VARIANTS = [
    {},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    {"algorithm_type": "data_prediction"},
    {"algorithm_type": "noise_prediction"},
    {"solver_order": 3},
    {"solver_type": "heun"},
    {"sigma_schedule": "exponential"},
    {"skip_prk_steps": True},
    {"thresholding": True},
    {"variance_type": "learned"},
    {"variance_type": "fixed_large"},
    {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    {"use_flow_sigmas": True},
]
SECOND_ORDER = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
REFUSED = {
    ("DDPMParallelScheduler", "variance_type=learned"): "cannot step",
    ("DDPMScheduler", "variance_type=learned"): "cannot step",
    ("DPMSolverMultistepScheduler", "variance_type=learned"): "cannot step",
    ("DPMSolverSinglestepScheduler", "variance_type=learned"): "cannot step",
    ("SASolverScheduler", "variance_type=learned"): "cannot step",
    ("EDMDPMSolverMultistepScheduler", "prediction_type=sample"): "cannot step",
    ("EDMEulerScheduler", "prediction_type=sample"): "cannot step",
    ("EulerAncestralDiscreteScheduler", "prediction_type=sample"): "cannot step",
    ("KDPM2AncestralDiscreteScheduler", "prediction_type=sample"): "cannot step",
    ("KDPM2DiscreteScheduler", "prediction_type=sample"): "cannot step",
    ("PNDMScheduler", "prediction_type=sample"): "cannot step",
    ("LCMScheduler", "rescale_betas_zero_snr=True"): "NaN or infinity",
    ("TCDScheduler", "rescale_betas_zero_snr=True"): "NaN or infinity",
}
"""What its class has, and cannot sample with; besides what `expected_refusal` tells by rule."""


def name_of(variant: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variant.items()) or "plain"


def takes(name: str, variant: dict[str, object]) -> bool:
    """Whether the class knows all settings of the variant; a stand-in for a missing library knows none."""
    return not variant or set(variant) <= set(inspect.signature(getattr(diffusers, name).__init__).parameters)


CASES = [
    pytest.param(name, variant, id=f"{name}-{name_of(variant)}")
    for name in SCHEDULERS
    for variant in VARIANTS
    if takes(name, variant)
]


def expected_refusal(name: str, variant: dict[str, object]) -> str | None:
    """What the error says besides the name; None: it works."""
    if not HAS_SCIPY and (name == "LMSDiscreteScheduler" or "use_beta_sigmas" in variant):
        return "needs SciPy"
    if "use_flow_sigmas" in variant:
        return "flow matching"
    algorithm = variant.get("algorithm_type")
    known = {
        "DPMSolverMultistepScheduler": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"),
        "DPMSolverSinglestepScheduler": ("dpmsolver", "sde-dpmsolver++"),
        "EDMDPMSolverMultistepScheduler": ("sde-dpmsolver++",),
        "SASolverScheduler": ("data_prediction", "noise_prediction"),
        "DEISMultistepScheduler": ("dpmsolver",),  # which it takes for its own
    }
    if algorithm and algorithm not in known[name]:
        return "does not take that"
    return REFUSED.get((name, name_of(variant)))


def loaded(name: str, variant: dict[str, object], tmp_path):
    """The scheduler as a model's folder has it, checked as at load."""
    (tmp_path / "scheduler").mkdir(exist_ok=True)
    config = {"_class_name": name, **BASE, **variant}
    if name.startswith("EDM") or name == "IPNDMScheduler":
        config = {"_class_name": name, **variant}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    scheduler = load_scheduler(tmp_path)
    check_finite(scheduler)
    return scheduler


def prediction(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Stands for the network: depends on all that it is given, and is not linear."""
    return torch.tanh(0.4 * latents + timesteps.view(-1, 1, 1, 1).float() / 1000) + 0.3 * latents.flip(-1)


def own_loop(scheduler, seed: int, steps: int) -> tuple[torch.Tensor, int]:
    """The loop of diffusers' pipelines, with their generator and eta, and its number of steps."""
    scheduler, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 4, 4, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator, "eta": 0.0}
    extra = {name: extra[name] for name in extra if name in inspect.signature(scheduler.step).parameters}
    for timestep in scheduler.timesteps:
        predicted = prediction(scheduler.scale_model_input(latents, timestep), timestep[None])
        latents = scheduler.step(predicted, timestep, latents, **extra).prev_sample
    return latents, len(scheduler.timesteps)


@pytest.fixture(scope="module")
def started():
    """started(scheduler, seed, steps): a row of 4×4 latents."""
    pipeline = make_pipeline(image_encoder=False)
    reference = pipeline.encode_reference([product(1, 32, 32)[0]])
    prompt = pipeline.encode_prompt("a cup")
    mask = np.full((32, 32), 255, np.uint8)

    def start(scheduler, seed: int, steps: int):
        pipeline.scheduler = scheduler
        return pipeline.start(reference, mask, prompt, seed=seed, num_inference_steps=steps, guidance_scale=1.0)

    return start


def run(rows) -> None:
    """Two steps of the first alone, then all of them together; the conditioning is not this test's subject."""
    batch = DenoisingBatch(lambda latents, _, timesteps, *__: (prediction(latents, timesteps), latents), True, 3)
    batch.add(rows[0])
    batch.step()
    batch.step()
    for row in rows[1:]:
        batch.add(row)
    while batch.rows:
        batch.step()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_variant_is_diffusers_own_or_refused_by_name(name, variant, started, tmp_path):
    if refusal := expected_refusal(name, variant):
        with pytest.raises(ValueError, match=rf"{name}.*{refusal}") as caught:
            loaded(name, variant, tmp_path)
        assert re.search(r"pip install scipy|scheduler_config\.json|set use_flow_sigmas to false", str(caught.value))
        return
    scheduler = loaded(name, variant, tmp_path)
    expected, num_steps = own_loop(scheduler, 7, STEPS)
    alone, beside = (started(scheduler, 7, STEPS) for _ in range(2))
    torch.manual_seed(0)
    run([alone])
    torch.manual_seed(1)
    run([beside, started(scheduler, 8, STEPS - 1)])
    assert alone.num_steps == alone.step_index == num_steps
    if name in SECOND_ORDER:
        assert num_steps == 2 * STEPS - 1
    elif name != "PNDMScheduler":
        assert num_steps == STEPS
    assert torch.equal(beside.latents, alone.latents)
    bound = 2e-5 if isinstance(alone.solver, StepTable) else 0.0  # tables sum in another order
    assert relative_difference(alone.latents, expected) <= bound


OTHERS = [
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and name not in SCHEDULERS and isinstance(getattr(diffusers, name), type)
]


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_scheduler_of_diffusers_is_refused_by_name(name, tmp_path):
    with pytest.raises(
        ValueError, match=f"'{name}': .*must be a scheduler of diffusers for Stable Diffusion 1.5: DDIM"
    ):
        loaded(name, {}, tmp_path)


@pytest.mark.parametrize("skips", [False, True])
def test_the_fewest_steps_are_the_schedulers(skips, started, tmp_path):
    """Runge-Kutta's four steps at the start need four."""
    scheduler = loaded("PNDMScheduler", {"skip_prk_steps": skips}, tmp_path)
    fewest, _ = step_bounds("PNDMScheduler", scheduler.config)
    assert started(scheduler, 1, fewest).num_steps == (1 if skips else 13)
    assert fewest == (1 if skips else 4)
    if not skips:
        with pytest.raises(ValueError, match="num_inference_steps=3: the model's PNDMScheduler cannot"):
            started(scheduler, 1, 3)
