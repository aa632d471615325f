"""Shapes of containers: bottles, cups, cans, boxes, bags of food, glasses."""

import numpy as np

from refadgen.studio.meshes import Shape, arc, cushion, lathe, slab, tube


def bottle(rng: np.random.Generator) -> Shape:
    r, neck = rng.uniform(0.15, 0.24), rng.uniform(0.055, 0.085)
    body, shoulder = rng.uniform(0.48, 0.64), rng.uniform(0.1, 0.2)
    top = body + shoulder
    slope = [(neck + (r - neck) * (0.5 + 0.5 * np.cos(np.pi * t)), body + shoulder * t) for t in np.linspace(0, 1, 9)]
    profile = [(0, 0), *arc(r - 0.03, 0.03, 0.03, -90, 0, 4), *slope, (neck, 0.93)]
    cap = neck + rng.uniform(0.01, 0.04)
    parts = (
        lathe("body", "body", profile, label=(0.05, body)),
        lathe("cap", "accent", [(0, top + 0.02), (cap, top + 0.02), (cap, 0.99), (cap - 0.01, 1.0), (0, 1.0)]),
    )
    return Shape(category="Bottle", noun="bottle", parts=parts, label_aspect=np.pi * r / (body - 0.05))


def pump_bottle(rng: np.random.Generator) -> Shape:
    w, d, h = rng.uniform(0.19, 0.27), rng.uniform(0.13, 0.17), rng.uniform(0.6, 0.7)
    exponent = rng.choice([2.0, 3.0, 5.0])
    profile = [(0, 0), (0.94, 0), (1.0, 0.03), (1.0, h - 0.07), (0.94, h - 0.025), (0.8, h), (0, h)]
    side = rng.choice([-1.0, 1.0])
    nozzle = np.array([[0, 0.955, 0], [0.1, 0.96, 0], [0.17, 0.945, 0], [0.2, 0.905, 0]]) * [side, 1, 1]
    parts = (
        lathe("body", "body", profile, width=w, depth=d, exponent=exponent, label=(0.03, h - 0.05)),
        lathe("collar", "accent", [(0, h), (0.09, h), (0.09, h + 0.09), (0.03, h + 0.11)]),
        lathe("stem", "accent", [(0.028, h), (0.028, 0.93)]),
        lathe("head", "accent", [(0, 0.92), (0.065, 0.92), (0.065, 0.98), (0.05, 1.0), (0, 1.0)]),
        tube("nozzle", "accent", nozzle, 0.026),
    )
    return Shape(category="Body wash", noun="body wash", parts=parts, label_aspect=2.3 * w / (h - 0.08))


def shampoo(rng: np.random.Generator) -> Shape:
    w, d, cap = rng.uniform(0.2, 0.3), rng.uniform(0.1, 0.14), rng.uniform(0.12, 0.22)
    waist, foot = rng.uniform(0.75, 1.0), rng.uniform(0.7, 1.0)
    h = 1 - cap
    t = np.linspace(0, 1, 12)
    curve = np.interp(t, [0, 0.35, 1], [foot, 1.0, waist]) - 0.06 * np.sin(np.pi * t) * rng.uniform(-1, 1)
    profile = [(0, 0), *zip(curve, t * (h - 0.02), strict=True), (curve[-1] * 0.9, h), (0, h)]
    top = curve[-1] * rng.uniform(0.7, 0.95)
    parts = (
        lathe("body", "body", profile, width=w, depth=d, exponent=2.6, label=(0.02, h - 0.03)),
        lathe("cap", "accent", [(0, h), (top, h), (top * 0.96, 0.98), (top * 0.9, 1.0), (0, 1.0)], width=w, depth=d),
    )
    return Shape(category="Shampoo", noun="shampoo", parts=parts, label_aspect=2.2 * w / (h - 0.05))


def cup(rng: np.random.Generator) -> Shape:
    r, foot, h = rng.uniform(0.34, 0.44), rng.uniform(0.75, 1.0), rng.uniform(0.8, 0.95)
    outer = [(0, 0), (r * foot - 0.03, 0), (r * foot, 0.03), (r, h)]
    # Listed from the rim down, which turns its surface inwards.
    inner = [(r, h), (r - 0.04, h), ((r - 0.04) * foot, 0.08), (0, 0.08)]
    angle = np.linspace(-0.5, 0.5, 15) * np.pi
    reach = rng.uniform(0.2, 0.28)
    path = np.stack([r * 0.96 + reach * np.cos(angle), h * 0.5 + h * 0.28 * np.sin(angle), 0 * angle], axis=1)
    handle = tube("handle", "accent", path * [rng.choice([-1.0, 1.0]), 1, 1], rng.uniform(0.035, 0.05))
    parts = (lathe("body", "body", outer), lathe("inside", "accent", inner), handle)
    return Shape(category="Cup", noun="cup", parts=parts, label_aspect=np.pi * r / h)


