"""Measures the built-in model on products and scene pairs it never saw: is it this product, in this scene?

    python tests/benchmarks/mini_quality.py [--model mini] [--products 48] [--scenes 3] [--sheet FILE]

* `product_accuracy`: share of ads whose nearest candidate is their own product (`refadgen.evaluation.metrics.nearest`);
  chance is one in `products`. Two controls in one scene each: λ = 0, and another product's photograph as reference.
* `mask_iou`, `scene_accuracy`: a small judge's findings in the ads (`refadgen.evaluation.judges`), beside its own
  scores on true renders that it has not learned from.
* `inmask_ssim`: similarity to the true render inside the mask.

Needs the studio extra and about a quarter of an hour on two cores. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from refadgen.evaluation import held_out, metrics
from refadgen.evaluation.judges import judge_at, judge_images, word_numbers
from refadgen.model import RefAdGenPipeline
from refadgen.model.denoising import DenoisingRow

STEPS = 20
BATCH = 16


def generate(
    pipeline: RefAdGenPipeline,
    products: list[held_out.HeldOutProduct],
    cases: list[held_out.Case],
    *,
    fusion_scale: float = 1.0,
    swapped: bool = False,
    steps: int = STEPS,
    seed: int = 0,
) -> np.ndarray:
    """The model's ads of the cases, uint8 n×H×W×3.

    products: their photographs and masks are the model's input. swapped: the photograph of another product of the same
    shape instead. seed: of the sampling noise; each case has its own.
    """
    images = []
    for start in range(0, len(cases), BATCH):
        rows: list[DenoisingRow] = []
        for number, case in enumerate(cases[start : start + BATCH]):
            held = products[case.index]
            rows.append(
                pipeline.start(
                    pipeline.encode_reference([held.other_photo if swapped else held.photo]),
                    held.mask,
                    pipeline.encode_prompt(case.prompt),
                    seed=10_000 * seed + start + number,
                    fusion_scale=fusion_scale,
                    num_inference_steps=steps,
                )
            )
        for _ in pipeline.denoise(rows):
            pass
        images.append(pipeline.decode(rows))
    return np.concatenate(images)


def right_products(
    outputs: np.ndarray, cases: list[held_out.Case], products: list[held_out.HeldOutProduct]
) -> list[bool]:
    """Whether each output is nearest to its own product."""
    return [
        metrics.nearest(output, case.candidates, products[case.index].mask) == case.index
        for output, case in zip(outputs, cases, strict=True)
    ]


def words_of(cases: list[held_out.Case]) -> np.ndarray:
    """The true words of each case, int n×3, as `judge_images` takes them."""
    return np.array([word_numbers(case.scene) for case in cases])


def write_sheet(
    file: Path, products: list[held_out.HeldOutProduct], cases: list[held_out.Case], outputs: np.ndarray
) -> None:
    """An image with the photograph, the ad and the true render of each case, four cases a line."""
    tiles = []
    for output, case in zip(outputs, cases, strict=True):
        tiles.append(np.concatenate([products[case.index].photo, output, case.candidates[case.index]], axis=1))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    lines = [np.concatenate(tiles[start : start + 4], axis=1) for start in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(lines)).save(file)


def main() -> None:
    """Measures and prints one line of JSON, some progress before it."""
    parser = argparse.ArgumentParser(description="Quality of the built-in model on held-out products.")
    parser.add_argument("--model", default="mini", help="name, folder or Hub id")
    parser.add_argument("--products", type=int, default=48, help="a multiple of 3")
    parser.add_argument("--scenes", type=int, default=3, help="of each product, at most 9")
    parser.add_argument("--sheet", type=Path, help="image file with all cases")
    parser.add_argument("--judge", type=Path, help="file that keeps the trained judge for further runs")
    parser.add_argument("--judge-speed", type=int, default=1, help="divides the judge's training, for a trial")
    arguments = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:.0f} s: {text}", flush=True)

    pipeline = RefAdGenPipeline.from_pretrained(arguments.model)
    pool = held_out.render_pool()
    products = held_out.held_out_products(arguments.products)
    cases = held_out.cases_of(pool, products, arguments.scenes)
    say(f"{len(cases)} cases, {len(cases) * len(products)} true renders")
    outputs = generate(pipeline, products, cases)
    if arguments.sheet:
        write_sheet(arguments.sheet, products, cases, outputs)
    once = cases[:: arguments.scenes]
    result = {
        "products": len(products),
        "cases": len(cases),
        "chance": 1 / len(products),
        "product_accuracy": np.mean(right_products(outputs, cases, products)),
        "product_accuracy_lambda0": np.mean(
            right_products(generate(pipeline, products, once, fusion_scale=0.0), once, products)
        ),
        "product_accuracy_swapped": np.mean(
            right_products(generate(pipeline, products, once, swapped=True), once, products)
        ),
        "inmask_ssim": np.mean(
            [
                metrics.inmask_ssim(output, case.candidates[case.index], products[case.index].mask)
                for output, case in zip(outputs, cases, strict=True)
            ]
        ),
    }
    say(json.dumps(result))
    judge = judge_at(arguments.judge, pool, speed=arguments.judge_speed)
    pool.shutdown()
    masks = np.stack([products[case.index].mask for case in cases]) > 127
    truths = np.stack([case.candidates[case.index] for case in cases])
    verdict = judge_images(judge, outputs, masks, words_of(cases))
    of_truth = judge_images(judge, truths, masks, words_of(cases))
    result |= {
        "mask_iou": verdict.ious.mean(),
        "mask_iou_of_truth": of_truth.ious.mean(),
        "judge_own_iou": judge.own_iou,
        "scene_accuracy": verdict.scenes_right.mean(),
        "word_accuracy": tuple(verdict.words_right.mean(0).tolist()),
        "scene_accuracy_of_truth": of_truth.scenes_right.mean(),
        "word_accuracy_of_truth": tuple(of_truth.words_right.mean(0).tolist()),
        "judge_own_scene_accuracy": judge.own_scene_accuracy,
        "minutes": (time.monotonic() - started) / 60,
    }
    rounded = {
        key: np.round(value, 4).tolist() if isinstance(value, float | tuple) else value for key, value in result.items()
    }
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
