"""A model's noise schedule with another solver."""

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

_CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def other_scheduler(scheduler: Any, name: str) -> Any:
    """The solver `name` (`sampling.scheduler`) with the noise schedule of `scheduler`, diffusers'; `model`: itself."""
    return scheduler if name == "model" else _CLASSES[name].from_config(scheduler.config)
