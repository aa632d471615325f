"""The card of a data set (`README.md`): what is in it, by category as in the paper's Table 1, and how to load it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from refadgen.batch.ledger import Ledger
from refadgen.storage.store import Storage
from refadgen.triplets.schema import SPLITS

KEY = "README.md"


def category_counts(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Of each category (`—`: none) its triplets by split and its product images, the largest category first."""
    latest = ledger.latest(["status", "category", "split", "variants"])
    done = latest.filter(pc.equal(latest["status"], "done"))
    triplets: Counter[tuple[str, str]] = Counter()
    images: Counter[str] = Counter()
    for group in done.group_by(["category", "split", "variants"]).aggregate([([], "count_all")]).to_pylist():
        category, count = group["category"] or "—", group["count_all"]
        triplets[category, group["split"]] += count
        images[category] += count * len(group["variants"].split(", "))
    names = sorted(images, key=lambda name: (-images[name], name))
    return {
        name: {**{split: triplets[name, split] for split in SPLITS}, "product images": images[name]} for name in names
    }


def write_card(storage: Storage, ledger: Ledger, facts: Mapping[str, Any]) -> None:
    """Writes the card. facts: of run.json."""
    counts = category_counts(ledger)
    head = [*SPLITS, "product images"]
    lines = [f"| category | {' | '.join(head)} |", f"|---{'|---:' * len(head)}|"]
    lines += [f"| {_cell(name)} | {' | '.join(str(of[each]) for each in head)} |" for name, of in counts.items()]
    sums = [sum(of[each] for of in counts.values()) for each in head]
    lines.append(f"| all | {' | '.join(map(str, sums))} |")
    filled = [split for split, number in zip(SPLITS, sums, strict=False) if number]
    files = [f"  - split: {split}\n    path: data/{split}/*.parquet" for split in filled]
    config = facts["config"]
    captioner = config["caption"]["model"] or "category, colours and what the input says"
    depth = config["multi_view"]["depth_model"] or "inflated silhouettes"
    front = "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files, "---"])
    body = f"""
# Triplets for reference-based ad images

Each row is one ad: its picture, captions of its scene, and pictures of its product on white with their masks, made by
RefAdGen's dataset job from {_cell(facts["input"])}.

{chr(10).join(lines)}

* Product images of an ad: {", ".join(config["triplet"]["variants"])}. `original` has the ad's own pixels; novel views
  come of 3D Gaussian Splatting with depth from {depth}, and are degraded as well.
* Captions: {captioner}.
* Split by product, {100 - config["triplet"]["test_percent"]}:{config["triplet"]["test_percent"]}.
* Seed {config["triplet"]["seed"]}. All settings: `dataset.json`. What became of every ad: `ledger/`, `report.html`.

```python
datasets.load_dataset("parquet", data_files={{{", ".join(f'"{s}": "data/{s}/*.parquet"' for s in filled)}}})
```

```
python jobs/train.py --data {_cell(facts["output"])}/data --base MODEL
```
"""
    storage.write(KEY, (front + body).encode())


def _cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.replace("|", "\\|").split())
