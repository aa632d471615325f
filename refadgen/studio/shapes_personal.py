"""Shapes of bathroom and desk: make-up, brushes, electronics, pens."""

import numpy as np

from refadgen.studio.colors import rgb_of
from refadgen.studio.meshes import (
    RUBBER,
    STEEL,
    Shape,
    arc,
    lathe,
    on_floor,
    rotation_x,
    rotation_y,
    rotation_z,
    slab,
    tube,
)
from refadgen.studio.shapes_panels import panel, spline


def lipstick(rng: np.random.Generator) -> Shape:
    r, base, collar = rng.uniform(0.13, 0.18), rng.uniform(0.42, 0.5), rng.uniform(0.12, 0.18)
    exponent = rng.choice([2.0, 2.0, 6.0])
    bullet_r = r * 0.68
    bullet = lathe("bullet", "accent", [(bullet_r, 0), (bullet_r, 0.3), *arc(0, 0.3, bullet_r, 0, 90, 6)])
    shear = np.array([[1, 0, 0], [-0.9, 1, 0], [0, 0, 1.0]])
    tall = 0.98 - base - collar
    scale = np.diag([1, tall / 0.5, 1])
    body = [(0, 0), (1, 0), (1, base), (0, base)]
    parts = (
        lathe("case", "body", body, width=r, depth=r, exponent=exponent, label=(0, base)),
        lathe("collar", "paper", [(0.82 * r, base), (0.82 * r, base + collar), (0, base + collar)]),
        bullet.mapped(scale @ shear).moved(y=base + collar - 0.06),
    )
    return Shape(category="Lipstick", noun="lipstick", parts=parts, label_aspect=np.pi * r / base)


def eyeshadow(rng: np.random.Generator) -> Shape:
    """An open palette: the tray of coloured pans leans towards the camera, the printed lid stands behind it."""
    w, tray_h, lid_h = rng.uniform(0.75, 0.95), rng.uniform(0.36, 0.46), rng.uniform(0.5, 0.6)
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(1, 3))
    exponent = rng.choice([6.0, 20.0])
    tray = [slab("tray", "accent", w, tray_h, 0.06, exponent=exponent)]
    r = min(0.4 * (w - 0.08) / columns, 0.4 * (tray_h - 0.06) / rows)
    hue, spread = rng.random(), rng.uniform(0.1, 0.5)
    for i in range(columns):
        for j in range(rows):
            tone = (hue + spread * (i * rows + j) / (columns * rows)) % 1
            powder = rgb_of(tone, rng.uniform(0.35, 0.75), rng.uniform(0.5, 0.95))
            pan = lathe("pan", "paper", [(r, 0), (r, 0.02), (0, 0.025)], segments=28).mapped(rotation_x(90))
            x, y = (w - 0.08) * ((i + 0.5) / columns - 0.5), 0.03 + (tray_h - 0.06) * (j + 0.5) / rows
            tray.append(pan.moved(x=x, y=y, z=0.02).colored(powder))
    lean = rng.uniform(40, 52)
    opened = [part.moved(y=-tray_h).mapped(rotation_x(-lean)) for part in tray]
    lid = slab("lid", "body", w, lid_h, 0.05, exponent=exponent).mapped(rotation_x(-rng.uniform(6, 14)))
    hinge = tube("hinge", "accent", [(-0.4 * w, 0, -0.01), (0.4 * w, 0, -0.01)], 0.03, capped=True)
    return Shape(
        category="Eyeshadow",
        noun="palette of eyeshadow",
        parts=on_floor([lid.moved(y=0.02), hinge, *opened]),
        label_aspect=w / lid_h,
    )


