"""Drawn products, second part: garments, tools, furniture with gaps, lattices, rings and random compositions."""

from collections.abc import Callable

import numpy as np

from refadgen.mask_training.pen import Pen, Role, curve_through, oval


def tee(pen: Pen) -> None:
    sleeve, body = pen.between(0.15, 0.6), pen.between(0.35, 0.5)
    outline = [
        (-0.2, -0.8),
        (0.2, -0.8),
        (body, -0.7),
        (0.95, -0.7 + sleeve),
        (0.75, -0.55 + sleeve),
        (body, -0.3),
        (body, 0.9),
        (-body, 0.9),
        (-body, -0.3),
        (-0.75, -0.55 + sleeve),
        (-0.95, -0.7 + sleeve),
        (-body, -0.7),
    ]
    _garment(pen, outline, -0.7, 0.9)
    pen.ellipse(0, -0.8, 0.2, 0.08, "dark" if pen.chance(0.5) else "accent")


def hoodie(pen: Pen) -> None:
    outline = [
        (-0.25, -0.75),
        (0.25, -0.75),
        (0.5, -0.55),
        (0.9, 0.6),
        (0.65, 0.7),
        (0.45, 0.0),
        (0.48, 0.92),
        (-0.48, 0.92),
        (-0.45, 0.0),
        (-0.65, 0.7),
        (-0.9, 0.6),
        (-0.5, -0.55),
    ]
    _garment(pen, outline, -0.5, 0.9)
    pen.smooth([(-0.3, -0.7), (0, -0.98), (0.3, -0.7), (0, -0.5)], "accent" if pen.chance(0.5) else "pale")


def dress(pen: Pen) -> None:
    waist, hem = pen.between(0.18, 0.28), pen.between(0.4, 0.8)
    outline = [
        (-0.25, -0.95),
        (-0.15, -0.95),
        (0, -0.75),
        (0.15, -0.95),
        (0.25, -0.95),
        (waist, -0.2),
        (hem, 0.95),
        (-hem, 0.95),
        (-waist, -0.2),
    ]
    _garment(pen, outline, -0.7, 0.95)


def trousers(pen: Pen) -> None:
    gap, hem = pen.between(0.04, 0.2), pen.between(0.2, 0.4)
    outline = [
        (-0.42, -0.95),
        (0.42, -0.95),
        (gap + hem, 0.95),
        (gap, 0.95),
        (0, -0.25),
        (-gap, 0.95),
        (-gap - hem, 0.95),
    ]
    _garment(pen, outline, -0.9, 0.95)


def _garment(pen: Pen, outline: list[tuple[float, float]], top: float, bottom: float) -> None:
    """A piece of cloth; at times with stripes from side to side between the heights `top` and `bottom`."""
    pen.polygon(outline, pattern=pen.chance(0.5))
    if pen.chance(0.4):  # pale stripes that reach the contour
        stripe, step = pen.between(0.05, 0.14), pen.between(0.12, 0.3)
        before = pen.cutout().coverage.copy()
        for y in np.arange(top, bottom, step):
            pen.rectangle(-1, float(y), 1, float(y) + stripe, "pale")
        pen.keep_within(before)


def sneaker(pen: Pen) -> None:
    sole = pen.between(0.1, 0.25)
    upper = [(-0.9, 0.3), (-0.85, -0.35), (-0.5, -0.45), (-0.1, -0.15), (0.45, 0.05), (0.85, 0.2), (0.92, 0.35)]
    pen.polygon(curve_through([*upper, (0, 0.45)], closed=True), pattern=pen.chance(0.4))
    pen.smooth(
        [(-0.95, 0.32), (0, 0.38), (0.95, 0.3), (0.97, 0.32 + sole), (0, 0.36 + sole), (-0.93, 0.34 + sole)], "pale"
    )
    for x in np.linspace(-0.35, 0.1, pen.rng.integers(3, 6)):
        pen.stroke([(x, -0.25 + 0.4 * (x + 0.4)), (x + 0.15, -0.05 + 0.4 * (x + 0.4))], 0.04, "accent")


def boot(pen: Pen) -> None:
    shaft = pen.between(0.25, 0.4)
    pen.polygon(
        [(-0.6, -0.95), (-0.6 + 2 * shaft, -0.95), (-0.55 + 2 * shaft, 0.2), (0.8, 0.45), (0.85, 0.7), (-0.6, 0.7)],
        pattern=pen.chance(0.3),
    )
    pen.rectangle(-0.62, 0.7, 0.88, pen.between(0.78, 0.95), "pale", corner=0.03)
    if pen.chance(0.5):
        pen.rectangle(-0.62, -0.97, -0.58 + 2 * shaft, -0.75, "pale")


