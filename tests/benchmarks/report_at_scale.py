"""What a large ledger costs at a run's end and at the next one's start: the report, and the resume's filter.

    python tests/benchmarks/report_at_scale.py --rows 1000000

Writes a ledger of that many images, four of each product, each product with a prompt and an address of its own, three
in a hundred without success, and measures, each in a process of its own and beyond its start:

* `filter`: the keys of images that a resume leaves out (`Ledger.reconciled`);
* `report`: the first report, its largest file and all of them; the parts' form is in `generation/report_parts.py`;
* `again`: the report of a rerun that recorded nothing.

Two cores, a local disk, 2026-11-28; seconds of processor, MB at the peak beyond the start:

| images | ledger | `filter` | `report` | largest file | all files | `again` |
|---|---|---|---|---|---|---|
| 1,000,000 | 122 MB | 1.1 s, 233 MB | 16 s, 404 MB | 4.5 MB | 258, 330 MB | 0.1 s, 39 MB |
| 10,000,000 | 1,225 MB | 8.9 s, 1,127 MB | 203 s, 397 MB | 4.7 MB | 2,562, 3,274 MB | 0.1 s, 40 MB |
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_PART_ROWS = 250_000
_IMAGES_A_PRODUCT = 4
_FAILURES = ("image_timeout", "not_an_image", "no_plain_background", "internal_error", "product_too_small")
_MEASURES = ("filter", "report", "again")


def main() -> None:
    """Prints a line for each measurement, and a line of JSON."""
    parser = argparse.ArgumentParser(description="Measure the report and the resume's filter of a large ledger.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--output", type=Path, help="folder that keeps the ledger and its report; default: a temporary one"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or Path(folder) / "output"
        if not (output / "ledger").exists():
            write_ledger(output, arguments.rows)
        found = {"rows": arguments.rows, "ledger_mb": _size_mb(output / "ledger")[0]}
        for what in _MEASURES:
            command = [sys.executable, __file__, "--measure", what, str(output)]
            done = subprocess.run(command, text=True, check=True, capture_output=True, env=dict(os.environ))
            found[what] = json.loads(done.stdout.splitlines()[-1])
            print(what, ", ".join(f"{name} {value}" for name, value in found[what].items()), flush=True)
    print(json.dumps(found))


def write_ledger(output: Path, num_rows: int) -> None:
    """Writes a ledger in an order that is not that of skus, in parts as the folding of a run leaves them."""
    from refadgen.generation.ledger import AdLedger
    from refadgen.storage.store import Storage

    ledger = AdLedger(Storage(str(output)))
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, _PART_ROWS):
        ledger.append(_rows(start, min(_PART_ROWS, num_rows - start), rng))


def _rows(start: int, size: int, rng: np.random.Generator) -> pa.Table:
    from refadgen.generation.ledger import SCHEMA

    digits = rng.bytes(16 * size).hex()
    ids = pa.array([digits[at : at + 32] for at in range(0, len(digits), 32)])
    numbers = np.arange(start, start + size)
    product = numbers // _IMAGES_A_PRODUCT
    sku = _joined("SKU-", product * 7_919 % 100_000_007)
    status = rng.choice(["done", "failed", "rejected"], size, p=[0.97, 0.02, 0.01])
    is_done = pa.array(status == "done")
    reason = pc.if_else(is_done, "", pa.array(rng.choice(_FAILURES, size)))
    known = {
        "image_id": ids,
        "run_id": pa.repeat("0123456789ab", size),
        "recorded_at": pa.array(1_790_000_000_000_000 + numbers * 1_000).cast(SCHEMA.field("recorded_at").type),
        "row": pa.array(product),
        "sku": sku,
        "category": pa.array(rng.choice(["Home > Kitchen > Mugs", "Apparel > Shoes", "Toys > Plush Bears"], size)),
        "scene": pa.array(rng.choice(["marble", "meadow", "beach", "studio"], size)),
        "variant": pa.array(numbers % _IMAGES_A_PRODUCT),
        "status": pa.array(status),
        "reason": reason,
        "detail": pc.if_else(is_done, "", pc.binary_join_element_wise(sku, reason, ": ")),
        "attempts": pa.array(rng.integers(1, 4, size)),
        "uri": pc.if_else(is_done, pc.binary_join_element_wise("images/", ids, ".jpg", ""), ""),
        "product_uri": pc.binary_join_element_wise("products/", pc.utf8_slice_codeunits(sku, 4), ".webp", ""),
        "image": _joined("https://cdn.shop.example/products/", product, "/main.jpg"),
        "input_sha256": pc.binary_join_element_wise(ids, ids, ""),
        "prompt": _joined("a cup on a wooden table in front of a plain wall, soft morning light, photograph ", product),
        "seed": pa.array(rng.integers(0, 2**62, size)),
        **{name: pa.array(rng.random(size)) for name in SCHEMA.names if name.endswith(("_similarity", "_s", "_score"))},
        "model": pa.repeat("models/refadgen (0123456789abcdef)", size),
        "batch_size": pa.repeat(8, size),
    }
    columns = [
        known[field.name].cast(field.type) if field.name in known else pa.nulls(size, field.type) for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def _joined(before: str, numbers: npt.NDArray[np.int64], after: str = "") -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
    return pc.binary_join_element_wise(before, digits, after, "")


def measure(what: str, output: str) -> dict[str, Any]:
    """Seconds of processor and clock, memory at its peak beyond the start, and what came of it."""
    from refadgen.generation.ledger import AdLedger
    from refadgen.generation.report import write_report
    from refadgen.storage.store import Storage

    storage = Storage(output)
    ledger = AdLedger(storage)
    pa.array([0])  # the first one imports pandas
    before = _peak_mb()
    started, clock = time.process_time(), time.monotonic()
    num_keys = len(ledger.reconciled(retry_failed=False)) if what == "filter" else 0
    if what != "filter":
        write_report(storage, ledger, {"run_id": "0123456789ab", "catalog": "shop.parquet"})
    figures = {
        "cpu_s": round(time.process_time() - started, 1),
        "wall_s": round(time.monotonic() - clock, 1),
        "peak_mb": round(_peak_mb() - before),
    }
    if what == "filter":
        return figures | {"ids": num_keys}
    total, largest, number = _size_mb(Path(output) / "report")
    page = (Path(output) / "report.html").stat().st_size / 1e6
    return figures | {"page_mb": round(page, 1), "files": number, "largest_mb": largest, "total_mb": total}


def _peak_mb() -> float:
    """This process's own: `getrusage` tells the memory of the one that started it, too."""
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0]) / 1024


def _size_mb(folder: Path) -> tuple[float, float, int]:
    """Of all files below a folder, of the largest, and their number."""
    sizes = [path.stat().st_size / 1e6 for path in folder.rglob("*") if path.is_file()]
    return round(sum(sizes), 1), round(max(sizes), 1), len(sizes)


if __name__ == "__main__":
    main()
