"""How well the gate's scores tell altered products from good ads in other light, on products of the studio.

    python tests/benchmarks/gate_quality.py [--calibrated-on 100] [--tested-on 100] [--pictures FOLDER]

Each product has two good ads, in lights of their own, and five with a planted defect: another product, another label on
the same shape, a shift by 5 % of the height, a hue turned by 10°, a missing part of 12 %. Each defect stands against a
good ad: five pairs a product. `separates`: the share of pairs of any good ad and a defect in which the defect scores
less. Thresholds are found on the first products, as by jobs/calibrate_gate.py, for the two scores that see the light,
the two that take it out, and all four; precision and recall are those on the other products. Needs the extra `studio`,
and ten seconds a product; `--pictures` keeps the renders. The last line is JSON.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refadgen.evaluation.held_out import render_pool
from refadgen.evaluation.thresholds import caught, find_thresholds, judge
from refadgen.generation.scores import FidelityScores, score_fidelity
from refadgen.studio.appearance import LOGOS, Appearance, sample_appearance
from refadgen.studio.dressing import dress_ads, dress_photos
from refadgen.studio.render import sample_product, sample_view
from refadgen.studio.scenes import sample_scene

SIZE = {"width_px": 160, "height_px": 200, "spp": 4}
FIRST_SEED = 7_000_000
GOOD = ("good", "good_too")
DEFECTS = ("product", "label", "shift", "hue", "part")
SCORES = tuple(field.name for field in fields(FidelityScores))
SETS = {"with the light": SCORES[:2], "without the light": SCORES[2:], "all": SCORES}
PRECISION = 0.98
"""Asked for on the products of calibration, for at least 0.95 on others: the best thresholds on some products are a
little worse on others."""

Scored = dict[str, tuple[float, ...]]
"""The scores of one product's ads: GOOD and DEFECTS."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrated-on", type=int, default=100, help="products")
    parser.add_argument("--tested-on", type=int, default=100, help="products")
    parser.add_argument("--pictures", type=Path, help="a folder that keeps the renders for another time")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.calibrated_on + arguments.tested_on)
    with render_pool() as pool:
        products = list(pool.map(scored_ads, seeds, itertools.repeat(arguments.pictures)))
    found: dict[str, Any] = {"separates": separations(products)}
    for name, shares in found["separates"].items():
        print(f"{name:21}" + " ".join(f"{kind} {share:.3f}" for kind, share in shares.items()))
    calibration = Pairs(products[: arguments.calibrated_on])
    test = Pairs(products[arguments.calibrated_on :])
    for title, names in SETS.items():
        columns = [SCORES.index(name) for name in names]
        thresholds = find_thresholds(calibration.scores[:, columns], calibration.good, PRECISION)
        if thresholds is None:
            print(f"{title}: no thresholds reach a precision of {PRECISION}")
            continue
        found[title] = tested(test, columns, thresholds) | {"thresholds": dict(zip(names, thresholds, strict=True))}
        print(f"{title}: {found[title]}")
    print(json.dumps(found))


class Pairs:
    """Good ads and defects in turns, five pairs a product."""

    def __init__(self, products: Sequence[Scored]) -> None:
        rows = [
            (scored[kind], kind, str(number))
            for number, scored in enumerate(products)
            for index, defect in enumerate(DEFECTS)
            for kind in (GOOD[index % 2], defect)
        ]
        self.scores = np.array([row[0] for row in rows])
        self.kinds = np.array([row[1] for row in rows])
        self.good = np.isin(self.kinds, GOOD)
        self.products = [row[2] for row in rows]


def tested(pairs: Pairs, columns: Sequence[int], thresholds: np.ndarray) -> dict[str, Any]:
    """Precision and recall with their intervals, and of each kind of ad the share that is caught."""
    scores = pairs.scores[:, columns]
    verdict, stopped = judge(scores, pairs.good, pairs.products, thresholds), caught(scores, thresholds)
    of_kind = {kind: round(float(stopped[pairs.kinds == kind].mean()), 3) for kind in DEFECTS}
    hits_of = {kind: round(float(stopped[pairs.kinds == kind].sum()), 1) for kind in DEFECTS}
    alarms = float(stopped[pairs.good].mean()) * len(set(pairs.products))
    return {
        "pairs": verdict.num_bad,
        "precision": [round(each, 3) for each in (verdict.precision, *verdict.precision_interval)],
        "recall": [round(each, 3) for each in (verdict.recall, *verdict.recall_interval)],
        "recall_of": of_kind,
        "precision_of": {kind: round(hits / max(hits + alarms, 1e-9), 3) for kind, hits in hits_of.items()},
        "false_alarms": round(float(stopped[pairs.good].mean()), 3),
    }


def scored_ads(seed: int, folder: Path | None) -> Scored:
    """The scores of one product's ads. folder: keeps the pictures."""
    file = None if folder is None else folder / f"{seed}.npz"
    if file is not None and file.exists():
        pictures = dict(np.load(file))
    else:
        pictures = planted_ads(seed)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **pictures)
    canvas, mask = pictures["canvas"], pictures["mask"]
    return {kind: astuple(score_fidelity(pictures[kind], canvas, mask)) for kind in (*GOOD, *DEFECTS)}


def planted_ads(seed: int) -> dict[str, np.ndarray]:
    """One product's pictures: canvas, mask, good ads and defects."""
    rng = np.random.default_rng([seed, 77])
    product, view = sample_product(seed), sample_view(seed)
    own = product.appearance
    looks = [own, other_label(own, rng), sample_appearance(rng)]
    (canvas,), mask = dress_photos(product, view, [own], **SIZE)
    first, second = (sample_scene(1000 * seed + number, held_out=None) for number in range(2))
    good, label, other = dress_ads(product, view, [first] * 3, looks, **SIZE)
    (good_too,) = dress_ads(product, view, [second], [own], **SIZE)
    return {
        "canvas": canvas,
        "mask": mask,
        "good": good,
        "good_too": good_too,
        "product": other,
        "label": label,
        "shift": shifted(good, mask, rng),
        "hue": hue_turned(good_too, mask, float(rng.choice([-10, 10]))),
        "part": without_part(good, mask, rng),
    }


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


def separations(products: Sequence[Scored]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for column, name in enumerate(SCORES):
        good = np.array([scored[kind][column] for scored in products for kind in GOOD])
        shares = {kind: [(good > scored[kind][column]).mean() for scored in products] for kind in DEFECTS}
        found[name] = {kind: round(float(np.mean(each)), 3) for kind, each in shares.items()}
    return found


if __name__ == "__main__":
    main()
