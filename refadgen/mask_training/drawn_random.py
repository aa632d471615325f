"""Drawn products, third part: shapes at random, whose gaps, teeth and insides follow no family's habit.

A network that sees the same families for long learns which of them have gaps, and no longer looks.
"""

import numpy as np

from refadgen.mask_training.pen import Pen, Points, Role, curve_through, oval

_ROLES: tuple[Role, ...] = ("body", "accent", "pale", "dark")


def _role(pen: Pen) -> Role:
    return _ROLES[int(pen.rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))]


def _piece(pen: Pen, x: float, y: float, size: float, role: Role) -> None:
    """A bead, a tile, a leaf or a link around (x, y)."""
    kind, tall = pen.rng.integers(4), pen.between(0.5, 1.5)
    if kind == 0:
        pen.ellipse(x, y, size, size * tall, role)
    elif kind == 1:
        pen.rectangle(x - size, y - size * tall, x + size, y + size * tall, role, corner=0.3 * size)
    elif kind == 2:
        pen.smooth(np.array([x, y]) + size * pen.rng.uniform(-1.2, 1.2, (5, 2)), role)
    else:
        pen.ring(oval(x, y, size, size * tall), oval(x, y, 0.55 * size, 0.55 * size * tall), role)


def _loop(pen: Pen) -> Points:
    """A closed line around the middle."""
    count = int(pen.rng.integers(5, 9))
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = pen.rng.uniform(0.55, 0.9, count) if pen.chance(0.5) else np.full(count, pen.between(0.55, 0.85))
    return curve_through(np.stack([radius * np.cos(t), pen.between(0.5, 1.0) * radius * np.sin(t)], 1), closed=True)


def strung(pen: Pen) -> None:
    """Pieces along a closed or open line; sometimes around a face, so that a loop may be full or empty."""
    closed = pen.chance(0.7)
    line = np.asarray(_loop(pen) if closed else curve_through(pen.rng.uniform(-0.85, 0.85, (4, 2)), closed=False))
    if closed and pen.chance(0.3):
        pen.polygon(line, "face" if pen.chance(0.6) else _role(pen), pattern=pen.chance(0.5))
    if pen.chance(0.7):
        pen.stroke(line, pen.between(0.01, 0.06), _role(pen), closed=closed)
    roles = [_role(pen) for _ in range(int(pen.rng.integers(1, 4)))]
    size, count = pen.between(0.03, 0.14), int(pen.rng.integers(8, 40))
    for index, point in enumerate(line[np.linspace(0, len(line) - 1, count).astype(int)]):
        _piece(pen, float(point[0]), float(point[1]), size, roles[index % len(roles)])


def toothed(pen: Pen) -> None:
    """A bar, straight or bent, with a row of teeth on one side or on both."""
    count, wide = int(pen.rng.integers(4, 28)), pen.between(0.25, 0.75)
    bend, back, length = pen.between(-0.3, 0.3), pen.between(0.05, 0.3), pen.between(0.2, 0.9)
    sides = (1, -1) if pen.chance(0.25) else (1,)
    role, tapered = _role(pen), pen.between(0.2, 1.0)
    xs = np.linspace(-0.9, 0.9, count)
    middle = bend * (1 - xs**2) - 0.4 * (len(sides) == 1)
    half = 0.9 / count * wide
    for side in sides:
        for x, y in zip(xs, middle, strict=True):
            tip, tip_half = y + side * (back + length), half * tapered
            pen.polygon([(x - half, y), (x + half, y), (x + tip_half, tip), (x - tip_half, tip)], role)
    upper, lower = np.stack([xs, middle - back], 1), np.stack([xs, middle + back], 1)
    pen.polygon(np.concatenate([upper, lower[::-1]]), _role(pen), pattern=pen.chance(0.3))


