"""Ads with what the filters look for, planted by seed: letters, a logo, tiled watermarks, hands, other occluders.

Everything is drawn here, on any picture with a product's mask.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refadgen.config import FilterConfig
from refadgen.dataset.content import TextFinder, embedded_text
from refadgen.dataset.occlusion import hidden_share, occluded
from refadgen.dataset.watermarks import repeated_watermark, watermark_score

R = TypeVar("R")
KINDS = ("none", "letters", "logo", "tiled", "hand", "occluder")
FILTERS = {"text": ("letters",), "watermarks": ("tiled",), "occluders": ("hand", "occluder")}
"""The kinds that each filter is there for."""
UNCOUNTED = {"text": ("tiled",), "watermarks": ("logo",), "occluders": ()}
"""Kinds in which a finding is neither right nor wrong: tiled words are text, a logo is a watermark."""
FIRST_SEED, NUM_PICTURES = 9_000_060, 100
"""Seeds of the studio's ads. Thresholds were chosen on 9,000,000 to 9,000,059."""
_WORDS = ("SALE", "NEW", "SHOP NOW", "stockphoto", "50% OFF", "PREVIEW", "free delivery", "© studio", "SAMPLE")
_SKINS = ((236, 196, 170), (214, 160, 125), (172, 115, 80), (110, 72, 50))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """image_u8: uint8 [H, W, 3]; mask: uint8 [H, W], 0 or 255, the product's visible pixels."""

    image_u8: np.ndarray
    mask: np.ndarray


