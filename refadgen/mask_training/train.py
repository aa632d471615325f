"""Trains the mask network on scenes that are made while it learns.

`python -m refadgen.mask_training.train --output FOLDER --minutes 60 [--renders FOLDER …] [--maps FOLDER]` works from the
project's own shapes alone. Stopped, the same command goes on from the last checkpoint.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from refadgen.mask_training.bank import Bank, read_views
from refadgen.mask_training.drawn import Split
from refadgen.mask_training.scenes import KINDS, Scene, make_scene
from refadgen.segmentation.classes import NUM_CLASSES, PRODUCT
from refadgen.segmentation.mask_network import MaskNetwork, network_input

LONGEST_PX = (240, 480)
"""Sizes of the training photographs: the longer side."""
KEPT = 6000
"""Samples kept in memory; each is seen several times, since drawing one takes as long as learning from it."""
CLASS_WEIGHTS = (1.0, 1.0, 1.5, 2.0, 1.5)


def sample_of(scene: Scene, side_px: int) -> "Sample":
    """Network input float16 [6, S, S], product coverage uint8 [S, S], classes uint8 [S, S]."""
    size = (side_px, side_px)
    coverage = cv2.resize(scene.coverage, size, interpolation=cv2.INTER_AREA)
    # Area-averaged for each class, so that lines of one pixel do not vanish by chance.
    shares = [
        cv2.resize((scene.classes == c).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for c in range(NUM_CLASSES)
    ]
    shares[PRODUCT] = coverage
    classes = np.argmax(shares, axis=0).astype(np.uint8)
    return network_input(scene.image, side_px).astype(np.float16), np.round(255 * coverage).astype(np.uint8), classes


Sample = tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def _make_samples(samples: "multiprocessing.Queue[Sample]", bank: Bank | None, side_px: int, seed: list[int]) -> None:
    """Puts samples into the queue, without end; runs in a process of its own."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    names, weights = list(KINDS), np.array(list(KINDS.values()))
    while True:
        kind = str(rng.choice(names, p=weights / weights.sum()))
        samples.put(sample_of(make_scene(rng, kind, "train", int(rng.uniform(*LONGEST_PX)), bank), side_px))


class _Memory:
    """The last `KEPT` samples."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        if len(self._samples) < KEPT:
            self._samples.append(sample)
        else:
            self._samples[self._next] = sample
        self._next = (self._next + 1) % KEPT

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch, each picture mirrored or not: inputs, coverage in 0…1, classes."""
        picked = [self._samples[int(i)] for i in rng.integers(len(self._samples), size=count)]
        flips = rng.random(count) < 0.5
        inputs, coverage, classes = (
            torch.from_numpy(np.stack([each[..., ::-1] if flip else each for each, flip in zip(column, flips)]))
            for column in zip(*picked)
        )
        return inputs.float(), coverage.float() / 255, classes.long()


