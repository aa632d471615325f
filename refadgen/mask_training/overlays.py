"""What lies over a photograph: marks such as badges and captions, frames, dust; and the faults of camera and shop.

Everywhere, `image` is float32 HW3, 0 to 255, in gleams beyond it; `coverage` the product's true mask, float32 HW, 0 to
1; `classes` uint8 HW, as `segmentation.classes` names them. A maker of marks returns its opacity (float32 HW, 0 to 1)
and its colours (float32 HW3, 0 to 255).
"""

import cv2
import numpy as np
import numpy.typing as npt

from refadgen.mask_training.pen import Color, Floats, random_color
from refadgen.segmentation.classes import FRAME, MARK

WORDS = (
    "SALE",
    "NEW",
    "-20%",
    "BEST SELLER",
    "24 cm",
    "2 in 1",
    "FREE",
    "ECO",
    "99.90",
    "brand",
    "Limited",
    "12 pcs",
    "size M",
    "www.shop.example",
    "Top",
    "1.5 L",
    "Made with care",
    "8 x 12 cm",
)
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
Classes = npt.NDArray[np.uint8]


def add_marks(rng: np.random.Generator, image: Floats, coverage: Floats, classes: Classes) -> None:
    """Draws up to four marks into the picture, in place.

    Each is tried at up to five places; one that hides more than a trace of the product at all of them is left out. Only
    a watermark may lie over the product: it is faint, and the mask stays.
    """
    makers = (_badge, _caption, _arrow, _swatches, _bar, _watermark)
    for _ in range(rng.integers(1, 5)):
        maker = makers[int(rng.integers(len(makers)))]
        ink = random_color(rng)
        best: tuple[float, Floats, Floats] | None = None
        for _ in range(5):
            alpha, rgb = maker(rng, image.shape[:2], coverage, ink)
            overlap = float((alpha * coverage).sum()) / max(1.0, float(alpha.sum()))
            if best is None or overlap < best[0]:
                best = (overlap, alpha, rgb)
            if overlap < 0.002 or maker is _watermark:
                break
        assert best is not None
        if best[0] > 0.02 and maker is not _watermark:
            continue  # whether a product that is hidden belongs to its mask has no right answer
        image += best[1][..., None] * (best[2] - image)
        classes[(best[1] > 0.08) & (coverage < 0.5)] = MARK


def _blank(shape: tuple[int, ...], ink: Color) -> tuple[Floats, Floats]:
    """Nothing yet: an opacity of 0, in the colour `ink`."""
    return np.zeros(shape[:2], np.float32), np.broadcast_to(ink, (*shape[:2], 3)).astype(np.float32).copy()


