"""Small networks that judge generated ads, trained on true renders: where is the product, and what is the scene?"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refadgen.studio.dressing import render_dressed
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS

SEED_OFFSET = 3_000_000
WORDS = (SURFACES, WALLS, LIGHTS)


@dataclass(frozen=True)
class Renders:
    """True renders with their truth."""

    images: np.ndarray
    """uint8 n×H×W×3."""
    masks: np.ndarray
    """bool n×H×W."""
    words: np.ndarray
    """int n×3: surface, wall, light."""


def true_renders(num_seeds: int, dressings: int = 12) -> Renders:
    """Renders of seeds that nothing else uses."""
    found = [
        triplet
        for seed in range(num_seeds)
        for triplet in render_dressed(SEED_OFFSET + seed, dressings, novel_views=False)
    ]
    words = [[kinds.index(word) for kinds, word in zip(WORDS, _words(t.scene), strict=True)] for t in found]
    return Renders(
        np.stack([t.ad_image for t in found]),
        np.stack([t.product_mask for t in found]) > 127,
        np.array(words),
    )


def _words(scene: object) -> tuple[str, str, str]:
    return scene.surface, scene.wall, scene.light  # type: ignore[attr-defined]


def pixels(images_u8: np.ndarray) -> Tensor:
    """uint8 n×H×W×3 → n×3×H×W in −1…1."""
    return torch.from_numpy(images_u8).permute(0, 3, 1, 2).float() / 127.5 - 1


class Judge(nn.Module):
    """A small U-Net that finds the product, with heads for the scene's three words at its bottom."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in itertools.pairwise(widths))
        ups = [(128, 96, 64), (64, 48, 48), (48, 24, 24)]
        self.up = nn.ModuleList(_block(a + skip, b) for a, skip, b in ups)
        self.mask = nn.Sequential(_block(24 + 3, 16), nn.Conv2d(16, 1, 1))
        self.words = nn.ModuleList(nn.Linear(2 * 128, len(kinds)) for kinds in WORDS)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mask logits n×H×W, and logits of each word."""
        skips = [images]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips[-1]
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        for block, skip in zip(self.up, skips[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        x = self.mask(torch.cat([F.interpolate(x, scale_factor=2), images], dim=1))
        return x[:, 0], [head(pooled) for head in self.words]


def _block(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(4, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(4, after),
        nn.SiLU(),
    )


def train_judge(renders: Renders, held_out: int, num_steps: int) -> Judge:
    """Learns from all but the first `held_out` renders. Colours are jittered, and outputs blurred, as a model's are."""
    torch.manual_seed(0)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(held_out, len(renders.images), 12)
        images = pixels(renders.images[rows])
        images = images * torch.from_numpy(rng.uniform(0.9, 1.1, (len(rows), 3, 1, 1))).float()
        if rng.random() < 0.5:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images + float(rng.uniform(0, 0.08)) * torch.randn(images.shape)
        masks, words = judge(images)
        loss = 2 * F.binary_cross_entropy_with_logits(masks, torch.from_numpy(renders.masks[rows]).float())
        for logits, truth in zip(words, renders.words[rows].T, strict=True):
            loss = loss + 0.3 * F.cross_entropy(logits, torch.from_numpy(np.array(truth)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@dataclass(frozen=True)
class Verdict:
    """What a judge says of images whose truth is known."""

    mask_iou: float
    """Mean overlap of found and wanted masks."""
    word_accuracy: tuple[float, float, float]
    """Surface, wall, light."""
    scene_accuracy: float
    """All three words right."""
    ious: list[float]
    scenes_right: list[bool]


@torch.no_grad()
def judge_images(judge: Judge, images_u8: np.ndarray, masks: np.ndarray, words: np.ndarray) -> Verdict:
    """images_u8: n×H×W×3; masks: bool n×H×W; words: int n×3."""
    found, guesses = [], []
    for start in range(0, len(images_u8), 16):
        logits, heads = judge(pixels(images_u8[start : start + 16]))
        found.append((logits > 0).numpy())
        guesses.append(np.stack([head.argmax(1).numpy() for head in heads], axis=1))
    seen, guessed = np.concatenate(found), np.concatenate(guesses)
    ious = (seen & masks).sum((1, 2)) / (seen | masks).sum((1, 2))
    right = guessed == words
    return Verdict(
        float(ious.mean()),
        tuple(right.mean(0).tolist()),  # type: ignore[arg-type]
        float(right.all(1).mean()),
        ious.tolist(),
        right.all(1).tolist(),
    )
