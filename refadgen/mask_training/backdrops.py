"""What is behind and under a product: plain tones, gradients, shadows, reflections, textured surroundings.

`size` is always height and width in pixels, `coverage` a product's true mask (float32 HW, 0 to 1).
"""

from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from refadgen.mask_training.pen import Color, Cutout, Floats, random_color

if TYPE_CHECKING:
    from refadgen.mask_training.bank import Bank

Shadow = Literal["contact", "drop", "cast"]
"""A dark ellipse at the product's foot, its own shape behind it, or its shape laid flat onto the ground."""


def tone(rng: np.random.Generator, kind: Literal["white", "coloured"]) -> Color:
    """The colour of a plain backdrop: half of the white ones are exactly 255."""
    if kind == "white":
        level = 255.0 if rng.random() < 0.5 else rng.uniform(228, 255)
        return np.clip(level + rng.normal(0, 1.0 if level < 255 else 0, 3), 0, 255).astype(np.float32)
    if rng.random() < 0.2:
        return np.asarray(rng.uniform(0, 60) + rng.uniform(0, 6, 3), np.float32)
    if rng.random() < 0.3:
        return np.asarray(rng.uniform(90, 235) + rng.normal(0, 3, 3), np.float32).clip(0, 255)
    return random_color(rng)


