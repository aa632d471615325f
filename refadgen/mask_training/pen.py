"""A pen that draws products with a known mask: polygons and strokes with colours, patterns and shading."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Points = Sequence[Sequence[float]] | npt.NDArray[np.floating]
Color = npt.NDArray[np.float32]
"""float32 [3], RGB, 0 to 255."""
Role = Literal["body", "accent", "pale", "dark", "face"]
"""Names the colour of a part. `pale` and `face` are close to the backdrop's colour in the scenes that ask for it."""


@dataclass(frozen=True)
class Cutout:
    """A product without a backdrop.

    rgb: float32 HW3, 0 to 255, beyond it in gleams and noise. opacity: float32 HW, 0 to 1, how much of the backdrop it
    hides. coverage: float32 HW, 0 to 1, the true mask: 1 on the product, also where it is translucent.
    """

    rgb: Floats
    opacity: Floats
    coverage: Floats


def random_color(rng: np.random.Generator) -> Color:
    """A product's colour: a quarter are pale, a fifth dark, the rest anything between grey and saturated."""
    kind = rng.random()
    if kind < 0.25:
        tone = np.asarray(rng.uniform(205, 255) - rng.uniform(0, 14, 3))
    elif kind < 0.45:
        tone = np.asarray(rng.uniform(5, 60) + rng.uniform(0, 25, 3))
    else:
        hue, saturation, value = rng.uniform(0, 180), 255 * rng.beta(1.5, 1.2), rng.uniform(70, 255)
        tone = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return np.clip(tone, 0, 255).astype(np.float32)


