"""The dataset job's first pass at scale: rows per second, the driver's memory, and planted near-duplicates.

    python tests/benchmarks/dataset_filters.py [--rows 200000]
    python tests/benchmarks/dataset_filters.py --planted [400] [--photographs FOLDER] [--renders FOLDER]

With `--planted`: precision and recall of the filters by content instead, on ads with planted faults (`planted_ads`).

The input is small synthetic pictures. One in ten is a copy of another one: encoded again, brighter or darker, and of
another size. The last line is JSON.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from refadgen.dataset.ledgers import dataset_ledger
from refadgen.storage.store import Storage

PROJECT = Path(__file__).resolve().parents[2]
GROUP_ROWS = 1000


def picture(number: int) -> np.ndarray:
    """Returns smooth random colours drawn by `number`, uint8 80×64×3."""
    fields = np.random.default_rng(number).integers(0, 256, (7, 6, 3)).astype(np.uint8)
    return cv2.resize(fields, (64, 80), interpolation=cv2.INTER_CUBIC)


def copy_of(number: int, rng: np.random.Generator) -> bytes:
    size = int(rng.integers(48, 97))
    again = cv2.resize(picture(number), (size, size * 5 // 4), interpolation=cv2.INTER_AREA)
    brighter = np.clip(again * rng.uniform(0.95, 1.05) + rng.uniform(-4, 4), 0, 255).astype(np.uint8)
    return encoded(brighter, int(rng.integers(55, 90)))


def encoded(pixels: np.ndarray, quality: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def write_input(path: Path, num_rows: int) -> set[str]:
    """Writes the rows in random order; returns the ids of the planted copies, which sort after all originals."""
    rng = np.random.default_rng(0)
    num_copies = num_rows // 10
    num_originals = num_rows - num_copies
    sources = rng.choice(num_originals, num_copies, replace=False)
    order = rng.permutation(num_rows)
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, num_rows, GROUP_ROWS):
            numbers = order[start : start + GROUP_ROWS].tolist()
            images = [
                encoded(picture(n), 92) if n < num_originals else copy_of(int(sources[n - num_originals]), rng)
                for n in numbers
            ]
            writer.write_table(pa.table({"id": [f"{n:08d}" for n in numbers], "image": images}, schema=schema))
    return {f"{n:08d}" for n in range(num_originals, num_rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--planted", type=int, nargs="?", const=400, help="ads with planted faults, and no first pass")
    parser.add_argument("--photographs", type=Path, help="plants in the photographs of this folder too")
    parser.add_argument("--renders", type=Path, help="folder that keeps the rendered ads for the next run")
    arguments = parser.parse_args()
    if arguments.planted:
        import planted_ads  # for it needs the extra `studio`

        planted_ads.measure_all(arguments.planted, arguments.photographs, arguments.renders)
        return
    with tempfile.TemporaryDirectory() as folder:
        ads, output = Path(folder) / "ads.parquet", Path(folder) / "out"
        planted = write_input(ads, arguments.rows)
        print(f"{arguments.rows} rows, {ads.stat().st_size / 1e6:.0f} MB, {len(planted)} planted", flush=True)
        words = [sys.executable, "jobs/build_dataset.py", str(ads), "--output", str(output), "--screen-only"]
        process = subprocess.Popen([*words, "filter.min_side_px=32", "stages.screen.num_actors=2"], cwd=PROJECT)
        driver, memory = psutil.Process(process.pid), []
        while process.poll() is None:
            try:
                memory.append(driver.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                break
            time.sleep(1)
        assert process.wait() == 0
        facts = json.loads((output / "run.json").read_text())
        latest = dataset_ledger(Storage(str(output))).latest(["ad_id", "reason"])
        found = set(latest.filter(pc.equal(latest["reason"], "near_duplicate"))["ad_id"].to_pylist())
    quarters = np.array_split(memory[len(memory) // 10 :], 4)
    result = {
        "rows": arguments.rows,
        "seconds": facts["seconds"],
        "rows_per_s": round(arguments.rows / facts["screening_seconds"]),
        "duplicates_planted": len(planted),
        "duplicates_found": len(found),
        "precision": round(len(found & planted) / max(1, len(found)), 4),
        "recall": round(len(found & planted) / len(planted), 4),
        "driver_mb_by_quarter": [round(float(quarter.max())) for quarter in quarters if len(quarter)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
