"""Does the built-in model make this product in this scene? Measured on products and scene pairs it never saw.

    python tests/benchmarks/mini_quality.py [--model mini] [--products 16] [--sheet FILE]

Each held-out product is asked for in an unseen combination of trained scene words. `product_accuracy`: the share of
outputs whose nearest candidate, by the mean Lab distance inside the mask, is the right product. The candidates are true
renders of the same shape in the same pose, mask, scene and light, wearing each of the products' appearances, so that
the silhouette gives nothing away. Beside it the same with λ = 0 and with another product's photograph as reference.
`mask_iou`: M′ against the mask that a small segmenter, trained on true renders, finds in the output; its own IoU on
true held-out renders is stated. Needs the studio extra. Ends with one line of JSON.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from refadgen.model import RefAdGenPipeline
from refadgen.studio.render import (
    Product,
    render_ad,
    render_product_photo,
    render_triplet,
    sample_product,
    sample_view,
    split_of,
    with_appearance,
)
from refadgen.studio.scenes import Scene, sample_scene, scene_prompt

SIZE = {"width_px": 128, "height_px": 160}
SEED_OFFSET = 1_000_000  # far from the seeds that anything was trained on
STEPS = 20


@dataclass(frozen=True)
class Case:
    """One held-out product in one unseen scene, with the true renders of all candidates."""

    product: Product
    scene: Scene
    photo: np.ndarray
    swapped_photo: np.ndarray
    mask: np.ndarray
    candidates: np.ndarray
    """True renders, uint8 candidates×H×W×3; number `index` is the right one."""


def held_out_products(count: int) -> list[Product]:
    """Products of the test split, at least a quarter of them of one shape."""
    found, nouns, seed = [], {}, SEED_OFFSET
    while len(found) < count:
        product = sample_product(seed)
        seed += 1
        if split_of(product.product_id) != "test":
            continue
        noun = product.shape.noun
        first = next(iter(nouns), noun)
        wanted_of_first = max(4, count // 4)
        if noun == first and nouns.get(noun, 0) >= wanted_of_first:
            continue
        if noun != first and len(found) - nouns.get(first, 0) >= count - wanted_of_first:
            continue
        nouns[noun] = nouns.get(noun, 0) + 1
        found.append(product)
    return found


def scene_of(index: int) -> Scene:
    """The unseen combination of trained words that case `index` is asked in."""
    return sample_scene(SEED_OFFSET + index, held_out=True)


def read_or_make_cases(cache: Path | None, products: list[Product]) -> list[Case]:
    """The cases from `cache` where it holds as many, else rendered, and kept there."""
    names = ("photo", "swapped_photo", "mask", "candidates")
    if cache is not None and cache.exists():
        arrays = np.load(cache)
        if len(arrays["photo"]) == len(products):
            rows = zip(products, range(len(products)), strict=True)
            return [Case(product, scene_of(i), *(arrays[name][i] for name in names)) for product, i in rows]
    cases = make_cases(products)
    if cache is not None:
        np.savez_compressed(cache, **{name: np.stack([getattr(case, name) for case in cases]) for name in names})
    return cases


def make_cases(products: list[Product]) -> list[Case]:
    """Renders everything: photographs, and each product's shape in each appearance."""
    cases = []
    for index, product in enumerate(products):
        view, scene = sample_view(SEED_OFFSET + index), scene_of(index)
        worn = [with_appearance(product, other.appearance) for other in products]
        photo, mask = render_product_photo(product, view, **SIZE)
        swapped, _ = render_product_photo(worn[(index + 1) % len(worn)], view, **SIZE)
        candidates = np.stack([render_ad(other, scene, view, **SIZE)[0] for other in worn])
        cases.append(Case(product, scene, photo, swapped, mask, candidates))
    return cases


def generate(pipeline: RefAdGenPipeline, cases: list[Case], photos: list[np.ndarray], scale: float) -> np.ndarray:
    """The model's ads, uint8 cases×H×W×3."""
    rows = []
    for index, (case, photo) in enumerate(zip(cases, photos, strict=True)):
        scene = case.scene
        prompt = scene_prompt(scene.surface, scene.wall, scene.light, case.product.shape.noun)
        rows.append(
            pipeline.start(
                pipeline.encode_reference([photo]),
                case.mask,
                pipeline.encode_prompt(prompt),
                seed=index,
                fusion_scale=scale,
                num_inference_steps=STEPS,
            )
        )
    for _ in pipeline.denoise(rows):
        pass
    return pipeline.decode(rows)


