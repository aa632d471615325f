"""What training costs: precomputed against online, Ray Train against the bare loop, full size against the authors'.

    python tests/benchmarks/training.py [--steps 12] [--skip-speed]

1. FLOPs of one row at full Stable Diffusion 1.5 size (meta tensors): forward and backward alone, and with the encoders
   that run at every step when nothing is precomputed (VAE twice, text; and with CLIP ViT-H).
2. Peak memory of a full-size step of three rows (fake tensors, live storages): ours (precomputed, gradient
   checkpointing, frozen weights in bfloat16), with AdamW and with AdamW of 8-bit moments, and the authors' (encoders on
   board, everything in float32, no checkpointing), all with bfloat16 arithmetic.
3. Milliseconds of a step at a quarter of the width and of the picture's sides, heads as wide as at full size and as
   many latent positions a step as three rows have there: precomputed and online steps taken in turns in one process.
4. Milliseconds of a step of four such rows under Ray Train and in the bare loop.

The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from step_flops import HEIGHT_PX, TEXT_TOKENS, TEXT_WIDTH, WIDTH_PX, Tflop, make_image_parts, make_text_encoder
from step_flops import make_unet as make_full_unet
from step_flops import make_vae as make_full_vae
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from refadgen.config import TrainConfig, load_config
from refadgen.mini.untrained import make_tokenizer
from refadgen.model.unets import make_generation_unet, make_reference_unet
from refadgen.training.choices import RowChooser
from refadgen.training.feed import local_feed
from refadgen.training.job import TINY, Tokenize
from refadgen.training.loop import BatchMaker, TrainingRun, read_metrics, shrink_frozen
from refadgen.training.networks import Parts, TrainingModule, load_parts
from refadgen.training.optimization import make_optimizer, take_step
from refadgen.training.plan import Plan
from refadgen.training.precompute import constants_of
from refadgen.training.rows import OnlineRows, online_files

ROWS = 3
"""Of a full-size step: Table 2."""


def full_parts() -> Parts:
    """Stable Diffusion 1.5's networks, made into RefAdGen's."""
    base = make_full_unet()
    return Parts(
        vae=make_full_vae(),
        text_encoder=make_text_encoder(),
        tokenizer=None,  # type: ignore[arg-type]  # no text is read here
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        reference_unet=make_reference_unet(base),
        generation_unet=make_generation_unet(base),
    )


def full_batch(rows: int) -> dict[str, Tensor]:
    """A precomputed batch of the right shapes."""
    h, w = HEIGHT_PX // 8, WIDTH_PX // 8
    return {
        "latents": torch.randn(rows, 4, h, w),
        "reference_latents": torch.randn(rows, 4, h, w),
        "mask_latents": torch.ones(rows, 1, h, w),
        "noise": torch.randn(rows, 4, h, w),
        "timesteps": torch.zeros(rows, dtype=torch.long),
        "text_states": torch.randn(rows, TEXT_TOKENS, TEXT_WIDTH),
        "empty_text_states": torch.randn(1, TEXT_TOKENS, TEXT_WIDTH),
        "fusion_scale": torch.ones(rows),
    }


class _NoNoise(DDIMScheduler):
    """Adds no noise: index arithmetic on alphas is not possible without numbers, and counts no FLOP."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return original_samples + noise


def flops() -> dict[str, float]:
    """TFLOP of one row: a training step, and each encoder's part of an online one."""
    with torch.device("meta"):
        parts = full_parts()
        parts.scheduler = _NoNoise.from_config(parts.scheduler.config)
        module = TrainingModule(parts, load_config(TrainConfig, None, []))
        with Tflop() as step:
            module(full_batch(1)).sum().backward()
        pixels = torch.zeros(1, 3, HEIGHT_PX, WIDTH_PX)
        with torch.no_grad(), Tflop() as vae:
            parts.vae.encode(pixels)
        with torch.no_grad(), Tflop() as text:
            parts.text_encoder(torch.zeros(1, TEXT_TOKENS, dtype=torch.long))
        with torch.no_grad(), Tflop() as clip:
            make_image_parts()["image_encoder"](torch.zeros(1, 3, 224, 224))
    online = step.value + 2 * vae.value + text.value
    return {
        "step_tflop": step.value,
        "vae_tflop": vae.value,
        "text_tflop": text.value,
        "clip_tflop": clip.value,
        "flops_ratio": step.value / online,
        "flops_ratio_image_encoder": step.value / (online + clip.value),
    }


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not is_traceable_wrapper_subclass(tensor):  # its parts are counted
                self.add(tensor)
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _faked(module: nn.Module) -> nn.Module:
    """A module of meta tensors with fake ones on the CPU in their place; inside a FakeTensorMode."""
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                layer._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return module


