"""A segmentation method of your own for a catalogue: its masks become the catalogue's `mask` column.

    python examples/own_segmentation.py catalogs/demo.parquet out/own
    python jobs/generate_catalog.py out/own/catalog.parquet --output out/own/ads

The job takes a row's own mask before it tries anything else, so that nothing in the package has to change. `my_mask`
stands for your method: here, colours that differ from the border's. A product whose new mask is weak keeps the mask
that it had; where it had none, the job segments it as usual.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from refadgen.config import SegmentationConfig
from refadgen.errors import RowError
from refadgen.segmentation import ProductMasker


def my_mask(image_u8: np.ndarray) -> np.ndarray:
    """The product: uint8 H×W, 255 where it is and 0 elsewhere. image_u8: uint8 H×W×3, RGB."""
    lab = cv2.cvtColor(image_u8, cv2.COLOR_RGB2LAB).astype(np.float32)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    distance = np.linalg.norm(lab - np.median(border, axis=0), axis=-1).clip(0, 255).astype(np.uint8)
    mask = np.where(cv2.medianBlur(distance, 5) > 10, 255, 0).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 255, cv2.FILLED)  # filled: a white label is product


def main(catalog: Path, output: Path) -> None:
    """Writes `output`/masks and `output`/catalog.parquet; the photographs stay where they are."""
    (output / "masks").mkdir(parents=True, exist_ok=True)
    triage = ProductMasker(SegmentationConfig())  # refuses masks that are too small, cut off or in many pieces
    table = pq.read_table(catalog)
    images, masks = [], []
    for row in table.to_pylist():
        photo = Image.open(catalog.parent / row["image"]).convert("RGB")
        images.append((catalog.parent / row["image"]).read_bytes())
        mask = my_mask(np.asarray(photo))
        try:
            triage.segment(photo, row["category"], own_mask=mask)
        except RowError as error:
            print(f"{row['sku']}: {error.detail}")
            masks.append(None if row["mask"] is None else (catalog.parent / row["mask"]).read_bytes())
            continue
        file = output / "masks" / f"{row['sku']}.png"
        Image.fromarray(mask).save(file)
        masks.append(file.read_bytes())
    # Encoded images lie in the table itself here; addresses (`masks/DEMO-001.png`) do as well, and keep it small.
    for name, values in (("image", images), ("mask", masks)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.binary()))
    pq.write_table(table, output / "catalog.parquet")
    print(f"{sum(mask is not None for mask in masks)} of {len(masks)} products have a mask: {output}/catalog.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