def toothbrush(rng: np.random.Generator) -> Shape:
    electric, side = rng.random() < 0.4, rng.choice([-1.0, 1.0])
    h = rng.uniform(0.55, 0.62)
    if electric:
        r = rng.uniform(0.085, 0.11)
        profile = [(0, 0), (0.9 * r, 0), (r, 0.02), (r, 0.7 * h), (0.7 * r, h), (0, h)]
        handle = lathe("handle", "body", profile, label=(0.0, 0.9 * h))
        aspect = np.pi * r / (0.9 * h)
    else:
        w, waist = rng.uniform(0.17, 0.22), rng.uniform(0.6, 0.85)
        half = w / 2 * spline([(0.75,), (1.0,), (waist,), (0.9,), (0.4,)], 6)[:, 0]
        y = np.linspace(0, h, len(half))
        left, right = np.stack([-half, y], axis=1), np.stack([half, y], axis=1)
        # A panel's curves run from left to right, so it is built lying down and set upright.
        lying = panel("handle", "body", right[:, ::-1] * [1, -1], left[:, ::-1] * [1, -1], 0.13, edge=0.06)
        handle = lying.mapped(rotation_z(90)).labelled(-w / 2, w / 2, 0.0, h)
        aspect = w / h
    reach, tufts = rng.uniform(0.1, 0.13), int(rng.integers(4, 6)) if not electric else 3
    head_h = 0.05 * tufts + 0.02
    neck = tube("neck", "accent", [(0, h - 0.03, 0), (0, 0.9 * h + 0.1, 0), (0, 0.98 - head_h, 0)], [0.04, 0.03, 0.025])
    head = slab("head", "accent", 0.08, head_h + 0.02, 0.11, exponent=5).moved(y=0.98 - head_h)
    parts = [handle, neck, head]
    for i in range(tufts):
        long = reach * (1.2 if i in (0, tufts - 1) else 1.0)
        tuft = slab("tuft", "paper", long, 0.043, 0.09, exponent=16, bevel=0.004)
        parts.append(tuft.moved(x=side * (0.035 + long / 2), y=0.99 - head_h + 0.05 * i))
    return Shape(category="Toothbrush", noun="toothbrush", parts=tuple(parts), label_aspect=aspect)


def phone(rng: np.random.Generator) -> Shape:
    w, d = rng.uniform(0.46, 0.54), rng.uniform(0.05, 0.08)
    frame = slab("frame", "accent", w, 1.0, d, exponent=9)
    inset = rng.uniform(0.02, 0.05)
    face = slab("face", "body", w - inset, 1.0 - inset, 0.02, exponent=9, bevel=0.004).moved(y=inset / 2, z=d / 2)
    parts = [frame, face]
    if rng.random() < 0.6:
        lens = lathe("lens", "accent", [(0.055, 0), (0.055, 0.04), (0, 0.04)]).mapped(rotation_x(90))
        across = (-0.3 if rng.random() < 0.5 else 0.0) * w
        parts += [lens.moved(x=across, y=0.9, z=d / 2), lens.moved(x=across + 0.15, y=0.9, z=d / 2)]
    lean = [part.mapped(rotation_x(-6)) for part in parts]
    floor = min(part.vertices[:, 1].min() for part in lean)
    return Shape(
        category="Cell phone", noun="cell phone", parts=tuple(part.moved(y=-floor) for part in lean), label_aspect=w
    )


def charger(rng: np.random.Generator) -> Shape:
    """A power plug with its prongs up and its cable down to the floor."""
    w, h, d = rng.uniform(0.46, 0.58), rng.uniform(0.56, 0.68), rng.uniform(0.3, 0.38)
    side = rng.choice([-1.0, 1.0])
    body = slab("block", "body", w, h, d, exponent=rng.uniform(5, 12), bevel=0.05)
    parts = [body, slab("plate", "accent", 0.72 * w, 0.05, 0.72 * d, bevel=0.01).moved(y=h - 0.02)]
    gap, tall, flat = w * rng.uniform(0.17, 0.22), rng.uniform(0.2, 0.28), rng.random() < 0.5
    for x in (-gap, gap):
        if flat:
            prong = slab("prong", "paper", 0.045, tall + 0.02, 0.14, exponent=12, bevel=0.01)
        else:
            prong = lathe("prong", "paper", [(0.036, 0), (0.036, tall), *arc(0.006, tall, 0.03, 0, 90, 4)])
        parts.append(prong.moved(x=x, y=h).colored(STEEL))
    x, reach = w / 2 - 0.03, rng.uniform(0.2, 0.3)
    path = [(x, 0.3 * h, 0), (x + 0.1, 0.3 * h, 0.02), (x + reach, 0.2, 0.1), (x + reach - 0.02, 0.05, 0.25)]
    path += [(x + reach - 0.18, 0.035, 0.36), (x - 0.12, 0.035, 0.4)]
    cable = tube("cable", "accent", spline(path, 6) * [side, 1, 1], 0.03)
    plug = slab("plug", "accent", 0.16, 0.09, 0.06, exponent=12, bevel=0.01).moved(x=side * (x - 0.18), z=0.4)
    tip = slab("tip", "paper", 0.1, 0.06, 0.04, exponent=16, bevel=0.005).colored(STEEL)
    parts += [cable, plug, tip.moved(x=side * (x - 0.3), y=0.015, z=0.4)]
    return Shape(category="Chargers", noun="charger", parts=tuple(parts), label_aspect=w / h)


