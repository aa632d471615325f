"""Another solver keeps the model's noise schedule."""

import pytest
from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler, EulerDiscreteScheduler, PNDMScheduler

from refadgen.model.schedulers import other_scheduler
from refadgen.model.step_tables import step_tables

SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "unipc"])
@pytest.mark.parametrize(
    "own",
    [
        PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
        EulerDiscreteScheduler(**SCHEDULE),
        DPMSolverMultistepScheduler(**SCHEDULE),
    ],
    ids=lambda own: type(own).__name__,
)
def test_the_schedule_stays_and_nothing_is_clipped(own, name):
    """Each is a table, so rows advance together: DDIM by its default would clip, and be none."""
    made = other_scheduler(own, name)
    assert type(made) is not type(own) or made.config == own.config
    assert (made.alphas_cumprod == own.alphas_cumprod).all()
    assert made.config.prediction_type == "v_prediction"
    assert made.config.timestep_spacing == "trailing"
    assert step_tables(made) is not None


def test_the_models_own_is_itself():
    own = EulerDiscreteScheduler(**SCHEDULE)
    assert other_scheduler(own, "model") is own


def test_a_model_without_a_schedule_of_betas_keeps_its_own_solver():
    """diffusers would fill in its default, which no Stable Diffusion was trained with."""
    own = EDMEulerScheduler()
    assert other_scheduler(own, "model") is own
    with pytest.raises(ValueError, match=r"sampling.scheduler='ddim': the model's EDMEulerScheduler has no beta_sch"):
        other_scheduler(own, "ddim")
