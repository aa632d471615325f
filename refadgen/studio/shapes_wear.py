"""Shapes of things to wear or carry: bags, clothes, hats, shoes."""

import numpy as np

from refadgen.studio.meshes import RUBBER, Shape, arc, lathe, mirrored, on_floor, rotation_x, rotation_y, slab, tube
from refadgen.studio.shapes_panels import panel, polyline, spline


def handbag(rng: np.random.Generator) -> Shape:
    w, h, d = rng.uniform(0.75, 0.95), rng.uniform(0.52, 0.64), rng.uniform(0.24, 0.34)
    body = slab("bag", "body", w, h, d, exponent=rng.uniform(5, 9), taper=rng.uniform(0, 0.25), bevel=0.05)
    angle = np.linspace(0, np.pi, 25)
    reach = w * rng.uniform(0.18, 0.26)
    path = np.stack([reach * np.cos(angle), h - 0.03 + (0.97 - h) * np.sin(angle), 0 * angle], axis=1)
    strap = tube("strap", "accent", path, rng.uniform(0.025, 0.04))
    flap = slab("flap", "accent", w * 0.2, h * 0.22, d + 0.02, bevel=0.01).moved(y=h * 0.82)
    return Shape(category="Handbag", noun="handbag", parts=(body, strap, flap), label_aspect=w / h)


def backpack(rng: np.random.Generator) -> Shape:
    w, h, d = rng.uniform(0.58, 0.7), rng.uniform(0.84, 0.9), rng.uniform(0.28, 0.36)
    round_top = rng.uniform(0.12, 0.26)
    foot = [(-w / 2, 0.06), (-w / 2 + 0.04, 0.01), (-w / 2 + 0.1, 0), (w / 2 - 0.1, 0), (w / 2 - 0.04, 0.01)]
    foot.append((w / 2, 0.06))
    dome = [(-w / 2, h - round_top), (-0.42 * w, h - 0.3 * round_top), (-0.25 * w, h - 0.03)]
    dome += [(-x, y) for x, y in reversed(dome)]
    bag = panel("bag", "body", polyline(foot), spline(dome), d, edge=0.5 * d, fullness=(3.5, 3.5))
    pocket_h, pocket_w = h * rng.uniform(0.32, 0.4), 0.82 * w
    corner = [(-pocket_w / 2, 0.06), (-0.4 * pocket_w, 0.03), (0.4 * pocket_w, 0.03), (pocket_w / 2, 0.06)]
    lid = [(x, pocket_h + 0.03 - (y - 0.03)) for x, y in corner]
    pocket = panel("pocket", "accent", polyline(corner), polyline(lid), 0.17, edge=0.08, fullness=(5, 5))
    y = pocket_h + 0.05
    parts = [
        bag.labelled(-w / 2, w / 2, y, h),
        pocket.moved(z=0.42 * d),
        tube("zip", "paper", [(-0.4 * w, y, 0.49 * d), (0.4 * w, y, 0.49 * d)], 0.018, capped=True).colored(RUBBER),
    ]
    for side in (-1, 1):
        reach = w / 2 + rng.uniform(0.07, 0.11)
        strap = [(0.25 * w, 0.96 * h, -0.3 * d), (0.52 * w, 0.9 * h, -0.5 * d), (reach, 0.6 * h, -0.55 * d)]
        strap += [(reach - 0.01, 0.3 * h, -0.5 * d), (0.42 * w, 0.08, -0.4 * d)]
        parts.append(tube("strap", "accent", spline(strap) * [side, 1, 1], 0.04))
    loop = [(-0.1, h - 0.05, 0), (-0.09, h + 0.05, 0), (0, h + 0.09, 0), (0.09, h + 0.05, 0), (0.1, h - 0.05, 0)]
    parts.append(tube("loop", "accent", spline(loop), 0.028))
    return Shape(category="Backpack", noun="backpack", parts=tuple(parts), label_aspect=w / (h - y))


