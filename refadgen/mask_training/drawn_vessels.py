"""Drawn products, first part: vessels, boxes, screens and other things with a face."""

import numpy as np

from refadgen.mask_training.pen import Pen, Role, oval, rounded, turned_profile


def bottle(pen: Pen) -> None:
    wide, neck = pen.between(0.2, 0.42), pen.between(0.08, 0.16)
    shoulder = pen.between(-0.5, -0.15)
    heights = [-0.72, shoulder - 0.12, shoulder + 0.1, 0.5, 0.95]
    pen.polygon(
        turned_profile(heights, [neck, neck, wide, wide * pen.between(0.85, 1.1), wide]), pattern=pen.chance(0.3)
    )
    if pen.chance(0.7):
        top = pen.between(shoulder + 0.15, 0.2)
        pen.rectangle(-wide, top, wide, pen.between(top + 0.2, 0.75), "pale", pattern=pen.chance(0.6))
    pen.rectangle(-neck * 1.2, -0.97, neck * 1.2, -0.7, "pale" if pen.chance(0.5) else "accent", corner=0.03)


def can(pen: Pen) -> None:
    wide, tall = pen.between(0.3, 0.6), pen.between(0.45, 0.9)
    role: Role = "pale" if pen.chance(0.4) else "accent"
    pen.rectangle(-wide, -tall, wide, tall, corner=0.08, pattern=pen.chance(0.6))
    pen.rectangle(
        -wide, -tall * pen.between(0.2, 0.7), wide, tall * pen.between(0.1, 0.7), role, pattern=pen.chance(0.5)
    )
    pen.ellipse(0, -tall, wide, pen.between(0.06, 0.16), "pale" if pen.chance(0.3) else "dark")


def jar(pen: Pen) -> None:
    wide, tall, lid = pen.between(0.45, 0.75), pen.between(0.35, 0.7), pen.between(0.12, 0.3)
    pen.rectangle(-wide, -tall, wide, tall, corner=pen.between(0.03, 0.3), pattern=pen.chance(0.4))
    pen.rectangle(
        -wide * 0.95, -tall - lid, wide * 0.95, -tall + 0.03, "pale" if pen.chance(0.6) else "accent", corner=0.04
    )
    if pen.chance(0.6):
        pen.rectangle(-wide, -0.3 * tall, wide, 0.6 * tall, "pale", pattern=pen.chance(0.6))


def carafe(pen: Pen) -> None:
    low, high = pen.between(0.35, 0.6), pen.between(0.15, 0.3)
    pen.polygon(turned_profile([-0.9, -0.5, 0.1, 0.6, 0.92], [high, high * 0.8, low * 0.7, low, low * 0.8]))
    pen.rectangle(-low * 0.95, 0.2, low * 0.95, 0.55, "pale")
    if pen.chance(0.5):
        pen.rectangle(-high, -0.98, high, -0.8, "pale", corner=0.05)


def mug(pen: Pen) -> None:
    wide, tall = pen.between(0.4, 0.6), pen.between(0.45, 0.75)
    thick, reach = pen.between(0.07, 0.16), pen.between(0.25, 0.42)
    pen.ring(oval(wide, 0, reach, 0.75 * tall), oval(wide, 0, reach - thick, 0.75 * tall - thick), "body")
    foot = wide * pen.between(0.7, 1.05)
    pen.polygon([(-wide, -tall), (wide, -tall), (foot, tall), (-foot, tall)], pattern=pen.chance(0.6))
    pen.ellipse(0, -tall, wide, pen.between(0.05, 0.15), "pale" if pen.chance(0.5) else "dark")


def kettle(pen: Pen) -> None:
    pen.polygon(turned_profile([-0.4, 0, 0.5, 0.85], [0.25, 0.5, pen.between(0.55, 0.7), 0.5]))
    pen.polygon([(0.45, 0.3), (0.95, -0.25), (0.85, -0.35), (0.35, 0.05)], "accent")
    pen.stroke(
        [(-0.35, -0.3), (-0.45, -0.75), (0, pen.between(-0.95, -0.85)), (0.45, -0.75), (0.35, -0.3)], 0.1, "dark"
    )
    pen.rectangle(-0.22, -0.5, 0.22, -0.36, "pale", corner=0.04)


