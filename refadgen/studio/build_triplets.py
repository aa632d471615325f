"""Renders training triplets into parquet shards on Ray. The same command again renders only the missing shards.

    python -m refadgen.studio.build_triplets --output triplets --num 2000 --first-seed 0 --dressings 12
    ray job submit -- python -m refadgen.studio.build_triplets --output s3://data/triplets --num 100000

A shard holds the rows of `--shard-seeds` consecutive seeds (`refadgen.triplets.schema.SCHEMA`) and is one atomic write.
`render.json` records the options of all shards of a folder; other options are refused. Each CPU of Ray renders one
shard at a time. Folders of models and maps must be visible to all nodes.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from refadgen.config import DegradationConfig
from refadgen.storage.locations import is_remote, local_path
from refadgen.storage.store import Storage
from refadgen.studio.glb_models import SUFFIXES
from refadgen.triplets import schema as triplets
from refadgen.triplets.degradation import degrade, row_rng
from refadgen.triplets.schema import Variant, original_variant

if TYPE_CHECKING:
    from refadgen.studio.render import Triplet

RECORD = "render.json"
"""File beside the shards with the options they were rendered with."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """All that a shard's rows depend on, besides its seeds."""

    dressings: int = 0
    """Products per seed, all in the light of one render; 0: the seed's own product, traced by itself."""
    width_px: int = 128
    height_px: int = 160
    spp: int = 6
    """Samples per pixel of ads. Product photographs take at most 6, since degradation adds noise to them."""
    models: tuple[str, ...] = ()
    """3D model files, which replace the parametric products."""
    environments: tuple[str, ...] = ()
    """Environment map files, for about every second ad."""
    depth_of_field: bool = False
    """Whether about every second ad is taken through an open lens."""

    def __post_init__(self) -> None:
        for name, least in (("dressings", 0), ("width_px", 16), ("height_px", 16), ("spp", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if self.dressings and (self.models or self.environments or self.depth_of_field):
            raise ValueError(
                f"--dressings {self.dressings}: cannot be combined with --models, --environments or --depth-of-field; "
                "leave it out"
            )


def render_rows(seed: int, options: RenderOptions) -> list[triplets.Triplet]:
    """The rows of a seed: one, or one per dressing."""
    # Imported here: Mitsuba is needed on workers only, and selects its variant for the process.
    from refadgen.studio.dressing import render_dressed
    from refadgen.studio.render import render_triplet

    width_px, height_px, spp = options.width_px, options.height_px, options.spp
    if options.dressings:
        dressed = render_dressed(seed, options.dressings, width_px=width_px, height_px=height_px, spp=spp)
        return [as_row(triplet) for triplet in dressed]
    triplet = render_triplet(
        seed,
        width_px=width_px,
        height_px=height_px,
        spp=spp,
        models=options.models,
        environments=options.environments,
        depth_of_field=options.depth_of_field,
    )
    return [as_row(triplet)]


def as_row(triplet: "Triplet") -> triplets.Triplet:
    """The data set's row of a render.

    Its product images: the ad's own pixels, the photograph as taken, the photograph degraded, and each nearby view
    degraded.
    """
    config, row_id = DegradationConfig(), f"{triplet.product_id}-{triplet.seed}"
    variants = [
        original_variant(triplet.ad_image, triplet.product_mask),
        Variant("relit", triplet.product_image, triplet.product_mask),
    ]
    views = [("degraded", triplet.product_image, triplet.product_mask)]
    views += [("novel_view", image, mask) for image, mask in triplet.novel_views]
    for index, (kind, image, mask) in enumerate(views):
        variants.append(Variant(kind, *degrade(image, mask, row_rng(index, row_id), config)))
    scene = triplet.scene
    return triplets.Triplet(
        row_id=row_id,
        product_id=triplet.product_id,
        category=triplet.category,
        split=triplet.split,
        captions=triplet.captions,
        ad_image=triplet.ad_image,
        variants=variants,
        facts=json.dumps(
            {"seed": triplet.seed}
            | {name: getattr(scene, name) for name in ("surface", "wall", "light", "aperture")}
            | ({"environment": PurePath(scene.environment).name} if scene.environment else {})
            | dataclasses.asdict(triplet.view)
        ),
    )


def shard_seeds(first_seed: int, num: int, seeds_per_shard: int) -> list[range]:
    """The seeds of each shard; the last one may be shorter. Raises: ValueError."""
    for option, value, least in (("num", num, 1), ("first-seed", first_seed, 0), ("shard-seeds", seeds_per_shard, 1)):
        if value < least:
            raise ValueError(f"--{option} {value}: must be at least {least}")
    end = first_seed + num
    return [range(start, min(start + seeds_per_shard, end)) for start in range(first_seed, end, seeds_per_shard)]


def shard_key(seeds: range) -> str:
    """The file name of a shard."""
    return f"triplets-{seeds.start:07d}-{seeds.stop - 1:07d}.parquet"


def write_shard(output: str, seeds: range, options: RenderOptions) -> int:
    """Renders one shard. Returns: its number of rows."""
    rows = [row for seed in seeds for row in render_rows(seed, options)]
    triplets.write_triplets(Storage(output), shard_key(seeds), rows)
    return len(rows)


def _render_batch(batch: dict[str, Any], output: str, options: RenderOptions) -> dict[str, Any]:
    """INPUT columns start, stop: the seeds of one shard. OUTPUT: rows, seconds. A retry renders the shard again."""
    import drjit

    drjit.set_thread_count(1)  # one shard per CPU at a time
    started = time.monotonic()
    rows = [
        write_shard(output, range(int(start), int(stop)), options)
        for start, stop in zip(batch["start"], batch["stop"], strict=True)
    ]
    return {"rows": rows, "seconds": [(time.monotonic() - started) / len(rows)] * len(rows)}


def _look_at(batch: dict[str, Any]) -> dict[str, Any]:
    """INPUT column file: a model or an environment map. OUTPUT: file, digest, error ("" where it can be read)."""
    from refadgen.studio.glb_models import load_model
    from refadgen.studio.mitsuba_scene import environment_picture

    errors, digests = [], []
    for file in map(str, batch["file"]):
        try:
            load_model(Path(file)) if file.lower().endswith(SUFFIXES) else environment_picture(file)
            errors.append("")
        except ValueError as error:
            errors.append(str(error))
        digests.append(hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16])
    return {"file": batch["file"], "digest": digests, "error": errors}


def with_readable_files(options: RenderOptions) -> tuple[RenderOptions, dict[str, str]]:
    """The options without unreadable files, and the digests of the readable ones. Prints the others. Needs Ray.

    Raises: ValueError where no file of a folder can be read.
    """
    import ray

    files = [*options.models, *options.environments]
    if not files:
        return options, {}
    # On workers, which are the ones that must see the files.
    looked = ray.data.from_items([{"file": file} for file in files]).map_batches(_look_at, batch_size=1).take_all()
    bad = {row["file"]: row["error"] for row in looked if row["error"]}
    for error in bad.values():
        print(f"left out: {error}", flush=True)
    kept = dataclasses.replace(
        options,
        models=tuple(file for file in options.models if file not in bad),
        environments=tuple(file for file in options.environments if file not in bad),
    )
    for name in ("models", "environments"):
        if getattr(options, name) and not getattr(kept, name):
            raise ValueError(f"--{name}: no file there can be read; give another folder")
    return kept, {row["file"]: row["digest"] for row in looked if not row["error"]}


def require_same_render(storage: Storage, options: RenderOptions, digests: dict[str, str]) -> None:
    """Records the options in RECORD; where there is one, compares. Raises: ValueError where they differ."""
    record = dataclasses.asdict(options)
    for name in ("models", "environments"):
        # In order, since a seed picks its file by number. With digests, since files may share a name.
        record[name] = [[PurePath(file).name, digests[file]] for file in getattr(options, name)]
    if not storage.exists(RECORD):
        storage.write(RECORD, json.dumps(record, indent=1).encode())
        return
    before = json.loads(storage.read(RECORD))
    for name, value in record.items():
        if before.get(name) != value:
            raise ValueError(
                f"--output {storage.uri}: its shards were rendered with {name}={before.get(name)}, not {value}; give "
                "another folder, or set it back"
            )


def require_no_overlap(keys: Iterable[str], shards: Sequence[range]) -> None:
    """Raises: ValueError for an existing shard that shares seeds with a planned one but has other limits."""
    planned = {shard_key(seeds) for seeds in shards}
    for key in keys:
        found = re.fullmatch(r"triplets-(\d+)-(\d+)\.parquet", key)
        if found and key not in planned:
            first, last = int(found[1]), int(found[2])
            if any(seeds.start <= last and first < seeds.stop for seeds in shards):
                raise ValueError(
                    f"--output: {key} shares seeds with another shard of this run; give the --first-seed and "
                    "--shard-seeds it was made with, or delete it"
                )


def build(output: str, shards: Sequence[range], options: RenderOptions) -> int:
    """Renders the shards that `output` does not hold yet. Needs Ray. Returns: the number of new rows.

    Raises: ValueError where `output` holds shards of other limits or other options.
    """
    import ray
    from tqdm import tqdm

    storage = Storage(output)
    existing = set(storage.keys(suffix=".parquet"))
    require_no_overlap(existing, shards)
    options, digests = with_readable_files(options)
    require_same_render(storage, options, digests)
    missing = [seeds for seeds in shards if shard_key(seeds) not in existing]
    print(f"{len(shards) - len(missing)} of {len(shards)} shards exist already", flush=True)
    if not missing:
        return 0
    # One block per shard: a block is a task, so shards spread over all CPUs and are retried one by one.
    items = [{"start": seeds.start, "stop": seeds.stop} for seeds in missing]
    work = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _render_batch,
        batch_size=1,
        fn_kwargs={"output": storage.uri, "options": options},
        num_cpus=1,
    )
    rows = 0
    with tqdm(total=len(missing), unit="shard", mininterval=1.0) as progress:
        for made in work.iter_rows():
            rows += int(made["rows"])
            progress.set_postfix(rows=rows, refresh=False)
            progress.update(1)
    return rows


