"""Shapes of the household: notebooks, pillows, cutlery, rugs, benches."""

import numpy as np

from refadgen.studio.meshes import STEEL, Shape, cushion, joined, on_floor, rotation_x, rotation_z, slab, tube
from refadgen.studio.shapes_panels import panel, spline


def notebook(rng: np.random.Generator) -> Shape:
    w, thick, cover = rng.uniform(0.66, 0.78), rng.uniform(0.08, 0.18), 0.018
    sheet = {"exponent": 30.0, "bevel": 0.004}
    front = slab("front cover", "body", w, 1.0, cover, **sheet).moved(z=thick / 2)
    back = slab("back cover", "body", w, 1.0, cover, **sheet).moved(z=-thick / 2)
    pages = slab("pages", "paper", w - 0.03, 0.97, thick - cover, **sheet).moved(x=-0.005, y=0.015)
    spine = slab("spine", "accent", 0.05, 1.0, thick + 1.3 * cover, **sheet).moved(x=-w / 2 + 0.015)
    return Shape(category="Notebooks", noun="notebook", parts=(front, back, pages, spine), label_aspect=w)


def pillow(rng: np.random.Generator) -> Shape:
    w, thick = rng.uniform(0.85, 1.15), rng.uniform(0.32, 0.45)
    height = rng.uniform(0.75, 0.9)
    body = cushion("pillow", "body", w, height, thick, pinch=rng.uniform(0.05, 0.12))
    lean = body.mapped(rotation_x(-rng.uniform(4, 14)))
    return Shape(
        category="Pillows", noun="pillow", parts=(lean.moved(y=-lean.vertices[:, 1].min()),), label_aspect=w / height
    )


def fork(rng: np.random.Generator) -> Shape:
    """Standing on the end of its wide handle, tines up."""
    w, h, waist = rng.uniform(0.19, 0.25), rng.uniform(0.46, 0.54), rng.uniform(0.5, 0.7)
    half = w / 2 * spline([(0.6,), (1.0,), (0.9,), (waist,)], 6)[:, 0]
    y = np.linspace(0, h, len(half))
    right, left = np.stack([y, -half], axis=1), np.stack([y, half], axis=1)
    # A panel's curves run from left to right, so it is built lying down and set upright.
    lying = panel("handle", "body", right, left, 0.1, edge=0.05)
    handle = lying.mapped(rotation_z(90)).labelled(-w / 2, w / 2, 0.0, h)
    span, tines, crown = rng.uniform(0.24, 0.3), int(rng.integers(3, 5)), rng.uniform(0.66, 0.7)
    flat = np.stack([np.linspace(-span / 2, span / 2, 21), np.full(21, crown + 0.1)], axis=1)
    bowl = np.interp(np.abs(flat[:, 0]), [0.03, span / 4, span / 2], [h + 0.08, h + 0.12, crown + 0.04])
    head = panel("head", "paper", np.stack([flat[:, 0], bowl], axis=1), flat, 0.04, edge=0.03)
    neck = tube("neck", "paper", [(0, h - 0.02, 0), (0, h + 0.05, 0), (0, h + 0.12, 0)], [0.06, 0.035, 0.03])
    metal = [head, neck]
    for x in np.linspace(-span / 2 + 0.022, span / 2 - 0.022, tines):
        tine = [(x, crown + 0.08, 0), (x, 0.96, 0.02), (x, 1.0, 0.03)]
        metal.append(tube("tine", "paper", tine, [0.022, 0.02, 0.015], capped=True))
    parts = (handle, *(part.colored(STEEL) for part in metal))
    return Shape(category="Fork", noun="fork", parts=parts, label_aspect=w / h)


def rug(rng: np.random.Generator) -> Shape:
    """As shown in a shop: hung over a stand, its front end on the floor, with fringes at both ends."""
    w, length, floor = rng.uniform(0.62, 0.78), rng.uniform(1.2, 1.3), rng.uniform(0.24, 0.32)
    lean, r, thick = np.radians(rng.uniform(8, 16)), 0.12, 0.04
    rows = np.linspace(-w / 2, w / 2, 13)
    flat = panel(
        "rug",
        "body",
        np.stack([rows, 0 * rows], axis=1),
        np.stack([rows, 0 * rows + length], axis=1),
        thick,
        edge=thick,
        rows=61,
    )
    flat = flat.labelled(-w / 2, w / 2, floor, length)
    ends = [slab("border", "accent", w + 0.01, 0.05, thick + 0.02, exponent=30, bevel=0.004).moved(y=length - 0.08)]
    fringe = []
    for x in np.linspace(-w / 2 + 0.02, w / 2 - 0.02, 16):
        for y in (-0.05, length - 0.01):
            fringe.append(tube("thread", "paper", [(x, y, 0), (x, y + 0.03, 0), (x, y + 0.06, 0)], 0.016, segments=8))
    strips = [flat, *ends, joined("fringe", fringe)]
    bend = np.pi / 2 - lean

    def drape(points: np.ndarray) -> np.ndarray:
        """From a flat, upright sheet to one that leaves the floor in a curve; y is the length along it."""
        along, out = points[:, 1] - floor, points[:, 2]
        turn = np.clip(along / r, 0, bend)
        rest = np.maximum(along - r * bend, 0)
        y = r * (1 - np.cos(turn)) + rest * np.sin(turn)
        z = -np.minimum(along, 0) - r * np.sin(turn) - rest * np.cos(turn)
        return np.stack([points[:, 0], y + out * np.cos(turn), z + out * np.sin(turn)], axis=1)

    return Shape(
        category="Rugs",
        noun="rug",
        parts=on_floor([part.warped(drape) for part in strips]),
        label_aspect=w / (length - floor),
    )


def bench(rng: np.random.Generator) -> Shape:
    """A park bench whose print runs over all slats of its back."""
    w, seat, top = rng.uniform(1.15, 1.4), rng.uniform(0.34, 0.4), rng.uniform(0.82, 0.92)
    slats = int(rng.integers(1, 4))
    low, gap = seat + 0.08, 0.035
    each = (top - low - gap * (slats - 1)) / slats
    board = {"exponent": 24.0, "bevel": 0.012}
    back = []
    for i in range(slats):
        y = low + i * (each + gap)
        back.append(slab("slat", "body", w, each, 0.05, **board).moved(y=y).labelled(-w / 2, w / 2, low, top))
    depth = rng.uniform(0.34, 0.4)
    plank = slab("plank", "body", w, 0.05, depth / 3 - 0.02, **board).moved(y=seat).labelled(-w / 2, w / 2, low, top)
    planks = [plank.moved(z=z * depth / 3) for z in (1, 2, 3)]
    parts = [*(part.mapped(rotation_x(-6)) for part in back), *planks]
    arms = rng.random() < 0.6
    for x in (-w / 2 + 0.08, w / 2 - 0.08):
        front, rear = (x, seat, depth), (x, seat + 0.02, 0.02)
        parts.append(tube("leg", "accent", [(x, 0, depth + 0.03), front], 0.035, capped=True))
        parts.append(tube("leg", "accent", [(x, 0, -0.06), rear, (x, top - 0.08, -0.12)], 0.035, capped=True))
        parts.append(tube("rail", "accent", [rear, front], 0.03))
        if arms:
            arm = [front, (x, seat + 0.2, depth + 0.02), (x, seat + 0.24, depth - 0.05), (x, seat + 0.22, -0.07)]
            parts.append(tube("arm", "accent", spline(arm, 5), 0.03, capped=True))
    return Shape(category="Bench", noun="bench", parts=on_floor(parts), label_aspect=w / (top - low))
