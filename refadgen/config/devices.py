"""The device and the number format that a setting stands for, on the machine that this process runs on.

Every room that loads networks asks here, so that a GPU that was asked for and is missing is refused everywhere alike.
torch is imported inside the functions: settings are read by processes that never use it.
"""

import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def num_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processor cores that this process may use: a container's share, where its runtime sets one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):  # no Linux, or an older one
        return cores
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def resolve_device(name: str, *, gpu_expected: bool, field: str) -> "torch.device":
    """The device of a setting; `auto` is CUDA where there is a GPU, else the CPU.

    name: auto, cpu, cuda or cuda:N. gpu_expected: whether the cluster gave this process a GPU (`num_gpus` above 0).
    field: the setting's dotted name, for errors.
    Raises: ValueError when the name is none of these, or when a GPU that was asked for is not there.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        # A silent fallback would leave a paid GPU idle and make the run many times slower.
        if gpu_expected and not num_gpus:
            raise ValueError(
                f"{field}=auto: num_gpus asks for a GPU, but PyTorch sees none; set {field}=cpu or num_gpus=0"
            )
        return torch.device("cuda" if num_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{field}={name!r}: must be auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        # Ray hides the GPUs of other actors: inside an actor with one GPU only cuda and cuda:0 are there.
        raise ValueError(f"{field}={name!r}: PyTorch sees {num_gpus or 'no'} GPU{'s' * (num_gpus > 1)} here")
    return device


def device_kind(device: "torch.device") -> str:
    """What decides an image's bytes of a device: a GPU's name, or the instructions that a CPU's arithmetic uses."""
    import torch

    if device.type == "cuda":
        name: str = torch.cuda.get_device_name(device)
        return name
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def resolve_dtype(name: str, device: "torch.device", *, for_training: bool = False) -> "torch.dtype":
    """The number format of a setting; `auto` is bfloat16 on GPUs that have it, and float32 on the CPU.

    name: auto or the name of a torch dtype. for_training: `auto` on an older GPU is float32 instead of float16, whose
    gradients underflow unless the loss is scaled.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    # Without emulation: PyTorch runs bfloat16 on older GPUs too, by float32 arithmetic that is slower than float16.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if for_training else torch.float16
