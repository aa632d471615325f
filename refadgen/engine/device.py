"""What a device's errors mean: a lack of memory, or that it is lost."""

import torch

_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors of CUDA's libraries say of a lack of memory that PyTorch does not raise as one."""


def lack_of_memory(error: Exception) -> str:
    """The first line of an error that says that memory did not suffice; empty: it says something else."""
    problem = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return problem or "out of memory"
    return problem if isinstance(error, RuntimeError) and any(text in problem for text in _NO_MEMORY) else ""


def require_device(device: torch.device) -> None:
    """A sum of two numbers on the device. Raises: RuntimeError where it is lost: its errors come back for ever."""
    try:
        torch.ones(2, device=device).sum().item()
    except torch.OutOfMemoryError:  # full, and not lost
        return