def accuracy(outputs: np.ndarray, cases: list[Case]) -> float:
    """Share of outputs whose nearest candidate is the right product."""
    right = 0
    for index, (output, case) in enumerate(zip(outputs, cases, strict=True)):
        inside = case.mask > 127
        seen = _smooth_lab(output)[inside]
        distances = [np.abs(seen - _smooth_lab(candidate)[inside]).mean() for candidate in case.candidates]
        right += int(np.argmin(distances) == index)
    return right / len(cases)


def _smooth_lab(image_u8: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(cv2.cvtColor(image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), (0, 0), 1.0)


def make_segmenter(num_images: int, num_steps: int) -> tuple[nn.Module, float]:
    """A small network from ad to product mask, trained on true renders, and its IoU on held-out ones."""
    triplets = [render_triplet(2 * SEED_OFFSET + seed, **SIZE) for seed in range(num_images)]
    images = np.stack([triplet.ad_image for triplet in triplets])
    masks = np.stack([triplet.product_mask for triplet in triplets]) > 127
    torch.manual_seed(0)
    widths = (3, 24, 48, 64, 64)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
    for before, after in zip(widths[:0:-1], (64, 48, 24, 16), strict=True):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1),
            nn.GroupNorm(4, after),
            nn.SiLU(),
        ]
    network = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))
    held_out = num_images // 8
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        rows = torch.randint(held_out, num_images, (8,), generator=generator).numpy()
        target = torch.from_numpy(masks[rows])[:, None].float()
        loss = F.binary_cross_entropy_with_logits(network(_pixels(images[rows])), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval(), mean_iou(network, images[:held_out], masks[:held_out])


def _pixels(images_u8: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images_u8).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def mean_iou(network: nn.Module, images_u8: np.ndarray, masks: np.ndarray) -> float:
    """Mean overlap of the masks that `network` finds with the wanted ones (bool n×H×W)."""
    found = (network(_pixels(images_u8))[:, 0] > 0).numpy()
    return float(((found & masks).sum((1, 2)) / (found | masks).sum((1, 2))).mean())


def write_sheet(file: Path, cases: list[Case], outputs: np.ndarray) -> None:
    """Product, mask, output and true render of each case, side by side."""
    tiles = []
    for index, (case, output) in enumerate(zip(cases, outputs, strict=True)):
        mask = np.repeat(case.mask[..., None], 3, axis=2)
        tiles.append(np.concatenate([case.photo, mask, output, case.candidates[index]], axis=1))
    half = (len(tiles) + 1) // 2
    tiles += [np.zeros_like(tiles[0])] * (2 * half - len(tiles))
    sheet = np.concatenate([np.concatenate(tiles[:half]), np.concatenate(tiles[half:])], axis=1)
    Image.fromarray(sheet).save(file)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Quality of the built-in model on held-out products.")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--products", type=int, default=16)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--cache", type=Path, help="NPZ that keeps the true renders for the next call")
    parser.add_argument("--segmenter-images", type=int, default=320)
    parser.add_argument("--segmenter-steps", type=int, default=600)
    arguments = parser.parse_args()
    pipeline = RefAdGenPipeline.from_pretrained(arguments.model)
    cases = read_or_make_cases(arguments.cache, held_out_products(arguments.products))
    photos, swapped = [case.photo for case in cases], [case.swapped_photo for case in cases]
    outputs = generate(pipeline, cases, photos, 1.0)
    if arguments.sheet:
        write_sheet(arguments.sheet, cases, outputs)
    nouns = [case.product.shape.noun for case in cases]
    result = {
        "products": len(cases),
        "products_of_one_shape": max(nouns.count(noun) for noun in nouns),
        "chance": 1 / len(cases),
        "product_accuracy": accuracy(outputs, cases),
        "product_accuracy_lambda0": accuracy(generate(pipeline, cases, photos, 0.0), cases),
        "product_accuracy_swapped": accuracy(generate(pipeline, cases, swapped, 1.0), cases),
    }
    print(json.dumps(result), flush=True)
    segmenter, own_iou = make_segmenter(arguments.segmenter_images, arguments.segmenter_steps)
    masks = np.stack([case.mask for case in cases]) > 127
    result |= {"mask_iou": mean_iou(segmenter, outputs, masks), "segmenter_own_iou": own_iou}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