def peak_memory_gb(optimizer_name: str, *, ours: bool) -> tuple[float, float]:
    """Peak of one full-size step of ROWS rows with everything resident, and what stays between steps, in GB."""
    words = [f"optimizer.name={optimizer_name}", f"run.gradient_checkpointing={str(ours).lower()}"]
    config = load_config(TrainConfig, None, words)
    with torch.device("meta"):
        parts = full_parts()
        parts.scheduler = _NoNoise.from_config(parts.scheduler.config)
        module = TrainingModule(parts, config)
        encoders = [] if ours else [parts.vae, parts.text_encoder, make_image_parts()["image_encoder"]]
        if ours:
            shrink_frozen(module, torch.bfloat16)
    real = nn.Parameter(torch.zeros(4096))
    real.grad = torch.zeros(4096)
    take_step(make_optimizer(config.optimizer, {"real": real}), 0.0, compiled=False)  # torchao makes its tables once
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        for network in (module, *encoders):
            _faked(network)
        trained = module.trained()
        # What torch takes on GPUs when nobody asks for the fused one.
        theirs = torch.optim.AdamW(list(trained.values()), foreach=True)
        optimizer = make_optimizer(config.optimizer, trained) if ours else theirs
        for _ in range(2):  # the optimizer's state comes into being in the first
            batch = full_batch(ROWS)
            if not ours:
                pixels = torch.zeros(ROWS, 3, HEIGHT_PX, WIDTH_PX)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    for _ in range(2):
                        encoders[0].encode(pixels)
                    encoders[1](torch.zeros(ROWS, TEXT_TOKENS, dtype=torch.long))
                    encoders[2](torch.zeros(ROWS, 3, 224, 224))
            with torch.autocast("cpu", torch.bfloat16):
                loss = module(batch).mean()
            loss.backward()
            take_step(optimizer, 1e-5, compiled=False)
            del loss, batch
    return live.peak / 1e9, live.now / 1e9