def t_shirt(rng: np.random.Generator) -> Shape:
    """As on an invisible stand, front to the camera."""
    half, flare, reach = rng.uniform(0.27, 0.32), rng.uniform(0, 0.04), rng.uniform(0.17, 0.24)
    neck, scoop, cuff = rng.uniform(0.11, 0.15), rng.uniform(0.09, 0.16), rng.uniform(0.18, 0.22)
    pointed = rng.random() < 0.35
    tip = (-half - reach, rng.uniform(0.66, 0.74))
    under = (tip[0] + 0.45 * cuff, tip[1] - 0.9 * cuff)
    hollow = [(-neck, 1.0), (-0.85 * neck, 1 - 0.5 * scoop), (-0.5 * neck, 1 - 0.87 * scoop), (0, 1 - scoop)]
    if pointed:
        hollow = [(-neck * k, 1 - 1.3 * scoop * (1 - k)) for k in (1, 0.66, 0.33, 0)]
    top = [tip, (-half - 0.02, 0.9), (-half + 0.08, 0.945), *hollow]
    bottom = [under, (-half, 0.64), (-half - flare, 0)]
    bottom += [(x, 0.0) for x in (-neck, -0.7 * neck, -0.4 * neck, 0.0)]
    # Both outlines go on, mirrored, over the right half.
    low, high = (polyline([*side, *((-x, y) for x, y in reversed(side[:-1]))], 5) for side in (bottom, top))
    cloth = panel("cloth", "body", low, high, rng.uniform(0.16, 0.22), edge=0.05)
    collar = np.array([(x, y, 0.0) for x, y in [*hollow, *((-x, y) for x, y in reversed(hollow[:-1]))]])
    nape = np.stack([collar[:, 0], 1.0 - 0.025 * (1 - (collar[:, 0] / neck) ** 2)], axis=1)
    parts = [
        cloth.labelled(-half, half, 0.04, 0.86),
        panel("nape", "accent", polyline(collar[:, :2] - [0, 0.02], 3), polyline(nape, 3), 0.03).moved(z=-0.01),
        tube("collar", "accent", polyline(collar, 4), 0.026),
    ]
    for side in (-1, 1):
        hem = np.array([(*under, 0), ((under[0] + tip[0]) / 2, (under[1] + tip[1]) / 2, 0), (*tip, 0)]) * [side, 1, 1]
        parts.append(tube("cuff", "accent", hem, 0.03, capped=True))
    return Shape(category="Clothing", noun="garment", parts=tuple(parts), label_aspect=2 * half / 0.82)


def hat(rng: np.random.Generator) -> Shape:
    """A cap with a peak, or a hat with a brim all around."""
    if rng.random() < 0.5:
        return _brimmed_hat(rng)
    r, h = rng.uniform(0.4, 0.46), rng.uniform(0.5, 0.6)
    crown = [
        (r, 0),
        (1.01 * r, 0.14),
        *((r * np.cos(a), 0.14 + (h - 0.14) * np.sin(a)) for a in np.linspace(0.1, 1.57, 16)),
    ]
    reach, turn = rng.uniform(0.34, 0.42), rng.choice([-1.0, 1.0]) * rng.uniform(28, 48)
    x = np.linspace(-0.9 * r, 0.9 * r, 25)
    inner = np.sqrt(r**2 - x**2) - 0.03
    outer = 0.2 * r + (0.8 * r + reach) * np.sqrt((1 - (x / (0.93 * r)) ** 2).clip(0)) ** 0.8
    # Built upright, laid down towards the front, then bent around the forehead.
    peak = panel("peak", "accent", np.stack([x, inner], 1), np.stack([x, np.maximum(outer, inner + 0.01)], 1), 0.04)
    laid = peak.mapped(rotation_x(90)).warped(lambda p: p - np.stack([0 * p[:, 0], 0.3 * p[:, 0] ** 2, 0 * p[:, 0]], 1))
    button = lathe("button", "accent", [(0.05, 0), *arc(0, 0, 0.05, 0, 90, 4)]).mapped(np.diag([1, 0.6, 1]))
    band = lathe("band", "accent", [(r, 0), (1.025 * r, 0), (1.025 * r, 0.035), (r, 0.035)])
    parts = [
        lathe("crown", "body", polyline(crown, 3), label=(0.05, 0.9 * h)),
        band,
        laid.moved(y=0.075).mapped(rotation_y(turn)),
        button.moved(y=h - 0.01),
    ]
    return Shape(category="Hats", noun="hat", parts=on_floor(parts), label_aspect=np.pi * r / (0.85 * h))