def bowl(pen: Pen) -> None:
    depth = pen.between(0.35, 0.7)
    t = np.linspace(0, np.pi, 24)
    pen.polygon(np.stack([0.92 * np.cos(t), depth * np.sin(t) - 0.1], 1), pattern=pen.chance(0.4))
    pen.ellipse(0, -0.1, 0.92, pen.between(0.1, 0.3), "pale")
    if pen.chance(0.4):
        for _ in range(pen.rng.integers(3, 9)):
            pen.ellipse(pen.between(-0.6, 0.6), pen.between(-0.25, 0), 0.17, 0.14, "accent")


def wine_glass(pen: Pen) -> None:
    clear = pen.between(0.12, 0.6) if pen.chance(0.7) else 1.0
    wide = pen.between(0.3, 0.45)
    pen.polygon(
        turned_profile([-0.95, -0.5, -0.1, 0.05], [wide * 0.8, wide, wide * 0.6, 0.03]), "accent", opacity=clear
    )
    pen.rectangle(-0.03, 0, 0.03, 0.85, "body", opacity=max(0.6, clear))
    pen.ellipse(0, 0.88, pen.between(0.22, 0.35), 0.07, "body", opacity=max(0.4, clear))
    pen.stroke(oval(0, -0.95, wide * 0.8, 0.04), 0.012, "dark", closed=True)
    if pen.chance(0.4):
        pen.polygon(turned_profile([-0.5, -0.3, -0.1, 0.05], [wide, wide * 0.9, wide * 0.6, 0.03]), "dark", opacity=0.8)


def tumbler(pen: Pen) -> None:
    top, foot, tall = pen.between(0.4, 0.6), pen.between(0.3, 0.5), pen.between(0.6, 0.9)
    clear = pen.between(0.1, 0.5)
    pen.polygon([(-top, -tall), (top, -tall), (foot, tall), (-foot, tall)], "accent", opacity=clear)
    for inset in (0.0, 0.04):
        edge = [
            (-top + inset, -tall),
            (-foot + inset, tall - inset),
            (foot - inset, tall - inset),
            (top - inset, -tall),
        ]
        pen.stroke(edge, 0.015, "dark" if pen.chance(0.5) else "body")
    pen.stroke(oval(0, -tall, top, 0.08), 0.015, "dark", closed=True)


def flacon(pen: Pen) -> None:
    wide, tall, wall = pen.between(0.3, 0.7), pen.between(0.4, 0.65), pen.between(0.04, 0.12)
    corner, clear = pen.between(0.02, 0.25), pen.between(0.1, 0.5)
    pen.rectangle(-wide, -tall + 0.25, wide, tall + 0.25, "accent", corner=corner, opacity=clear)
    filled = pen.between(-tall + 0.3, tall)
    pen.rectangle(-wide + wall, filled, wide - wall, tall + 0.25 - wall, opacity=pen.between(0.15, 0.8))
    pen.stroke(rounded(-wide, -tall + 0.25, wide, tall + 0.25, corner), 0.015, "dark", closed=True)
    neck = wide * pen.between(0.3, 0.6)
    pen.rectangle(-neck, -tall - 0.15, neck, -tall + 0.25, "pale" if pen.chance(0.3) else "dark", corner=0.03)


def vase(pen: Pen) -> None:
    waist, wide = pen.between(0.12, 0.3), pen.between(0.3, 0.55)
    outline = turned_profile([-0.9, -0.45, 0.2, 0.75, 0.92], [waist * 1.5, waist, wide, wide * 0.8, wide * 0.6])
    pen.polygon(outline, "body", opacity=pen.between(0.1, 0.5))
    pen.stroke(outline, 0.02, "body", closed=True)
    pen.stroke(oval(0, -0.9, waist * 1.5, 0.05), 0.015, "dark", closed=True)
    pen.ellipse(0, 0.9, wide * 0.6, 0.06, "body", opacity=pen.between(0.5, 0.9))


