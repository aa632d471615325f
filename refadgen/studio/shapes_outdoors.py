"""Shapes of play and travel: balls, kites, umbrellas, cars, motorcycles."""

import numpy as np

from refadgen.studio.meshes import (
    GLASS,
    RUBBER,
    STEEL,
    Part,
    Shape,
    arc,
    lathe,
    mirrored,
    on_floor,
    rotation_x,
    rotation_y,
    rotation_z,
    slab,
    surface,
    tube,
)
from refadgen.studio.shapes_panels import panel, polyline, spline


def ball(rng: np.random.Generator) -> Shape:
    r = rng.uniform(0.4, 0.46)
    ball = lathe("ball", "body", arc(0, r, r, -90, 90, 28), label=(0.1 * r, 1.9 * r))
    return Shape(category="Sports ball", noun="sports ball", parts=(ball,), label_aspect=1.6)


def kite(rng: np.random.Generator) -> Shape:
    """A diamond whose tail winds down to the floor."""
    w, low, widest = rng.uniform(0.62, 0.78), rng.uniform(0.2, 0.26), rng.uniform(0.6, 0.7)
    bottom = polyline([(-w / 2, widest), (0, low), (w / 2, widest)], 12)
    top = polyline([(-w / 2, widest), (0, 0.98), (w / 2, widest)], 12)
    sail = panel("sail", "body", bottom, top, 0.09, edge=0.03, fullness=(2, 2))
    outline = [(-w / 2, widest, 0), (0, low, 0), (w / 2, widest, 0), (0, 0.98, 0)]
    parts = [sail]
    for a, b in zip(outline, [*outline[1:], outline[0]], strict=True):
        parts.append(tube("hem", "accent", [a, b], 0.022, capped=True))
    sway, side = rng.uniform(0.1, 0.16), rng.choice([-1.0, 1.0])
    down = np.linspace(0, 1, 25)
    tail = np.stack([side * sway * np.sin(2.6 * np.pi * down) * (0.5 + down), low * (1 - down) + 0.03, 0 * down], 1)
    parts.append(tube("tail", "accent", tail, 0.017, capped=True))
    for share in (0.28, 0.6, 0.92):
        x, y = tail[round(24 * share), :2]
        for turn in (-25, 155):
            wing = panel(
                "bow", "accent", polyline([(0, -0.01), (0.1, -0.045)]), polyline([(0, 0.01), (0.1, 0.045)]), 0.03
            )
            parts.append(wing.mapped(rotation_z(turn)).moved(x=x, y=y, z=0.01))
    return Shape(category="Kite", noun="kite", parts=on_floor(parts), label_aspect=w / (0.98 - low))


def umbrella(rng: np.random.Generator) -> Shape:
    """Open, standing on the end of its handle."""
    r, h, ribs = rng.uniform(0.5, 0.58), rng.uniform(0.34, 0.44), int(rng.choice([6, 8]))
    edge = 0.94 - h
    theta, t = np.meshgrid(np.linspace(-np.pi, np.pi, 16 * ribs + 1), np.linspace(0, 1, 17))
    droop = np.abs(np.sin(ribs * theta / 2))  # 0 at a rib, 1 between two
    radius = r * np.cos(np.pi / 2 * t) ** 0.9 * (1 - 0.06 * droop * (1 - t))
    y = edge + h * np.sin(np.pi / 2 * t) ** 0.95 + 0.07 * droop * (1 - t) ** 3
    grid = np.stack([radius * np.sin(theta), y, radius * np.cos(theta)], axis=-1)
    uvs = np.stack([0.5 + theta / np.pi, np.clip((y - edge) / (0.92 * h), 0, 1)], axis=-1)
    lining = grid * [0.985, 1, 0.985] - [0, 0.03, 0]
    rim = np.stack([lining[0], grid[0]])
    hook, side = rng.uniform(0.07, 0.09), rng.choice([-1.0, 1.0])
    turn = np.linspace(0, -np.pi, 13)
    crook = np.stack([side * (hook - hook * np.cos(turn)), hook + hook * np.sin(turn), 0 * turn], axis=1)
    handle = np.concatenate([[[0, 0.25, 0], [0, 0.15, 0]], crook])
    parts = [
        surface("canopy", "body", grid, uvs),
        surface("lining", "body", lining[:, ::-1], uvs[:, ::-1]),
        surface("rim", "body", rim, np.stack([uvs[0], uvs[0]])),
        tube("shaft", "paper", [(0, 0.2, 0), (0, 0.9, 0)], 0.018).colored(STEEL),
        lathe("tip", "accent", [(0.035, 0.92), (0.025, 1.0), (0, 1.0)]),
        tube("handle", "accent", handle, 0.034, capped=True),
    ]
    return Shape(category="Umbrella", noun="rain umbrella", parts=on_floor(parts), label_aspect=2.6 * r / (0.92 * h))


