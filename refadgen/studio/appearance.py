"""The appearance of a product: colours, print and finish, independent of its shape.

The print is drawn for the shape's label aspect when a product is rendered, so any appearance fits any shape. Evaluation
relies on it: it dresses one silhouette in the appearance of another product.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refadgen.studio.colors import Color, rgb_of

PATTERNS = ("plain", "bars", "hoops", "diagonal", "dots", "checks", "halves", "band", "zigzag", "rays", "panel")
LOGOS = ("none", "disc", "ring", "star", "triangle", "diamond", "cross", "heart", "letters")


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Colours, print and finish of one product."""

    body: Color
    print_color: Color
    logo_color: Color
    accent: Color
    pattern: str
    """One of PATTERNS: the print that covers the body."""
    count: int
    """How often the pattern repeats along the label's shorter side."""
    logo: str
    """One of LOGOS: the big glyph in the middle of the front."""
    letters: str
    logo_size: float
    """Height of the logo as a share of the label."""
    logo_height: float
    """Height of the logo's centre on the label, 0 bottom … 1 top."""
    roughness: float
    """0.2 glossy … 0.8 matt."""
    metallic: bool


def _random_color(rng: np.random.Generator) -> Color:
    kind = rng.choice(["vivid", "deep", "pastel", "neutral"], p=[0.45, 0.2, 0.15, 0.2])
    hue = rng.random()
    saturation, value = {
        "vivid": (rng.uniform(0.7, 0.98), rng.uniform(0.7, 0.95)),
        "deep": (rng.uniform(0.6, 0.95), rng.uniform(0.25, 0.5)),
        "pastel": (rng.uniform(0.2, 0.4), rng.uniform(0.85, 0.95)),
        "neutral": (rng.uniform(0, 0.12), rng.choice([0.1, 0.4, 0.65, 0.93])),
    }[str(kind)]
    return rgb_of(hue, saturation, value)


def _distance(a: Color, b: Color) -> float:
    """Rough perceived difference of two colours, 0 (same) to about 765 (black and white)."""
    weights = np.array([2.0, 4.0, 3.0])  # the eye is most sensitive to green
    return float(np.sqrt((weights * (np.subtract(a, b, dtype=np.float64)) ** 2).sum()))


def _contrasting(rng: np.random.Generator, *others: Color, least: float = 260.0) -> Color:
    """A random colour at a distance of `least` or more from all `others`; if there is none, the farthest of 24."""
    candidates = [_random_color(rng) for _ in range(24)]
    scores = [min(_distance(c, other) for other in others) for c in candidates]
    for candidate, score in zip(candidates, scores, strict=True):
        if score >= least:
            return candidate
    return candidates[int(np.argmax(scores))]


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """A random appearance with readable contrast between body, print and logo."""
    body = _random_color(rng)
    print_color = _contrasting(rng, body)
    pattern = str(rng.choice(PATTERNS))
    logo = str(rng.choice(LOGOS[1:] if pattern in ("plain", "panel") else LOGOS))
    # The logo lies over the print, the body, or both, depending on the pattern.
    over = (print_color,) if pattern in ("band", "panel") else (body,) if pattern == "plain" else (body, print_color)
    letters = "".join(rng.choice(list("ABCDEFGHJKLMNPRSTUVXYZ2345689"), size=int(rng.integers(1, 3))))
    return Appearance(
        body=body,
        print_color=print_color,
        logo_color=_contrasting(rng, *over),
        accent=_contrasting(rng, body, least=160.0) if rng.random() < 0.85 else body,
        pattern=pattern,
        count=int(rng.integers(2, 6)),
        logo=logo,
        letters=letters,
        logo_size=float(rng.uniform(0.42, 0.62)),
        logo_height=float(rng.uniform(0.42, 0.58)),
        roughness=float(rng.uniform(0.25, 0.75)),
        metallic=bool(rng.random() < 0.12),
    )