def box(pen: Pen) -> None:
    x, y, slant = pen.between(0.1, 0.5), pen.between(0.15, 0.4), pen.between(0.5, 0.8)
    pen.polygon([(-0.8, -slant + y), (x, -slant), (x, 0.9), (-0.8, 0.9 - y / 2)], pattern=pen.chance(0.7))
    pen.polygon([(x, -slant), (0.85, -slant + y), (0.85, 0.9 - y), (x, 0.9)], "pale" if pen.chance(0.4) else "accent")
    pen.polygon(
        [(-0.8, -slant + y), (x, -slant), (0.85, -slant + y), (0.85 - x - 0.4, -slant + 1.6 * y)],
        "pale" if pen.chance(0.4) else "body",
    )


def cushion(pen: Pen) -> None:
    sag = pen.between(0.02, 0.2)
    corners = [
        (-0.9, -0.9),
        (0, -0.9 + sag),
        (0.9, -0.9),
        (0.9 - sag, 0),
        (0.9, 0.9),
        (0, 0.9 - sag),
        (-0.9, 0.9),
        (-0.9 + sag, 0),
    ]
    pen.smooth(corners, "pale" if pen.chance(0.3) else "body", pattern=pen.chance(0.7))


def television(pen: Pen) -> None:
    tall, frame = pen.between(0.45, 0.62), pen.between(0.012, 0.07)
    pen.rectangle(-0.95, -tall, 0.95, tall, "dark", corner=pen.between(0, 0.05))
    pen.rectangle(-0.95 + frame, -tall + frame, 0.95 - frame, tall - frame, "face", pattern=pen.chance(0.4))
    pen.rectangle(-0.06, tall, 0.06, tall + 0.15, "dark")
    pen.rectangle(-0.4, tall + 0.13, 0.4, tall + 0.2, "dark" if pen.chance(0.6) else "pale")


def tablet(pen: Pen) -> None:
    wide, frame = pen.between(0.5, 0.75), pen.between(0.015, 0.09)
    pen.rectangle(-wide, -0.95, wide, 0.95, "dark" if pen.chance(0.7) else "accent", corner=pen.between(0.02, 0.2))
    pen.rectangle(
        -wide + frame,
        -0.95 + frame,
        wide - frame,
        0.95 - frame,
        "face",
        corner=pen.between(0, 0.08),
        pattern=pen.chance(0.4),
    )
    if pen.chance(0.5):
        pen.ellipse(0, 0.95 - frame / 2, frame / 3, frame / 3, "pale")


def laptop(pen: Pen) -> None:
    frame = pen.between(0.015, 0.06)
    pen.polygon([(-0.65, -0.8), (0.65, -0.8), (0.7, 0.25), (-0.7, 0.25)], "dark")
    pen.polygon(
        [
            (-0.65 + frame, -0.8 + frame),
            (0.65 - frame, -0.8 + frame),
            (0.7 - frame, 0.25 - frame),
            (-0.7 + frame, 0.25 - frame),
        ],
        "face",
        pattern=pen.chance(0.3),
    )
    pen.polygon([(-0.7, 0.25), (0.7, 0.25), (0.95, 0.7), (-0.95, 0.7)], "accent" if pen.chance(0.6) else "pale")
    pen.polygon([(-0.62, 0.3), (0.62, 0.3), (0.72, 0.5), (-0.72, 0.5)], "dark")


def notebook(pen: Pen) -> None:
    tall, frame = pen.between(0.5, 0.7), pen.between(0.012, 0.05)
    pen.rectangle(-0.95, -tall, 0.95, tall, "body")
    pen.rectangle(-0.95 + frame, -tall + frame, 0.95 - frame, tall - frame, "face", pattern=pen.chance(0.3))
    pen.stroke([(0, -tall + frame), (0, tall - frame)], 0.012, "accent")


