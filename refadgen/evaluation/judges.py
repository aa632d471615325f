"""Small networks that judge generated ads: where is the product, and what is the scene? Trained on true renders.

`judge_at` loads a trained judge or trains one (minutes on two cores); `judge_images` gives its verdict on ads whose
truth is known. The two questions have a network each: a mask needs every pixel, the words of a scene need many training
steps, which half the size makes affordable. A judge errs as well, so `Judge` carries its own scores on true renders.
"""

import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
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
"""First seed of the training renders; far from the seeds of models and of `held_out`."""
WORDS = (SURFACES, WALLS, LIGHTS)
"""The words of a scene, by position in a row of `words`."""
_COARSE = 2
"""The scene is judged at one half of the ads' size."""

_Masks: TypeAlias = npt.NDArray[np.bool_]
_Words: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Renders:
    """True renders with their truth."""

    images: npt.NDArray[np.uint8]
    """n×H×W×3."""
    masks: _Masks
    """n×H×W."""
    words: _Words
    """n×3: surface, wall and light as indices into WORDS."""

    def split(self, num_own: int) -> tuple["Renders", "Renders"]:
        """The first `num_own` renders, which test the judge; and the rest, which train it."""
        own, learned = slice(num_own), slice(num_own, None)
        return self._part(own), self._part(learned)

    def _part(self, part: slice) -> "Renders":
        return Renders(self.images[part], self.masks[part], self.words[part])


def true_renders(pool: Executor, num_seeds: int, dressings: int) -> Renders:
    """`num_seeds` × `dressings` renders of shapes, views and lights that nothing else uses."""
    seeds = range(SEED_OFFSET, SEED_OFFSET + num_seeds)
    found = list(pool.map(partial(_dressed, dressings=dressings), seeds))
    images, masks, words = (np.concatenate([each[part] for each in found]) for part in range(3))
    return Renders(images, masks, words)


def _dressed(seed: int, dressings: int) -> tuple[npt.NDArray[np.uint8], _Masks, _Words]:
    # Held-out pairs of surface and wall are included: they are held out from models, the judge must know them.
    product, view, first = sample_product(seed), sample_view(seed), sample_scene(seed, held_out=None)
    rng = np.random.default_rng(seed)
    scenes = [_other_backdrop(first, rng) for _ in range(dressings)]
    looks = [sample_appearance(rng) for _ in scenes]
    images = dress_ads(product, view, scenes, looks, **SIZE)
    mask = silhouette(product.shape, view, width_px=SIZE["width_px"], height_px=SIZE["height_px"]) > 127
    return np.stack(list(images)), np.stack([mask] * dressings), np.array([word_numbers(scene) for scene in scenes])


