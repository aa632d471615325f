"""The card of a data set (`README.md`): its contents by category, as in the paper's Table 1, and how to load it."""

from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger
from refadgen.config import DatasetConfig
from refadgen.storage.store import Storage
from refadgen.triplets.schema import SPLITS

KEY = "README.md"
COUNT_TITLES = (*SPLITS, "product images")
"""Titles of `CategoryCounts.numbers`."""


@dataclass(frozen=True)
class CategoryCounts:
    """The triplets of one category."""

    category: str
    """`—` for ads without one."""
    numbers: tuple[int, ...]
    """Triplets by split, then product images; see COUNT_TITLES."""


def category_counts(ledger: Ledger) -> list[CategoryCounts]:
    """Counts the data set's triplets by category, the category with the most product images first."""
    latest = ledger.latest(["status", "category", "split", "variants"])
    done = latest.filter(pc.equal(latest["status"], "done"))
    triplets: Counter[tuple[str, str]] = Counter()
    images: Counter[str] = Counter()
    groups = done.group_by(["category", "split", "variants"]).aggregate([([], "count_all")])
    columns = (groups[name].to_pylist() for name in ("category", "split", "variants", "count_all"))
    for named, split, kinds, count in zip(*columns, strict=True):
        category = named or "—"
        triplets[category, split] += count
        images[category] += count * len(kinds.split(", "))
    names = sorted(images, key=lambda name: (-images[name], name))
    return [CategoryCounts(name, (*(triplets[name, split] for split in SPLITS), images[name])) for name in names]


def write_card(storage: Storage, ledger: Ledger, config: DatasetConfig, source: str) -> None:
    """Writes the card. source: the input's address, without signatures."""
    counts = category_counts(ledger)
    lines = [f"| category | {' | '.join(COUNT_TITLES)} |", f"|---{'|---:' * len(COUNT_TITLES)}|"]
    lines += [f"| {_cell(each.category)} | {' | '.join(map(str, each.numbers))} |" for each in counts]
    sums = [sum(each.numbers[index] for each in counts) for index in range(len(COUNT_TITLES))]
    lines.append(f"| all | {' | '.join(map(str, sums))} |")
    # `load_dataset` refuses a split without files: an empty split is left out.
    filled = [split for split, number in zip(SPLITS, sums, strict=False) if number]
    files = [f"  - split: {split}\n    path: data/{split}/*.parquet" for split in filled]
    captioner = config.caption.model or "category, colours and what the input says"
    depth = config.multi_view.depth_model or "inflated silhouettes"
    front = "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files, "---"])
    body = f"""
# Triplets for reference-based ad images

Each row is one ad: its picture, captions of its scene, and pictures of its product on white with their masks, made by
RefAdGen's dataset job from {_cell(source)}.

{chr(10).join(lines)}

* Product images of an ad: {", ".join(config.triplet.variants)}. `original` has the ad's own pixels; novel views
  come of 3D Gaussian Splatting with depth from {depth}, and are degraded as well.
* Captions: {captioner}.
* Split by product, {100 - config.triplet.test_percent}:{config.triplet.test_percent}.
* Seed {config.triplet.seed}. All settings: `dataset.json`. What became of every ad: `ledger/`, `report.html`.

```python
datasets.load_dataset("parquet", data_files={{{", ".join(f'"{s}": "data/{s}/*.parquet"' for s in filled)}}})
```

```
python jobs/train.py --data {_cell(storage.uri)}/data --base MODEL
```
"""
    storage.write(KEY, (front + body).encode())


def _cell(text: str) -> str:
    """Returns `text` on one line, with the bars that would end a table's cell escaped."""
    return " ".join(text.replace("|", "\\|").split())
