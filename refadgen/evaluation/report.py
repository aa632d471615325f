"""The report of an evaluation: `evaluation.html`, one file with the numbers and the pictures behind them.

The page is bounded in bytes. Of many images it shows the worst and the best by each measure and run; sorting them by a
measure begins with the truly worst or best ones.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refadgen.config.evaluate import ShowConfig
from refadgen.evaluation.measures.picture import on_white
from refadgen.evaluation.plots import plot
from refadgen.evaluation.summary import Summary, values_of
from refadgen.generation.pages import filled_page, page_json
from refadgen.storage.store import STORE_ERRORS, Storage

KEY = "evaluation.html"
_READERS = 16
_LOST = ""
"""In place of a picture that cannot be read any more."""


def write_page(
    storage: Storage, summary: Summary, tables: Sequence[pa.Table], show: ShowConfig, facts: Mapping[str, Any]
) -> int:
    """Writes the page and returns the number of wanted images that it shows. tables: as `summarize` takes them."""
    most = int(show.max_megabytes * 1e6)
    chosen = choose(summary, tables, show.max_groups)
    names = [line.measure.name for line in summary.lines if not line.skipped and line.measure.per_image]
    groups = list(_groups(tables, chosen, names, show.picture_px))
    while True:
        document = summary.facts() | {"facts": facts, "plots": _plots(summary), "names": names, "groups": groups}
        data = page_json(document)
        if len(data) <= most or not groups:
            break
        # What is chosen first is needed most: the very worst and best of each measure.
        groups = groups[: min(len(groups) - 1, len(groups) * most // len(data))]
    storage.write(KEY, filled_page(KEY, data, __package__))
    return len(groups)


def choose(summary: Summary, tables: Sequence[pa.Table], most: int) -> list[int]:
    """Row numbers of at most `most` images: in turns the worst and the best by each measure in each run."""
    if len(tables[0]) <= most:
        return list(range(len(tables[0])))
    lists = []
    for line in summary.lines:
        if line.skipped or not line.measure.per_image:
            continue
        for table in tables:
            values = values_of(table, line.measure.name)
            there = np.flatnonzero(np.isfinite(values))
            # A part of the sort is enough, and a large table is then no slower than reading it.
            count = min(most, len(there))
            if not count:
                continue
            ranked = [there[np.argpartition(sign * values[there], count - 1)[:count]] for sign in (1, -1)]
            ordered = [
                part[np.argsort(sign * values[part], kind="stable")] for part, sign in zip(ranked, (1, -1), strict=True)
            ]
            lists += ordered if line.measure.better == "more" else ordered[::-1]
    chosen: dict[int, None] = {}
    for place in range(most):
        for ranked_rows in lists:
            if place < len(ranked_rows) and len(chosen) < most:
                chosen.setdefault(int(ranked_rows[place]))
    return list(chosen)


def _groups(
    tables: Sequence[pa.Table], chosen: Sequence[int], names: Sequence[str], side_px: int
) -> Iterator[dict[str, Any]]:
    """Of each chosen image: its product, and its picture and values in each run."""
    rows = [table.take(chosen).to_pylist() for table in tables]

    def group(number: int) -> dict[str, Any]:
        of_runs = [each[number] for each in rows]
        first = of_runs[0]
        return {
            "sku": first["sku"],
            "scene": first["scene"],
            "variant": first["variant"],
            "product": _picture(first["run"], first["product_uri"], side_px),
            "ads": [
                {
                    "picture": _picture(row["run"], row["uri"], side_px),
                    "values": [row[name] for name in names],
                    "problem": row["detail"],
                }
                for row in of_runs
            ],
        }

    with ThreadPoolExecutor(_READERS) as threads:  # small objects in a store: latency counts
        yield from threads.map(group, range(len(chosen)))


def _picture(run: str, key: str, side_px: int) -> str:
    """A picture of a run, made small, as a data URI."""
    try:
        image: Image.Image = Image.open(io.BytesIO(Storage(run).read(key)))
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    except (*STORE_ERRORS, ValueError, Image.DecompressionBombError):
        return _LOST
    if image.mode == "RGBA":
        pixels = np.asarray(image)
        image = Image.fromarray(on_white(pixels[..., :3], pixels[..., 3] >= 128))
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "WEBP", quality=75, method=4)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"


def _plots(summary: Summary) -> list[dict[str, str]]:
    names = [run.name for run in summary.runs]
    drawn = [(line.measure.title, plot(line, names)) for line in summary.lines if not line.skipped]
    return [
        {"title": title, "picture": f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"}
        for title, svg in drawn
        if svg
    ]
