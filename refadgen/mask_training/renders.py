"""Renders pictures of products with true masks, to train and to judge the network that checks masks.

    python -m refadgen.mask_training.renders --output renders --num 6000 --first-seed 0
    python -m refadgen.mask_training.renders --output renders-outside --num 4000 --models MODELS --maps MAPS

One seed gives one picture: the product alone with alpha (`cutout`), on a seamless backdrop (`plain`), or in a scene
(`scene`). The same command again renders only the missing shards. A shard is a parquet file of SHARD_ROWS seeds and one
atomic write, so that readers may read at any time. Needs the extra `refadgen[studio]`.
"""

import argparse
import functools
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refadgen.storage.pictures import to_png
from refadgen.storage.store import Storage
from refadgen.studio.glb_models import SUFFIXES, load_model
from refadgen.studio.meshes import Shape
from refadgen.studio.shapes import BUILDERS

if TYPE_CHECKING:
    from refadgen.mask_training.photographs import Quality

HELD_OUT = frozenset({"cup", "backpack", "pair of headphones", "sneaker", "bench"})
"""Nouns of the studio's shapes that are kept for judging; of models and maps, a hash of the file's name decides."""
SHARD_ROWS = 100
KINDS = {"cutout": 0.6, "plain": 0.15, "scene": 0.25}
"""The share of each kind of picture."""
RECORD = "renders.json"
"""File beside the shards with the options they were rendered with."""
MAP_SUFFIXES = (".hdr", ".exr")

SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("kind", pa.string()),  # cutout, plain or scene
        ("family", pa.string()),  # the noun of a shape, the file name of a model without suffix
        ("source", pa.string()),  # own; outside: with a model or a map of a given folder
        ("image", pa.binary()),  # PNG: RGBA with straight alpha for cut-outs, else RGB
        ("mask", pa.binary()),  # PNG, uint8: the product's coverage; null for cut-outs
    ]
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture; the columns of SCHEMA."""

    seed: int
    kind: Literal["cutout", "plain", "scene"]
    family: str
    source: Literal["own", "outside"]
    image: np.ndarray
    """uint8 [H, W, 4] for cut-outs, else [H, W, 3]."""
    mask: np.ndarray | None
    """uint8 [H, W]; None for cut-outs."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What may stand in the pictures. Without `models`, the studio's own shapes; without `maps`, its lamps only."""

    models: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    held_out: bool = False
    """Whether only what is held out from training occurs; else only the rest."""

    def draw(self, rng: np.random.Generator) -> tuple[str, Shape]:
        """A family and one of its shapes; all families are equally likely."""
        if self.models:
            file = self.models[int(rng.integers(len(self.models)))]
            return Path(file).stem, _model(file)
        builders = [(noun, build) for _, noun, build in BUILDERS if (noun in HELD_OUT) == self.held_out]
        noun, build = builders[int(rng.integers(len(builders)))]
        return noun, build(rng)

    def draw_map(self, rng: np.random.Generator, probability: float) -> str | None:
        """An environment map; None where there are none, or by chance."""
        if not self.maps or rng.random() >= probability:
            return None
        return self.maps[int(rng.integers(len(self.maps)))]


@functools.lru_cache(maxsize=512)
def _model(file: str) -> Shape:
    return load_model(Path(file))


def is_held_out(file: Path) -> bool:
    """Whether a model or map is kept for judging: about every sixth, by a hash of its name, wherever it lies.

    So is each model that is named like a held-out shape.
    """
    if {noun.split()[-1] for noun in HELD_OUT} & {*file.stem.lower().replace("_", "-").split("-")}:
        return True
    return int.from_bytes(hashlib.sha256(file.name.lower().encode()).digest()[:4]) % 6 == 0


def read_stock(models: Path | None, maps: Path | None, *, held_out: bool) -> Stock:
    """The files of the folders that belong to this side of the split.

    Raises: ValueError for a folder without any.
    """
    found = {}
    for option, folder, suffixes in (("--models", models, SUFFIXES), ("--maps", maps, MAP_SUFFIXES)):
        files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
        side = tuple(str(path) for path in files if is_held_out(path) == held_out)
        if folder is not None and not side:
            which = "held-out" if held_out else "training"
            raise ValueError(f"{option} {folder}: has no {which} file ({', '.join(suffixes)}); give a folder that has")
        found[option] = side
    return Stock(models=found["--models"], maps=found["--maps"], held_out=held_out)


