"""Small networks that judge generated ads, trained on true renders: where is the product, and what is the scene?"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from held_out import SIZE
from torch import Tensor, nn

from refadgen.studio.appearance import sample_appearance
from refadgen.studio.camera import silhouette
from refadgen.studio.dressing import dress_ads
from refadgen.studio.render import sample_product, sample_view
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS, Scene, sample_scene

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


def true_renders(num_seeds: int, dressings: int = 32) -> Renders:
    """Renders of shapes, views and lights that nothing else uses, in any pair of surface and wall.

    Pairs kept from the models are among them: the judge is to know what is there, not to be surprised by it.
    """
    images, masks, words = [], [], []
    for seed in range(SEED_OFFSET, SEED_OFFSET + num_seeds):
        product, view, first = sample_product(seed), sample_view(seed), sample_scene(seed, held_out=None)
        rng = np.random.default_rng(seed)
        scenes = [_other_backdrop(first, rng) for _ in range(dressings)]
        looks = [sample_appearance(rng) for _ in scenes]
        images.append(dress_ads(product, view, scenes, looks, **SIZE))
        mask = silhouette(product.shape, view, width_px=SIZE["width_px"], height_px=SIZE["height_px"]) > 127
        masks += [mask] * dressings
        words += [word_numbers(scene) for scene in scenes]
    return Renders(np.concatenate(images), np.stack(masks), np.array(words))


def _other_backdrop(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another surface and wall in the same light; a sky stays a sky."""
    walls = [wall for wall in WALLS if (wall == "open sky") == (scene.wall == "open sky")]
    texture_seed = int(rng.integers(2**31))
    return replace(scene, surface=str(rng.choice(SURFACES)), wall=str(rng.choice(walls)), texture_seed=texture_seed)


def word_numbers(scene: Scene) -> list[int]:
    """Surface, wall and light as places in their lists."""
    return [SURFACES.index(scene.surface), WALLS.index(scene.wall), LIGHTS.index(scene.light)]


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
        # The surface lies below, the wall behind: heads see a coarse map, not a mean over everything.
        self.coarse = nn.Sequential(nn.Conv2d(128, 48, 1), nn.AdaptiveAvgPool2d((5, 4)), nn.Flatten(), nn.SiLU())
        self.words = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.2), nn.Linear(48 * 20 + 128, len(kinds))) for kinds in WORDS
        )

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mask logits n×H×W, and logits of each word."""
        skips = [images]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips[-1]
        seen = torch.cat([self.coarse(x), x.amax((2, 3))], dim=1)
        for block, skip in zip(self.up, skips[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        x = self.mask(torch.cat([F.interpolate(x, scale_factor=2), images], dim=1))
        return x[:, 0], [head(seen) for head in self.words]


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
