"""One training module on several workers: DistributedDataParallel (DDP) or FSDP2, and the differences between them."""

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
    """This worker and the others. Without an initialised torch.distributed there is one worker."""

    def __init__(self) -> None:
        distributed = dist.is_initialized()
        self.rank: int = dist.get_rank() if distributed else 0
        self.world_size: int = dist.get_world_size() if distributed else 1

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all workers."""
        if self.world_size > 1:
            value = value.clone()  # all_reduce writes in place
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def broadcast_from_rank_0(self, value: int) -> int:
        """Rank 0's number, on all workers. Each of them must call it; the others' numbers are ignored."""
        found = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def gather(self, values: list[str]) -> list[list[str]]:
        """The texts of each worker by rank, on all workers. Each of them must call it."""
        if self.world_size == 1:
            return [values]
        found: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(found, values)
        return found


def wrap(
    module: TrainingModule, strategy: Literal["ddp", "fsdp"], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """`module` for all workers; it is called like the module itself.

    FSDP2 gets all networks as one group. Between steps it shards weights, gradients and optimizer state; during a step
    every worker holds the full weights. The Reference U-Net cannot be a group of its own: its features leave it from
    inside its layers, but FSDP2 ties a group's backward pass to the group's output. One group also covers the AFM
    projections, which run outside the forward of the layers that own them.
    """
    if not dist.is_initialized() or (dist.get_world_size() == 1 and strategy == "ddp"):
        return module
    if strategy == "ddp":
        # gradient_as_bucket_view: gradients live in the buckets that are sent, which saves one copy of all of them.
        return DistributedDataParallel(
            module, device_ids=[device.index or 0] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,  # sums over workers would lose digits in bfloat16
        cast_forward_inputs=False,  # noise is added in float32; autocast does the arithmetic
    )
    return fully_shard(module, mp_policy=policy)


@contextmanager
def synchronized(wrapped: nn.Module, last: bool) -> Iterator[None]:
    """Averages gradients over workers in the last of a step's passes only. last: whether this is it."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
        yield
        return
    with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext():
        yield


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, float32 on the CPU. With FSDP2 every worker must call this, in the same order."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().float().cpu()


def gather_to_rank_0(tensor: Tensor) -> Tensor:
    """The full tensor, float32 on the CPU, on rank 0; an empty one elsewhere. Called as `full_tensor`."""
    # The others must take part in the all-gather, but full copies on each of them would fill the host's memory.
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if dist.is_initialized() and dist.get_rank():
        return torch.empty(0)
    return full.detach().float().cpu()


def local_shard(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor, or the tensor itself. A view: writing to it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put_full_tensor(destination: Tensor, value: Tensor) -> None:
    """Copies a full tensor into `destination`, which may be sharded."""
    value = value.to(local_shard(destination).device, destination.dtype)
    if isinstance(destination, DTensor):
        value = distribute_tensor(value, destination.device_mesh, destination.placements)
    local_shard(destination).copy_(local_shard(value))
