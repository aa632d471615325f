"""The job `jobs/evaluate.py`: images of several runs, side by side in one table.

    runs' ledgers ─► plan (compare) ─► ImageScorer ─► ledger of scores ─► table, plots, page

Before the first image all that can be wrong is found: runs without ledger or files, sizes that differ, weights that do
not load. The same command again scores only what has no scores yet.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from refadgen.batch import ray_connection
from refadgen.batch.actor_pools import nodes_of_ray, num_cpus, require_resources, with_stage
from refadgen.batch.death_marks import death_marks
from refadgen.batch.ledger import LedgerWriter
from refadgen.batch.pool_sizes import say_sizes, size_pools
from refadgen.batch.ray_connection import results_of, run_in_task
from refadgen.batch.run_record import RunRecord, record_rows
from refadgen.config import EvaluateConfig, as_dict, to_yaml
from refadgen.config.devices import num_cores
from refadgen.config.paths import absolute_paths
from refadgen.evaluation.fid import Group, ads_of_test_split, statistics_of_ads, statistics_of_files
from refadgen.evaluation.measures.frechet import frechet_distance
from refadgen.evaluation.measures.load import load_scorers, skipped_measures
from refadgen.evaluation.plots import plot
from refadgen.evaluation.report import KEY, write_page
from refadgen.evaluation.rows import ScoreLedger
from refadgen.evaluation.runs import Planned, Run, parse_runs, plan_runs
from refadgen.evaluation.scoring import ImageScorer, product_signatures
from refadgen.evaluation.summary import Cell, Summary, summarize
from refadgen.storage.store import Storage

_VERSION = 2
"""Of the measures' own code: a change of what they say raises it, and kept scores are made again."""
_PACKAGES = ("ray", "torch", "transformers", "diffusers", "pillow", "numpy", "opencv-python-headless")
_DECIDES = ("clip", "fid", "lpips", "mp_lpips", "dino", "ocr", "judge", "segmentation")
"""Sections that decide scores."""


class Evaluation:
    """Runs and settings of one evaluation; what is wrong with them is found before anything is scored."""

    def __init__(self, config: EvaluateConfig, runs: Sequence[str], output: str, dataset: str | None) -> None:
        """runs: folders, or NAME=FOLDER. dataset: triplets with real ads in the split test.

        Raises: ValueError naming a run, a setting or an option.
        """
        self._config = absolute_paths(config)
        self._runs = parse_runs(runs)
        self._storage = Storage(output)
        ray_connection.require_lasting(self._storage)
        self._storage.check_writable("--output")
        self._dataset = None if dataset is None else Storage(dataset).uri
        self._groups: list[Group] = []
        self._skipped = skipped_measures(self._config, dataset=dataset is not None)
        if self._dataset is not None and "fid" not in self._skipped:
            self._groups = ads_of_test_split(self._dataset)

    def describe(self) -> str:
        """The text of `--dry-run`. Needs Ray."""
        planned, _, _ = self._plan()
        lines = [f"run {run.name}: {run.uri}" for run in self._runs]
        lines.append(f"{planned.images} images of each, {planned.to_score} of all to score")
        lines += [*planned.notes, *(f"not measured: {name}: {reason}" for name, reason in self._skipped.items())]
        return "\n".join([to_yaml(self._config), *lines])

    def run(self) -> str:
        """Scores and writes the report; returns the table for people. Needs Ray."""
        record = RunRecord(
            self._storage,
            _PACKAGES,
            runs=[dataclasses.asdict(run) for run in self._runs],
            dataset=self._dataset,
            config=as_dict(self._config),
        )
        with record.ending():
            planned, rows, ids = self._plan()
            networks = self._load_networks_once(planned)
            record.start(images=planned.images, to_score=planned.to_score)
            if planned.to_score:
                self._score(record.run_id, planned, rows)
            summary, shown = run_in_task(
                finish,
                self._storage.uri,
                self._runs,
                ids,
                networks,
                self._skipped,
                planned.notes,
                self._config,
                (self._dataset, self._groups),
                record.facts | {"seconds": round(record.seconds, 1)},
            )
            record.finish()
        text: str = summary.markdown()
        left = "" if shown == planned.images else f" (the worst and best {shown} of {planned.images} images)"
        return f"{text}\nlook at {self._storage.uri}/{KEY}{left}; scores/, evaluation.json and plots/ lie beside it"

    def _plan(self) -> tuple[Planned, Any, Any]:
        """The plan; references to the rows to score, and to the ids of all scores."""
        task = ray.remote(num_returns=3)(plan_runs)
        planned, rows, ids = task.remote(self._runs, settings_key(self._config), self._storage.uri)
        found: Planned = results_of([planned])[0]
        self._leave_out_fid(found)
        return found, rows, ids

    def _leave_out_fid(self, planned: Planned) -> None:
        ads = sum(len(rows) for _, _, rows in self._groups)
        least = self._config.fid.min_images
        if "fid" not in self._skipped and min(planned.images, ads) < least:
            self._skipped["fid"] = (
                f"needs {least} images on each side (fid.min_images); there are {planned.images} of each run and {ads} "
                "real ads"
            )

    def _load_networks_once(self, planned: Planned) -> dict[str, str]:
        """Loads all networks in a task, as the actors will. Raises: ValueError naming a setting."""
        pool = self._config.stages.score
        task = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(networks_of)
        found: dict[str, str] = results_of([task.remote(self._config, self._skipped, planned.candidates)])[0]
        return found

    def _score(self, run_id: str, planned: Planned, rows: Any) -> None:
        stages = self._config.stages
        sizes = size_pools(stages, nodes_of_ray(num_cores()), main="score")
        require_resources(stages, sizes)
        print(f"actors: {say_sizes(sizes)}; images to score: {planned.to_score}", flush=True)
        tasks = {run: _signatures_task.remote(run, products) for run, products in planned.candidates.items()}
        candidates = dict(zip(tasks, results_of(list(tasks.values())), strict=True))
        part = self._config.score.images_per_part
        dataset = ray.data.from_arrow_refs([rows]).repartition(target_num_rows_per_block=part)
        with death_marks(self._storage, "score_id") as marks, LedgerWriter(ScoreLedger(self._storage)) as writer:
            dataset = with_stage(
                dataset,
                ImageScorer,
                stages.score,
                sizes["score"],
                part,
                marks,
                self._config,
                run_id,
                self._storage.uri,
                self._skipped,
                candidates,
                refuse=None,
            )
            record_rows(dataset, writer, total=planned.to_score, unit="image", job="evaluate", run_id=run_id)


