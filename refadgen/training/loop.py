"""The loop that one worker runs: both U-Nets and the text encoder, jointly, from precomputed latents.

Step k's rows, noise, timesteps and dropouts are functions of (seed, k): a resumed run repeats an uninterrupted one.
Where torch.distributed is up, each worker takes its share of the step's rows and gradients are averaged.
Checkpoints hold weights, optimizer, EMA and position, and are written beside their place and renamed.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from refadgen.model.unets import parameters_without_gradient
from refadgen.training.objective import TrainingBatch, diffusion_loss, draw_noise


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """How long and how fast."""

    num_steps: int
    batch_size: int = 16
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    decay_share: float = 0.3
    """The last share of the steps, over which the rate falls to zero."""
    weight_decay: float = 0.01
    noise_offset: float = 0.05
    ema_decay: float = 0.995
    max_grad_norm: float = 1.0
    product_weight: float = 1.0
    """Weight of the loss inside the product mask; 1 is Eq. 2."""
    dtype: torch.dtype = torch.float32
    """Of the networks' arithmetic (autocast); weights and optimizer stay float32."""
    text_dropout: float = 0.1
    """Share of rows that see the empty prompt."""
    reference_dropout: float = 0.1
    """Share of rows that do not see the product (λ = 0)."""
    seed: int = 0
    checkpoint_every: int = 100

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        left = (self.num_steps - step) / max(1.0, self.decay_share * self.num_steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, left)


@dataclass(frozen=True)
class LatentTriplets:
    """Precomputed training rows: n pictures of products and ads; latents in any floating dtype."""

    latents: Tensor
    """Ads, scaled, n×C×h×w."""
    reference_latents: Tensor
    """Product images, scaled, n×C×h×w."""
    mask_latents: Tensor
    """n×1×h×w, 0 or 1."""
    token_ids: Tensor
    """Captions, n×captions×tokens; one of a row's captions is drawn at each step."""
    empty_token_ids: Tensor
    """The empty prompt, tokens."""

    def __len__(self) -> int:
        return len(self.latents)


@dataclass
class Networks:
    """What trains together."""

    reference_unet: UNet2DConditionModel
    generation_unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def modules(self) -> dict[str, nn.Module]:
        return vars(self)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: module.state_dict() for name, module in self.modules().items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(state[name])

    def parameters(self) -> list[nn.Parameter]:
        """What gets a gradient; the rest is frozen."""
        for name, parameter in self.reference_unet.named_parameters():
            parameter.requires_grad_(name not in parameters_without_gradient(self.reference_unet))
        return [p for module in self.modules().values() for p in module.parameters() if p.requires_grad]


def make_batch(
    networks: Networks,
    scheduler: DDIMScheduler,
    data: LatentTriplets,
    schedule: TrainingSchedule,
    step: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> TrainingBatch:
    """Step `step`'s rows with all that is random about them; of several workers, every `world_size`-th row."""
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    count = schedule.batch_size
    rows = torch.randint(len(data), (count,), generator=generator)
    captions = torch.randint(data.token_ids.shape[1], (count,), generator=generator)
    token_ids = data.token_ids[rows, captions].long()
    token_ids[torch.rand(count, generator=generator) < schedule.text_dropout] = data.empty_token_ids
    # One timestep from each of `count` equal slices: every batch sees the whole range.
    slices = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (slices * scheduler.config.num_train_timesteps).long()
    noise = draw_noise((count, *data.latents.shape[1:]), schedule.noise_offset, generator)
    fusion_scale = (torch.rand(count, generator=generator) >= schedule.reference_dropout).float()

    mine = slice(rank, None, world_size)
    rows = rows[mine]
    states = networks.text_encoder(torch.cat([token_ids[mine], data.empty_token_ids[None]]))[0]
    return TrainingBatch(
        latents=data.latents[rows].float(),
        reference_latents=data.reference_latents[rows].float(),
        mask_latents=data.mask_latents[rows].float(),
        prompt_embeds=states[:-1],
        reference_context=states[-1:].expand(len(rows), -1, -1),
        noise=noise[mine],
        timesteps=timesteps[mine],
        fusion_scale=fusion_scale[mine],
    )


def train(
    networks: Networks,
    scheduler: DDIMScheduler,
    data: LatentTriplets,
    schedule: TrainingSchedule,
    checkpoint: Path,
    report: Callable[[str], None] = print,
) -> Networks:
    """Trains in place from `checkpoint` where that exists, else from the start. Returns the averaged networks (EMA).

    Raises: FloatingPointError for a loss that is no number; the last checkpoint stays.
    """
    parameters = networks.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    ema = copy.deepcopy(networks)
    first = 0
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        networks.load_state_dict(state["networks"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started, mean_loss = time.monotonic(), 0.0
    for step in range(first, schedule.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with _arithmetic(schedule.dtype, data.latents.device.type):
            batch = make_batch(networks, scheduler, data, schedule, step, rank=rank, world_size=world_size)
            loss = diffusion_loss(
                networks.reference_unet,
                networks.generation_unet,
                scheduler,
                batch,
                product_weight=schedule.product_weight,
            )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world_size > 1:
            _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, schedule.max_grad_norm)
        optimizer.step()
        _average(ema, networks, min(schedule.ema_decay, (1 + step) / (10 + step)))
        mean_loss += (loss.item() - mean_loss) / min(step - first + 1, 100)
        done = step + 1
        if rank == 0 and (done % schedule.checkpoint_every == 0 or done == schedule.num_steps):
            _save(
                checkpoint,
                {
                    "networks": networks.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                },
            )
            seconds = (time.monotonic() - started) / (done - first)
            report(f"step {done}/{schedule.num_steps} loss {mean_loss:.4f} {seconds:.2f} s/step")
    return ema


@contextmanager
def _arithmetic(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Autocast to `dtype`. On CPU, attention of few channels is faster as plain products than by the fused kernel."""
    kernel = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32), kernel:
        yield


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over workers, in one message. Nothing here may be without a gradient (see `Networks.parameters`)."""
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def _average(ema: Networks, networks: Networks, decay: float) -> None:
    for name, module in networks.modules().items():
        averaged = ema.modules()[name].state_dict()
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                averaged[key].lerp_(tensor, 1 - decay)


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