def _wheel(x: float, r: float, z: float, width: float) -> list[Part]:
    """A car's wheel at (x, r, z), its face to the front."""
    tyre = lathe(
        "tyre", "accent", [(0, 0), (0.9 * r, 0), (r, 0.03), (r, width - 0.03), (0.9 * r, width), (0.55 * r, width)]
    )
    rim = lathe(
        "rim", "paper", [(0.6 * r, width - 0.01), (0.5 * r, width + 0.005), (0.2 * r, width - 0.01), (0, width)]
    )
    return [part.mapped(rotation_x(90)).moved(x=x, y=r, z=z) for part in (tyre.colored(RUBBER), rim.colored(STEEL))]


def _cabin(
    rng: np.random.Generator, van: bool, width: float, belt: float, roof: float, door: tuple[float, float, float, float]
) -> list[Part]:
    """A van's windscreen; a saloon's glass, roof and pillars. belt, roof: heights. door: the label's rectangle."""
    if van:
        foot = polyline([(0.19, belt + 0.03), (0.4, belt + 0.03)])
        head = polyline([(0.19, roof - 0.02), (0.22, roof - 0.03)])
        return [panel("pane", "accent", foot, head, width + 0.02, edge=0.9 * width).colored(GLASS)]
    rear, front, slope = -rng.uniform(0.42, 0.56), rng.uniform(0.24, 0.32), rng.uniform(0.12, 0.2)
    low = polyline([(rear, belt - 0.02), (front, belt - 0.02)], 12)
    high = polyline([(rear + 0.1, roof), (front - slope, roof)], 12)
    glass = panel("glass", "accent", low, high, 0.88 * width, edge=0.7 * width, fullness=(9, 9), wide_foot=True)
    arched = np.stack([0 * high[:, 0], 0.04 - 0.3 * (high[:, 0] - high[:, 0].mean()) ** 2], 1)
    cover = panel("roof", "body", high - [0, 0.02], high + arched, 0.74 * width, edge=0.66 * width)
    parts = [glass.colored(GLASS), cover.labelled(*door)]
    for a, b in ((0, 0), (5, 6), (12, 12)):
        for sign in (-1, 1):
            ends = [(*low[a], sign * 0.41 * width), (*high[b], sign * 0.35 * width)]
            parts.append(tube("pillar", "body", ends, 0.022).labelled(*door))
    return parts


def car(rng: np.random.Generator) -> Shape:
    """A saloon or a van of toy-like proportions, its side to the camera."""
    side, van, width = rng.choice([-1.0, 1.0]), rng.random() < 0.4, rng.uniform(0.46, 0.54)
    r, half, axle = rng.uniform(0.125, 0.15), 0.65, rng.uniform(0.37, 0.42)
    belt, roof = rng.uniform(0.37, 0.42), rng.uniform(0.62, 0.7)
    hood = belt - rng.uniform(0.0, 0.05)
    x = np.linspace(-half, half, 79)
    # The lower edge: a sill that turns up at both ends, with round cut-outs over the axles.
    arch = np.maximum((1.22 * r) ** 2 - np.minimum((x - axle) ** 2, (x + axle) ** 2), 0) ** 0.5
    sill = 0.1 + 0.05 * (np.abs(x) / half) ** 12
    bottom = np.where(arch > 0, np.maximum(sill, 0.75 * r + arch), sill)
    nose = 0.3 if not van else 0.5
    if van:
        knots = [
            (-half, belt),
            (-half, roof + 0.02),
            (-0.6, roof + 0.05),
            (0.12, roof + 0.05),
            (0.2, roof),
            (0.42, belt),
        ]
        knots += [(0.6, hood), (half, hood - 0.1)]
    else:
        knots = [(-half, belt - 0.08), (-0.62, belt - 0.01), (-0.5, belt), (nose, belt), (0.6, hood - 0.02)]
        knots += [(half, hood - 0.12)]
    # Knots may share an x, which `interp` cannot have: each is moved a little to the right of the one before.
    knots_x, knots_y = zip(*((a + 1e-3 * i, b) for i, (a, b) in enumerate(knots)), strict=True)
    top = np.interp(x, knots_x, knots_y)
    shell = panel(
        "shell", "body", np.stack([x, bottom], 1), np.stack([x, top], 1), width, edge=0.85 * width, fullness=(10, 10)
    )
    door = (-0.62, 0.16, 0.16, roof + 0.03) if van else (-0.62, 0.62, 0.12, belt)
    parts = [shell.labelled(*door)]
    under = polyline([(-half + 0.06, 0.12), (half - 0.06, 0.12)])
    chassis = panel("chassis", "accent", under, np.add(under, [0, 0.2]), 0.7 * width, edge=0.6 * width)
    parts.append(chassis.colored(RUBBER))
    parts += _cabin(rng, van, width, belt, roof, door)
    for z in (-1, 1):
        lamp = lathe("lamp", "paper", arc(0, 0, 0.045, -90, 90, 8), segments=20)
        parts.append(lamp.moved(x=half - 0.02, y=hood - 0.08, z=z * 0.36 * width))
        parts.append(lamp.moved(x=-half + 0.02, y=hood - 0.08, z=z * 0.36 * width).colored((190, 30, 30)))
    for x0 in (-1, 1):
        parts.append(slab("bumper", "accent", 0.08, 0.07, 0.92 * width, bevel=0.02).moved(x=x0 * (half - 0.01), y=0.12))
        for part in _wheel(axle, r, width / 2 - 0.12, 0.13):
            parts += [part.moved(x=axle * (x0 - 1)), part.mapped(rotation_y(180)).moved(x=axle * (1 + x0))]
    aspect = (door[1] - door[0]) / (door[3] - door[2])
    return Shape(
        category="Car", noun="car", parts=on_floor(parts if side > 0 else mirrored(parts)), label_aspect=aspect
    )


