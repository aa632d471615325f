"""The runs that an evaluation compares: output folders of the main job, read from their ledgers.

A run is given as its folder, or as NAME=FOLDER; its name heads its column. Only what is done is measured, and of
several images of one (sku, scene, variant) the newest.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from refadgen.batch.ledger import are_reconciled, short_keys
from refadgen.batch.ray_connection import results_of
from refadgen.batch.rows import schema_of
from refadgen.evaluation.rows import ImageToScore, ScoreLedger
from refadgen.generation.ledger import AdLedger
from refadgen.storage.store import Storage

KEY = ("sku", "scene", "variant")
"""What makes images of several runs comparable."""
_MAX_RUNS = 12
_NAMED = re.compile(r"([^/]+)=(.+)")
_CANDIDATES = 256
"""Products at most that an ad's own product is told from."""


@dataclass(frozen=True)
class Run:
    """One column of the table."""

    name: str
    uri: str


@dataclass(frozen=True)
class RunImages:
    """What a run's ledger has."""

    table: pa.Table
    """Rows of ImageToScore."""
    not_done: int
    older: int
    """Done, but not the newest of their key."""
    candidates: list[tuple[str, str]]
    """(sku, product_uri) of the products that an ad's own is told from."""


def parse_runs(words: Sequence[str]) -> list[Run]:
    """The runs of the command line. Raises: ValueError naming the word."""
    if len(words) > _MAX_RUNS:
        raise ValueError(f"{len(words)} runs: at most {_MAX_RUNS} fit into one table")
    runs = []
    for word in words:
        named = _NAMED.fullmatch(word)
        uri = Storage(named[2] if named else word).uri
        runs.append(Run(named[1].strip() if named else uri.rstrip("/").rpartition("/")[2], uri))
    for what, values in (("names", [run.name for run in runs]), ("folders", [run.uri for run in runs])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{twice[0]}: two runs have it; {what} must differ: give runs as NAME=FOLDER")
    for run in runs:
        if not AdLedger(Storage(run.uri)).parts():
            raise ValueError(
                f"{run.uri}: no run: there is no ledger in it; give the output folder of jobs/generate_catalog.py"
            )
    return runs


def read_run(run: Run, settings_key: str) -> RunImages:
    """The images of one run, in the order of their keys.

    settings_key: stands for the settings in the ids of scores.
    Raises: ValueError naming a run without images, or a file that its ledger names and that is not there.
    """
    storage = Storage(run.uri)
    names = [name for name in schema_of(ImageToScore).names if name not in ("score_id", "run", "image_id")]
    latest = AdLedger(storage).latest([*names, "status", "recorded_at"])
    done = latest.filter(pc.equal(latest["status"], "done"))
    if not len(done):
        raise ValueError(f"{run.uri}: no image of this run is done")
    newest = done.sort_by([*((name, "ascending") for name in KEY), ("recorded_at", "descending")])
    newest = newest.filter(pa.array(_first_of_each(newest)))
    _require_files(run, storage, newest)
    candidates = candidate_products(newest)
    decides = f"{run.uri}\0{candidates}\0{settings_key}"
    ids = [
        hashlib.sha256(f"{image_id}\0{decides}".encode()).hexdigest()[:32]
        for image_id in newest["image_id"].to_pylist()
    ]
    table = newest.append_column("score_id", pa.array(ids)).append_column("run", pa.array([run.uri] * len(newest)))
    return RunImages(
        table.select(schema_of(ImageToScore).names).cast(schema_of(ImageToScore)).combine_chunks(),
        len(latest) - len(done),
        len(done) - len(newest),
        candidates,
    )


def _first_of_each(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether each of the sorted rows is the first of its key."""
    first = np.zeros(len(rows), dtype=bool)
    first[:1] = True
    for name in KEY:
        values = rows[name].combine_chunks()
        first[1:] |= pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return first


def _require_files(run: Run, storage: Storage, rows: pa.Table) -> None:
    """Raises: ValueError naming the first file that is not there."""
    for column in ("uri", "product_uri"):
        named = [storage.path(key)[len(storage.root) :].lstrip("/") if key else "" for key in rows[column].to_pylist()]
        there = {key for folder in {key.partition("/")[0] for key in named if key} for key in storage.keys(folder)}
        missing = [key or f"(the ledger names no {column})" for key in named if key not in there]
        if missing:
            raise ValueError(
                f"{run.uri}: {len(missing)} of {len(named)} files of its ledger are missing, first {missing[0]}; "
                "give a run whose images are there"
            )


@dataclass(frozen=True)
class Comparison:
    """The images to compare: rows of ImageToScore of each run, of the keys that all runs have, in one order."""

    tables: list[pa.Table]
    notes: list[str]
    """What is left out, for people."""


def compare_runs(runs: Sequence[Run], images: Sequence[RunImages]) -> Comparison:
    """Raises: ValueError where runs have nothing in common, or images of one key differ in size."""
    notes = []
    keys = [_key_texts(each.table) for each in images]
    common = set(keys[0]).intersection(*keys[1:])
    if not common:
        raise ValueError(
            f"{', '.join(run.name for run in runs)}: have no (sku, scene, variant) in common: these are runs of "
            "different products or scenes, and nothing can be compared"
        )
    tables = []
    for run, found, own in zip(runs, images, keys, strict=True):
        kept = found.table.filter(pa.array([key in common for key in own]))
        tables.append(kept)
        if found.not_done:
            notes.append(f"{run.name}: {found.not_done} images are failed or rejected, and not measured")
        if found.older:
            notes.append(f"{run.name}: {found.older} older images of the same sku, scene and variant are left out")
        if len(kept) < len(found.table):
            notes.append(f"{run.name}: {len(found.table) - len(kept)} images that not all runs have are left out")
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _require_equal_sizes(runs[0], tables[0], run, table)
        if other := pc.sum(pc.not_equal(tables[0]["prompt"], table["prompt"])).as_py():
            notes.append(f"{other} images of {run.name} have another prompt than those of {runs[0].name}")
    return Comparison(tables, notes)


def _key_texts(table: pa.Table) -> list[str]:
    return list(map("\0".join, zip(*(map(str, table[name].to_pylist()) for name in KEY), strict=True)))


def _require_equal_sizes(run: Run, table: pa.Table, other: Run, other_table: pa.Table) -> None:
    for name in ("width_px", "height_px"):
        differ = pc.fill_null(pc.not_equal(table[name], other_table[name]), False)
        if pc.any(differ).as_py():
            first, second = (each.filter(differ).slice(0, 1).to_pylist()[0] for each in (table, other_table))
            raise ValueError(
                f"{run.name} and {other.name}: sizes differ: sku {first['sku']!r} is {first['width_px']}×"
                f"{first['height_px']} px in one and {second['width_px']}×{second['height_px']} px in the other; "
                "measures depend on the size: make both runs at one size"
            )


def candidate_products(table: pa.Table) -> list[tuple[str, str]]:
    """(sku, product_uri) of the products that an ad's own is told from: all, or a fixed choice of many."""
    of_sku = dict(zip(table["sku"].to_pylist(), table["product_uri"].to_pylist(), strict=True))
    return sorted(of_sku.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())[:_CANDIDATES]


@dataclass(frozen=True)
class Planned:
    """What the driver learns of the runs."""

    images: int
    """Of each run."""
    to_score: int
    notes: list[str]
    candidates: dict[str, list[tuple[str, str]]]
    """(sku, product_uri) of the products that an ad's own is told from, by the run's address."""


def plan_runs(runs: Sequence[Run], settings_key: str, scores_uri: str) -> tuple[Planned, pa.Table, list[pa.Array]]:
    """Reads and compares the runs, in a Ray task: tables of large runs stay out of the driver.

    scores_uri: where scores of earlier evaluations lie. Returns besides the rows of ImageToScore that have no scores
    yet, and of each run the ids of its scores, in one order of images.
    Raises: ValueError naming a run.
    """
    images = results_of([_read_task.remote(run, settings_key) for run in runs])
    comparison = compare_runs(runs, images)
    scored = ScoreLedger(Storage(scores_uri)).reconciled(retry_failed=True)
    rows = pa.concat_tables(comparison.tables)
    rows = rows.filter(pa.array(~are_reconciled(short_keys(rows["score_id"]), scored)))
    candidates = {run.uri: found.candidates for run, found in zip(runs, images, strict=True)}
    planned = Planned(len(comparison.tables[0]), len(rows), comparison.notes, candidates)
    ids = [table["score_id"].combine_chunks() for table in comparison.tables]
    return planned, rows.combine_chunks(), ids


_read_task = ray.remote(read_run)