class Pen:
    """Draws one product, part over part.

    Coordinates, radii and widths are in units of half the picture's side: x and y run from -1 to 1, y downwards. A
    random homography turns and slants them. Points are sequences or arrays [N, 2] of (x, y).

    Each part has a role, which names its colour, and may have an opacity (0 to 1; the backdrop shows through the rest)
    and a random pattern. A part of a backdrop-coloured role has no pattern: it would show the part by another colour.
    """

    def __init__(self, rng: np.random.Generator, size_px: int, *, near: Color | None = None, turn: float = 1.0) -> None:
        """size_px: side of the square picture. turn: 0 draws upright, 1 turns and slants as photographs do.

        near: the backdrop's colour. `pale` and `face` parts are at most some 20 grey levels darker than it, at times
        equal to it; None: they are coloured like all others.
        """
        self.rng = rng
        self.size_px = size_px
        self.near = near
        self.colors: dict[Role, Color] = {
            role: self._color(role) for role in ("body", "accent", "pale", "dark", "face")
        }
        self._rgb = np.zeros((size_px, size_px, 3), np.float32)
        self._opacity = np.zeros((size_px, size_px), np.float32)
        self._coverage = np.zeros((size_px, size_px), np.float32)
        self._map = self._homography(turn)
        # Of the whole product: how much a round side darkens (0 to 1), and the noise in grey levels.
        self._shade = float(rng.uniform(0.0, 0.45)) if rng.random() < 0.85 else 0.0
        self._grain = float(rng.uniform(0, 5)) if rng.random() < 0.3 else 0.0

    def cutout(self) -> Cutout:
        """What was drawn. Its arrays are the pen's own, so drawing on changes them."""
        return Cutout(self._rgb, self._opacity, self._coverage)

    def chance(self, share: float) -> bool:
        """True with the probability `share`."""
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        """A random number, uniform between the two."""
        return float(self.rng.uniform(low, high))

    def polygon(self, points: Points, role: Role = "body", *, opacity: float = 1.0, pattern: bool = False) -> None:
        """Fills a polygon."""
        self._paint(self._filled([points]), role, opacity, pattern)

    def smooth(self, points: Points, role: Role = "body", *, opacity: float = 1.0, pattern: bool = False) -> None:
        """Fills the closed smooth curve through `points`."""
        self.polygon(curve_through(points, closed=True), role, opacity=opacity, pattern=pattern)

    def rectangle(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        role: Role = "body",
        *,
        corner: float = 0.0,
        opacity: float = 1.0,
        pattern: bool = False,
    ) -> None:
        """Fills a rectangle with corners of the radius `corner`."""
        self.polygon(rounded(left, top, right, bottom, corner), role, opacity=opacity, pattern=pattern)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        role: Role = "body",
        *,
        opacity: float = 1.0,
        pattern: bool = False,
    ) -> None:
        """Fills an ellipse around (x, y) with the radii `rx` and `ry`."""
        self.polygon(oval(x, y, rx, ry), role, opacity=opacity, pattern=pattern)

    def ring(self, outer: Points, inner: Points, role: Role = "body") -> None:
        """Fills what lies between two closed lines; the inside shows the backdrop."""
        self._paint(self._filled([outer, inner]), role, 1.0, False)

    def stroke(self, points: Points, width: float, role: Role = "body", *, closed: bool = False) -> None:
        """Draws a line through `points`, at least one pixel wide. closed: from the last point back to the first."""
        ends = self._pixels(points)
        thickness = max(1, round(width * self.size_px / 2))
        mask = np.zeros((self.size_px, self.size_px), np.uint8)
        cv2.polylines(mask, [np.round(ends * 16).astype(np.int32)], closed, 255, thickness, cv2.LINE_AA, 4)
        self._paint(mask, role, 1.0, False)

    def keep_within(self, coverage: Floats) -> None:
        """Cuts away what was drawn outside `coverage` (float32 HW, 0 to 1)."""
        self._opacity *= coverage
        self._coverage *= coverage

    def erase(self, points: Points) -> None:
        """Cuts a hole with the outline `points`, through which the backdrop shows."""
        rest = 1 - self._filled([points]).astype(np.float32) / 255
        self._opacity *= rest
        self._coverage *= rest

    def _color(self, role: Role) -> Color:
        if role == "dark":
            return np.asarray(self.rng.uniform(8, 70) + self.rng.uniform(0, 14, 3), np.float32)
        if role in ("pale", "face") and self.near is not None:
            # Between the backdrop's very colour and a step that a careful eye sees.
            step = self.rng.choice([0.0, 1.0, 2.0, 4.0, 8.0, 14.0]) * self.rng.uniform(0.5, 1.2)
            tint = self.rng.normal(0, 0.25 * step + 0.01, 3)
            return np.asarray(np.clip(self.near - step + tint, 0, 255), np.float32)
        return random_color(self.rng)

    def _homography(self, turn: float) -> Floats:
        """float32 [3, 3]: from the pen's coordinates to those of the picture, which also run from -1 to 1."""
        rng = self.rng
        angle = turn * (rng.normal(0, 0.12) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi))
        stretch = np.exp(turn * rng.normal(0, 0.18))
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = turned @ np.array([[stretch, turn * rng.normal(0, 0.08)], [0, 1 / stretch]])
        flip = -1 if rng.random() < 0.5 else 1
        full = np.eye(3)
        full[:2, :2] = linear @ np.diag([flip, 1])
        full[2, :2] = turn * rng.normal(0, 0.06, 2)
        # Scaled, so that the square's corners stay within the picture.
        corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]) @ full.T
        reach = np.abs(corners[:, :2] / corners[:, 2:]).max()
        full[:2] *= 0.97 / reach
        return full.astype(np.float32)

    def _pixels(self, points: Points) -> Floats:
        """float32 [N, 2]: where `points` lie in the picture, in pixels."""
        at = np.asarray(points, np.float32)
        mapped = np.concatenate([at, np.ones((len(at), 1), np.float32)], 1) @ self._map.T
        return np.asarray((mapped[:, :2] / mapped[:, 2:] + 1) * (self.size_px / 2), np.float32)

    def _filled(self, outlines: Sequence[Points]) -> npt.NDArray[np.uint8]:
        """uint8 HW, 0 to 255: what the outlines enclose; an outline within another is a hole."""
        mask = np.zeros((self.size_px, self.size_px), np.uint8)
        cv2.fillPoly(mask, [np.round(self._pixels(o) * 16).astype(np.int32) for o in outlines], 255, cv2.LINE_AA, 4)
        return mask

    def _paint(self, mask_u8: npt.NDArray[np.uint8], role: Role, opacity: float, pattern: bool) -> None:
        """Lays a part over what was drawn. mask_u8: uint8 HW, 0 to 255."""
        x, y, width, height = cv2.boundingRect(mask_u8)
        if width == 0:
            return
        box = (slice(y, y + height), slice(x, x + width))
        mask = mask_u8[box].astype(np.float32) / 255
        color = np.broadcast_to(self.colors[role], (height, width, 3)).astype(np.float32)
        hidden = role in ("pale", "face") and self.near is not None
        if pattern and not hidden:
            color = _patterned(self.rng, color, random_color(self.rng))
        color = color * self._shading(width, height, 0.15 if hidden else 1.0)[..., None]
        if self._grain:
            color = color + self.rng.normal(0, self._grain, (height, width, 1)).astype(np.float32)
        self._rgb[box] += mask[..., None] * (color - self._rgb[box])
        self._opacity[box] = np.maximum(self._opacity[box] * (1 - mask), mask * np.maximum(opacity, self._opacity[box]))
        self._coverage[box] = np.maximum(self._coverage[box], mask)

    def _shading(self, width: int, height: int, strength: float) -> Floats:
        """Light on a round body: darker towards one or both sides, at times with a gleam. float32 HW about 1."""
        amount, bias = strength * self._shade, self.rng.uniform(-0.6, 0.6)
        across = np.linspace(-1, 1, width, dtype=np.float32)
        down = np.linspace(-1, 1, height, dtype=np.float32)
        line = 1 - amount * np.clip(across - bias, -1.5, 1.5) ** 2 / 1.6
        shade: Floats = line[None, :] * (1 - 0.4 * amount * down)[:, None]
        if strength > 0.5 and self.rng.random() < 0.3:  # a gleam
            center, width_of = self.rng.uniform(-0.7, 0.7), self.rng.uniform(0.03, 0.2)
            shade = shade + 0.5 * np.exp(-(((across - center) / width_of) ** 2))[None, :]
        return shade.astype(np.float32)


