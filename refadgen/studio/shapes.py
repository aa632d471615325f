"""Parametric product shapes: meshes of named parts, standing on y = 0, about one unit tall.

A shape knows no colour: `Part.material` says which parts the appearance prints on ("body"), which take its secondary
colour ("accent"). One seed gives one shape; the category names are the paper's (Table 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refadgen.studio.meshes import Part, arc, cushion, lathe, rotation_x, rotation_y, slab, tube


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The geometry of one product."""

    category: str
    noun: str
    """What a caption calls it."""
    parts: tuple[Part, ...]
    label_aspect: float
    """Width over height of the label square on this shape, so that prints are not stretched."""


def _bottle(rng: np.random.Generator) -> Shape:
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


def _pump_bottle(rng: np.random.Generator) -> Shape:
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


def _shampoo(rng: np.random.Generator) -> Shape:
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


def _cup(rng: np.random.Generator) -> Shape:
    r, foot, h = rng.uniform(0.34, 0.44), rng.uniform(0.75, 1.0), rng.uniform(0.8, 0.95)
    outer = [(0, 0), (r * foot - 0.03, 0), (r * foot, 0.03), (r, h)]
    inner = [(r, h), (r - 0.04, h), ((r - 0.04) * foot, 0.08), (0, 0.08)]
    angle = np.linspace(-0.5, 0.5, 15) * np.pi
    reach = rng.uniform(0.2, 0.28)
    path = np.stack([r * 0.96 + reach * np.cos(angle), h * 0.5 + h * 0.28 * np.sin(angle), 0 * angle], axis=1)
    handle = tube("handle", "accent", path * [rng.choice([-1.0, 1.0]), 1, 1], rng.uniform(0.035, 0.05))
    parts = (lathe("body", "body", outer), lathe("inside", "accent", inner), handle)
    return Shape(category="Cup", noun="cup", parts=parts, label_aspect=np.pi * r / h)


def _can(rng: np.random.Generator) -> Shape:
    r, lid = rng.uniform(0.26, 0.38), rng.uniform(0.08, 0.16)
    h = 0.96 - lid
    body = [(0, 0), (r - 0.02, 0), (r, 0.02), (r, h), (r - 0.03, h + 0.03), (0, h + 0.03)]
    wide = r + rng.uniform(0.0, 0.02)
    parts = (
        lathe("body", "body", body, label=(0.02, h)),
        lathe("lid", "accent", [(0, h + 0.02), (wide, h + 0.02), (wide, 0.97), (wide - 0.02, 1.0), (0, 1.0)]),
    )
    return Shape(category="Coffee", noun="coffee can", parts=parts, label_aspect=np.pi * r / h)


def _snack_box(rng: np.random.Generator) -> Shape:
    w, d = rng.uniform(0.3, 0.42), rng.uniform(0.1, 0.18)
    profile = [(0, 0), (1, 0), (1, 1), (0, 1)]
    share = w / (w + d) / 2
    body = lathe("box", "body", profile, width=w, depth=d, exponent=14, front_share=share, segments=64)
    strip = [(0, 0.86), (1.012, 0.86), (1.012, 0.94), (0, 0.94)]
    parts = (body, lathe("strip", "accent", strip, width=w, depth=d, exponent=14, segments=64))
    return Shape(category="Snacks", noun="snack box", parts=parts, label_aspect=2 * w)


def _pouch(rng: np.random.Generator) -> Shape:
    w, thick = rng.uniform(0.66, 0.8), rng.uniform(0.22, 0.32)
    bag = cushion("bag", "body", w, 0.92, thick, pinch=0.04, flat_ends=True)
    seal = slab("seal", "accent", w * 1.0, 0.1, 0.03, exponent=20, bevel=0.005).moved(y=0.9)
    return Shape(category="Snacks", noun="snack pouch", parts=(bag, seal), label_aspect=w / 0.92)


def _lipstick(rng: np.random.Generator) -> Shape:
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


def _jar(rng: np.random.Generator) -> Shape:
    r, lid = rng.uniform(0.42, 0.5), rng.uniform(0.28, 0.36)
    height = rng.uniform(0.78, 0.95)
    h = height - lid
    body = [(0, 0), *arc(r - 0.06, 0.06, 0.06, -90, 0, 4), *arc(r - 0.06, h - 0.07, 0.06, 0, 90, 4), (0, h - 0.01)]
    top = r * rng.uniform(0.9, 1.0)
    cap = [(0, h), (top, h), *arc(top - 0.03, height - 0.03, 0.03, 0, 90, 4), (0, height)]
    parts = (lathe("body", "body", body, label=(0.03, h - 0.03)), lathe("lid", "accent", cap))
    return Shape(category="Foundation", noun="foundation jar", parts=parts, label_aspect=np.pi * r / (h - 0.06))