def _brimmed_hat(rng: np.random.Generator) -> Shape:
    r, h, brim = rng.uniform(0.32, 0.4), rng.uniform(0.5, 0.66), rng.uniform(0.2, 0.28)
    top, lift = rng.uniform(0.72, 0.95), rng.uniform(-0.03, 0.08)
    crown = [(r, 0.03), (r * (top + 1) / 2, 0.6 * h), (r * top, h - 0.06), (r * (top - 0.1), h), (r * 0.5, h - 0.02)]
    profile = [(0.9 * r, 0), (r + 0.5 * brim, 0.0), (r + brim, lift), (r + brim, lift + 0.035), (r + 0.5 * brim, 0.04)]
    ribbon = np.interp([0.04, 0.2 * h], [0.03, 0.6 * h], [r, r * (top + 1) / 2]) + 0.012
    band = [(r, 0.035), (ribbon[0], 0.035), (ribbon[1], 0.2 * h), (0.9 * r, 0.2 * h)]
    parts = [
        lathe("crown", "body", polyline([*crown, (0, h - 0.05)], 5), label=(0.2 * h, h - 0.03)),
        lathe("brim", "body", [*profile, (0.9 * r, 0.045)], label=(-1.0, 0.5)),
        lathe("band", "accent", band),
    ]
    return Shape(category="Hats", noun="hat", parts=on_floor(parts), label_aspect=np.pi * r / (0.8 * h - 0.03))


def sneaker(rng: np.random.Generator) -> Shape:
    """One shoe, its outer side to the camera."""
    side, high, sole = rng.choice([-1.0, 1.0]), rng.uniform(0.48, 0.74), rng.uniform(0.11, 0.16)
    toe = rng.uniform(0.2, 0.26) + sole
    heel = [(-0.53, sole), (-0.56, 0.55 * high), (-0.55, high), (-0.48, high + 0.02), (-0.3, high - 0.06)]
    front = [(-0.12, high - 0.02), (-0.02, high + 0.05), (0.06, 0.86 * high), (0.3, toe + 0.06), (0.5, toe - 0.03)]
    front += [(0.6, toe - 0.13), (0.62, sole)]
    top = spline(heel + front, 5)
    # A panel joins points of equal number: the sole's are spaced as the points along the upper edge are.
    share = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(top, axis=0), axis=1))])
    floor = np.stack([np.interp(share / share[-1], [0, 1], [-0.53, 0.62]), np.full(len(top), sole)], axis=1)
    upper = panel("upper", "body", floor, top, 0.4, edge=0.07, fullness=(4, 2.6), wide_foot=True)
    x = np.linspace(-0.58, 0.67, 41)
    tread = np.interp(x, [-0.58, -0.5, 0.4, 0.67], [0.03, 0, 0, 0.07])
    rim = sole + 0.02 + np.interp(x, [-0.58, -0.3, 0.3, 0.67], [0.03, 0, 0, 0.05])
    bottom, welt = (np.stack([x, y], axis=1) for y in (tread, rim))
    foot = panel("sole", "paper", bottom, welt, 0.45, edge=0.04, fullness=(5, 40))
    stripe = panel(
        "outsole", "accent", bottom - [0, 0.001], np.add(bottom, [0, 0.035]), 0.47, edge=0.05, fullness=(5, 40)
    )
    parts = [upper.labelled(-0.5, 0.35, sole, 0.92 * high), foot, stripe]
    lace = np.stack([np.linspace(0.03, 0.28, 5), np.linspace(0.9 * high, toe + 0.07, 5)], axis=1)
    for x0, y0 in lace:
        z = np.linspace(-1, 1, 9)
        path = np.stack([0 * z + x0 - 0.03 * z**2, y0 + 0.01 - 0.1 * z**2, 0.13 * z], axis=1)
        parts.append(tube("lace", "paper", path, 0.022, capped=True))
    parts.append(tube("collar", "accent", [(px, py, 0) for px, py in top[12:28]], 0.05, capped=True))
    return Shape(
        category="Sneakers",
        noun="sneaker",
        parts=on_floor(parts if side > 0 else mirrored(parts)),
        label_aspect=0.85 / (0.92 * high - sole),
    )