def clog(pen: Pen) -> None:
    pen.smooth(
        [(-0.9, 0.25), (-0.7, -0.1), (-0.3, 0.0), (0.1, -0.45), (0.7, -0.2), (0.95, 0.25)], pattern=pen.chance(0.3)
    )
    pen.smooth([(-0.95, 0.22), (0.0, 0.3), (0.97, 0.2), (0.95, 0.45), (0, 0.5), (-0.9, 0.5)], "pale")


def glasses(pen: Pen) -> None:
    rim, r = pen.between(0.03, 0.09), pen.between(0.3, 0.4)
    tall = r * pen.between(0.6, 1.0)
    for x in (-0.47, 0.47):
        pen.ring(oval(x, 0, r, tall), oval(x, 0, r - rim, tall - rim), "dark")
        if pen.chance(0.5):
            pen.ellipse(x, 0, r - rim, tall - rim, "accent", opacity=pen.between(0.15, 0.7))
    pen.stroke([(-0.16, -0.05), (0, -0.1), (0.16, -0.05)], 0.05, "dark")
    for side in (-1, 1):
        pen.stroke([(side * (0.47 + r), -0.05), (side * 0.97, -pen.between(0.1, 0.5))], 0.04, "dark")


def ring(pen: Pen) -> None:
    thick, flat = pen.between(0.04, 0.3), pen.between(0.4, 1.0)
    pen.ring(oval(0, 0.1, 0.85, 0.85 * flat), oval(0, 0.1, 0.85 - thick, (0.85 - thick) * flat), "body")
    if pen.chance(0.5):
        pen.ellipse(0, 0.1 - 0.85 * flat, pen.between(0.1, 0.25), 0.12, "pale")


def bracelet(pen: Pen) -> None:
    count, bead = int(pen.rng.integers(12, 30)), pen.between(0.06, 0.13)
    for t in np.linspace(0, 2 * np.pi, count, endpoint=False):
        pen.ellipse(0.82 * np.cos(t), 0.75 * np.sin(t), bead, bead, "body" if pen.chance(0.7) else "accent")
    pen.stroke(oval(0, 0, 0.82, 0.75), 0.03, "dark", closed=True)


def necklace(pen: Pen) -> None:
    width = pen.between(0.012, 0.05)
    pen.stroke(curve_through([(-0.6, -0.9), (-0.75, -0.2), (0, 0.55), (0.75, -0.2), (0.6, -0.9)], closed=False), width)
    pen.ellipse(0, 0.65, pen.between(0.08, 0.2), pen.between(0.1, 0.25), "accent")


def slat_chair(pen: Pen) -> None:
    count, bar = int(pen.rng.integers(4, 11)), pen.between(0.3, 0.75)
    width = pen.between(0.4, 0.6)
    step = 2 * width / count
    pen.rectangle(-width - 0.04, -0.95, width + 0.04, -0.85, "body")
    for i in range(count + 1):
        x = -width + i * step
        pen.rectangle(x - step * bar / 2, -0.9, x + step * bar / 2, 0.1)
    pen.rectangle(-width - 0.08, 0.05, width + 0.08, 0.2, "accent")
    for x in (-width, width):
        pen.rectangle(x - 0.05, 0.2, x + 0.05, 0.95)


def bench(pen: Pen) -> None:
    count = int(pen.rng.integers(2, 6))
    for i in range(count):
        y = -0.6 + 0.55 * i / count
        pen.rectangle(-0.95, y, 0.95, y + 0.55 / count * pen.between(0.4, 0.75))
    pen.rectangle(-0.97, 0.05, 0.97, 0.2, "accent")
    for x in (-0.85, 0, 0.85):
        pen.rectangle(x - 0.05, -0.65, x + 0.05, 0.7, "dark")


def fence(pen: Pen) -> None:
    count = int(pen.rng.integers(5, 14))
    for i in range(count):
        x = -0.9 + 1.8 * i / (count - 1)
        half = 0.9 / (count - 1) * pen.between(0.3, 0.7)
        pen.polygon([(x - half, 0.8), (x - half, -0.6), (x, -0.75), (x + half, -0.6), (x + half, 0.8)])
    for y in (-0.35, 0.4):
        pen.rectangle(-0.97, y, 0.97, y + 0.12, "accent")


def shelf(pen: Pen) -> None:
    rows, columns = int(pen.rng.integers(2, 6)), int(pen.rng.integers(1, 3))
    bar, wide = pen.between(0.03, 0.08), pen.between(0.4, 0.7)
    for y in np.linspace(-0.92, 0.85, rows):
        pen.rectangle(-wide, float(y), wide, float(y) + bar, "body")
    for x in np.linspace(-wide, wide - bar, columns + 1):
        pen.rectangle(float(x), -0.92, float(x) + bar, 0.95, "accent")


