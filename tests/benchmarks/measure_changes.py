"""What each measure of an evaluation says of planted changes: the table in docs/evaluation.md.

    python tests/benchmarks/measure_changes.py [--output FILE]

A product with a label in a scene, then noise, another product, another label, shifts, and so on. Networks whose weights
this project does not have (LPIPS' backbone, DINO) are asked with random weights: then only the direction says anything.
Needs the extras `ocr` and `evaluate`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

from measure_cases import changes, pictures, product

from refadgen.config import SegmentationConfig
from refadgen.config.evaluate import OcrConfig
from refadgen.evaluation.measures.masks import MaskOverlap
from refadgen.evaluation.measures.perceptual import Lpips, MatchedPatches, PerceptualDistance
from refadgen.evaluation.measures.picture import Scorer
from refadgen.evaluation.measures.pixels import ColorDrift, NearestProduct, Registration, signature
from refadgen.evaluation.measures.table import MEASURES
from refadgen.evaluation.measures.text import CharacterErrors
from refadgen.evaluation.measures.transformers_features import DinoSimilarity, VisionFeatures
from refadgen.generation.scores import score_fidelity

CPU = torch.device("cpu")


def random_networks(folder: Path) -> list[Scorer]:
    """LPIPS, MP-LPIPS and DINO with random weights."""
    from torchvision.models import alexnet
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), folder / "alexnet.pth")
    Dinov2Model(Dinov2Config(hidden_size=96, num_hidden_layers=3, num_attention_heads=3)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
    distance = PerceptualDistance("alex", str(folder / "alexnet.pth"), CPU)
    patches = VisionFeatures("mp_lpips.features", str(folder), CPU).patches
    return [Lpips(distance, 4), MatchedPatches(distance, patches, "random"), DinoSimilarity(str(folder), CPU)]


def main() -> None:
    """Prints the table as Markdown, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    ads = changes()
    rows = pictures(ads)
    fidelity = [score_fidelity(row.ad_u8, row.canvas_u8, row.mask_u8) for row in rows]
    values = {name: [getattr(each, name) for each in fidelity] for name in ("color_similarity", "structure_similarity")}
    candidates = {"own": signature(*product()), "other": signature(*product(other=True))}
    with tempfile.TemporaryDirectory() as folder:
        scorers: list[Scorer] = [
            Registration(),
            ColorDrift(),
            NearestProduct({"r": candidates}),
            MaskOverlap(SegmentationConfig(), gpu_expected=False),
            CharacterErrors(OcrConfig()),
            *random_networks(Path(folder)),
        ]
        for scorer in scorers:
            values |= {name: list(found) for name, found in scorer(rows).items()}
    shown = [measure for measure in MEASURES if measure.name in values]
    lines = [f"| change | {' | '.join(measure.title for measure in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for index, change in enumerate(ads):
        cells = [values[measure.name][index] for measure in shown]
        texts = [
            "–" if cell is None else f"{cell:.{measure.digits}f}" for cell, measure in zip(cells, shown, strict=True)
        ]
        lines.append(f"| {change} | {' | '.join(texts)} |")
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps({"changes": list(ads), **values}))


if __name__ == "__main__":
    main()
