"""Calibrates the verdict: measures many masks whose truth is known, and learns how probable each is right.

    python -m refadgen.mask_training.calibrate --output verdict.json --scenes 4000

The scenes show the product families of the split `calibrate`, which the mask network was not trained on.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from refadgen.mask_training.bank import Bank
from refadgen.mask_training.drawn import Split
from refadgen.mask_training.scenes import KINDS, make_scene
from refadgen.segmentation.agreement import AgreedMask, agreed_mask
from refadgen.segmentation.second_opinion import WEIGHTS
from refadgen.segmentation.verdict import RIGHT_IOU, Verdict

TOLERANCE = 12.0
LONGEST_PX = (300, 1200)
Layers = tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]

NUM_BINS = 10
HIDDEN = 24
NUM_FOLDS = 5
MEMBERS_PER_FOLD = 3


@dataclass(frozen=True)
class Measured:
    """One mask: its scene's kind and family, its true IoU, and what was measured."""

    kind: str
    family: str
    iou: float
    features: dict[str, float]


def measured(
    image_u8: npt.NDArray[np.uint8], coverage: npt.NDArray[np.float32], weights: Path
) -> tuple[AgreedMask, float]:
    """The agreed mask of a photograph, and its IoU with the true one at the photograph's size."""
    found = agreed_mask(image_u8, TOLERANCE, weights)
    mask, truth = found.alpha > 127, coverage >= 0.5
    union = np.count_nonzero(truth | mask)
    return found, float(np.count_nonzero(truth & mask) / union) if union else 1.0


def measure_scenes(split: Split, bank: Bank | None, weights: Path, *, first: int, count: int) -> Iterator[Measured]:
    """Measures `count` scenes from seed `first` on, all kinds in turn."""
    names = list(KINDS)
    for seed in range(first, first + count):
        rng = np.random.default_rng([seed, 77])
        longest = int(np.exp(rng.uniform(*np.log(LONGEST_PX))))
        scene = make_scene(rng, names[seed % len(names)], split, longest, bank)
        found, iou = measured(scene.image, scene.coverage, weights)
        yield Measured(scene.kind, scene.family, iou, found.features)


def fit(rows: list[Measured], *, seed: int = 0, num_steps: int = 500) -> Verdict:
    """Fits a verdict. Each fold of the rows is calibrated by networks that learned from the others.

    A fold holds families of its own, so that the calibration is of families never seen before. `MEMBERS_PER_FOLD`
    networks learn for each of the `NUM_FOLDS` folds; the mean of all is one network with a wider hidden layer.
    """
    names = tuple(sorted(rows[0].features))
    values = np.array([[row.features[name] for name in names] for row in rows])
    right = np.array([row.iou >= RIGHT_IOU for row in rows])
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    inputs = torch.tensor(np.clip((values - mean) / scale, -6, 6), dtype=torch.float32)
    target = torch.tensor(right, dtype=torch.float32)
    raw, layers = np.zeros(len(rows)), list[Layers]()
    for fold in _folds([row.family for row in rows], seed):
        others = np.setdiff1d(np.arange(len(rows)), fold)
        for _ in range(MEMBERS_PER_FOLD):
            member = _taught(inputs[others], target[others], seed=seed + len(layers), num_steps=num_steps)
            layers.append(member)
            raw[fold] += Verdict(names, mean, scale, member, *_UNCALIBRATED).raw(values[fold]) / MEMBERS_PER_FOLD
    (first, first_bias), (last, last_bias) = (zip(*pairs, strict=True) for pairs in zip(*layers, strict=True))
    both = (
        (np.concatenate(first), np.concatenate(first_bias)),
        (np.concatenate(last, axis=1) / len(layers), np.mean(last_bias, axis=0)),
    )
    return Verdict(names, mean, scale, both, *_isotonic(raw, right))


def _folds(families: list[str], seed: int) -> list[npt.NDArray[np.intp]]:
    """Indices of `NUM_FOLDS` folds of about equally many rows; no family is in two."""
    names, counts = np.unique(families, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    folds: list[list[str]] = [[] for _ in range(NUM_FOLDS)]
    sizes = np.zeros(NUM_FOLDS)
    for index in order[np.argsort(-counts[order], kind="stable")]:
        smallest = int(sizes.argmin())
        folds[smallest].append(names[index])
        sizes[smallest] += counts[index]
    return [np.flatnonzero(np.isin(families, fold)) for fold in folds]


_UNCALIBRATED = (np.array([-50.0, 50.0]), np.array([0.0, 1.0]))


def _taught(inputs: Tensor, target: Tensor, *, seed: int, num_steps: int) -> Layers:
    """Both layers of one network, as `Verdict` has them.

    inputs: float32 [N, F], standardised. target: float32 [N].
    """
    torch.manual_seed(seed)
    hidden, last = nn.Linear(inputs.shape[1], HIDDEN), nn.Linear(HIDDEN, 1)
    network = nn.Sequential(hidden, nn.Tanh(), last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.05)
    for _ in range(num_steps):
        noisy = inputs + 0.05 * torch.randn_like(inputs)
        loss = nn.functional.binary_cross_entropy_with_logits(network(noisy)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = ((layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()) for layer in (hidden, last))
    return tuple(pairs)


def _isotonic(raw: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], ...]:
    """Rising steps from raw answers to shares of right masks: pool-adjacent-violators over bins of equal count."""
    order = np.argsort(raw)
    bins = np.array_split(order, min(2 * NUM_BINS, max(2, len(raw) // 40)))
    pools = [[float(raw[b].mean()), float(right[b].sum()) + 0.5, len(b) + 1.0] for b in bins]
    merged: list[list[float]] = []
    for pool in pools:
        merged.append(pool)
        while len(merged) > 1 and merged[-2][1] / merged[-2][2] >= merged[-1][1] / merged[-1][2]:
            (x1, k1, n1), (x2, k2, n2) = merged[-2:]
            merged[-2:] = [[(x1 * n1 + x2 * n2) / (n1 + n2), k1 + k2, n1 + n2]]
    return np.array([m[0] for m in merged]), np.array([m[1] / m[2] for m in merged])


def reliability(probabilities: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, number of masks) of ten bins with about equally many masks."""
    bins = np.array_split(np.argsort(probabilities), NUM_BINS)
    return [(float(probabilities[b].mean()), float(right[b].mean()), len(b)) for b in bins if len(b)]


def main() -> None:
    """Reads the command line, measures and fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="measured before: *.rows.json, added to these")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--renders", type=Path, nargs="*", default=[], help="held-out renders of refadgen.mask_training.renders"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    bank = Bank(arguments.renders) if arguments.renders else None
    rows = [Measured(**row) for path in arguments.rows for row in json.loads(path.read_text())]
    for row in measure_scenes("calibrate", bank, arguments.weights, first=arguments.first, count=arguments.scenes):
        rows.append(row)
        if len(rows) % 200 == 0:
            print(f"{len(rows)} scenes, {np.mean([r.iou >= RIGHT_IOU for r in rows]):.2f} right", flush=True)
    arguments.output.with_suffix(".rows.json").write_text(json.dumps([asdict(row) for row in rows]))
    arguments.output.write_text(json.dumps(fit(rows).to_json()))


if __name__ == "__main__":
    main()