def motorcycle(rng: np.random.Generator) -> Shape:
    """Its side to the camera, the print on tank and fairing."""
    side, r, axle = rng.choice([-1.0, 1.0]), rng.uniform(0.2, 0.23), rng.uniform(0.42, 0.46)
    parts = []
    circle = np.linspace(0, 2 * np.pi, 41)
    for x in (-axle, axle):
        ring = np.stack([np.cos(circle), np.sin(circle), 0 * circle], axis=1)
        middle = np.array([x, r, 0])
        parts.append(tube("tyre", "accent", middle + (r - 0.05) * ring, 0.05).colored(RUBBER))
        parts.append(tube("rim", "accent", middle + (r - 0.1) * ring, 0.018))
        for a in np.arange(5) * 0.4 * np.pi:
            spoke = np.array([np.cos(a), np.sin(a), 0])
            parts.append(tube("spoke", "accent", [middle, middle + (r - 0.1) * spoke], 0.017))
        hub = lathe("hub", "paper", [(0, -0.07), (0.045, -0.07), (0.045, 0.07), (0, 0.07)], segments=20)
        parts.append(hub.mapped(rotation_x(90)).moved(*middle).colored(STEEL))
    seat, tank, nose = rng.uniform(0.5, 0.54), rng.uniform(0.62, 0.68), rng.uniform(0.62, 0.7)
    top = [(-0.62, seat + 0.06), (-0.5, seat + 0.05), (-0.2, seat - 0.01), (-0.1, seat + 0.04), (0.02, tank)]
    top += [(0.18, tank), (0.3, tank - 0.02), (0.4, nose), (0.48, nose - 0.08)]
    low = [(-0.62, seat + 0.02), (-0.5, seat - 0.04), (-0.3, seat - 0.14), (-0.18, 0.2), (-0.05, 0.17)]
    low += [(0.08, 0.17), (0.18, 0.24), (0.26, 0.4), (0.46, nose - 0.16)]
    fairing = panel("fairing", "body", spline(low, 5), spline(top, 5), rng.uniform(0.2, 0.26), edge=0.06)
    parts.append(fairing.labelled(-0.26, 0.32, 0.17, tank))
    saddle = [(-0.6, seat + 0.1), (-0.45, seat + 0.06), (-0.25, seat + 0.03), (-0.08, seat + 0.07)]
    parts.append(tube("saddle", "accent", spline([(x, y, 0) for x, y in saddle], 5), 0.05, capped=True).colored(RUBBER))
    for z in (-0.075, 0.075):
        fork_leg = [(axle, r, z), (0.33, nose - 0.02, z)]
        parts.append(tube("fork", "paper", fork_leg, 0.022, capped=True).colored(STEEL))
        parts.append(tube("swing arm", "paper", [(-axle, r, z), (-0.12, 0.26, z)], 0.025, capped=True).colored(STEEL))
        bar = [(0.33, nose + 0.02, 0), (0.28, nose + 0.1, 1.5 * z), (0.2, nose + 0.12, 3.0 * z)]
        parts.append(tube("bar", "accent", bar, 0.024, capped=True).colored(RUBBER))
    pipe = [(0.0, 0.2, 0.11), (-0.2, 0.15, 0.12), (-0.4, 0.18, 0.13), (-0.66, 0.27, 0.13)]
    parts.append(tube("exhaust", "paper", spline(pipe, 4), np.linspace(0.03, 0.05, 13), capped=True).colored(STEEL))
    lamp = lathe("lamp", "paper", arc(0, 0, 0.06, -90, 90, 8), segments=20)
    parts.append(lamp.moved(x=0.46, y=nose - 0.09))
    guard = [
        (axle + (r + 0.03) * np.cos(a), r + (r + 0.03) * np.sin(a), 0) for a in np.radians(np.linspace(40, 140, 11))
    ]
    parts.append(tube("mudguard", "body", guard, 0.05, capped=True).labelled(-1, 1, 0, 1))
    screen = panel(
        "screen",
        "accent",
        polyline([(0.36, nose - 0.02), (0.44, nose - 0.04)]),
        polyline([(0.24, nose + 0.14), (0.28, nose + 0.14)]),
        0.14,
    )
    parts.append(screen.colored(GLASS))
    return Shape(
        category="Motorcycle",
        noun="motorcycle",
        parts=on_floor(parts if side > 0 else mirrored(parts)),
        label_aspect=0.58 / (tank - 0.17),
    )
