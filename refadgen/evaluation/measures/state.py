"""Weights of a network from a file."""

import pickle
from collections.abc import Mapping

import torch
from torch import Tensor


def read_state(field: str, file: str) -> Mapping[str, Tensor]:
    """The tensors of a `.safetensors` or PyTorch file; no code of it is run. Raises: ValueError naming the field."""
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{field}={file!r}: no weights: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{field}={file!r}: no state of a network (names and tensors)")
    return state
