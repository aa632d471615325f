"""How well scores tell altered products from good ads in other light, on products of the studio.

    python tests/benchmarks/gate_quality.py [--products 50]

Each product has two good ads, in lights of their own, and five with a planted defect: another product, another label on
the same shape, a shift by 5 % of the height, a hue turned by 10°, a missing part of 12 %. Measured are the gate's
scores and two candidates, which compare after the light is taken out. `separates`: the share of pairs of good ad and
defect in which the defect scores less. Then thresholds are chosen on half of the products for a precision of 0.95 at as
many good ads as defects, and `precision` and `recall` are those on the other half. Needs the extra `studio`, and ten
seconds a product. The last line is JSON.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np

from refadgen.evaluation.held_out import render_pool
from refadgen.generation.scores import score_fidelity
from refadgen.studio.appearance import LOGOS, Appearance, sample_appearance
from refadgen.studio.dressing import dress_ads, dress_photos
from refadgen.studio.render import sample_product, sample_view
from refadgen.studio.scenes import sample_scene

SIZE = {"width_px": 160, "height_px": 200, "spp": 4}
FIRST_SEED = 7_000_000
DEFECTS = ("product", "label", "shift", "hue", "part")
GATE = ("color_similarity", "structure_similarity")
CANDIDATES = ("local_similarity", "hue_similarity")
PRECISION = 0.95
_DIAGONAL = 96
"""Cells along the diagonal of the product's box, in which the candidates look."""

Rows = list[tuple[str, Mapping[str, float]]]
"""Kind (`good` or a defect) and scores of each ad."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=50)
    count = parser.parse_args().products
    with render_pool() as pool:
        products = list(pool.map(scored_ads, range(FIRST_SEED, FIRST_SEED + count)))
    chosen_on, tested_on = (list(itertools.chain(*part)) for part in (products[::2], products[1::2]))
    found: dict[str, Any] = {"separates": separations(chosen_on + tested_on)}
    for name, shares in found["separates"].items():
        print(f"{name:21}" + " ".join(f"{kind} {share:.2f}" for kind, share in shares.items()))
    for title, names in (("gate", GATE), ("candidates", CANDIDATES)):
        thresholds = choose(chosen_on, names)
        precision, recall, caught = verdict(tested_on, thresholds)
        print(f"{title}: precision {precision:.2f}, recall {recall:.2f}, caught {caught}, below {thresholds}")
        found[title] = {"precision": precision, "recall": recall, "caught": caught, "thresholds": thresholds}
    print(json.dumps(found))


def scored_ads(seed: int) -> Rows:
    """The ads of one product with their scores."""
    rng = np.random.default_rng([seed, 77])
    product, view = sample_product(seed), sample_view(seed)
    own = product.appearance
    looks = [own, other_label(own, rng), sample_appearance(rng)]
    (canvas,), mask = dress_photos(product, view, [own], **SIZE)
    first, second = (sample_scene(1000 * seed + number, held_out=None) for number in range(2))
    good, label, other = dress_ads(product, view, [first] * 3, looks, **SIZE)
    (good_too,) = dress_ads(product, view, [second], [own], **SIZE)
    ads = {
        "product": other,
        "label": label,
        "shift": shifted(good, mask, rng),
        "hue": hue_turned(good_too, mask, float(rng.choice([-10, 10]))),
        "part": without_part(good, mask, rng),
    }
    every = [("good", good), ("good", good_too), *ads.items()]
    return [(kind, asdict(score_fidelity(ad, canvas, mask)) | candidate_scores(ad, canvas, mask)) for kind, ad in every]


def other_label(look: Appearance, rng: np.random.Generator) -> Appearance:
    """The same product with another print on its front."""
    logo = str(rng.choice([each for each in LOGOS if each != look.logo]))
    return replace(look, logo=logo, letters="".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ"), len(look.letters) or 2)))


def background(ad: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return cv2.inpaint(ad, cv2.dilate(mask, np.ones((7, 7), np.uint8)), 5, cv2.INPAINT_TELEA)


def shifted(ad: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    x, y = 0.05 * ad.shape[0] * np.array([np.cos(angle), np.sin(angle)])

    def moved(image: np.ndarray) -> np.ndarray:
        matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
        return cv2.warpAffine(image, matrix, ad.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)

    share = moved(mask)[..., None] / 255.0
    return (share * moved(ad) + (1 - share) * background(ad, mask)).astype(np.uint8)


def hue_turned(ad: np.ndarray, mask: np.ndarray, degrees: float) -> np.ndarray:
    hsv = cv2.cvtColor(ad.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360
    turned = np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255, 0, 255).astype(np.uint8)
    return np.where(mask[..., None] > 127, turned, ad)


def without_part(ad: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A round piece of 12 % of the product shows the background."""
    places = np.argwhere(mask > 127)
    center = places[rng.integers(len(places))]
    radius = np.quantile(np.linalg.norm(places - center, axis=1), 0.12)
    distance = np.linalg.norm(np.indices(mask.shape).transpose(1, 2, 0) - center, axis=2)
    return np.where(((distance <= radius) & (mask > 127))[..., None], background(ad, mask), ad)