def basket(pen: Pen) -> None:
    _lattice(pen, lambda x, y: (x * (1 - 0.15 * y), 0.6 * y + 0.2), pen.between(0.02, 0.06))
    pen.rectangle(-0.95, -0.45, 0.95, -0.36, "accent")


def rack(pen: Pen) -> None:
    _lattice(pen, lambda x, y: (0.8 * x + 0.15 * y, 0.8 * y), pen.between(0.02, 0.07))


def cage(pen: Pen) -> None:
    _lattice(pen, lambda x, y: (0.7 * x, y * 0.75 + 0.2), pen.between(0.018, 0.05))
    t = np.linspace(np.pi, 2 * np.pi, 20)
    pen.stroke(np.stack([0.7 * np.cos(t), -0.55 + 0.4 * np.sin(t)], 1), 0.06, "accent")
    pen.rectangle(-0.75, 0.88, 0.75, 0.98, "accent")


def _lattice(pen: Pen, warp: Callable[[float, float], tuple[float, float]], wire: float) -> None:
    """Crossing wires of the width `wire`. warp: moves a point (x, y) of the square lattice to its place."""
    rows, columns = int(pen.rng.integers(3, 9)), int(pen.rng.integers(4, 12))
    diagonal = pen.chance(0.3)
    for x in np.linspace(-0.95, 0.95, columns):
        pen.stroke([warp(x, -0.95), warp(-x if diagonal else x, 0.95)], wire)
    for y in np.linspace(-0.95, 0.95, rows):
        pen.stroke([warp(-0.95, y), warp(0.95, y)], wire)


def comb(pen: Pen) -> None:
    count = int(pen.rng.integers(10, 24))
    pen.rectangle(-0.95, -0.35, 0.95, pen.between(-0.15, 0), "body", corner=0.08)
    for x in np.linspace(-0.9, 0.9, count):
        pen.rectangle(float(x) - 0.45 / count, -0.2, float(x) + 0.45 / count, 0.4)


def fork(pen: Pen) -> None:
    for x in np.linspace(-0.18, 0.18, pen.rng.integers(3, 5)):
        pen.rectangle(float(x) - 0.03, -0.95, float(x) + 0.03, -0.45, corner=0.02)
    pen.smooth([(-0.22, -0.5), (0.22, -0.5), (0.08, -0.15), (0.12, 0.95), (-0.12, 0.95), (-0.08, -0.15)])


def scissors(pen: Pen) -> None:
    opening = pen.between(0.05, 0.3)
    for side in (-1, 1):
        pen.polygon(
            [(side * opening, -0.95), (side * opening - 0.1, -0.9), (-side * 0.05, 0.25), (-side * 0.18, 0.2)], "body"
        )
        x = -side * 0.3
        pen.ring(oval(x, 0.6, 0.25, 0.34), oval(x, 0.6, 0.15, 0.23), "accent")


def screwdriver(pen: Pen) -> None:
    pen.rectangle(-0.03, -0.95, 0.03, 0.1, "pale")
    pen.smooth(
        [(-0.13, 0.1), (0.13, 0.1), (0.17, 0.5), (0.13, 0.95), (-0.13, 0.95), (-0.17, 0.5)], pattern=pen.chance(0.4)
    )


def lamp(pen: Pen) -> None:
    pen.polygon([(-0.25, -0.95), (0.25, -0.95), (0.55, -0.3), (-0.55, -0.3)], "pale" if pen.chance(0.5) else "body")
    pen.rectangle(-0.03, -0.3, 0.03, 0.85, "dark")
    pen.ellipse(0, 0.88, 0.35, 0.08, "accent")


def bag(pen: Pen) -> None:
    tall = pen.between(0.4, 0.65)
    t = np.linspace(np.pi, 2 * np.pi, 24)
    for lift in (0.0, pen.between(-0.15, 0.1)):
        pen.stroke(
            np.stack([0.4 * np.cos(t), 0.9 - 2 * tall + 0.1 + (0.5 + lift) * np.sin(t)], 1),
            pen.between(0.03, 0.08),
            "accent",
        )
    pen.smooth(
        [(-0.75, 0.9 - 2 * tall), (0.75, 0.9 - 2 * tall), (0.9, 0.85), (0, 0.92), (-0.9, 0.85)], pattern=pen.chance(0.6)
    )


def headphones(pen: Pen) -> None:
    t = np.linspace(np.pi, 2 * np.pi, 24)
    pen.stroke(np.stack([0.7 * np.cos(t), 0.9 * np.sin(t) + 0.1], 1), pen.between(0.06, 0.16), "dark")
    for x in (-0.7, 0.7):
        pen.rectangle(x - 0.22, 0.0, x + 0.22, 0.8, "pale" if pen.chance(0.4) else "body", corner=0.18)