def planted(kind: str, picture: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Returns the picture with one fault of KINDS. other: another ad, whose product is the occluder."""
    if kind == "none":
        return picture
    if kind in ("letters", "logo", "tiled"):
        draw: Callable[[Picture, np.random.Generator], np.ndarray] = {
            "letters": _letters,
            "logo": _logo,
            "tiled": _tiled,
        }[kind]
        return Picture(image_u8=draw(picture, rng), mask=picture.mask)
    return _occluded(picture, _hand(rng) if kind == "hand" else _cut_out(other), rng)


def _letters(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Opaque words across the top or the bottom, 7 to 13 % of the height."""
    image = Image.fromarray(picture.image_u8)
    height = image.height * rng.uniform(0.07, 0.13)
    text = str(rng.choice(_WORDS))
    font = ImageFont.load_default(height)
    width = font.getlength(text)
    if width > 0.9 * image.width:
        font = ImageFont.load_default(height * 0.9 * image.width / width)
        width = font.getlength(text)
    top = rng.choice([0.02, 0.84]) * image.height
    color = (255, 255, 255) if picture.image_u8[round(top) : round(top + height)].mean() < 140 else (20, 20, 60)
    ImageDraw.Draw(image).text((rng.uniform(0, image.width - width), top), text, font=font, fill=color)
    return np.asarray(image)


def _emblem(size: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [size, size], 0 to 1: a sign without letters, of a ring, a star or leaves."""
    sign = Image.new("L", (4 * size, 4 * size))
    draw, middle, radius = ImageDraw.Draw(sign), 2 * size, 1.7 * size
    line = round(size * rng.uniform(0.2, 0.4))
    if rng.random() < 0.6:
        draw.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], outline=255, width=line)
        radius *= 0.7
    points = 2 * int(rng.integers(3, 7))
    inner = rng.uniform(0.3, 0.6)
    angles = np.arange(points) * 2 * np.pi / points + rng.uniform(0, 3)
    reach = radius * np.where(np.arange(points) % 2, inner, 1.0)
    draw.polygon(
        [(middle + r * np.sin(a), middle + r * np.cos(a)) for r, a in zip(reach, angles, strict=True)], fill=255
    )
    return np.asarray(sign.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def _lettering(size: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w], 0 to 1: a word, `size` px wide."""
    font = ImageFont.load_default(40)
    text = str(rng.choice(_WORDS))
    word = Image.new("L", (round(font.getlength(text)) + 4, 52))
    ImageDraw.Draw(word).text((2, 2), text, font=font, fill=255)
    return (
        np.asarray(word.resize((size, max(7, round(52 * size / word.width))), Image.Resampling.BOX), np.float32) / 255
    )


def _blended(
    image_u8: np.ndarray, cover: np.ndarray, rng: np.random.Generator, alpha: tuple[float, float]
) -> np.ndarray:
    grey = 255.0 if image_u8.mean() < 130 or (image_u8.mean() < 185 and rng.random() < 0.5) else 30.0
    share = cover[..., None] * rng.uniform(*alpha)
    return np.rint(image_u8 * (1 - share) + grey * share).astype(np.uint8)


def _logo(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """One emblem in a corner, 12 to 22 % of the width, half transparent."""
    height, width = picture.mask.shape
    size = round(width * rng.uniform(0.12, 0.22))
    cover = np.zeros((height, width), np.float32)
    gap = round(width * 0.03)
    top, left = (gap if rng.random() < 0.5 else side - size - gap for side in (height, width))
    cover[top : top + size, left : left + size] = _emblem(size, rng)
    return _blended(picture.image_u8, cover, rng, (0.4, 0.8))


def _tiled(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Words or emblems over the whole picture, level or turned by 15 to 45°, 12 to 40 % opaque."""
    height, width = picture.mask.shape
    pitch = width * np.array([rng.uniform(0.2, 0.45), rng.uniform(0.16, 0.4)])
    size = round(pitch.min() * rng.uniform(0.5, 0.75))
    mark = _emblem(size, rng) if rng.random() < 0.5 else _lettering(round(pitch[0] * 0.8), rng)
    reach = 2 * max(height, width)
    cover = np.zeros((reach, reach), np.float32)
    stagger = rng.choice([0.0, 0.5])
    for row in range(int(reach / pitch[1])):
        for column in range(int(reach / pitch[0]) + 1):
            left, top = round((column - stagger * (row % 2)) * pitch[0]), round(row * pitch[1])
            part = cover[max(top, 0) : top + mark.shape[0], max(left, 0) : left + mark.shape[1]]
            if left >= 0 and part.shape == mark.shape:
                part[:] = np.maximum(part, mark)
    degrees = rng.choice([0.0, rng.uniform(15, 45) * rng.choice([-1, 1])])
    turn = cv2.getRotationMatrix2D((reach / 2, reach / 2), float(degrees), 1.0)
    cover = cv2.warpAffine(cover, turn, (reach, reach))
    top, left = (int(rng.integers(side // 2, side)) for side in (height // 2, width // 2))
    top, left = top + reach // 4, left + reach // 4
    return _blended(picture.image_u8, cover[top : top + height, left : left + width], rng, (0.12, 0.4))


def _hand(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A drawn forearm and hand with four fingers and a thumb, shaded: uint8 [S, S, 3] and its mask uint8 [S, S]."""
    mask = np.zeros((256, 256), np.uint8)
    light = np.zeros((256, 256), np.float32)
    limbs = [((128, 250), (128, 170), 56)]
    for finger, length in enumerate((70, 86, 80, 60)):
        root = (92 + 24 * finger, 128)
        limbs.append((root, (round(root[0] + rng.uniform(-14, 14) + 6 * (finger - 1.5)), 128 - length), 23))
    limbs.append(((88, 170), (36, 130), 25))
    limbs.insert(1, ((128, 165), (128, 140), 92))
    for start, end, width in limbs:
        part = np.zeros_like(mask)
        cv2.line(part, start, end, 255, width, cv2.LINE_AA)
        depth = cv2.distanceTransform((part > 127).astype(np.uint8), cv2.DIST_L2, 3)
        light = np.where(part > 127, np.minimum(1.0, 0.72 + depth / width), light)
        mask = np.maximum(mask, part)
    skin = np.array(_SKINS[int(rng.integers(len(_SKINS)))], np.float32)
    grain = cv2.GaussianBlur(rng.normal(0, 12, (256, 256)).astype(np.float32), (0, 0), 2)
    image = np.clip(skin * cv2.GaussianBlur(light, (0, 0), 1.5)[..., None] + grain[..., None], 0, 255)
    return image.astype(np.uint8), mask


def _cut_out(other: Picture) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(other.mask > 127)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return other.image_u8[box], other.mask[box]


def _occluded(picture: Picture, thing: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> Picture:
    """The thing lies over the product's edge and hides 12 to 40 % of it."""
    product = picture.mask > 127
    rows, columns = np.nonzero(product)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    height, width = product.shape
    best, chosen = np.inf, (picture.image_u8, np.zeros_like(product))
    aim = rng.uniform(0.15, 0.35)
    for _ in range(30):
        scale = extent * rng.uniform(0.45, 0.85) / max(thing[1].shape)
        degrees = rng.uniform(-60, 60)
        edge = rng.integers(len(rows))
        turn = cv2.getRotationMatrix2D((thing[1].shape[1] / 2, thing[1].shape[0] / 2), degrees, scale)
        turn[:, 2] += np.array([columns[edge], rows[edge]]) - np.array(thing[1].shape[::-1]) / 2
        cover = cv2.warpAffine(thing[1], turn, (width, height)) > 127
        hidden = (cover & product).sum() / product.sum()
        if abs(hidden - aim) < best:
            best = abs(hidden - aim)
            image = cv2.warpAffine(thing[0], turn, (width, height))
            chosen = (np.where(cover[..., None], image, picture.image_u8), cover)
    return Picture(image_u8=chosen[0], mask=np.where(product & ~chosen[1], 255, 0).astype(np.uint8))


def measure_all(num_ads: int, photographs: Path | None, renders: Path | None) -> None:
    """Prints a table for the studio's ads, and one for the photographs; the last line is JSON. On all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        seeds = range(FIRST_SEED, FIRST_SEED + min(num_ads, NUM_PICTURES))
        pictures = list(_told("rendered", pool.map(partial(_studio_picture, folder=renders), seeds), len(seeds)))
        result = {"studio": measure(pictures, num_ads, pool=pool)}
        if photographs is not None:
            result["photographs"] = measure(photographed(photographs), num_ads, pool=pool)
    print(json.dumps(result))


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _told(what: str, results: Iterable[R], total: int) -> Iterator[R]:
    """The results, with a line on the standard error after each twenty."""
    for number, result in enumerate(results, start=1):
        if number % 20 == 0 or number == total:
            print(f"{what} {number} of {total}", file=sys.stderr, flush=True)
        yield result


@functools.cache
def _text_finder() -> TextFinder:
    return TextFinder(FilterConfig())


def _judged(kind: str, ad: Picture, with_text: bool) -> dict[str, bool]:
    """What each filter says of an ad: whether it is rejected. Filters without an opinion that counts are left out."""
    config = FilterConfig()
    found = {
        "watermarks": repeated_watermark(watermark_score(ad.image_u8, ad.mask), config),
        "occluders": occluded(hidden_share(ad.image_u8, ad.mask), config),
    }
    if with_text and kind not in UNCOUNTED["text"]:  # reading takes a hundred times as long as the others
        found["text"] = embedded_text(_text_finder().find(ad.image_u8, ad.mask), config)
    return {name: problem is not None for name, problem in found.items()}


def measure(
    pictures: Sequence[Picture], num_ads: int, *, with_text: bool = True, pool: Executor | None = None
) -> dict[str, object]:
    """Plants a quarter of nothing and equal parts of each fault, and returns each filter's precision and recall."""
    num_clean = num_ads // 4
    ads: list[tuple[str, Picture]] = []
    for number, kind in enumerate(["none"] * num_clean + [KINDS[1 + i % 5] for i in range(num_ads - num_clean)]):
        place = number if kind == "none" else (number - num_clean) // 5
        picture, other = (pictures[each % len(pictures)] for each in (place, place + 1))
        ad = planted(kind, picture, other, np.random.default_rng([FIRST_SEED, place, KINDS.index(kind)]))
        if (ad.mask > 127).any():
            ads.append((kind, ad))
    kinds = [kind for kind, _ in ads]
    judged = (pool.map if pool else map)(_judged, kinds, [ad for _, ad in ads], [with_text] * len(ads))
    found: dict[str, dict[str, list[bool]]] = {name: {kind: [] for kind in KINDS} for name in FILTERS}
    for kind, verdicts in zip(kinds, _told("judged", judged, len(ads)) if pool else judged, strict=True):
        for name, rejected in verdicts.items():
            found[name][kind].append(rejected)
    result: dict[str, object] = {"ads": num_ads, "pictures": len(pictures)}
    for name, by_kind in found.items():
        if name == "text" and not with_text:
            continue
        right = [each for kind in FILTERS[name] for each in by_kind[kind]]
        others = [kind for kind in KINDS if kind not in FILTERS[name] + UNCOUNTED[name]]
        wrong = sum(sum(by_kind[kind]) for kind in others)
        rates = {kind: round(sum(each) / len(each), 3) for kind, each in by_kind.items() if each}
        figures = {
            "precision": round(sum(right) / max(1, sum(right) + wrong), 3),
            "recall": round(sum(right) / max(1, len(right)), 3),
            "rejected": rates,
        }
        print(f"{name:12}", figures, flush=True)
        result[name] = figures
    return result


def _studio_picture(seed: int, folder: Path | None) -> Picture:
    """An ad of 256×320 px by its seed, rendered or read from `folder`."""
    from refadgen.studio.camera import sample_view
    from refadgen.studio.render import render_ad, sample_product
    from refadgen.studio.scenes import sample_scene

    kept = folder / f"{seed}.npz" if folder else None
    if kept is not None and kept.exists():
        arrays = np.load(kept)
        return Picture(image_u8=arrays["rgb"], mask=arrays["mask"])
    scene, view = sample_scene(seed, held_out=None), sample_view(seed)
    rgb, mask = render_ad(sample_product(seed), scene, view, width_px=256, height_px=320, spp=6)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, rgb=rgb, mask=mask)
    return Picture(image_u8=rgb, mask=mask)


def photographed(folder: Path) -> list[Picture]:
    """Reads photographs, at most 512 px; their masks are this project's own network's opinion, right or not."""
    from refadgen.segmentation.second_opinion import second_opinion

    pictures = []
    for path in sorted(each for each in folder.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg", ".png")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((512, 512))
        pixels = np.asarray(image)
        inside = cv2.resize(second_opinion(pixels).product, image.size) > 0.5
        if inside.any():
            pictures.append(Picture(image_u8=pixels, mask=np.where(inside, 255, 0).astype(np.uint8)))
    return pictures
