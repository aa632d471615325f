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
    """The solver `name` (`sampling.scheduler`) with the noise schedule of `scheduler`, diffusers'; `model`: itself.

    Raises: ValueError where that has none that another solver could take.
    """
    if name == "model":
        return scheduler
    if "beta_schedule" not in scheduler.config:  # EDM's and IPNDM: diffusers would take its own default
        raise ValueError(
            f"sampling.scheduler={name!r}: the model's {type(scheduler).__name__} has no beta_schedule "
            "(scheduler/scheduler_config.json) that another solver could take; set it to 'model'"
        )
    # Latents are never clipped, but DDIM's default is to do so, and other solvers' configurations do not say.
    return _CLASSES[name].from_config(scheduler.config, **({"clip_sample": False} if name == "ddim" else {}))