def plate(pen: Pen) -> None:
    rim, flat = pen.between(0.025, 0.25), pen.between(0.35, 1.0)
    pen.ellipse(0, 0, 0.95, 0.95 * flat, "body", pattern=pen.chance(0.3))
    pen.ellipse(0, 0, 0.95 - rim, (0.95 - rim) * flat, "face")
    if pen.chance(0.6):
        pen.stroke(oval(0, 0, 0.95 - 2 * rim - 0.05, (0.95 - 2 * rim - 0.05) * flat), 0.008, "pale", closed=True)


def wall_clock(pen: Pen) -> None:
    rim = pen.between(0.03, 0.15)
    pen.ellipse(0, 0, 0.95, 0.95, "dark" if pen.chance(0.6) else "body")
    pen.ellipse(0, 0, 0.95 - rim, 0.95 - rim, "face")
    for hour in range(12):
        t = hour * np.pi / 6
        pen.stroke([(0.72 * np.cos(t), 0.72 * np.sin(t)), (0.8 * np.cos(t), 0.8 * np.sin(t))], 0.02, "dark")
    for length, turn in ((0.45, pen.between(0, 6.3)), (0.65, pen.between(0, 6.3))):
        pen.stroke([(0, 0), (length * np.cos(turn), length * np.sin(turn))], 0.03, "dark")


def poster(pen: Pen) -> None:
    wide, frame = pen.between(0.6, 0.95), pen.between(0.02, 0.08)
    pen.rectangle(-wide, -0.95, wide, 0.95, "accent")
    pen.rectangle(-wide + frame, -0.95 + frame, wide - frame, 0.95 - frame, "face")
    for _ in range(pen.rng.integers(1, 5)):
        x, y = pen.between(-0.4, 0.4), pen.between(-0.6, 0.6)
        pen.smooth(oval(x, y, pen.between(0.1, 0.3), pen.between(0.1, 0.3), 6), "body", pattern=pen.chance(0.5))


def lipstick(pen: Pen) -> None:
    wide = pen.between(0.12, 0.22)
    pen.rectangle(-wide, 0.05, wide, 0.95, "dark" if pen.chance(0.5) else "pale", corner=0.02)
    pen.rectangle(-wide * 0.85, -0.25, wide * 0.85, 0.08, "accent")
    pen.polygon(
        [(-wide * 0.7, -0.25), (-wide * 0.7, -0.6), (wide * 0.5, -0.9), (wide * 0.7, -0.8), (wide * 0.7, -0.25)]
    )


def spray(pen: Pen) -> None:
    wide = pen.between(0.25, 0.4)
    pen.polygon(turned_profile([-0.4, -0.2, 0.1, 0.9], [0.12, 0.2, wide, wide]), pattern=pen.chance(0.5))
    pen.polygon([(-0.15, -0.4), (0.15, -0.4), (0.2, -0.75), (-0.55, -0.8), (-0.55, -0.65), (-0.15, -0.6)], "pale")
    pen.stroke([(-0.2, -0.6), (-0.4, -0.35), (-0.32, -0.2)], 0.07, "accent")
    pen.rectangle(-wide, 0.2, wide, 0.7, "pale", pattern=pen.chance(0.6))


def bucket(pen: Pen) -> None:
    top, foot = pen.between(0.5, 0.7), pen.between(0.35, 0.5)
    t = np.linspace(np.pi, 2 * np.pi, 24)
    pen.stroke(
        np.stack([top * np.cos(t), -0.3 + pen.between(0.4, 0.65) * np.sin(t)], 1), pen.between(0.02, 0.06), "dark"
    )
    pen.polygon([(-top, -0.3), (top, -0.3), (foot, 0.9), (-foot, 0.9)], pattern=pen.chance(0.4))
    pen.ellipse(0, -0.3, top, pen.between(0.06, 0.16), "pale" if pen.chance(0.5) else "dark")


def frame_corner(pen: Pen) -> None:
    """A real hole in a frame: an empty picture frame or a tray's rim, seen with its far side."""
    wide, bar = pen.between(0.6, 0.9), pen.between(0.12, 0.3)
    inner = rounded(-wide + bar, -0.9 + bar, wide - bar, 0.9 - bar, 0.0)
    pen.ring(rounded(-wide, -0.9, wide, 0.9, pen.between(0, 0.1)), inner, "body")