def wheel(pen: Pen) -> None:
    tyre = pen.between(0.05, 0.2)
    pen.ring(oval(0, 0, 0.95, 0.95), oval(0, 0, 0.95 - tyre, 0.95 - tyre), "dark")
    for t in np.linspace(0, 2 * np.pi, pen.rng.integers(5, 22), endpoint=False):
        pen.stroke([(0, 0), (0.9 * np.cos(t), 0.9 * np.sin(t))], pen.between(0.015, 0.06), "body")
    pen.ellipse(0, 0, 0.12, 0.12, "accent")


def keyboard_set(pen: Pen) -> None:
    role: Role = "pale" if pen.chance(0.6) else "body"
    pen.rectangle(-0.95, -0.3, 0.5, 0.25, role, corner=0.05, pattern=pen.chance(0.5))
    pen.smooth(oval(0.78, 0, 0.14, 0.24, 8), "pale" if pen.chance(0.6) else "accent")
    if pen.chance(0.4):
        pen.rectangle(-0.6, -0.95, 0.3, -0.42, "dark")


def plant(pen: Pen) -> None:
    for _ in range(pen.rng.integers(6, 22)):
        t, length = pen.between(-2.6, -0.5), pen.between(0.5, 1.1)
        tip = (length * np.cos(t) * 0.8, 0.3 + length * np.sin(t))
        side = (0.12 * np.sin(t), -0.12 * np.cos(t))
        pen.smooth(
            [
                (0, 0.3),
                (tip[0] / 2 + side[0], 0.15 + tip[1] / 2 + side[1]),
                tip,
                (tip[0] / 2 - side[0], 0.15 + tip[1] / 2 - side[1]),
            ],
            "body" if pen.chance(0.6) else "accent",
        )
    pen.polygon([(-0.35, 0.3), (0.35, 0.3), (0.25, 0.95), (-0.25, 0.95)], "pale")


def guitar(pen: Pen) -> None:
    pen.smooth(
        [
            (-0.4, 0.9),
            (0.4, 0.9),
            (0.45, 0.5),
            (0.25, 0.25),
            (0.32, 0),
            (0, -0.1),
            (-0.32, 0),
            (-0.25, 0.25),
            (-0.45, 0.5),
        ],
        pattern=pen.chance(0.3),
    )
    pen.ellipse(0, 0.3, 0.12, 0.12, "dark")
    pen.rectangle(-0.05, -0.95, 0.05, 0.3, "accent")


def umbrella(pen: Pen) -> None:
    t = np.linspace(np.pi, 2 * np.pi, 24)
    pen.polygon(np.stack([0.95 * np.cos(t), -0.1 + 0.8 * np.sin(t)], 1), pattern=pen.chance(0.5))
    pen.stroke([(0, -0.1), (0, 0.8), (0.1, 0.93), (0.22, 0.8)], pen.between(0.03, 0.06), "dark")


def blob(pen: Pen) -> None:
    count = int(pen.rng.integers(5, 12))
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = pen.rng.uniform(0.4, 0.95, count)
    outline = np.stack([radius * np.cos(t), radius * np.sin(t)], 1)
    pen.smooth(outline, "pale" if pen.chance(0.3) else "body", pattern=pen.chance(0.6))
    for _ in range(pen.rng.integers(0, 4)):
        pen.ellipse(
            pen.between(-0.3, 0.3),
            pen.between(-0.3, 0.3),
            pen.between(0.05, 0.25),
            pen.between(0.05, 0.25),
            "pale" if pen.chance(0.4) else "accent",
        )


def composite(pen: Pen) -> None:
    """Several random parts grown together: teaches that a product may be anything."""
    for _ in range(pen.rng.integers(2, 7)):
        role: Role = ("body", "accent", "pale", "dark")[int(pen.rng.integers(4))]
        x, y, rx, ry = pen.between(-0.45, 0.45), pen.between(-0.45, 0.45), pen.between(0.1, 0.5), pen.between(0.1, 0.5)
        kind = pen.rng.integers(4)
        if kind == 0:
            pen.ellipse(x, y, rx, ry, role, pattern=pen.chance(0.4))
        elif kind == 1:
            pen.rectangle(x - rx, y - ry, x + rx, y + ry, role, corner=pen.between(0, 0.1), pattern=pen.chance(0.4))
        elif kind == 2:
            pen.stroke(curve_through(pen.rng.uniform(-0.9, 0.9, (4, 2)), closed=False), pen.between(0.02, 0.15), role)
        else:
            pen.smooth(pen.rng.uniform(-0.8, 0.8, (5, 2)), role, pattern=pen.chance(0.4))
    if pen.chance(0.25):
        pen.erase(
            oval(pen.between(-0.3, 0.3), pen.between(-0.3, 0.3), pen.between(0.08, 0.25), pen.between(0.08, 0.25))
        )
