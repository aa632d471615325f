"""Draws every degradation at six strengths, from none to the largest that its setting accepts.

    python tests/benchmarks/degradation_sheet.py FILE.png [--ad 6]

The product is from one of the sample ads. Each line shows one degradation alone, with its strength in the units of
`DegradationConfig` above each image. The last line shows the default degradations together, for six seeds.
"""

import argparse
import io
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from refadgen.config import DegradationConfig
from refadgen.config.dataset import DEGRADATION_LIMITS
from refadgen.triplets.degradation import degrade
from refadgen.triplets.schema import original_variant

ADS = Path(__file__).resolve().parents[2] / "catalogs" / "ads.parquet"
COLUMNS = 6
NONE = {name: (0.0, 0.0) for name in DEGRADATION_LIMITS}


def labelled(image: np.ndarray, text: str) -> np.ndarray:
    """The image with a line of text above it."""
    strip = np.full((18, image.shape[1], 3), 235, np.uint8)
    cv2.putText(strip, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--ad", type=int, default=6, help="number of the sample ad, from 0")
    arguments = parser.parse_args()
    row = pq.read_table(ADS).to_pylist()[arguments.ad]
    ad, mask = (np.asarray(Image.open(io.BytesIO(row[name]))) for name in ("image", "mask"))
    own = original_variant(ad, mask)
    lines = []
    for name, limit in DEGRADATION_LIMITS.items():
        strengths = np.linspace(0, limit, COLUMNS)
        tiles = []
        for strength in strengths:
            config = DegradationConfig(**{**NONE, name: (float(strength), float(strength))})
            image, _ = degrade(own.image, own.mask, np.random.default_rng(0), config)
            tiles.append(labelled(image, f"{name} {strength:.3g}"))
        lines.append(np.concatenate(tiles, axis=1))
    drawn = [degrade(own.image, own.mask, np.random.default_rng(seed))[0] for seed in range(COLUMNS)]
    tiles = [labelled(image, f"defaults, seed {seed}") for seed, image in enumerate(drawn)]
    lines.append(np.concatenate(tiles, axis=1))
    Image.fromarray(np.concatenate(lines)).save(arguments.file)


if __name__ == "__main__":
    main()
