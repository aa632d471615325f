"""Training: a step of preset `paper` against a plain Stable Diffusion 1.5 step, its memory, and FSDP2 on one card."""

import importlib.util
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from proof_measure import synchronize
from proof_record import Record, Values, free_memory
from proof_setup import Size, fill, make_pipeline, make_unet
from torch import Tensor

_WARM_UP, _TIMED = 2, 5
_CASE_S = 10.0
"""About what a case takes."""
_PRESET = Path(__file__).resolve().parents[2] / "refadgen" / "training" / "presets" / "paper.yaml"
Optimizer = Literal["adamw", "adamw_8bit"]


def run_training(record: Record, size: Size, device: torch.device) -> None:
    """The cases in the order of their worth."""
    _without_object_stores()
    batches = (3, 1, 8, 16) if size == "full" else (1,)
    for batch in batches:
        for checkpointing in (True, False):
            kept = "recomputed" if checkpointing else "kept"
            name = f"training/activations-{kept}/batch-{batch:02d}"
            record.run(f"{name}/ours", lambda b=batch, c=checkpointing: _ours(size, device, b, c), needs_s=_CASE_S)  # type: ignore[misc]
            record.run(f"{name}/plain", lambda b=batch, c=checkpointing: _plain(size, device, b, c), needs_s=_CASE_S)  # type: ignore[misc]
        if batch == batches[0]:
            record.run(
                f"training/fsdp/batch-{batch:02d}/ours", lambda: _fsdp(size, device, batches[0]), needs_s=_CASE_S
            )
            name = f"training/adamw-8bit/batch-{batch:02d}/ours"
            if importlib.util.find_spec("torchao") is None:
                record.skipped(name, "torchao is not installed here")
            else:
                record.run(name, lambda: _ours(size, device, batches[0], True, optimizer="adamw_8bit"), needs_s=_CASE_S)


def _without_object_stores() -> None:
    """Lets the training loop be imported where botocore is missing: only its checkpoints use an object store."""
    if importlib.util.find_spec("botocore") is not None:
        return
    package, exceptions = types.ModuleType("botocore"), types.ModuleType("botocore.exceptions")
    for name in ("BotoCoreError", "ClientError"):
        setattr(exceptions, name, type(name, (Exception,), {}))
    sys.modules |= {"botocore": package, "botocore.exceptions": exceptions}


def _make_batch(size: Size, device: torch.device, rows: int) -> dict[str, Tensor]:
    """A precomputed batch of the right shapes."""
    height, width, tokens, channels, patches, states = (
        (80, 64, 77, 768, 257, 1280) if size == "full" else (16, 16, 77, 32, 50, 32)
    )
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return {
        "latents": draw(rows, 4, height, width),
        "reference_latents": draw(rows, 4, height, width),
        "mask_latents": torch.ones(rows, 1, height, width, device=device),
        "noise": draw(rows, 4, height, width),
        "timesteps": torch.arange(rows, device=device) * 50 + 100,
        "text_states": draw(rows, tokens, channels),
        "empty_text_states": draw(1, tokens, channels),
        "image_states": draw(rows, patches, states),
        "fusion_scale": torch.ones(rows, device=device),
    }


def _ours(
    size: Size,
    device: torch.device,
    batch: int,
    checkpointing: bool,
    *,
    optimizer: Optimizer = "adamw",
    strategy: Literal["ddp", "fsdp"] = "ddp",
) -> Values:
    """The preset's step: Reference U-Net, `conv_in`, AFM projections and Resampler train."""
    from refadgen.config import TrainConfig, load_config
    from refadgen.training.loop import TrainingRun
    from refadgen.training.networks import Parts, TrainingModule

    words = {
        "run.num_workers": 1,
        "run.batch_size": batch,
        "run.gradient_checkpointing": str(checkpointing).lower(),
        "run.strategy": strategy,
        "optimizer.name": optimizer,
    }
    config = load_config(TrainConfig, _PRESET, [f"{name}={value}" for name, value in words.items()])
    pipeline = make_pipeline(size)
    for network in (pipeline.reference_unet, pipeline.generation_unet, pipeline.image_projection):
        fill(network, device, torch.float32)
    parts = Parts(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        reference_unet=pipeline.reference_unet,
        generation_unet=pipeline.generation_unet,
        image_projection=pipeline.image_projection,
    )
    run = TrainingRun(config, TrainingModule(parts, config), 1000, device)
    inputs = _make_batch(size, device, batch)
    rows = [str(row) for row in range(batch)]
    values = _timed(lambda: run.train_step(inputs, rows).loss, device, batch)
    return values | {"trained_m": round(sum(p.numel() for p in run.trained.values()) / 1e6, 1)}


def _plain(size: Size, device: torch.device, batch: int, checkpointing: bool) -> Values:
    """Fine-tuning of the base's U-Net as everyone does it: all weights, fused AdamW, bfloat16 arithmetic."""
    scheduler = make_pipeline(size).scheduler
    with torch.device("meta"):
        unet = make_unet(size)
    fill(unet, device, torch.float32)
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-5, weight_decay=0.01, fused=True)
    inputs = _make_batch(size, device, batch)
    half = device.type == "cuda"

    def step() -> float:
        noisy = scheduler.add_noise(inputs["latents"], inputs["noise"], inputs["timesteps"])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predicted = unet(noisy, inputs["timesteps"], inputs["text_states"], return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), inputs["noise"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    values = _timed(step, device, batch)
    return values | {"trained_m": round(sum(p.numel() for p in unet.parameters()) / 1e6, 1)}


def _fsdp(size: Size, device: torch.device, batch: int) -> Values:
    """The preset's step under FSDP2 with one worker."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        try:
            return _ours(size, device, batch, True, strategy="fsdp")
        finally:
            dist.destroy_process_group()


def _timed(step: Callable[[], Any], device: torch.device, batch: int) -> Values:
    """Rows a second of the median step, the largest memory, and the last loss."""
    on_card = device.type == "cuda"
    free_memory()
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    seconds, loss = [], float("nan")
    for number in range(_WARM_UP + (_TIMED if on_card else 1)):
        synchronize(device)
        started = time.perf_counter()
        loss = step()
        synchronize(device)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_card else 0.0
    return {
        "rows_s": round(batch / middle, 3),
        "step_ms": round(1000 * middle, 1),
        "peak_gb": round(peak, 2),
        "loss": round(loss, 4),
    }
