"""One training module on several workers: DistributedDataParallel or FSDP2, and what differs between them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from refadgen.training.networks import TrainingModule


class Workers:
    """The workers of a training as one of them sees them; alone where torch.distributed is not up."""

    def __init__(self) -> None:
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all workers."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def from_first(self, value: int) -> int:
        """The first worker's number, on all workers."""
        found = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def gather(self, values: list[str]) -> list[list[str]]:
        """Each worker's texts, on all workers."""
        if self.world_size == 1:
            return [values]
        found: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(found, values)
        return found


def wrap(
    module: TrainingModule, strategy: Literal["ddp", "fsdp"], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """`module` for all workers, called like itself.

    FSDP2 takes all networks as one group, which is whole during a step: what it shares out are the weights at rest,
    gradients and optimizer state. The Reference U-Net cannot be a group of its own: its features leave it from inside,
    and FSDP2 hangs the backward pass of a group on its output. So the AFM projections, which run outside of their
    layers' forwards, need no care either.
    """
    if not dist.is_initialized() or (dist.get_world_size() == 1 and strategy == "ddp"):
        return module
    if strategy == "ddp":
        return DistributedDataParallel(
            module, device_ids=[device.index or 0] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise is added in float32; autocast does the arithmetic
    )
    return fully_shard(module, mp_policy=policy)


@contextmanager
def synchronized(wrapped: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are averaged over workers in the last of a step's passes only."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
        yield
        return
    with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext():
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor's full value on the CPU. With FSDP2 every worker must call this, in the same order."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().float().cpu()


def collected(tensor: Tensor) -> Tensor:
    """As `whole`, but on the first worker only; the others keep nothing."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if dist.is_initialized() and dist.get_rank():
        return torch.empty(0)
    return full.detach().float().cpu()


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this worker; writes go through."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(destination: Tensor, value: Tensor) -> None:
    """Copies a whole value into a tensor, sharded or not."""
    value = value.to(local(destination).device, destination.dtype)
    if isinstance(destination, DTensor):
        value = distribute_tensor(value, destination.device_mesh, destination.placements)
    local(destination).copy_(local(value))
