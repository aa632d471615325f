"""The paper's Table 4, Fig. 8 and Fig. 9 at small size: mask channel, augmentation, λ and the number of steps.

    python tests/benchmarks/ablations.py --model full=DIR --model no_mask=DIR --model no_augmentation=DIR [--sheets DIR]

Table 4: all models make the same held-out cases (`refadgen.evaluation.held_out`) with three sampling seeds, once from
the photograph in the ad's own pose and once from a photograph of the product turned by 15°. Figures are means over
products with 95 % bootstrap intervals over products; `less_first` has those of the paired differences to the first
model. Fig. 8 and 9: the first model with λ from 0 to 1.5 and with 1 to 50 steps, one seed. The last line is JSON.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from mini_quality import generate, words_of, write_sheet

from refadgen.evaluation import held_out, metrics
from refadgen.evaluation.judges import Judge, judge_at, judge_images
from refadgen.model import RefAdGenPipeline
from refadgen.studio.dressing import dress_photos

SEEDS = 3
SCALES = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5)
STEP_COUNTS = (1, 2, 3, 5, 10, 20, 30, 50)
TURN_DEG = 15.0


def turned(products: list[held_out.HeldOutProduct]) -> list[held_out.HeldOutProduct]:
    """The same products, photographed from another side. Masks stay, and with them the pose that the ad must show."""
    found = []
    for held in products:
        view = dataclasses.replace(held.view, yaw_deg=held.view.yaw_deg + TURN_DEG)
        photos, _ = dress_photos(held.product, view, [held.product.appearance], **held_out.SIZE)
        found.append(dataclasses.replace(held, photo=photos[0]))
    return found


def measure(
    outputs: np.ndarray, cases: list[held_out.Case], products: list[held_out.HeldOutProduct], judge: Judge
) -> dict[str, np.ndarray]:
    """Each measure's value for each case, n. outputs: the ads, uint8 n×H×W×3."""
    masks = [products[case.index].mask for case in cases]
    verdict = judge_images(judge, outputs, np.stack(masks) > 127, words_of(cases))
    pairs = list(zip(outputs, cases, masks, strict=True))
    return {
        "product_accuracy": np.array([metrics.nearest(o, c.candidates, m) == c.index for o, c, m in pairs], float),
        "inmask_ssim": np.array([metrics.inmask_ssim(o, c.candidates[c.index], m) for o, c, m in pairs]),
        "mask_iou": verdict.ious,
        "scene_accuracy": verdict.scenes_right.astype(float),
    }


def interval(values: np.ndarray) -> list[float]:
    """Mean and 95 % bootstrap interval over products; values: seeds×products."""
    rng = np.random.default_rng(0)
    # Seeds of one product are no independent samples: average them first.
    of_products = values.mean(axis=0)
    drawn = of_products[rng.integers(len(of_products), size=(2000, len(of_products)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [round(float(number), 4) for number in (of_products.mean(), low, high)]


def main() -> None:
    """Measures and prints one line of JSON, some progress before it."""
    parser = argparse.ArgumentParser(description="Ablations of the built-in model.")
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER; the first is the full one")
    parser.add_argument("--products", type=int, default=48, help="a multiple of 3")
    parser.add_argument("--sheets", type=Path, help="folder for sheets of ads")
    parser.add_argument("--judge", type=Path, help="file that keeps the trained judge for further runs")
    parser.add_argument("--judge-speed", type=int, default=1, help="divides the judge's training, for a trial")
    arguments = parser.parse_args()
    started = time.monotonic()
    products = held_out.held_out_products(arguments.products)
    aside = turned(products)
    with held_out.render_pool() as pool:
        cases = held_out.cases_of(pool, products, 1)
        judge = judge_at(arguments.judge, pool, speed=arguments.judge_speed)
    own = {"judge_own_iou": judge.own_iou, "judge_own_scene_accuracy": judge.own_scene_accuracy}
    print(f"{time.monotonic() - started:.0f} s: cases and judge are ready: {json.dumps(own)}", flush=True)
    models = dict(word.split("=", 1) for word in arguments.model)
    result: dict[str, Any] = own | {"table4": {}, "less_first": {}, "fig8": {}, "fig9": {}}
    first: dict[str, dict[str, np.ndarray]] = {}
    for name, folder in models.items():
        pipeline = RefAdGenPipeline.from_pretrained(folder)
        for pose, held in (("same_pose", products), ("turned", aside)):
            outputs = [generate(pipeline, held, cases, seed=seed) for seed in range(SEEDS)]
            found = [measure(each, cases, held, judge) for each in outputs]
            values = {key: np.stack([each[key] for each in found]) for key in found[0]}
            of_first = first.setdefault(pose, values)
            figures = {key: interval(each) for key, each in values.items()}
            result["table4"][f"{name}, {pose}"] = figures
            result["less_first"][f"{name}, {pose}"] = {key: interval(values[key] - of_first[key]) for key in values}
            print(f"{time.monotonic() - started:.0f} s: {name}, {pose}: {json.dumps(figures)}", flush=True)
            if arguments.sheets:
                arguments.sheets.mkdir(parents=True, exist_ok=True)
                write_sheet(arguments.sheets / f"{name}-{pose}.png", held, cases, outputs[0])
    pipeline = RefAdGenPipeline.from_pretrained(next(iter(models.values())))
    ads_of_figures = itertools.chain(
        (("fig8", str(scale), generate(pipeline, products, cases, fusion_scale=scale)) for scale in SCALES),
        (("fig9", str(count), generate(pipeline, products, cases, steps=count)) for count in STEP_COUNTS),
    )
    for figure, value, ads in ads_of_figures:
        measured = measure(ads, cases, products, judge)
        result[figure][value] = {key: round(float(each.mean()), 4) for key, each in measured.items()}
        print(f"{time.monotonic() - started:.0f} s: {figure}, {value}: {result[figure][value]}", flush=True)
        if arguments.sheets:
            write_sheet(arguments.sheets / f"{figure}-{value}.png", products, cases[::6], ads[::6])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
