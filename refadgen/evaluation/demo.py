"""Three runs to compare, of the built-in model on held-out products of the studio: the evaluation's demonstration.

    python -m refadgen.evaluation.demo --output out/evaluate-demo/runs
    python jobs/evaluate.py ours=out/evaluate-demo/runs/ours … --output out/evaluate-demo

* `ours`: RefAdGen as it is.
* `text-only`: λ = 0 and an empty mask, so that only the prompt says what to draw.
* `pixel-paste`: the product's own pixels in the pictures of `text-only`.

Each is an output folder as the main job writes it. Rendering needs the extra `refadgen[studio]`.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refadgen.batch.ledger import LedgerWriter
from refadgen.batch.rows import to_table
from refadgen.config import GenerateConfig, load_config
from refadgen.evaluation.examples import Images
from refadgen.evaluation.held_out import HeldOutProduct, held_out_products, scenes_of
from refadgen.generation.encoding import encode_product, product_key
from refadgen.generation.ledger import AdLedger
from refadgen.generation.model_settings import with_model_settings
from refadgen.generation.product_pixels import with_product_pixels
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.rows import GeneratedImage, GeneratedProduct
from refadgen.generation.scores import score_fidelity
from refadgen.generation.wanted import WantedImage
from refadgen.model import RefAdGenPipeline
from refadgen.model.inference import load_for_inference
from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage
from refadgen.studio.scenes import scene_prompt


def draw(
    pipeline: RefAdGenPipeline, held: HeldOutProduct, prompts: Sequence[str], seeds: Sequence[int], *, text_only: bool
) -> Images:
    """One image of a product for each prompt, N×H×W×3. text_only: λ = 0, and a mask without product."""
    reference = pipeline.encode_reference([held.photo])
    mask = np.zeros_like(held.mask) if text_only else held.mask
    rows = [
        pipeline.start(
            reference, mask, pipeline.encode_prompt(prompt), seed=seed, fusion_scale=0.0 if text_only else 1.0
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for _ in pipeline.denoise(rows):
        pass
    images: Images = pipeline.decode(rows)
    return images


def generated(
    held: HeldOutProduct, number: int, method: str, prompts: Sequence[str], seeds: Sequence[int], ads: Images
) -> GeneratedProduct:
    """The row of a product with its finished images, as the generator of the main job gives it."""
    height, width = held.mask.shape
    product = encode_product(held.photo, held.mask, (width, height))
    images = []
    for scene, (prompt, seed, ad) in enumerate(zip(prompts, seeds, ads, strict=True)):
        name = hashlib.sha256(f"{method} {number} {scene}".encode()).hexdigest()[:32]
        images.append(
            GeneratedImage(
                wanted=WantedImage(image_id=name, scene=f"held-out-{scene}", variant=0, prompt=prompt, seed=seed),
                error=None,
                ad=to_png(ad, compress_level=1),
                seed=seed,
                attempts=1,
                rung="product_pixels" if method == "pixel-paste" else "first",
                fusion_scale=1.0 if method == "ours" else 0.0,
                scores=score_fidelity(ad, held.photo, held.mask),
            )
        )
    return GeneratedProduct(
        row=number,
        sku=f"held-out-{number:02}-{held.product.shape.noun.replace(' ', '-')}",
        category=held.product.shape.noun,
        image="",
        negative_prompt=None,
        decision="",
        input_sha256="",
        product_mask=to_png(held.mask, compress_level=1),
        product=product,
        product_uri=product_key(product),
        width_px=width,
        height_px=height,
        as_photographed=False,
        mask_source="own_mask",
        mask_score=1.0,
        mask_area=float((held.mask > 127).mean()),
        fetch_s=0.0,
        segment_s=0.0,
        images=tuple(images),
    )


def make_runs(output: str, num_products: int, num_scenes: int, model: str) -> list[str]:
    """Writes the runs below `output`, and returns their names.

    Raises: ValueError naming an option, or a run that is there already: its ledger would hold both.
    """
    config, identity = with_model_settings(load_config(GenerateConfig, None, [f"model.path={model}"]))
    names = ("ours", "text-only", "pixel-paste")
    for name in names:
        if AdLedger(Storage(f"{output}/{name}")).parts():
            raise ValueError(f"--output {output}: there is a run {name} already; delete it, or give another folder")
    pipeline = load_for_inference(config.model, gpu_expected=False)
    rows: dict[str, list[GeneratedProduct]] = {name: [] for name in names}
    for number, held in enumerate(held_out_products(num_products)):
        scenes = scenes_of(number, num_scenes)
        prompts = [scene_prompt(each.surface, each.wall, each.light, held.product.shape.noun) for each in scenes]
        seeds = [1000 * number + scene for scene in range(num_scenes)]
        text_only = draw(pipeline, held, prompts, seeds, text_only=True)
        ads = {
            "ours": draw(pipeline, held, prompts, seeds, text_only=False),
            "text-only": text_only,
            "pixel-paste": np.stack([with_product_pixels(ad, held.photo, held.mask) for ad in text_only]),
        }
        for name, images in ads.items():
            rows[name].append(generated(held, number, name, prompts, seeds, images))
        print(f"{held.product.shape.noun}: {num_scenes} scenes", flush=True)
    for name, products in rows.items():
        publisher = AdPublisher(config, "demo", Storage(f"{output}/{name}").uri, identity)
        with LedgerWriter(AdLedger(Storage(f"{output}/{name}"))) as writer:
            writer.add(publisher(to_table(products, GeneratedProduct)))
    return list(names)


def main() -> None:
    """Writes the runs."""
    parser = argparse.ArgumentParser(description="Three runs of held-out products, to compare.")
    parser.add_argument("--output", type=Path, default=Path("out/evaluate-demo/runs"))
    parser.add_argument("--products", type=int, default=12, help="3, 6, … 48")
    parser.add_argument("--scenes", type=int, default=2, help="scenes of each product, 1 to 9")
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    make_runs(str(arguments.output), arguments.products, arguments.scenes, arguments.model)


if __name__ == "__main__":
    main()
