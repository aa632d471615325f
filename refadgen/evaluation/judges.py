"""Small networks that judge generated ads, trained on true renders: where is the product, and what is the scene?

Two of them, since they need different things: the mask every pixel, the scene many steps, which half the size allows.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refadgen.evaluation.held_out import SIZE
from refadgen.studio.appearance import sample_appearance
from refadgen.studio.camera import silhouette
from refadgen.studio.dressing import dress_ads
from refadgen.studio.render import sample_product, sample_view
from refadgen.studio.scenes import LIGHTS, SURFACES, WALLS, Scene, sample_scene

SEED_OFFSET = 3_000_000
WORDS = (SURFACES, WALLS, LIGHTS)
_COARSE = 2
"""Times that the scene is judged at less than the ads' size."""


@dataclass(frozen=True)
class Renders:
    """True renders with their truth."""

    images: np.ndarray
    """uint8 n×H×W×3."""
    masks: np.ndarray
    """bool n×H×W."""
    words: np.ndarray
    """int n×3: surface, wall, light."""

    def split(self, own: int) -> tuple["Renders", "Renders"]:
        """The first `own` ones, to be judged; and those to learn from."""
        first, rest = slice(own), slice(own, None)
        return tuple(Renders(self.images[part], self.masks[part], self.words[part]) for part in (first, rest))  # type: ignore[return-value]


def true_renders(pool: Executor, num_seeds: int, dressings: int) -> Renders:
    """Renders of shapes, views and lights that nothing else uses, in any pair of surface and wall.

    Pairs kept from the models are among them: the judge is to know what is there, not to be surprised by it.
    """
    seeds = range(SEED_OFFSET, SEED_OFFSET + num_seeds)
    found = list(pool.map(partial(_dressed, dressings=dressings), seeds))
    images, masks, words = (np.concatenate([each[part] for each in found]) for part in range(3))
    return Renders(images, masks, words)