def _draw_pattern(draw: ImageDraw.ImageDraw, look: Appearance, width: int, height: int) -> None:
    step = min(width, height) / look.count
    color = look.print_color
    columns, rows = max(1, round(width / step)), max(1, round(height / step))
    dx, dy = width / columns, height / rows
    if look.pattern == "bars":
        for i in range(columns):
            draw.rectangle([i * dx, 0, (i + 0.5) * dx, height], fill=color)
    elif look.pattern == "hoops":
        for i in range(rows):
            draw.rectangle([0, i * dy, width, (i + 0.5) * dy], fill=color)
    elif look.pattern == "diagonal":
        for i in range(-rows - columns, columns + rows):
            x = i * dx
            draw.polygon([(x, 0), (x + dx / 2, 0), (x + dx / 2 + height, height), (x + height, height)], fill=color)
    elif look.pattern == "dots":
        for i in range(columns):
            for j in range(rows):
                x, y = (i + 0.5) * dx, (j + 0.5) * dy
                r = 0.32 * step
                draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    elif look.pattern == "checks":
        columns, dx = 2 * columns, dx / 2
        for i in range(columns):
            for j in range(2 * rows):
                if (i + j) % 2:
                    draw.rectangle([i * dx, j * dy / 2, (i + 1) * dx, (j + 1) * dy / 2], fill=color)
    elif look.pattern == "halves":
        box = [0, height / 2, width, height] if look.count % 2 else [width / 2, 0, width, height]
        draw.rectangle(box, fill=color)
    elif look.pattern == "band":
        middle, half = height * (1 - look.logo_height), height * (look.logo_size / 2 + 0.06)
        draw.rectangle([0, middle - half, width, middle + half], fill=color)
    elif look.pattern == "zigzag":
        for j in range(rows):
            top = [(i * dx / 2, j * dy + (dy / 2 if i % 2 else 0)) for i in range(2 * columns + 1)]
            draw.polygon(top + [(x, y + dy / 2) for x, y in reversed(top)], fill=color)
    elif look.pattern == "rays":
        reach, wedge = width + height, np.pi / (2 * look.count)
        for i in range(2 * look.count):
            a, b = 2 * i * wedge, (2 * i + 1) * wedge
            corners = [(width / 2 + reach * np.cos(t), height / 2 + reach * np.sin(t)) for t in (a, b)]
            draw.polygon([(width / 2, height / 2), *corners], fill=color)
    elif look.pattern == "panel":
        middle, half = height * (1 - look.logo_height), height * (look.logo_size / 2 + 0.08)
        wide = min(0.42 * width, 1.1 * half)
        draw.rectangle([width / 2 - wide, middle - half, width / 2 + wide, middle + half], fill=color)


def _draw_logo(draw: ImageDraw.ImageDraw, look: Appearance, width: int, height: int) -> None:
    r = min(look.logo_size * height, 0.5 * width) / 2
    x, y, color = width / 2, height * (1 - look.logo_height), look.logo_color
    if look.logo == "disc":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    elif look.logo == "ring":
        draw.ellipse([x - r, y - r, x + r, y + r], outline=color, width=max(2, round(0.42 * r)))
    elif look.logo == "star":
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 0.45, 1.1) * r
        draw.polygon([(x + q * np.cos(t), y + q * np.sin(t)) for q, t in zip(radii, turns, strict=True)], fill=color)
    elif look.logo == "triangle":
        draw.polygon([(x, y - r), (x + 1.1 * r, y + r), (x - 1.1 * r, y + r)], fill=color)
    elif look.logo == "diamond":
        draw.polygon([(x, y - 1.2 * r), (x + 0.9 * r, y), (x, y + 1.2 * r), (x - 0.9 * r, y)], fill=color)
    elif look.logo == "cross":
        draw.rectangle([x - r, y - 0.34 * r, x + r, y + 0.34 * r], fill=color)
        draw.rectangle([x - 0.34 * r, y - r, x + 0.34 * r, y + r], fill=color)
    elif look.logo == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        across, up = np.sin(t) ** 3, (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        draw.polygon(list(zip(x + 1.1 * r * across, y - 1.1 * r * up, strict=True)), fill=color)
    elif look.logo == "letters":
        size = 2.3 * r if len(look.letters) == 1 else 1.9 * r
        # Pillow's own font: the same glyphs on every machine. A stroke makes them bold.
        font = ImageFont.load_default(size=size)
        draw.text((x, y), look.letters, font=font, fill=color, anchor="mm", stroke_width=0.05 * size, stroke_fill=color)


def draw_label(look: Appearance, aspect: float, *, height_px: int = 192) -> np.ndarray:
    """The print of an appearance, uint8 [height_px, W, 3]. aspect: width over height of the label. It repeats in x."""
    # Drawn twice as large and reduced, since Pillow does not smooth edges.
    height, width = 2 * height_px, max(32, round(2 * height_px * aspect))
    image = Image.new("RGB", (width, height), look.body)
    draw = ImageDraw.Draw(image)
    _draw_pattern(draw, look, width, height)
    _draw_logo(draw, look, width, height)
    return np.asarray(image.resize((max(16, width // 2), height_px), Image.Resampling.BOX))