def _files(folder: Path | None, option: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute paths of a folder's files with these suffixes, sorted. Raises: ValueError where there are none."""
    if folder is None:
        return ()
    found = sorted(str(file.resolve()) for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{option} {folder}: holds no file of {', '.join(suffixes)}")
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder of the shards, a path or s3://")
    parser.add_argument("--num", type=int, default=2000, help="seeds to render")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--shard-seeds", type=int, default=50)
    parser.add_argument("--dressings", type=int, default=0, help="products per seed; 0: the seed's own")
    parser.add_argument("--width-px", type=int, default=128)
    parser.add_argument("--height-px", type=int, default=160)
    parser.add_argument("--spp", type=int, default=6, help="samples per pixel")
    parser.add_argument(
        "--models", type=Path, help="folder of .glb models to photograph in place of parametric products"
    )
    parser.add_argument("--environments", type=Path, help="folder of .hdr or .exr environment maps")
    parser.add_argument("--depth-of-field", action="store_true", help="every second ad through an open lens")
    words = parser.parse_args(arguments)

    try:
        shards = shard_seeds(words.first_seed, words.num, words.shard_seeds)
        options = RenderOptions(
            dressings=words.dressings,
            width_px=words.width_px,
            height_px=words.height_px,
            spp=words.spp,
            models=_files(words.models, "--models", SUFFIXES),
            environments=_files(words.environments, "--environments", (".hdr", ".exr")),
            depth_of_field=words.depth_of_field,
        )
    except ValueError as error:
        parser.error(str(error))
    from refadgen.batch import ray_connection  # after the options are checked: importing Ray takes seconds

    ray_connection.connect(1)
    output = words.output if is_remote(words.output) else local_path(words.output)
    started = time.monotonic()
    try:
        rows = build(output, shards, options)
    except ValueError as error:
        parser.error(str(error))
    print(f"{rows} new triplets in {time.monotonic() - started:.0f} s, in {output}")


if __name__ == "__main__":
    main()
