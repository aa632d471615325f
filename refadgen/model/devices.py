"""Which device and number format a model runs in."""

import torch


def resolve_device(name: str, *, gpu_expected: bool = False, field: str = "model.device") -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU.

    gpu_expected: the cluster gave this process a GPU. Raises: ValueError for a GPU that was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        if gpu_expected and not available:
            raise ValueError(
                f"{field}=auto: num_gpus asks for a GPU, but PyTorch sees none; set {field}=cpu or num_gpus=0"
            )
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{field}={name!r}: must be auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not available:
        raise ValueError(f"{field}={name!r}: PyTorch sees no GPU here")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on GPUs that have it, float16 on others, float32 on the CPU."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