def _dressed(seed: int, dressings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    product, view, first = sample_product(seed), sample_view(seed), sample_scene(seed, held_out=None)
    rng = np.random.default_rng(seed)
    scenes = [_other_backdrop(first, rng) for _ in range(dressings)]
    looks = [sample_appearance(rng) for _ in scenes]
    images = dress_ads(product, view, scenes, looks, **SIZE)
    mask = silhouette(product.shape, view, width_px=SIZE["width_px"], height_px=SIZE["height_px"]) > 127
    return np.stack(list(images)), np.stack([mask] * dressings), np.array([word_numbers(scene) for scene in scenes])


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


class Segmenter(nn.Module):
    """A small U-Net that finds the product: mask logits n×H×W."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in itertools.pairwise((3, 24, 48, 96, 128)))
        self.up = nn.ModuleList(_block(a + skip, b) for a, skip, b in [(128, 96, 64), (64, 48, 48), (48, 24, 24)])
        self.mask = nn.Sequential(_block(24 + 3, 16), nn.Conv2d(16, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        skips = [images]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips[-1]
        for block, skip in zip(self.up, skips[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        return self.mask(torch.cat([F.interpolate(x, scale_factor=2), images], dim=1))[:, 0]


class SceneClassifier(nn.Module):
    """Logits of surface, wall and light; looks at half the size of the ads it is given.

    The surface lies below, the wall behind: its heads see a coarse map, not a mean over everything.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.features = nn.Sequential(*(_block(a, b, stride=2) for a, b in itertools.pairwise(widths)))
        places = SIZE["width_px"] * SIZE["height_px"] // (16 * _COARSE) ** 2
        self.coarse = nn.Sequential(nn.Conv2d(128, 48, 1), nn.Flatten(), nn.SiLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleList(nn.Linear(48 * places + 128, len(kinds)) for kinds in WORDS)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.features(F.avg_pool2d(images, _COARSE))
        seen = torch.cat([self.coarse(x), x.amax((2, 3))], dim=1)
        return [head(seen) for head in self.heads]


def _block(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(4, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(4, after),
        nn.SiLU(),
    )


def _train(
    network: nn.Module, renders: Renders, batch: int, num_steps: int, loss_of: Callable[[Any, np.ndarray], Tensor]
) -> None:
    """Colours are jittered, noise is added, and some pictures blurred, as a model's are."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(len(renders.images), size=batch)
        images = pixels(renders.images[rows])
        images = images * torch.from_numpy(rng.uniform(0.93, 1.07, (batch, 3, 1, 1))).float()
        if rng.random() < 0.4:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images + float(rng.uniform(0, 0.05)) * torch.randn(images.shape)
        loss = loss_of(network(images), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@dataclass(frozen=True)
class Judge:
    """Both networks, and what each finds in renders of its own kind that it has not learned from."""

    segmenter: Segmenter
    classifier: SceneClassifier
    own_iou: float
    own_scene_accuracy: float
    speed: int


def judge_at(file: Path | None, pool: Executor, *, speed: int) -> Judge:
    """The judge that lies in a file; one that is not there is trained, and kept there. Raises: ValueError."""
    if file is not None and file.exists():
        judge: Judge = torch.load(file, weights_only=False)
        if judge.speed != speed:
            raise ValueError(f"--judge {file}: was trained with --judge-speed {judge.speed}, not {speed}")
        return judge
    judge = train_judge(pool, speed=speed)
    if file is not None:
        torch.save(judge, file)
    return judge


def train_judge(pool: Executor, *, speed: int) -> Judge:
    """Renders and learns; `speed` times fewer renders and steps than are good."""
    torch.manual_seed(0)
    segmenter, classifier = Segmenter(), SceneClassifier()
    seeds, dressings = 480 // speed, 24
    own, learned = true_renders(pool, seeds, dressings).split(seeds // 10 * dressings)  # shapes are in one of both

    def mask_loss(found: Tensor, rows: np.ndarray) -> Tensor:
        return F.binary_cross_entropy_with_logits(found, torch.from_numpy(learned.masks[rows]).float())

    def scene_loss(found: list[Tensor], rows: np.ndarray) -> Tensor:
        words = torch.from_numpy(learned.words[rows])
        return torch.stack([F.cross_entropy(each, words[:, place]) for place, each in enumerate(found)]).sum()

    _train(segmenter, learned, 12, 1000 // speed, mask_loss)
    _train(classifier, learned, 32, 2000 // speed, scene_loss)
    own_iou = float(_overlaps(_found(segmenter, own.images), own.masks).mean())
    right = _guesses(classifier, own.images) == own.words
    return Judge(segmenter, classifier, own_iou, float(right.all(1).mean()), speed)


@torch.no_grad()
def _found(segmenter: Segmenter, images_u8: np.ndarray) -> np.ndarray:
    """Masks, bool n×H×W."""
    parts = [images_u8[start : start + 16] for start in range(0, len(images_u8), 16)]
    return np.concatenate([(segmenter(pixels(part)) > 0).numpy() for part in parts])


@torch.no_grad()
def _guesses(classifier: SceneClassifier, images_u8: np.ndarray) -> np.ndarray:
    """Words, int n×3."""
    return torch.stack([head.argmax(1) for head in classifier(pixels(images_u8))], dim=1).numpy()


def _overlaps(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))


@dataclass(frozen=True)
class Verdict:
    """What a judge says of images whose truth is known."""

    ious: np.ndarray
    """Overlap of found and wanted masks, n."""
    words_right: np.ndarray
    """bool n×3: surface, wall, light."""

    @property
    def scenes_right(self) -> np.ndarray:
        """All three words, bool n."""
        return self.words_right.all(1)


def judge_images(judge: Judge, images_u8: np.ndarray, masks: np.ndarray, words: np.ndarray) -> Verdict:
    """images_u8: n×H×W×3; masks: bool n×H×W; words: int n×3."""
    guesses = _guesses(judge.classifier, images_u8)
    return Verdict(_overlaps(_found(judge.segmenter, images_u8), masks), guesses == words)