def mask_loss(logits: Tensor, coverage: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the classes, and 1 − soft IoU of the product in each picture, so that thin products count.

    logits: N×5×H×W. coverage: N×H×W, 0 to 1. classes: N×H×W.
    """
    entropy = F.cross_entropy(logits, classes, torch.tensor(CLASS_WEIGHTS), label_smoothing=0.005)
    product = logits.softmax(dim=1)[:, PRODUCT]
    both = (product * coverage).sum(dim=(1, 2))
    either = (product + coverage - product * coverage).sum(dim=(1, 2))
    return entropy + (1 - (both + 1) / (either + 1)).mean()


def quality(network: MaskNetwork, scenes: list[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean IoU by kind. scenes: kind, input, coverage, as `sample_of` makes them."""
    network.eval()
    found: dict[str, list[float]] = {}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for kind, inputs, coverage in scenes:
            label = network(torch.from_numpy(inputs[None]).float())[0].argmax(dim=0).numpy()
            mask, truth = label == PRODUCT, coverage >= 128
            union = np.count_nonzero(mask | truth)
            found.setdefault(kind, []).append(np.count_nonzero(mask & truth) / union if union else 1.0)
    network.train()
    return {kind: round(float(np.mean(values)), 3) for kind, values in found.items()}


def train(
    output: Path,
    *,
    minutes: float,
    side_px: int,
    bank: Bank | None,
    held_out: Bank | None,
    batch_size: int,
    learning_rate: float,
    num_workers: int,
    threads: int,
) -> None:
    """Trains for `minutes` of wall time in all, counted over restarts; the learning rate falls along a cosine."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    network = MaskNetwork().to(memory_format=torch.channels_last)
    average = MaskNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(kept["network"])
        average.load_state_dict(kept["average"])
        if kept["side_px"] == side_px:
            optimizer.load_state_dict(kept["optimizer"])
        state = kept["state"]
    else:
        average.load_state_dict(network.state_dict())
    rng = np.random.default_rng(state["step"])
    checks = _checks(held_out, side_px)
    samples: multiprocessing.Queue[Sample] = multiprocessing.Queue(64)
    for worker in range(num_workers):
        seed = [1000 + state["step"], worker]
        multiprocessing.Process(target=_make_samples, args=(samples, bank, side_px, seed), daemon=True).start()
    memory = _Memory()
    while len(memory) < 8 * batch_size:
        memory.add(samples.get())
    total, before, loss_mean, last_report = 60 * minutes, time.monotonic(), 0.0, time.monotonic()
    while state["seconds"] < total:
        while not samples.empty():  # new samples are taken as they come: a step never waits for them
            memory.add(samples.get())
        share = state["seconds"] / total
        for group in optimizer.param_groups:
            group["lr"] = float(
                learning_rate * min(1.0, (state["step"] + 1) / 200) * (0.5 + 0.5 * np.cos(np.pi * share))
            )
        inputs, coverage, classes = memory.draw(rng, batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = mask_loss(logits.float(), coverage, classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _follow(average, network, min(0.999, 1 - 1 / (state["step"] + 10)))
        state["step"] += 1
        now = time.monotonic()
        state["seconds"] += now - before
        before = now
        loss_mean += (loss.item() - loss_mean) / min(state["step"], 100)
        if now - last_report > 120:
            last_report = now
            line = {
                "step": state["step"],
                "minutes": round(state["seconds"] / 60, 1),
                "loss": round(loss_mean, 4),
                "kept": len(memory),
            }
            if state["step"] > 100:
                line |= {"iou": quality(average, checks)}
            print(json.dumps(line), flush=True)
            _save(checkpoint, network, average, optimizer, state, side_px)
            before = time.monotonic()
    _save(checkpoint, network, average, optimizer, state, side_px)
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in average.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, output / "mask_network.safetensors")


def _follow(average: MaskNetwork, network: MaskNetwork, decay: float) -> None:
    with torch.no_grad():
        for kept, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)


def _save(
    path: Path,
    network: MaskNetwork,
    average: MaskNetwork,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    side_px: int,
) -> None:
    kept = {
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": state,
        "side_px": side_px,
    }
    torch.save(kept, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _checks(bank: Bank | None, side_px: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The same 12 scenes of each kind every time, of families for calibration."""
    split: Split = "calibrate"
    rng = np.random.default_rng(7)
    found = []
    for kind in KINDS:
        for _ in range(12):
            inputs, coverage, _ = sample_of(make_scene(rng, kind, split, 480, bank), side_px)
            found.append((kind, inputs, coverage))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoint and weights")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time in all, counted over restarts")
    parser.add_argument("--renders", type=Path, nargs="*", default=[], help="outputs of refadgen.mask_training.renders")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="the same, of held-out families")
    parser.add_argument("--maps", type=Path, help="folder of .hdr environment maps, for surroundings")
    parser.add_argument("--side-px", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    views = read_views(arguments.maps) if arguments.maps else []
    bank = Bank(arguments.renders, views) if arguments.renders or views else None
    held_out = Bank(arguments.held_out) if arguments.held_out else None
    train(
        arguments.output,
        minutes=arguments.minutes,
        side_px=arguments.side_px,
        bank=bank,
        held_out=held_out,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        num_workers=arguments.workers,
        threads=arguments.threads,
    )


if __name__ == "__main__":
    main()