def perforated(pen: Pen) -> None:
    """A body with holes in a grid, in a ring or anywhere, few and wide or many and narrow."""
    if pen.chance(0.5):
        pen.polygon(_loop(pen), _role(pen), pattern=pen.chance(0.3))
    else:
        pen.rectangle(-0.85, -0.7, 0.85, 0.7, _role(pen), corner=pen.between(0, 0.3), pattern=pen.chance(0.3))
    kind, size = pen.rng.integers(3), pen.between(0.03, 0.16)
    if kind == 0:
        step = size * pen.between(2.2, 4)
        places = [(x, y) for x in np.arange(-0.55, 0.56, step) for y in np.arange(-0.4, 0.41, step)]
    elif kind == 1:
        angles = np.linspace(0, 2 * np.pi, int(pen.rng.integers(3, 9)), endpoint=False)
        places = [(0.35 * np.cos(angle), 0.35 * np.sin(angle)) for angle in angles]
    else:
        places = [tuple(place) for place in pen.rng.uniform(-0.4, 0.4, (int(pen.rng.integers(1, 6)), 2))]
        size *= 2
    tall = pen.between(0.4, 1.2)
    for x, y in places:
        pen.erase(oval(float(x), float(y), size, size * tall))


def trellis(pen: Pen) -> None:
    """Bars in two directions, at random distances, with or without a rim."""
    turn = pen.between(0, np.pi)
    for angle in (turn, turn + pen.between(0.6, 1.6)):
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        width, role = pen.between(0.015, 0.12), _role(pen)
        for offset in np.sort(pen.rng.uniform(-0.7, 0.7, int(pen.rng.integers(2, 9)))):
            reach = np.sqrt(0.81 - offset**2)
            pen.stroke([tuple(offset * across - reach * along), tuple(offset * across + reach * along)], width, role)
    if pen.chance(0.6):
        pen.stroke(oval(0, 0, 0.9, 0.9), pen.between(0.02, 0.1), _role(pen), closed=True)


def wreath(pen: Pen) -> None:
    """Leaves in two rows around an empty middle."""
    count, length = int(pen.rng.integers(14, 32)), pen.between(0.12, 0.25)
    for t in np.linspace(0, 2 * np.pi, count, endpoint=False):
        for inward in (-1, 1):
            x, y = 0.7 * np.cos(t), 0.7 * np.sin(t)
            tip = t + 0.25 + inward * 0.05
            reach = 0.7 + inward * length
            outline = [
                (x, y),
                (reach * np.cos(tip - 0.1), reach * np.sin(tip - 0.1)),
                (reach * np.cos(tip), reach * np.sin(tip)),
            ]
            pen.smooth(outline, "body" if pen.chance(0.7) else "accent")
    pen.stroke(oval(0, 0, 0.7, 0.7), 0.03, "dark", closed=True)


def rake(pen: Pen) -> None:
    """A handle and a head of tines."""
    count, tine = int(pen.rng.integers(7, 18)), pen.between(0.02, 0.045)
    pen.rectangle(-0.03, -0.95, 0.03, 0.3, "accent")
    for x in np.linspace(-0.75, 0.75, count):
        pen.polygon([(0.4 * x, 0.25), (x - tine / 2, 0.9), (x + tine / 2, 0.9), (0.4 * x + tine, 0.25)])
    pen.rectangle(-0.35, 0.2, 0.35, 0.32, "body" if pen.chance(0.6) else "pale")


def grater(pen: Pen) -> None:
    """A plate with rows of slots, and a handle."""
    rows, columns = int(pen.rng.integers(3, 8)), int(pen.rng.integers(2, 6))
    pen.rectangle(-0.5, -0.5, 0.5, 0.9, "body", corner=0.06)
    pen.ring(oval(0, -0.7, 0.22, 0.22), oval(0, -0.7, 0.14, 0.14), "accent")
    for y in np.linspace(-0.35, 0.75, rows):
        for x in np.linspace(-0.35, 0.35, columns):
            pen.erase(oval(float(x), float(y), 0.28 / columns, 0.3 / rows))