def candidate_scores(ad: np.ndarray, canvas: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Scores after the light is taken out: broad lightness, and one tint for the whole product.

    local_similarity: 1 − ΔE / 100 where the two differ most, lightness weighted by 0.4. hue_similarity: 1 − the mean
    turn of the hue / 30°, weighted by chroma.
    """
    inside = mask > 127
    left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
    box, scale = (slice(top, top + height), slice(left, left + width)), _DIAGONAL / np.hypot(width, height)
    cells = (max(4, round(width * scale)), max(4, round(height * scale)))
    share = cv2.resize(inside[box].astype(np.float32), cells, interpolation=cv2.INTER_AREA)
    weight = np.where(share > 0.5, share, 0)

    def linear(image: np.ndarray) -> np.ndarray:
        value = image[box].astype(np.float32) / 255
        value = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) * inside[box][..., None]
        return (
            cv2.resize(value.astype(np.float32), cells, interpolation=cv2.INTER_AREA)
            / np.maximum(share, 1e-3)[..., None]
        )

    seen, given = linear(ad), linear(canvas)
    trusted = given / (given + 0.05) * weight[..., None]  # a dark channel says little about the light
    ratio = np.log((seen + 0.02) / (given + 0.02))
    lightness = np.clip((ratio * trusted).sum(-1) / np.maximum(trusted.sum(-1), 1e-4), -1.2, 1.2)
    light = _smooth(lightness, weight, 6)
    light = _smooth(lightness, weight / (1 + ((lightness - light) / 0.3) ** 2), 6)  # highlights are not the light
    tints = np.clip(ratio - light[..., None], -1, 1)
    tint = np.average(tints, axis=(0, 1), weights=trusted + 1e-6)
    for _ in range(2):
        tint = np.average(tints, axis=(0, 1), weights=trusted / (1 + ((tints - tint) / 0.2) ** 2) + 1e-6)
    seen_lab, given_lab = _lab(seen / np.exp(light[..., None] + tint - tint.mean())), _lab(given)
    distance = np.linalg.norm((seen_lab - given_lab) * (0.4, 1, 1), axis=-1).astype(np.float32)
    local = cv2.GaussianBlur(distance * weight, (0, 0), 2) / np.maximum(cv2.GaussianBlur(weight, (0, 0), 2), 0.2)
    turn = np.subtract(*(np.arctan2(lab[..., 2], lab[..., 1]) for lab in (seen_lab, given_lab)))
    chroma = weight * np.minimum(*(np.hypot(lab[..., 1], lab[..., 2]) for lab in (seen_lab, given_lab)))
    mean_turn = abs(float((np.angle(np.exp(1j * turn)) * chroma).sum() / max(chroma.sum(), 1e-3)))
    colourful = min(1.0, float(chroma.sum() / max(weight.sum(), 1) / 15))  # grey has no hue
    return {
        "local_similarity": 1 - float(local[weight > 0].max(initial=0)) / 100,
        "hue_similarity": 1 - np.degrees(mean_turn) * colourful / 30,
    }


def _smooth(values: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    blurred = cv2.GaussianBlur((values * weight).astype(np.float32), (0, 0), sigma)
    return blurred / np.maximum(cv2.GaussianBlur(weight.astype(np.float32), (0, 0), sigma), 1e-4)


def _lab(linear: np.ndarray) -> np.ndarray:
    value = np.clip(linear, 1e-9, 1)
    coded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(coded.astype(np.float32), cv2.COLOR_RGB2LAB)


def separations(rows: Rows) -> dict[str, dict[str, float]]:
    good = {name: np.array([each[name] for kind, each in rows if kind == "good"]) for name in rows[0][1]}
    return {
        name: {
            defect: round(float(np.mean([(values > each[name]).mean() for kind, each in rows if kind == defect])), 3)
            for defect in DEFECTS
        }
        for name, values in good.items()
    }


def choose(rows: Rows, names: Sequence[str]) -> dict[str, float]:
    """The thresholds below which most defects lie at PRECISION."""
    return max(_thresholds(rows, names), key=lambda each: _worth(rows, each))


def _thresholds(rows: Rows, names: Sequence[str]) -> Iterator[dict[str, float]]:
    shares = np.linspace(0, 0.98, 50)
    tried = [np.unique(np.quantile([each[name] for _, each in rows], shares)) for name in names]
    for values in itertools.product(*tried):
        yield {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def _worth(rows: Rows, thresholds: Mapping[str, float]) -> float:
    precision, recall, _ = verdict(rows, thresholds)
    return recall if precision >= PRECISION else -1.0


def verdict(rows: Rows, thresholds: Mapping[str, float]) -> tuple[float, float, dict[str, float]]:
    """Precision and recall of catching defects, as many good ads as defects; and the share caught by kind."""
    caught: dict[str, float] = {}
    for kind in ("good", *DEFECTS):
        below = [any(each[name] < least for name, least in thresholds.items()) for own, each in rows if own == kind]
        caught[kind] = round(float(np.mean(below)), 3)
    recall = float(np.mean([caught[kind] for kind in DEFECTS]))
    precision = recall / max(recall + caught["good"], 1e-9) if recall else 1.0
    return round(precision, 3), round(recall, 3), caught


if __name__ == "__main__":
    main()