def headphones(rng: np.random.Generator) -> Shape:
    """Over-ear, the cups swivelled flat as in shop photographs."""
    r, tall, thick = rng.uniform(0.24, 0.29), rng.uniform(0.92, 1.12), rng.uniform(0.12, 0.16)
    x, swivel = rng.uniform(0.34, 0.38), rng.uniform(0, 22)
    angle = np.linspace(-0.06, 1.06, 33) * np.pi
    rise = 1.0 - 0.045 - 1.05 * r
    path = np.stack([x * np.cos(angle), 1.05 * r + rise * np.sin(angle), 0 * angle], axis=1)
    band = tube("band", "accent", path, 0.035)
    top = tube("cushion", "accent", path[9:-9] - [0, 0.02, 0], 0.055, capped=True).mapped(np.diag([1, 1, 1.5]))
    parts = [band, top.colored(RUBBER)]
    for side in (-1, 1):
        shell = [(0, 0), (0.9, 0), (1.0, 0.03), (1.0, thick * 0.6), (0.9, thick * 0.85), (0.7, thick), (0, thick)]
        cup = (
            lathe("cup", "body", shell, width=r, depth=r * tall)
            .mapped(rotation_x(90))
            .labelled(-r, r, -r * tall, r * tall)
        )
        ring = [(0, -0.1), (0.75, -0.1), (0.92, -0.05), (0.92, 0), (0, 0)]
        pad = lathe("pad", "accent", ring, width=r, depth=r * tall)
        for part in (cup, pad.mapped(rotation_x(90)).colored(RUBBER)):
            parts.append(part.mapped(rotation_y(side * swivel)).moved(x=side * x, y=r * tall))
    return Shape(category="Headphones", noun="pair of headphones", parts=on_floor(parts), label_aspect=1 / tall)


def pen(rng: np.random.Generator) -> Shape:
    """Upright on its tip, the clip in front at the side."""
    r, nose, side = rng.uniform(0.075, 0.1), rng.uniform(0.14, 0.2), rng.choice([-1.0, 1.0])
    capped, top = rng.random() < 0.5, rng.uniform(0.68, 0.76)
    wide = 1.12 * r if capped else r
    parts = [
        lathe("tip", "paper", [(0, 0), (0.018, 0), (0.03, 0.05), (0.6 * r, nose)]).colored(STEEL),
        lathe("grip", "accent", [(0.6 * r, nose - 0.01), (0.92 * r, nose + 0.06), (r, nose + 0.08)]),
        lathe("barrel", "body", [(r, nose + 0.07), (r, top)], label=(nose + 0.07, top)),
    ]
    if capped:
        cap = [(r, top), (wide, top), (wide, 0.97), (0.8 * wide, 1.0), (0, 1.0)]
        parts.append(lathe("cap", "accent", cap))
    else:
        ring = [(r, top), (1.1 * r, top), (1.1 * r, top + 0.04), (r, top + 0.04)]
        knob = [(0.4 * r, 0.9), (0.4 * r, 0.99), (0.3 * r, 1.0), (0, 1.0)]
        parts.append(lathe("ring", "paper", ring).colored(STEEL))
        parts.append(lathe("crown", "accent", [(r, top + 0.03), (r, 0.88), (0.8 * r, 0.91), (0, 0.91)]))
        parts.append(lathe("knob", "paper", knob).colored(STEEL))
    clip = slab("clip", "paper", 0.04, 0.3, 0.05, exponent=8, bevel=0.01).colored(STEEL)
    turn = rotation_y(side * rng.uniform(35, 60))
    parts.append(clip.moved(y=0.64, z=wide + 0.025).mapped(turn))
    parts.append(
        slab("clip foot", "paper", 0.04, 0.05, 0.1, bevel=0.01).colored(STEEL).moved(y=0.89, z=wide).mapped(turn)
    )
    return Shape(category="Pens", noun="pen", parts=tuple(parts), label_aspect=np.pi * r / (top - nose - 0.07))