def apart(rng: np.random.Generator, color: Color, cutout: Cutout) -> Color:
    """`color`, or another one where an eighth of the product or more would vanish in front of it.

    The sixth other one is taken unseen: some products have every colour.
    """
    inside = cutout.rgb[cutout.coverage > 0.9]
    if not len(inside):
        return color
    for _ in range(6):
        near = np.abs(inside[:: max(1, len(inside) // 400)] - color).max(axis=1) < 22
        if near.mean() < 0.12:
            return color
        color = tone(rng, "coloured")
    return color


def plain(rng: np.random.Generator, color: Color, size: tuple[int, int], *, graded: bool) -> Floats:
    """A plain backdrop, float32 HW3, 0 to 255: flat, or graded as by studio light."""
    height, width = size
    full = np.broadcast_to(color, (height, width, 3)).astype(np.float32).copy()
    if not graded:
        return full
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(size)
    angle, amount = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.3)
    ramp = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    if rng.random() < 0.5:
        ramp = -2 * ((x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2)
    tint = 1 + amount * ramp[..., None] * rng.uniform(0.6, 1.2, 3)
    if rng.random() < 0.3:  # a soft horizon
        line = rng.uniform(0.5, 0.85) * height / max(size)
        tint = tint - rng.uniform(0, 0.12) / (1 + np.exp(-(y - line) / rng.uniform(0.01, 0.06)))[..., None]
    return np.asarray(np.clip(full * tint, 0, 255), np.float32)


def shadow(rng: np.random.Generator, coverage: Floats, kind: Shadow) -> Floats:
    """How much a product's shadow darkens each pixel, float32 HW, 0 to 1: also under the product itself."""
    height, width = coverage.shape
    x, y, w, h = cv2.boundingRect((coverage > 0.3).astype(np.uint8))
    strength = float(rng.uniform(0.08, 0.6))
    if kind == "contact":
        dark = np.zeros((height, width), np.float32)
        foot = y + h - 0.01 * h
        center = (int(16 * (x + w * rng.uniform(0.4, 0.6))), int(16 * foot))
        axes = (int(8 * w * rng.uniform(0.75, 1.25)), max(16, int(16 * h * rng.uniform(0.015, 0.09))))
        cv2.ellipse(dark, center, axes, 0, 0, 360, 1.0, -1, cv2.LINE_AA, 4)
        sigma = max(0.6, axes[1] / 16 * rng.uniform(0.3, 1.0))
    elif kind == "drop":
        shift = rng.uniform(-0.07, 0.07), rng.uniform(0.0, 0.09)
        move = np.array([[1, 0, shift[0] * w], [0, 1, shift[1] * h]], np.float32)
        dark = np.asarray(cv2.warpAffine(coverage, move, (width, height)), np.float32)
        sigma = max(0.6, rng.uniform(0.004, 0.05) * max(w, h))
    else:
        foot, flat, lean = y + h, rng.uniform(0.15, 0.6) * rng.choice([-1, 1], p=[0.3, 0.7]), rng.normal(0, 0.7)
        move = np.array([[1, -lean, lean * foot], [0, flat, foot * (1 - flat)]], np.float32)
        dark = np.asarray(cv2.warpAffine(coverage, move, (width, height)), np.float32)
        sigma = max(0.6, rng.uniform(0.003, 0.03) * max(w, h))
    soft = cv2.GaussianBlur(dark, (0, 0), min(sigma, 60))
    return np.asarray(soft * strength, np.float32)


def mirrored(rng: np.random.Generator, placed: Cutout, strength: float) -> Cutout:
    """The product's reflection in a glossy floor. It fades downwards; the product hides it.

    placed: the product where it stands in the picture. strength: 0 to 1, the reflection's opacity at the foot.
    """
    height, width = placed.coverage.shape
    _, y, _, h = cv2.boundingRect((placed.coverage > 0.3).astype(np.uint8))
    foot = y + h - 1
    turn = np.array([[1, 0, 0], [0, -1, 2 * foot]], np.float32)
    rgb = np.asarray(cv2.warpAffine(placed.rgb, turn, (width, height)), np.float32)
    opacity = cv2.warpAffine(placed.opacity, turn, (width, height))
    depth = (np.arange(height, dtype=np.float32) - foot) / max(1.0, h * rng.uniform(0.2, 1.0))
    fade = np.where(depth >= 0, np.clip(1 - depth, 0, 1), 0) * strength
    faded = np.asarray(opacity * fade[:, None] * (1 - placed.coverage), np.float32)
    return Cutout(rgb, faded, faded)


def surrounding(rng: np.random.Generator, size: tuple[int, int], bank: "Bank | None") -> Floats:
    """What a photograph in a room or outdoors shows behind a product, float32 HW3, 0 to 255.

    bank: its panoramas are used at times; None: textures only.
    """
    if bank is not None and rng.random() < 0.45:
        view = bank.view(rng, size)
        if view is not None:
            return view
    wall = _texture(rng, size)
    if rng.random() < 0.7:
        floor, line = _texture(rng, size), round(size[0] * rng.uniform(0.35, 0.8))
        wall[line:] = floor[line:]
        if rng.random() < 0.5:
            wall[max(0, line - 3) : line + 1] *= rng.uniform(0.5, 0.9)
    return wall


def light(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Uneven light over a picture, float32 HW, factors around 1."""
    spots = rng.uniform(0.75, 1.2, (3, 3)).astype(np.float32)
    return np.asarray(cv2.resize(spots, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Two colours mixed by noise of several scales: clouds, boards, tiles or patches. float32 HW3, 0 to 255."""
    height, width = size
    base, other = random_color(rng), random_color(rng)
    other = base + (other - base) * rng.uniform(0.1, 0.9)
    mix = np.zeros(size, np.float32)
    for octave in range(rng.integers(2, 6)):
        cells = 2 ** (octave + rng.integers(1, 4))
        stretched = (max(2, int(cells * rng.choice([0.15, 1, 1]))), max(2, int(cells)))
        coarse = rng.normal(0, 1, stretched).astype(np.float32)
        cloud = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
        mix += cloud / (1 + 0.6 * octave)
    kind = rng.integers(4)
    if kind == 1:  # boards or tiles
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(size)
        turn, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.3)
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        joints = (u / period) % 1 < 0.04
        if rng.random() < 0.5:
            joints |= (v / period) % 1 < 0.04
        mix = mix * 0.5 + np.sin(37 * np.floor(u / period)) - 2.5 * joints
    elif kind == 2:
        mix = np.where(mix > 0, 1.0, -1.0).astype(np.float32)
    share = 1 / (1 + np.exp(-mix))
    return np.clip(base + (other - base) * share[..., None], 0, 255).astype(np.float32)
