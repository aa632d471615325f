"""Trains the mask network on scenes that are made while it learns.

`python -m refadgen.mask_training.train --output FOLDER --minutes 60 [--renders FOLDER …] [--maps FOLDER]` works from
the project's own shapes alone. Stopped, the same command goes on from the last checkpoint.
"""

import argparse
import json
import math
import multiprocessing
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
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
from refadgen.mask_training.scenes import KINDS, Scene, make_scene
from refadgen.segmentation.classes import NUM_CLASSES, PRODUCT
from refadgen.segmentation.mask_network import SIDE_PX, MaskNetwork, network_input
from refadgen.storage.modes import follow_umask

LONGEST_PX = (240, 560)
"""Sizes of the training photographs: the longer side."""
NUM_PLANES = 8
"""Of a sample: the network's six inputs, the coverage of the product, the classes."""
CLOSER = 0.15
"""How much of a sample's width and height `closer` cuts off at most."""
CLASS_WEIGHTS = (1.0, 1.0, 1.5, 2.0, 1.5)

Planes = npt.NDArray[np.uint8]


def sample_of(scene: Scene, side_px: int) -> Planes:
    """A scene as the network learns it, uint8 [8, side_px, side_px]: inputs from −1…1 to 0…254, coverage, classes."""
    size = (side_px, side_px)
    coverage = cv2.resize(scene.coverage, size, interpolation=cv2.INTER_AREA)
    # Area-averaged for each class, so that lines of one pixel do not vanish by chance.
    shares = [
        cv2.resize((scene.classes == c).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for c in range(NUM_CLASSES)
    ]
    shares[PRODUCT] = coverage
    inputs = np.round(127 * (network_input(scene.image, side_px) + 1))
    return np.stack([*inputs, np.round(255 * coverage), np.argmax(shares, axis=0)]).astype(np.uint8)


def tensors_of(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs float32 N×6×H×W, coverage float32 N×H×W in 0…1 and classes int64 N×H×W of samples uint8 N×8×H×W."""
    return planes[:, :6].float() / 127 - 1, planes[:, 6].float() / 255, planes[:, 7].long()


def closer(
    inputs: Tensor, coverage: Tensor, classes: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops half of the samples by up to `CLOSER` in each direction and enlarges them again: a sample that is seen
    several times is another one each time. The tensors are as `tensors_of` gives them."""
    count, _, height, width = inputs.shape
    chosen = torch.rand(count, 1, generator=generator) < 0.5
    crop = CLOSER * torch.rand(count, 2, generator=generator) * chosen
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = 1 - crop[:, 0], 1 - crop[:, 1]
    affine[:, :, 2] = crop * (2 * torch.rand(count, 2, generator=generator) - 1)
    grid = F.affine_grid(affine.to(inputs.device), [count, 1, height, width], align_corners=False)
    smooth = F.grid_sample(
        torch.cat([inputs, coverage[:, None]], dim=1), grid, padding_mode="border", align_corners=False
    )
    named = F.grid_sample(classes[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return smooth[:, :-1], smooth[:, -1], named[:, 0].long()


class _Memory:
    """The last samples, on the device: each is seen several times, since drawing one takes longer than learning.

    Other processes draw them. They share slots with this one: a slot's number goes out when it is free and comes back
    when a sample lies in it.
    """

    def __init__(self, recipe: "Recipe", bank: Bank | None, *, seed: int, num_slots: int = 64) -> None:
        """Starts the processes that draw."""
        spawn = multiprocessing.get_context("spawn")  # a copy of this process could hang on a lock of its threads
        side, self._num_slots, self.drawn = recipe.side_px, num_slots, 0
        self._slots = torch.zeros(num_slots, NUM_PLANES, side, side, dtype=torch.uint8).share_memory_()
        self._free, self._full = spawn.Queue(), spawn.Queue()
        for slot in range(num_slots):
            self._free.put(slot)
        self._workers = []
        for worker in range(recipe.num_workers):
            work = (self._slots, self._free, self._full, bank, [seed, worker])
            self._workers.append(spawn.Process(target=_draw_samples, args=work, daemon=True))
            self._workers[-1].start()
        self._kept = torch.zeros(recipe.kept, NUM_PLANES, side, side, dtype=torch.uint8, device=recipe.device)

    def close(self) -> None:
        """Ends the processes that draw."""
        for worker in self._workers:
            worker.terminate()
            worker.join()

    def take(self, at_least: int = 0) -> None:
        """Takes what has been drawn, and waits for `at_least` samples."""
        for count in range(max(at_least, self._num_slots)):
            if count >= at_least and self._full.empty():
                break
            slot = self._full.get()
            self._kept[self.drawn % len(self._kept)] = self._slots[slot].to(self._kept.device)
            self._free.put(slot)
            self.drawn += 1

    def batch(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples by chance, each mirrored or not and half of them closer, as `tensors_of` gives them."""
        device = self._kept.device
        picked = torch.randint(min(self.drawn, len(self._kept)), (count,), generator=generator)
        planes = self._kept[picked.to(device)]
        mirrored = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(device)
        return closer(*tensors_of(torch.where(mirrored, planes.flip(-1), planes)), generator)


def _draw_samples(
    slots: Tensor,
    free: "multiprocessing.Queue[int]",
    full: "multiprocessing.Queue[int]",
    bank: Bank | None,
    seed: list[int],
) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    names, weights = list(KINDS), np.array(list(KINDS.values()))
    while True:
        kind = str(rng.choice(names, p=weights / weights.sum()))
        scene = make_scene(rng, kind, "train", int(rng.uniform(*LONGEST_PX)), bank)
        sample = torch.from_numpy(sample_of(scene, slots.shape[-1]))
        slot = free.get()
        slots[slot] = sample
        full.put(slot)


def mask_loss(logits: Tensor, coverage: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the classes, and 1 − soft IoU of the product in each picture, so that thin products count.

    logits: N×5×H×W. coverage: N×H×W, 0 to 1. classes: N×H×W.
    """
    entropy = F.cross_entropy(logits, classes, torch.tensor(CLASS_WEIGHTS, device=logits.device), label_smoothing=0.005)
    product = logits.softmax(dim=1)[:, PRODUCT]
    both = (product * coverage).sum(dim=(1, 2))
    either = (product + coverage - product * coverage).sum(dim=(1, 2))
    return entropy + (1 - (both + 1) / (either + 1)).mean()


def quality(network: MaskNetwork, kinds: list[str], samples: Tensor) -> dict[str, float]:
    """Mean IoU by kind. kinds: of N samples, uint8 N×8×H×W, on the network's device."""
    network.eval()
    found: dict[str, list[float]] = {}
    for first in range(0, len(kinds), 16):
        inputs, coverage, _ = tensors_of(samples[first : first + 16])
        with torch.inference_mode(), torch.autocast(inputs.device.type, torch.bfloat16):
            mask = network(inputs).argmax(dim=1) == PRODUCT
        truth = coverage >= 0.5
        both, either = (mask & truth).sum(dim=(1, 2)).tolist(), (mask | truth).sum(dim=(1, 2)).tolist()
        for kind, inner, outer in zip(kinds[first:], both, either, strict=False):
            found.setdefault(kind, []).append(inner / outer if outer else 1.0)
    network.train()
    return {kind: round(float(np.mean(values)), 3) for kind, values in found.items()}


@dataclass(frozen=True)
class Recipe:
    """How the network is trained. minutes: of wall time in all, counted over restarts; the learning rate falls along a
    cosine. side_px: of the square samples. kept: samples in memory. report_s: between two
    reports. num_checks: scenes of each kind that the reported figures are about."""

    minutes: float
    side_px: int
    batch_size: int
    learning_rate: float
    num_workers: int
    kept: int
    device: str = "cpu"
    report_s: float = 120.0
    num_checks: int = 12


class Training:
    """The network, its moving average, the optimizer, and how far they are."""

    def __init__(self, output: Path, recipe: Recipe) -> None:
        self.recipe, self._output = recipe, output
        self.device = torch.device(recipe.device)
        self.network = MaskNetwork().to(self.device, memory_format=torch.channels_last)
        self.average = MaskNetwork().to(self.device, memory_format=torch.channels_last)
        self.average.load_state_dict(self.network.state_dict())
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.learning_rate, weight_decay=1e-3)
        self.num_steps, self.seconds = 0, 0.0
        self._checkpoint = output / "checkpoint.pt"
        output.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._go_on(torch.load(self._checkpoint, weights_only=True, map_location=self.device))

    def _go_on(self, kept: dict[str, Any]) -> None:
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self.num_steps, self.seconds = kept["state"]["step"], kept["state"]["seconds"]

    def step(self, inputs: Tensor, coverage: Tensor, classes: Tensor) -> Tensor:
        """One step of the optimizer. Returns: the loss, on the device."""
        share = min(1.0, self.seconds / (60 * self.recipe.minutes))
        rate = (
            self.recipe.learning_rate * min(1.0, (self.num_steps + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * share))
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
        loss = mask_loss(logits.float(), coverage, classes)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()
        _follow(self.average, self.network, min(0.999, 1 - 1 / (self.num_steps + 10)))
        self.num_steps += 1
        return loss.detach()

    def save(self) -> None:
        """Writes the checkpoint, and the averaged weights in half precision."""
        kept = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "state": {"step": self.num_steps, "seconds": self.seconds},
        }
        torch.save(kept, self._checkpoint.with_suffix(".new"))
        self._checkpoint.with_suffix(".new").replace(self._checkpoint)
        weights = {
            name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.average.state_dict().items()
        }
        save_file(weights, self._output / "mask_network.safetensors")
        follow_umask(self._output / "mask_network.safetensors")


def train(output: Path, recipe: Recipe, *, bank: Bank | None, held_out: Bank | None) -> None:
    """Trains until the recipe's minutes are over; stopped before, the next call goes on.

    bank: rendered products for training; held_out: for the figures that are printed meanwhile.
    Raises: ValueError where the minutes are over already.
    """
    checkpoint = output / "checkpoint.pt"
    seed = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)["state"]
        seed = state["step"]
        if state["seconds"] >= 60 * recipe.minutes:
            raise ValueError(f"--minutes {recipe.minutes:g}: are over in {output}; give more to go on")
    with ExitStack() as stack:
        other = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        pending = other.apply_async(_checks, (held_out, recipe))
        memory = stack.enter_context(closing(_Memory(recipe, bank, seed=1000 + seed)))
        training = Training(output, recipe)
        generator = torch.Generator().manual_seed(seed)
        memory.take(at_least=8 * recipe.batch_size)
        before = last_report = time.monotonic()
        while training.seconds < 60 * recipe.minutes:
            memory.take()  # new samples as they come: a step never waits for them
            loss = training.step(*memory.batch(generator, recipe.batch_size))
            training.seconds += time.monotonic() - before
            before = time.monotonic()
            if before - last_report > recipe.report_s:
                last_report = before
                training.save()
                _report(training, memory.drawn, loss.item(), pending.get())
        training.save()
        _report(training, memory.drawn, loss.item(), pending.get())


def _report(training: Training, num_drawn: int, loss: float, checks: tuple[list[str], Planes]) -> None:
    kinds, samples = checks
    line = {
        "step": training.num_steps,
        "minutes": round(training.seconds / 60, 1),
        "drawn": num_drawn,
        "loss": round(loss, 4),
        "iou": quality(training.average, kinds, torch.from_numpy(samples).to(training.device)),
    }
    print(json.dumps(line), flush=True)


def _follow(average: MaskNetwork, network: MaskNetwork, decay: float) -> None:
    with torch.no_grad():
        pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([kept for kept, _ in floats], [value for _, value in floats], 1 - decay)
        for kept, value in pairs:
            if not kept.is_floating_point():
                kept.copy_(value)


def _checks(bank: Bank | None, recipe: Recipe) -> tuple[list[str], Planes]:
    """The same scenes of each kind every time, of families for calibration: kinds, and samples uint8 N×8×H×W."""
    rng = np.random.default_rng(7)
    kinds = [kind for kind in KINDS for _ in range(recipe.num_checks)]
    samples = [sample_of(make_scene(rng, kind, "calibrate", 480, bank), recipe.side_px) for kind in kinds]
    return kinds, np.stack(samples)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoint and weights")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time in all, counted over restarts")
    parser.add_argument("--renders", type=Path, nargs="*", default=[], help="outputs of refadgen.mask_training.renders")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="the same, of held-out families")
    parser.add_argument("--maps", type=Path, help="folder of .hdr environment maps, for surroundings")
    parser.add_argument("--side-px", type=int, default=SIDE_PX)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw samples")
    parser.add_argument("--threads", type=int, default=1, help="of the network on a CPU")
    parser.add_argument("--kept", type=int, default=4000, help="samples kept in memory, 0.8 MB each at 320 px")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report-s", type=float, default=120.0, help="seconds between figures and checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    views = read_views(arguments.maps) if arguments.maps else []
    recipe = Recipe(
        minutes=arguments.minutes,
        side_px=arguments.side_px,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        num_workers=arguments.workers,
        kept=arguments.kept,
        device=arguments.device,
        report_s=arguments.report_s,
    )
    bank = Bank(arguments.renders, views) if arguments.renders or views else None
    held_out = Bank(arguments.held_out) if arguments.held_out else None
    try:
        train(arguments.output, recipe, bank=bank, held_out=held_out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