def _patterned(rng: np.random.Generator, base: Floats, ink: Color) -> Floats:
    """`base` (HW3) with stripes, checks, dots, lines of print or cloudy stains in the colour `ink`."""
    height, width = base.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(8, min(height, width))
    angle = rng.uniform(0, np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    period, phase = rng.uniform(0.06, 0.4), rng.uniform(0, 1)
    kind = rng.integers(6)
    if kind == 0:
        on = (u / period + phase) % 1 < rng.uniform(0.2, 0.7)
    elif kind == 1:
        on = ((u / period) % 1 < 0.5) ^ ((v / period) % 1 < 0.5)
    elif kind == 2:
        on = np.hypot((u / period) % 1 - 0.5, (v / period) % 1 - 0.5) < rng.uniform(0.15, 0.42)
    elif kind == 3:
        line = y / (0.3 * period) + phase
        on = (
            (line % 1 < 0.5) & (np.sin(90 * x + 7 * np.floor(line)) > -0.3) & (np.abs(x - 0.5) < rng.uniform(0.2, 0.45))
        )
    elif kind == 4:
        coarse = rng.random((rng.integers(3, 9), rng.integers(3, 9))).astype(np.float32)
        on = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) > 0.55
    else:
        on = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)) < rng.uniform(0.1, 0.35)
    return np.where(on[..., None], ink, base).astype(np.float32)


def oval(x: float, y: float, rx: float, ry: float, count: int = 48) -> Floats:
    """An ellipse around (x, y) with the radii `rx` and `ry`, as a polygon: float32 [count, 2]."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1).astype(np.float32)


def rounded(left: float, top: float, right: float, bottom: float, corner: float) -> Floats:
    """A rectangle with corners of the radius `corner`, as a polygon: float32 [N, 2]."""
    if corner <= 0:
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    r = min(corner, (right - left) / 2, (bottom - top) / 2)
    centers = ((right - r, bottom - r), (left + r, bottom - r), (left + r, top + r), (right - r, top + r))
    t = np.linspace(0, np.pi / 2, 8)
    arcs = [
        np.stack([x + r * np.cos(t + i * np.pi / 2), y + r * np.sin(t + i * np.pi / 2)], 1)
        for i, (x, y) in enumerate(centers)
    ]
    return np.concatenate(arcs).astype(np.float32)


def curve_through(points: Points, *, closed: bool, steps: int = 10) -> Floats:
    """The Catmull-Rom curve through `points` [N, 2], as a line: float32 [about steps · N, 2]."""
    p = np.asarray(points, np.float32)
    padded = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    line = np.concatenate(pieces)
    return np.asarray(line if closed else np.concatenate([line, p[-1:]]), np.float32)


def turned_profile(heights: Sequence[float], radii: Sequence[float]) -> Floats:
    """The outline of a body of revolution, float32 [N, 2]: a smooth line through (radius, height) on both sides.

    heights: y, from the top down. radii: at each of the heights.
    """
    side = curve_through(np.stack([radii, heights], 1), closed=False)
    other = side[::-1] * np.array([-1, 1], np.float32)
    return np.concatenate([side, other]).astype(np.float32)