def small_base(folder: Path) -> None:
    """A Stable Diffusion folder of a quarter of the width, with all its levels and layers and its heads' widths."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(80, 160, 320, 320),
            attention_head_dim=2,  # heads, in spite of its name
            cross_attention_dim=192,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def small_config(base: Path, data: str, steps: int, rows: int) -> TrainConfig:
    words = [
        f"data.path={data}",
        "data.width_px=128",
        "data.height_px=160",
        f"model.base={base}",
        "run.num_epochs=",
        f"run.num_steps={steps}",
        f"run.batch_size={rows}",
    ]
    return load_config(TrainConfig, None, words)


def precomputed_against_online(base: Path, steps: int) -> dict[str, float]:
    """Median ms of a step whose latents and text states are there, and of one that encodes them."""
    rows_a_step = 16  # all that the tiny triplets have to train on: the latent positions of one row at full size
    config = small_config(base, str(TINY), steps, rows_a_step)
    parts = load_parts(config)
    module = TrainingModule(parts, config)
    run = TrainingRun(config, module, 2 * steps + 1, torch.device("cpu"))
    encoders = parts.encoders(config, run.device, torch.float32).prepared()
    source = OnlineRows(
        config.data.path,
        online_files(config.data.path),
        RowChooser(config.data, config.objective),
        Tokenize(parts.tokenizer),
        None,
    )
    plan = Plan(source.groups("train"), 0, rows_a_step, 2 * steps + 1, 4096)
    empty = encoders.token_ids([""])
    constants = {"empty_token_ids": empty, "empty_text_states": encoders.text_states(empty)}
    online = BatchMaker(config, constants, 1000, run.device, encoders)
    stored = BatchMaker(config, constants, 1000, run.device, None)
    times: dict[str, list[float]] = {"online": [], "precomputed": []}
    for number, arrays in enumerate(local_feed(plan, source, 0)):
        rows = [str(row) for row in arrays["row_id"]]
        kind = ("online", "precomputed")[number % 2]
        if kind == "precomputed":
            ready = online(arrays)
            arrays = {**arrays, **{name: ready[name].numpy() for name in ready if not name.startswith("empty_")}}
            last_stored = arrays
        started = time.perf_counter()
        run.train_step(online(arrays) if kind == "online" else stored(arrays), rows)
        times[kind].append(1000 * (time.perf_counter() - started))
    medians = {f"{kind}_ms": statistics.median(values[1:]) for kind, values in times.items()}
    with Tflop() as step:
        run.wrapped(stored({**last_stored})).sum().backward()
    with torch.no_grad(), Tflop() as encode:
        online({**arrays})
    return medians | {
        "precomputed_speedup": medians["online_ms"] / medians["precomputed_ms"],
        "small_flops_ratio": step.value / (step.value + encode.value),
    }


def ray_against_bare(base: Path, steps: int, folder: Path) -> dict[str, float]:
    """Median ms from step to step of the same training, under Ray Train with one worker and in a bare loop."""
    from refadgen.training.cache import load_cache
    from refadgen.training.rows import CachedRows
    from refadgen.training.worker import constant_tensors

    output = folder / "ray"
    words = [f"run.num_steps={steps}", "run.num_epochs=", "run.batch_size=4", f"run.checkpoint_every={steps}"]
    words += ["data.width_px=128", "data.height_px=160", "run.torch_threads=1"]
    job = Path(__file__).resolve().parents[2] / "jobs" / "train.py"
    command = [sys.executable, str(job), "--data", "tiny", "--base", str(base), "--output", str(output), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    under_ray = statistics.median(row["seconds"] for row in read_metrics(str(output))[3:])

    config = small_config(base, str(TINY), steps, 4)
    torch.set_num_threads(1)
    parts = load_parts(config)
    run = TrainingRun(config, TrainingModule(parts, config), steps, torch.device("cpu"))
    cache = load_cache(str(output / "cache"))
    assert cache is not None
    source = CachedRows(
        dataclasses.replace(cache, uri=str(output / "cache")), RowChooser(config.data, config.objective)
    )
    plan = Plan(source.groups("train"), 0, 4, steps, 4096)
    encoders = parts.encoders(config, run.device, torch.float32).prepared()
    make_batch = BatchMaker(config, constant_tensors(constants_of(encoders)), 1000, run.device, None)
    seconds = []
    for arrays in local_feed(plan, source, 0):
        seconds.append(run.train_step(make_batch(arrays), [str(row) for row in arrays["row_id"]]).seconds)
    bare = statistics.median(seconds[3:])
    return {"ray_ms": 1000 * under_ray, "bare_ms": 1000 * bare, "ray_ratio": under_ray / bare}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Cost of training.")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each kind")
    parser.add_argument("--skip-speed", action="store_true", help="only what is counted, not what is timed")
    arguments = parser.parse_args()
    result: dict[str, Any] = flops()
    print(json.dumps(result), flush=True)
    arms = {"authors": ("adamw", False), "ours": ("adamw", True), "ours_8bit": ("adamw_8bit", True)}
    for name, (optimizer_name, ours) in arms.items():
        result[f"peak_gb_{name}"], result[f"resident_gb_{name}"] = peak_memory_gb(optimizer_name, ours=ours)
        print(name, result[f"peak_gb_{name}"], result[f"resident_gb_{name}"], flush=True)
    for name in ("ours", "ours_8bit"):
        result[f"peak_ratio_{name}"] = result[f"peak_gb_{name}"] / result["peak_gb_authors"]
    if not arguments.skip_speed:
        with tempfile.TemporaryDirectory() as place:
            base = Path(place) / "base"
            small_base(base)
            result |= precomputed_against_online(base, arguments.steps)
            result |= ray_against_bare(base, 2 * arguments.steps, Path(place))
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