def _badge(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """A disk, plate or star with a word on it."""
    alpha, rgb = _blank(shape, ink)
    side = min(shape[:2])
    r = int(side * rng.uniform(0.05, 0.13))
    x, y = _corner(rng, shape, r)
    if rng.random() < 0.5:
        cv2.circle(alpha, (x, y), r, 1.0, -1, cv2.LINE_AA)
    elif rng.random() < 0.5:
        cv2.rectangle(alpha, (x - r, y - r // 2), (x + r, y + r // 2), 1.0, -1)
    else:
        t = np.arange(20) * np.pi / 10
        reach = r * np.where(np.arange(20) % 2, 0.8, 1.0)
        star = np.stack([x + reach * np.cos(t), y + reach * np.sin(t)], 1)
        cv2.fillPoly(alpha, [star.astype(np.int32)], 1.0, cv2.LINE_AA)
    _write(rng, rgb, (x, y), int(1.5 * r), (255.0, 255.0, 255.0) if ink.mean() < 140 else (20.0, 20.0, 20.0))
    return alpha, rgb


def _corner(rng: np.random.Generator, shape: tuple[int, ...], r: int) -> tuple[int, int]:
    """x, y of a mark with the radius `r`: in a corner mostly, else anywhere. All in pixels."""
    gap = int(r * rng.uniform(1.05, 2.0))
    x = gap if rng.random() < 0.5 else shape[1] - gap
    y = gap if rng.random() < 0.6 else shape[0] - gap
    if rng.random() < 0.25:
        x, y = (
            int(rng.integers(gap, max(gap + 1, shape[1] - gap))),
            int(rng.integers(gap, max(gap + 1, shape[0] - gap))),
        )
    return x, y


def _write(
    rng: np.random.Generator, target: Floats, center: tuple[int, int], wide: int, color: tuple[float, ...] | float
) -> None:
    """Writes a word around `center`, about `wide` pixels wide, in place.

    target: float32 HW3 or HW. color: RGB, 0 to 255, for the one; a value for the other, where larger values stay.
    """
    word, font = str(rng.choice(WORDS)), int(rng.choice(_FONTS))
    (w, h), _ = cv2.getTextSize(word, font, 1.0, 1)
    scale = max(0.25, wide / w)
    thick = max(1, round(scale * rng.uniform(0.8, 2.2)))
    at = (int(center[0] - w * scale / 2), int(center[1] + h * scale / 2))
    letters = np.zeros(target.shape[:2], np.uint8)  # OpenCV 5 writes into bytes only
    cv2.putText(letters, word, at, font, scale, 255, thick, cv2.LINE_AA)
    share = letters.astype(np.float32) / 255
    if target.ndim == 3:
        target += share[..., None] * (np.asarray(color, np.float32) - target)
    else:
        np.maximum(target, share * np.asarray(color, np.float32), out=target)


def _caption(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """One to three lines of text."""
    alpha, rgb = _blank(shape, ink * 0.5)
    y = int(shape[0] * (rng.uniform(0.03, 0.12) if rng.random() < 0.5 else rng.uniform(0.88, 0.97)))
    if rng.random() < 0.3:
        y = int(shape[0] * rng.uniform(0.1, 0.9))
    wide = int(shape[1] * rng.uniform(0.15, 0.6))
    x = int(rng.uniform(wide / 2, max(wide / 2 + 1, shape[1] - wide / 2)))
    for line in range(rng.integers(1, 4)):
        _write(rng, alpha, (x, y + line * int(0.05 * shape[0])), int(wide * rng.uniform(0.6, 1)), 1.0)
    return alpha, rgb


def _arrow(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """A measure: a line with two heads beside the product, and mostly a word."""
    alpha, rgb = _blank(shape, np.asarray(ink * rng.uniform(0, 0.7), np.float32))
    x, y, w, h = cv2.boundingRect((coverage > 0.3).astype(np.uint8))
    gap = int(rng.uniform(0.02, 0.06) * max(shape[:2])) + 2
    if rng.random() < 0.5:
        line = [(x - gap, y), (x - gap, y + h)] if rng.random() < 0.5 else [(x + w + gap, y), (x + w + gap, y + h)]
    else:
        line = [(x, y - gap), (x + w, y - gap)] if rng.random() < 0.5 else [(x, y + h + gap), (x + w, y + h + gap)]
    thick = max(1, round(max(shape[:2]) * rng.uniform(0.001, 0.006)))
    tip = 0.06
    cv2.arrowedLine(alpha, line[0], line[1], 1.0, thick, cv2.LINE_AA, 0, tip)
    cv2.arrowedLine(alpha, line[1], line[0], 1.0, thick, cv2.LINE_AA, 0, tip)
    if rng.random() < 0.7:
        middle = ((line[0][0] + line[1][0]) // 2, (line[0][1] + line[1][1]) // 2 - gap // 2)
        _write(rng, alpha, middle, max(12, int(0.1 * shape[1])), 1.0)
    return alpha, rgb


def _swatches(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """A row of small disks: the colours a product is sold in."""
    alpha, rgb = _blank(shape, ink)
    r = max(3, int(min(shape[:2]) * rng.uniform(0.015, 0.045)))
    x0, y0 = _corner(rng, shape, 2 * r)
    down = rng.random() < 0.5
    for i in range(rng.integers(2, 7)):
        at = (x0, y0 + i * 3 * r) if down else (x0 + i * 3 * r, y0)
        cv2.circle(rgb, at, r + 1, tuple(random_color(rng).tolist()), -1)
        cv2.circle(alpha, at, r, 1.0, -1, cv2.LINE_AA)
    return alpha, rgb


def _bar(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """A banner along the top or the foot."""
    alpha, rgb = _blank(shape, ink)
    tall = int(shape[0] * rng.uniform(0.04, 0.12))
    y = 0 if rng.random() < 0.5 else shape[0] - tall
    alpha[y : y + tall] = 1
    _write(rng, rgb, (shape[1] // 2, y + tall // 2), int(0.4 * shape[1]), (250.0, 250.0, 250.0))
    return alpha, rgb


def _watermark(rng: np.random.Generator, shape: tuple[int, ...], coverage: Floats, ink: Color) -> tuple[Floats, Floats]:
    """Large, faint words in grey."""
    alpha, rgb = _blank(shape, np.asarray(rng.choice([40.0, 128.0, 235.0]) * np.ones(3), np.float32))
    for _ in range(rng.integers(1, 5)):
        at = (int(rng.uniform(0.2, 0.8) * shape[1]), int(rng.uniform(0.1, 0.9) * shape[0]))
        _write(rng, alpha, at, int(rng.uniform(0.25, 0.7) * shape[1]), 1.0)
    return np.asarray(alpha * rng.uniform(0.1, 0.45), np.float32), rgb


def framed(
    rng: np.random.Generator, image: Floats, coverage: Floats, classes: Classes
) -> tuple[Floats, Floats, Classes]:
    """Puts a frame around a picture: a border, a thin line near the edge, or a padding with another colour.

    Returns: image, coverage and classes, larger by the padding. What a frame hides of the product leaves the mask.
    """
    height, width = coverage.shape
    kind = rng.integers(4)
    color = random_color(rng) if rng.random() < 0.6 else np.full(3, rng.choice([0.0, 255.0]), np.float32)
    frame = np.zeros((height, width), bool)
    if kind == 0:  # a border over the picture's edge
        thick = max(1, round(min(height, width) * rng.choice([0.002, 0.01, 0.025, 0.05]) * rng.uniform(0.6, 1.4)))
        frame[:thick] = frame[-thick:] = True
        frame[:, :thick] = frame[:, -thick:] = True
    elif kind == 1:  # an inset line
        thick = max(1, round(min(height, width) * rng.uniform(0.001, 0.008)))
        inset = round(min(height, width) * rng.uniform(0.01, 0.06)) + 1
        frame[inset:-inset, inset:-inset] = True
        inner = inset + thick
        frame[inner:-inner, inner:-inner] = False
    else:  # padded, at times only above and below, or left and right
        sides = [(1, 1), (1, 0), (0, 1)][int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
        pad_y, pad_x = (round(s * rng.uniform(0.04, 0.3) * max(height, width)) for s in sides)
        color = np.full(3, 255.0, np.float32) if rng.random() < 0.6 else color
        if np.abs(color - image[:3].mean(axis=(0, 1))).max() < 10:
            color = np.asarray(255 - color, np.float32)
        full = np.broadcast_to(color, (height + 2 * pad_y, width + 2 * pad_x, 3)).astype(np.float32).copy()
        inside = (slice(pad_y, pad_y + height), slice(pad_x, pad_x + width))
        full[inside] = image
        wide_coverage = np.zeros(full.shape[:2], np.float32)
        wide_coverage[inside] = coverage
        wide_classes = np.full(full.shape[:2], FRAME, np.uint8)
        wide_classes[inside] = classes
        return full, wide_coverage, wide_classes
    image = np.where(frame[..., None], color, image).astype(np.float32)
    return (
        image,
        np.where(frame, 0, coverage).astype(np.float32),
        np.where(frame, FRAME, classes).astype(np.uint8),
    )


def add_dust(rng: np.random.Generator, image: Floats, coverage: Floats) -> None:
    """Draws specks and hairs onto the backdrop, in place. The product stays as it is."""
    height, width = coverage.shape
    alpha = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(2, 50)):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        if rng.random() < 0.9:
            cv2.circle(
                alpha, at, int(rng.integers(0, max(2, max(height, width) // 250))), float(rng.uniform(0.3, 1)), -1
            )
        else:
            end = (at[0] + int(rng.normal(0, 0.03 * width)), at[1] + int(rng.normal(0, 0.03 * height)))
            cv2.line(alpha, at, end, float(rng.uniform(0.3, 1)), 1, cv2.LINE_AA)
    alpha *= coverage == 0
    image += alpha[..., None] * (random_color(rng) * rng.uniform(0, 1) - image)


def photographed(rng: np.random.Generator, image: Floats, *, jpeg: float) -> npt.NDArray[np.uint8]:
    """The picture as a camera and a shop leave it, uint8 HW3: clipped, at times blurred, enlarged, noisy, compressed.

    jpeg: the probability that it went through JPEG.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.35:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.2))), np.float32)
    if rng.random() < 0.15:  # enlarged by the shop
        scale = rng.uniform(0.45, 0.9)
        small = cv2.resize(
            image, (max(8, int(width * scale)), max(8, int(height * scale))), interpolation=cv2.INTER_AREA
        )
        image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(0.3, 4), (height, width, 1 if rng.random() < 0.5 else 3)).astype(
            np.float32
        )
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    if rng.random() < jpeg:
        quality = int(rng.uniform(60, 97))
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        pixels = np.asarray(decoded, np.uint8)[..., ::-1]
    return np.ascontiguousarray(pixels)