def _other_backdrop(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another surface and wall in the same light; an open sky stays one, since it is part of the light."""
    walls = [wall for wall in WALLS if (wall == "open sky") == (scene.wall == "open sky")]
    texture_seed = int(rng.integers(2**31))
    return replace(scene, surface=str(rng.choice(SURFACES)), wall=str(rng.choice(walls)), texture_seed=texture_seed)


def word_numbers(scene: Scene) -> list[int]:
    """Surface, wall and light as indices into WORDS."""
    return [SURFACES.index(scene.surface), WALLS.index(scene.wall), LIGHTS.index(scene.light)]


def pixels(images_u8: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 n×H×W×3 → float32 n×3×H×W in −1 … 1."""
    return torch.from_numpy(images_u8).permute(0, 3, 1, 2).float() / 127.5 - 1


class Segmenter(nn.Module):
    """A small U-Net that finds the product: images n×3×H×W in −1 … 1 → mask logits n×H×W."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in itertools.pairwise((3, 24, 48, 96, 128)))
        # Each step up also sees the features of its size on the way down, the last one the image itself.
        self.up = nn.ModuleList(_block(a + skip, b) for a, skip, b in [(128, 96, 64), (64, 48, 48), (48, 24, 24)])
        self.mask = nn.Sequential(_block(24 + 3, 16), nn.Conv2d(16, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        skips = [images]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips[-1]
        for block, skip in zip(self.up, skips[-2:0:-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        logits: Tensor = self.mask(torch.cat([F.interpolate(x, scale_factor=2), images], dim=1))
        return logits[:, 0]


class SceneClassifier(nn.Module):
    """Names the scene: images n×3×H×W in −1 … 1, of the size `held_out.SIZE` → logits of surface, wall and light."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.features = nn.Sequential(*(_block(a, b, stride=2) for a, b in itertools.pairwise(widths)))
        # The surface lies below and the wall behind: the heads see a coarse map, not a mean over the image.
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
    network: nn.Module, renders: Renders, batch: int, num_steps: int, loss_of: Callable[[Any, _Words], Tensor]
) -> None:
    """Trains in place and leaves the network in evaluation mode. loss_of: of the network's output and row numbers."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(len(renders.images), size=batch)
        images = pixels(renders.images[rows])
        # Generated ads are off in colour, soft and noisy, renders are not: the networks must not rely on that.
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
    """Both networks with their scores on renders that they have not learned from."""

    segmenter: Segmenter
    classifier: SceneClassifier
    own_iou: float
    """Mean overlap of found and true masks, 0 … 1."""
    own_scene_accuracy: float
    """Share of scenes whose three words are right, 0 … 1."""
    speed: int
    """As in `train_judge`."""


def judge_at(file: Path | None, pool: Executor, *, speed: int) -> Judge:
    """The judge in `file`. Where there is none, trains one and saves it there; None: trains one and does not save.

    Raises: ValueError where the file is not a judge or was trained at another speed.
    """
    if file is not None and file.exists():
        return _load(file, speed)
    judge = train_judge(pool, speed=speed)
    if file is not None:
        _save(judge, file)
    return judge


def _save(judge: Judge, file: Path) -> None:
    scores = {"own_iou": judge.own_iou, "own_scene_accuracy": judge.own_scene_accuracy, "speed": judge.speed}
    networks = {"segmenter": judge.segmenter.state_dict(), "classifier": judge.classifier.state_dict()}
    torch.save(networks | scores, file)


def _load(file: Path, speed: int) -> Judge:
    segmenter, classifier = Segmenter(), SceneClassifier()
    try:
        content = torch.load(file, weights_only=True)  # a pickle of objects could run code
        segmenter.load_state_dict(content["segmenter"])
        classifier.load_state_dict(content["classifier"])
        judge = Judge(
            segmenter.eval(),
            classifier.eval(),
            float(content["own_iou"]),
            float(content["own_scene_accuracy"]),
            int(content["speed"]),
        )
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"--judge {file}: not a judge of this version: {error}; delete it to train another") from error
    if judge.speed != speed:
        raise ValueError(f"--judge {file}: was trained with --judge-speed {judge.speed}, not {speed}")
    return judge


def train_judge(pool: Executor, *, speed: int) -> Judge:
    """Renders in the pool's processes and trains. speed: divides renders and steps; 1 is for real, more for trials."""
    torch.manual_seed(0)  # the same judge again, on the same machine
    segmenter, classifier = Segmenter(), SceneClassifier()
    seeds, dressings = 480 // speed, 24
    # Cut between seeds, so that no shape is in both parts.
    own, learned = true_renders(pool, seeds, dressings).split(seeds // 10 * dressings)

    def mask_loss(found: Tensor, rows: _Words) -> Tensor:
        return F.binary_cross_entropy_with_logits(found, torch.from_numpy(learned.masks[rows]).float())

    def scene_loss(found: list[Tensor], rows: _Words) -> Tensor:
        words = torch.from_numpy(learned.words[rows])
        return torch.stack([F.cross_entropy(each, words[:, place]) for place, each in enumerate(found)]).sum()

    _train(segmenter, learned, 12, 1000 // speed, mask_loss)
    _train(classifier, learned, 32, 2000 // speed, scene_loss)
    own_iou = float(_overlaps(_found(segmenter, own.images), own.masks).mean())
    right = _guesses(classifier, own.images) == own.words
    return Judge(segmenter, classifier, own_iou, float(right.all(1).mean()), speed)


def _found(segmenter: Segmenter, images_u8: npt.NDArray[np.uint8]) -> _Masks:
    """Masks n×H×W."""
    parts = [images_u8[start : start + 16] for start in range(0, len(images_u8), 16)]  # a bound on memory
    with torch.no_grad():
        return np.concatenate([(segmenter(pixels(part)) > 0).numpy() for part in parts])


def _guesses(classifier: SceneClassifier, images_u8: npt.NDArray[np.uint8]) -> _Words:
    """Words n×3."""
    with torch.no_grad():
        guesses = torch.stack([head.argmax(1) for head in classifier(pixels(images_u8))], dim=1)
    return np.asarray(guesses.numpy(), np.int64)


def _overlaps(found: _Masks, masks: _Masks) -> npt.NDArray[np.float64]:
    """Intersection over union, n."""
    shared, either = (found & masks).sum((1, 2)), (found | masks).sum((1, 2))
    return np.asarray(shared / either, np.float64)


@dataclass(frozen=True)
class Verdict:
    """A judge's findings in n images whose truth is known."""

    ious: npt.NDArray[np.float64]
    """Intersection over union of found and true masks, n, 0 … 1."""
    words_right: npt.NDArray[np.bool_]
    """n×3: whether surface, wall and light were recognised."""

    @property
    def scenes_right(self) -> npt.NDArray[np.bool_]:
        """Whether all three words were recognised, n."""
        return np.asarray(self.words_right.all(1), np.bool_)


def judge_images(judge: Judge, images_u8: npt.NDArray[np.uint8], masks: _Masks, words: _Words) -> Verdict:
    """The verdict on generated ads.

    images_u8: n×H×W×3, of the size `held_out.SIZE`. masks: the true masks, bool n×H×W. words: the true words, int n×3,
    as `word_numbers` gives them.
    """
    guesses = _guesses(judge.classifier, images_u8)
    return Verdict(_overlaps(_found(judge.segmenter, images_u8), masks), guesses == words)