def _notebook(rng: np.random.Generator) -> Shape:
    w, thick, cover = rng.uniform(0.66, 0.78), rng.uniform(0.08, 0.18), 0.018
    sheet = {"exponent": 30.0, "bevel": 0.004}
    front = slab("front cover", "body", w, 1.0, cover, **sheet).moved(z=thick / 2)
    back = slab("back cover", "body", w, 1.0, cover, **sheet).moved(z=-thick / 2)
    pages = slab("pages", "paper", w - 0.03, 0.97, thick - cover, **sheet).moved(x=-0.005, y=0.015)
    spine = slab("spine", "accent", 0.05, 1.0, thick + 1.3 * cover, **sheet).moved(x=-w / 2 + 0.015)
    return Shape(category="Notebooks", noun="notebook", parts=(front, back, pages, spine), label_aspect=w)


def _pillow(rng: np.random.Generator) -> Shape:
    w, thick = rng.uniform(0.85, 1.15), rng.uniform(0.32, 0.45)
    height = rng.uniform(0.75, 0.9)
    body = cushion("pillow", "body", w, height, thick, pinch=rng.uniform(0.05, 0.12))
    lean = body.mapped(rotation_x(-rng.uniform(4, 14)))
    return Shape(
        category="Pillows", noun="pillow", parts=(lean.moved(y=-lean.vertices[:, 1].min()),), label_aspect=w / height
    )


def _ball(rng: np.random.Generator) -> Shape:
    r = rng.uniform(0.4, 0.46)
    ball = lathe("ball", "body", arc(0, r, r, -90, 90, 28), label=(0.1 * r, 1.9 * r))
    return Shape(category="Sports ball", noun="sports ball", parts=(ball,), label_aspect=1.6)


def _phone(rng: np.random.Generator) -> Shape:
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


def _handbag(rng: np.random.Generator) -> Shape:
    w, h, d = rng.uniform(0.75, 0.95), rng.uniform(0.52, 0.64), rng.uniform(0.24, 0.34)
    body = slab("bag", "body", w, h, d, exponent=rng.uniform(5, 9), taper=rng.uniform(0, 0.25), bevel=0.05)
    angle = np.linspace(0, np.pi, 25)
    reach = w * rng.uniform(0.18, 0.26)
    path = np.stack([reach * np.cos(angle), h - 0.03 + (0.97 - h) * np.sin(angle), 0 * angle], axis=1)
    strap = tube("strap", "accent", path, rng.uniform(0.025, 0.04))
    flap = slab("flap", "accent", w * 0.2, h * 0.22, d + 0.02, bevel=0.01).moved(y=h * 0.82)
    return Shape(category="Handbag", noun="handbag", parts=(body, strap, flap), label_aspect=w / h)


_BUILDERS: tuple[Callable[[np.random.Generator], Shape], ...] = (
    _bottle,
    _pump_bottle,
    _shampoo,
    _cup,
    _can,
    _snack_box,
    _pouch,
    _lipstick,
    _jar,
    _notebook,
    _pillow,
    _ball,
    _phone,
    _handbag,
)

CATEGORIES = (
    "Bottle",
    "Body wash",
    "Shampoo",
    "Cup",
    "Coffee",
    "Snacks",
    "Lipstick",
    "Foundation",
    "Notebooks",
    "Pillows",
    "Sports ball",
    "Cell phone",
    "Handbag",
)
"""The paper's categories (Table 1) that the studio can build."""

NOUNS = (
    "bottle",
    "body wash",
    "shampoo",
    "cup",
    "coffee can",
    "snack box",
    "snack pouch",
    "lipstick",
    "foundation jar",
    "notebook",
    "pillow",
    "sports ball",
    "cell phone",
    "handbag",
)
"""What the captions call the products."""


def sample_shape(rng: np.random.Generator) -> Shape:
    """A random shape of a random kind."""
    return _BUILDERS[int(rng.integers(len(_BUILDERS)))](rng)


def turned_vertices(shape: Shape, yaw_deg: float) -> np.ndarray:
    """All vertices [V, 3] of the shape after turning it about the upward axis."""
    return np.concatenate([part.vertices for part in shape.parts]) @ rotation_y(yaw_deg).T
