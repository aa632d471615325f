"""What a model's settings are measured on: placed products with prompts, and measures of the images made of them.

Two sources: the studio's held-out products, whose truth is known (for models that were trained on the studio), and the
test split of a folder of triplets (for any model).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from refadgen.evaluation.measures.transformers_features import ClipScore
from refadgen.generation.scores import score_fidelity
from refadgen.training.rows import online_files
from refadgen.triplets import schema
from refadgen.triplets.geometry import CoverCrop

if TYPE_CHECKING:
    from refadgen.evaluation.held_out import Case, HeldOutProduct

Images = npt.NDArray[np.uint8]
Scores = Mapping[str, npt.NDArray[np.float64]]
"""A number of each image by the name of its measure; more is better."""


@dataclass(frozen=True)
class Example:
    """One ad to make."""

    canvas: Images
    """The placed product on white, H×W×3."""
    mask: Images
    """M′, H×W, 0 or 255."""
    prompt: str
    product: str
    """Examples of one product belong together when intervals are drawn."""


@dataclass(frozen=True)
class Examples:
    """Examples and how images of them are judged."""

    rows: Sequence[Example]
    judge: Callable[[Images], Scores]
    """The scores of images N×H×W×3, one of each row in order."""
    unmeasured: str
    """What these measures do not see; empty: nothing."""

    @property
    def digest(self) -> str:
        """A hash of all examples."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr((row.canvas.shape, row.prompt, row.product)).encode())
            digest.update(row.canvas.tobytes() + row.mask.tobytes())
        return digest.hexdigest()


def studio_examples(num_products: int, size: tuple[int, int], judge_file: Path | None) -> Examples:
    """One unseen scene of each held-out product of the studio.

    The measures are those of the built-in model's card: right product among all, mask IoU, scene recognised.
    size: of the model's canvas, width and height. judge_file: keeps the judge networks, whose training takes a quarter
    of an hour. Raises: ValueError naming an option.
    """
    from refadgen.evaluation import held_out, metrics  # the extra `studio`
    from refadgen.evaluation.judges import judge_at, judge_images, word_numbers

    own = (held_out.SIZE["width_px"], held_out.SIZE["height_px"])
    if size != own:
        raise ValueError(
            f"--data studio: is for models of {own[0]}×{own[1]} px that were trained on the studio; this model's "
            f"canvas is {size[0]}×{size[1]}: give a folder of triplets"
        )
    products = held_out.held_out_products(num_products)
    with held_out.render_pool() as pool:
        cases: list[Case] = held_out.cases_of(pool, products, 1)
        judge = judge_at(judge_file, pool, speed=1)
    of_case: list[HeldOutProduct] = [products[case.index] for case in cases]
    masks = np.stack([held.mask for held in of_case])
    words = np.array([word_numbers(case.scene) for case in cases])

    def scores(images: Images) -> Scores:
        verdict = judge_images(judge, images, masks > 127, words)
        nearest = [
            metrics.nearest(image, case.candidates, mask) == case.index
            for image, case, mask in zip(images, cases, masks, strict=True)
        ]
        return {
            "product_accuracy": np.array(nearest, np.float64),
            "mask_iou": verdict.ious,
            "scene_accuracy": verdict.scenes_right.astype(np.float64),
        }

    rows = [
        Example(held.photo, held.mask, case.prompt, str(case.index)) for held, case in zip(of_case, cases, strict=True)
    ]
    return Examples(rows, scores, unmeasured="")


def triplet_examples(uri: str, num_products: int, size: tuple[int, int], clip: str | None) -> Examples:
    """The first triplets of the test split, one of each product.

    The measures are colour and structure inside the mask and, with `clip` (a folder or hub id of a CLIP), the cosine
    of image and prompt. size: of the canvas, width and height. Raises: ValueError naming the option or row.
    """
    rows: dict[str, Example] = {}
    crop = CoverCrop(*size, 0.5, 0.5)
    for triplet in _test_triplets(uri):
        if len(rows) == num_products:
            break
        if triplet.product_id in rows:
            continue
        # From the ad's own pixels, copying them would look like a perfect ad.
        variant = next((each for each in triplet.variants if each.kind != "original"), triplet.variants[0])
        image, mask = crop(variant.image), crop(variant.mask)
        rows[triplet.product_id] = Example(image, mask, triplet.captions[0], triplet.product_id)
    examples = list(rows.values())
    if not examples:
        raise ValueError(f"--data {uri}: has no rows of the split test")
    cosine = None if clip is None else _clip_cosine(clip, [example.prompt for example in examples])

    def scores(images: Images) -> Scores:
        fidelity = [
            score_fidelity(image, example.canvas, example.mask) for image, example in zip(images, examples, strict=True)
        ]
        found = {
            name: np.array([getattr(each, name) for each in fidelity], np.float64)
            for name in ("color_similarity", "structure_similarity")
        }
        return found if cosine is None else found | {"clip_score": cosine(images)}

    return Examples(examples, scores, unmeasured="" if clip else "the scene (--clip measures it)")


def _test_triplets(uri: str) -> Iterator[schema.Triplet]:
    storage, _ = schema.dataset_files(uri)
    for key, groups in online_files(uri).items():
        with storage.arrow().open_input_file(storage.path(key)) as handle:
            file = pq.ParquetFile(handle)
            for index, offsets in groups:
                if offsets["test"]:  # reading a row group means reading its pictures
                    yield from map(schema.decode, file.read_row_group(index).take(offsets["test"]).to_pylist())


def _clip_cosine(path_or_id: str, prompts: Sequence[str]) -> Callable[[Images], npt.NDArray[np.float64]]:
    """The cosine of each image with its prompt. Raises: ValueError where there is no CLIP."""
    scorer = ClipScore(path_or_id, torch.device("cpu"), f"--clip {path_or_id}")
    return lambda images: np.array(scorer.cosines(list(images), prompts), np.float64)