def render_item(seed: int, stock: Stock, quality: "Quality") -> Item:
    """The picture of a seed."""
    # Imported here: importing it selects Mitsuba's variant for the process.
    from refadgen.mask_training import photographs

    # The studio's own pictures of a seed use [seed, 0] to [seed, 9].
    rng = np.random.default_rng([seed, 20])
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    family, shape = stock.draw(rng)
    chosen = stock.draw_map(rng, {"cutout": 0.5, "plain": 0.0, "scene": 0.6}[kind])
    source: Literal["own", "outside"] = "outside" if stock.models or chosen else "own"
    if kind == "cutout":
        image = photographs.cutout(shape, rng, quality, chosen)
        return Item(seed=seed, kind="cutout", family=family, source=source, image=image, mask=None)
    if kind == "plain":
        image, mask = photographs.plain(shape, rng, quality)
        return Item(seed=seed, kind="plain", family=family, source=source, image=image, mask=mask)
    others = [stock.draw(rng)[1] for _ in range(int(rng.choice([0, 1, 2, 3, 4], p=[0.4, 0.2, 0.2, 0.1, 0.1])))]
    image, mask = photographs.in_scene(shape, others, rng, quality, chosen)
    return Item(seed=seed, kind="scene", family=family, source=source, image=image, mask=mask)


def as_row(item: Item) -> dict[str, Any]:
    """The row of SCHEMA for an item."""
    mask = None if item.mask is None else to_png(item.mask, compress_level=2)
    image = to_png(item.image, compress_level=2)
    return {
        "seed": item.seed,
        "kind": item.kind,
        "family": item.family,
        "source": item.source,
        "image": image,
        "mask": mask,
    }


def render(output: Path, *, num: int, first_seed: int, stock: Stock, quality: "Quality") -> int:
    """Renders the shards that `output` lacks. num: items of the whole folder. Returns: how many items are new.

    Raises: ValueError for a folder that was rendered with other options.
    """
    storage = Storage(str(output))
    _require_same_options(storage, {**asdict(stock), **asdict(quality)})
    started, new = time.monotonic(), 0
    for first in range(first_seed, first_seed + num, SHARD_ROWS):
        seeds = range(first, min(first + SHARD_ROWS, first_seed + num))
        name = f"shard-{first:09d}-{len(seeds)}.parquet"
        if storage.exists(name):
            continue
        rows = [as_row(render_item(seed, stock, quality)) for seed in seeds]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="none")  # PNGs are compressed
        storage.write(name, buffer.getvalue())
        new += len(rows)
        print(f"{output / name}: {new} new items, {(time.monotonic() - started) / new:.2f} s each", flush=True)
    return new


def _require_same_options(storage: Storage, options: dict[str, Any]) -> None:
    record = json.dumps(options, indent=2).encode()
    if not storage.exists(RECORD):
        storage.write(RECORD, record)
        return
    before = json.loads(storage.read(RECORD))
    wanted = json.loads(record)
    changed = sorted(name for name in wanted if before.get(name) != wanted[name])
    if changed:
        raise ValueError(
            f"--output {storage.uri_of('')}: was rendered with other {', '.join(changed)}; choose another folder"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    import drjit

    from refadgen.mask_training.photographs import Quality

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--num", type=int, default=SHARD_ROWS, help="items of the whole folder")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="folder of 3D models, which replace the studio's shapes")
    parser.add_argument("--maps", type=Path, help="folder of environment maps, for about half of the pictures")
    parser.add_argument("--held-out", action="store_true", help="only what is never trained on; else never any of it")
    parser.add_argument("--long-px", type=int, default=Quality.long_px, help="longer side of product or picture")
    parser.add_argument("--spp", type=int, default=Quality.spp, help="samples per pixel")
    parser.add_argument("--threads", type=int, default=1, help="cores that a picture is rendered on")
    options = parser.parse_args(arguments)
    for name, least in (("num", 1), ("first_seed", 0), ("long_px", 32), ("spp", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    stock = read_stock(options.models, options.maps, held_out=options.held_out)
    quality = Quality(long_px=options.long_px, spp=options.spp)
    drjit.set_thread_count(options.threads)
    new = render(options.output, num=options.num, first_seed=options.first_seed, stock=stock, quality=quality)
    print(f"{options.output}: {new} new items")


if __name__ == "__main__":
    main()