def can(rng: np.random.Generator) -> Shape:
    r, lid = rng.uniform(0.26, 0.38), rng.uniform(0.08, 0.16)
    h = 0.96 - lid
    body = [(0, 0), (r - 0.02, 0), (r, 0.02), (r, h), (r - 0.03, h + 0.03), (0, h + 0.03)]
    wide = r + rng.uniform(0.0, 0.02)
    parts = (
        lathe("body", "body", body, label=(0.02, h)),
        lathe("lid", "accent", [(0, h + 0.02), (wide, h + 0.02), (wide, 0.97), (wide - 0.02, 1.0), (0, 1.0)]),
    )
    return Shape(category="Coffee", noun="coffee can", parts=parts, label_aspect=np.pi * r / h)


def snack_box(rng: np.random.Generator) -> Shape:
    w, d = rng.uniform(0.3, 0.42), rng.uniform(0.1, 0.18)
    profile = [(0, 0), (1, 0), (1, 1), (0, 1)]
    share = w / (w + d) / 2  # the front face's part of the circumference, so that the label ends at its edges
    body = lathe("box", "body", profile, width=w, depth=d, exponent=14, front_share=share, segments=64)
    strip = [(0, 0.86), (1.012, 0.86), (1.012, 0.94), (0, 0.94)]
    parts = (body, lathe("strip", "accent", strip, width=w, depth=d, exponent=14, segments=64))
    return Shape(category="Snacks", noun="snack box", parts=parts, label_aspect=2 * w)


def pouch(rng: np.random.Generator) -> Shape:
    w, thick = rng.uniform(0.66, 0.8), rng.uniform(0.22, 0.32)
    bag = cushion("bag", "body", w, 0.92, thick, pinch=0.04, flat_ends=True)
    seal = slab("seal", "accent", w * 1.0, 0.1, 0.03, exponent=20, bevel=0.005).moved(y=0.9)
    return Shape(category="Snacks", noun="snack pouch", parts=(bag, seal), label_aspect=w / 0.92)


def jar(rng: np.random.Generator) -> Shape:
    r, lid = rng.uniform(0.42, 0.5), rng.uniform(0.28, 0.36)
    height = rng.uniform(0.78, 0.95)
    h = height - lid
    body = [(0, 0), *arc(r - 0.06, 0.06, 0.06, -90, 0, 4), *arc(r - 0.06, h - 0.07, 0.06, 0, 90, 4), (0, h - 0.01)]
    top = r * rng.uniform(0.9, 1.0)
    cap = [(0, h), (top, h), *arc(top - 0.03, height - 0.03, 0.03, 0, 90, 4), (0, height)]
    parts = (lathe("body", "body", body, label=(0.03, h - 0.03)), lathe("lid", "accent", cap))
    return Shape(category="Foundation", noun="foundation jar", parts=parts, label_aspect=np.pi * r / (h - 0.06))


def wine_glass(rng: np.random.Generator) -> Shape:
    """Opaque, like enamel: the studio has no glass."""
    r, stem, base = rng.uniform(0.25, 0.34), rng.uniform(0.022, 0.032), rng.uniform(0.36, 0.46)
    lip, foot = rng.uniform(0.72, 0.95), r * rng.uniform(0.75, 0.95)
    t = np.linspace(0, 1, 14)
    belly = r * np.interp(t, [0, 0.5, 1], [1, 1, lip]) * np.sin(np.pi / 2 * np.minimum(2.2 * t, 1)) ** 0.55
    y = base + (1 - base) * t
    bowl = np.stack([np.maximum(belly, stem), y], axis=1)
    # Downwards, so that its outer side is the inner one of the bowl; without the lowest points, which lie in the stem.
    inside = np.stack([np.maximum(belly - 0.03, 0.001), y], axis=1)[:2:-1]
    leg = [(0, 0), (foot, 0), (foot, 0.03), (foot * 0.4, 0.05), (stem, 0.12), (stem, base - 0.03), (stem * 1.5, base)]
    parts = (
        lathe("bowl", "body", bowl, label=(base + 0.08, 1.0)),
        lathe("inside", "accent", [(belly[-1], 1.0), *inside, (0, base + 0.1)]),
        lathe("leg", "accent", leg),
    )
    return Shape(category="Wine glass", noun="wine glass", parts=parts, label_aspect=np.pi * r / (0.92 - base))