_signatures_task = ray.remote(product_signatures)


def networks_of(
    config: EvaluateConfig, skipped: Mapping[str, str], candidates: Mapping[str, Sequence[object]]
) -> dict[str, str]:
    """What each measure asks, once all of it is loaded. Raises: ValueError naming a setting."""
    empty: dict[str, dict[str, np.ndarray]] = {run: {} for run in candidates}
    found = load_scorers(config, skipped, empty, gpu_expected=config.stages.score.num_gpus > 0).networks
    sizes = " or ".join(map(str, sorted({len(products) for products in candidates.values()})))
    return found | {"nearest_product": f"no network; among {sizes} products of the run"}


def settings_key(config: EvaluateConfig) -> str:
    """Stands for all that scores depend on besides image and run. Files that settings name enter by size and time."""
    sections = {name: as_dict(getattr(config, name)) for name in _DECIDES}
    sections["segmentation"].pop("device")
    sections["fid"].pop("min_images")
    for name in ("key_variable", "timeout_s"):
        sections["judge"].pop(name)
    files = {}
    for fields in sections.values():
        for value in fields.values():
            place = Path(value) if isinstance(value, str) and value.startswith("/") else None
            for file in [] if place is None else [place, *sorted(place.rglob("*"))]:
                if file.is_file():
                    files[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
    text = json.dumps([_VERSION, sections, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def finish(
    output: str,
    runs: Sequence[Run],
    ids: Sequence[pa.Array],
    networks: Mapping[str, str],
    skipped: Mapping[str, str],
    notes: Sequence[str],
    config: EvaluateConfig,
    real: tuple[str | None, Sequence[Group]],
    facts: Mapping[str, Any],
) -> tuple[Summary, int]:
    """Reads the scores and writes table, plots and page; in a Ray task, since scores of large runs are large.

    Returns the summary, and the images that the page shows.
    """
    storage = Storage(output)
    ledger = ScoreLedger(storage).latest(ids=pa.concat_arrays(ids))
    tables = [ledger.take(pc.index_in(each, value_set=ledger["score_id"].combine_chunks())) for each in ids]
    notes = list(notes)
    for run, table in zip(runs, tables, strict=True):
        if broken := table.filter(pc.not_equal(table["status"], "done")).to_pylist():
            notes.append(f"{run.name}: {len(broken)} images could not be scored, first {broken[0]['detail']}")
    distances: list[Cell | None] = [None] * len(runs)
    if "fid" not in skipped and real[0] is not None:
        ads = statistics_of_ads(real[0], real[1], config)
        notes.append(f"FID compares with {ads.count} ads of {real[0]}, split test")
        for index, table in enumerate(tables):
            done = table.filter(pc.not_equal(table["features"], ""))
            own = statistics_of_files(output, done["features"].to_pylist(), done["feature_row"].to_pylist())
            distances[index] = Cell(frechet_distance(own, ads), None, None, own.count)
    summary = summarize(runs, tables, networks, skipped, distances, notes)
    storage.write("evaluation.md", summary.markdown().encode())
    storage.write("evaluation.json", json.dumps(summary.facts(), indent=2, ensure_ascii=False).encode())
    for line in summary.lines:
        if svg := None if line.skipped else plot(line, [run.name for run in runs]):
            storage.write(f"plots/{line.measure.name}.svg", svg.encode())
    return summary, write_page(storage, summary, tables, config.show, facts)


def connect_ray(config: EvaluateConfig) -> None:
    """Joins or starts a Ray with room for all actors."""
    ray_connection.connect(num_cpus(config.stages, num_cores()))
