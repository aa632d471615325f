"""The dataset job: the one place where its Datasets are assembled, and the run around them.

    ads ─► screen ─► near-duplicates ─► fetch ─► extract ─► describe ─► augment + write ─► ledger

Two passes: which of several near-duplicates stays is only known once all ads were seen. A run is a function of input,
configuration and ledgers, so the same command again continues; `data/` then holds just the triplets that are done.
"""

import dataclasses
import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset
from ray.exceptions import RayTaskError
from tqdm import tqdm

from refadgen.batch import ray_connection
from refadgen.batch.actor_pools import num_cpus, require_resources, with_stage
from refadgen.batch.ledger import Ledger, LedgerWriter, now, short_keys
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.catalog.scan import CatalogScan, scan_catalog
from refadgen.config import DatasetConfig, StageConfig, as_dict, dotted, to_yaml
from refadgen.config.identity import differences, triplet_identity
from refadgen.config.paths import absolute_paths
from refadgen.dataset.card import write_card
from refadgen.dataset.files import remove_orphans
from refadgen.dataset.importers import as_catalog
from refadgen.dataset.ledgers import dataset_ledger, screening_ledger
from refadgen.dataset.planning import AdPlanner, Keys, fragments_as_items, plan_fragments, row_keys
from refadgen.dataset.reconciling import reconcile
from refadgen.dataset.report import write_report
from refadgen.dataset.stages import AdDescriber, AdFetcher, AdScreener, ProductExtractor, TripletBuilder
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_SCREENED_ROWS = 64
"""Ads in one block of the first pass."""
_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What an output holds after a run, and what the run did of it."""

    done: int
    failed: int
    rejected: int
    built: int
    """Triplets made by this run."""
    left_open: int
    """Ads that passed the first pass and wait for the second."""
    seconds: float
    output: str
    reasons: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"ads: done {self.done}, failed {self.failed}, rejected {self.rejected}, passed so far {self.left_open}",
            f"{self.built} triplets made by this run in {self.seconds:.1f} s",
        ]
        lines += [f"  {count} × {reason}" for reason, count in sorted(self.reasons.items(), key=lambda item: -item[1])]
        return "\n".join([*lines, f"look at {self.output}/report.html; train on {self.output}/data"])


class DatasetJob:
    """One input, one output, one configuration; checked when it is made, before anything starts."""

    def __init__(
        self,
        config: DatasetConfig,
        input_uri: str,
        output_uri: str,
        *,
        limit: int | None = None,
        retry_failed: bool = False,
        screen_only: bool = False,
    ) -> None:
        """limit: only the input's first ads. retry_failed: takes up ads that failed before. screen_only: ends after the
        first pass, with near-duplicates found, before any network runs.

        Raises: ValueError naming what is wrong with input, output or a setting.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"--limit {limit}: must be at least 1")
        self._config = config
        self._input_uri = input_uri
        self._storage = Storage(output_uri)
        self._retry_failed = retry_failed
        self._screen_only = screen_only
        _require_apart(input_uri, self._storage)
        self._storage.check_writable("--output")
        self._check_settings()
        catalog, folder = as_catalog(input_uri, self._storage)
        self._catalog_uri = Storage(catalog).uri  # whole: actors work in other folders than this process
        roots = (*config.fetch.file_roots, *([folder] if folder else ()))
        fetch = dataclasses.replace(config.fetch, file_roots=roots)
        self._stage_config = absolute_paths(dataclasses.replace(config, fetch=fetch))
        self._scan: CatalogScan = scan_catalog(
            catalog, limit, columns=DATASET_COLUMNS, ignored=frozenset(("row_id", "recorded_at"))
        )
        self._screening = screening_ledger(self._storage)
        self._ledger = dataset_ledger(self._storage)

    def _check_settings(self) -> None:
        """Raises: ValueError where the output was begun with other settings."""
        mine = triplet_identity(self._config)
        try:
            theirs = json.loads(self._storage.read("dataset.json"))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ValueError(f"{self._storage.uri_of('dataset.json')}: is damaged: {error}") from error
        before, after = dict(dotted(theirs)), dict(dotted(json.loads(json.dumps(mine))))
        for name, old, new in differences(before, after):
            raise ValueError(
                f"--output {self._storage.uri}: was begun with {name}={old!r}, now it is {new!r}: all triplets of a "
                "data set are made alike; give another --output"
            )

    # Planning.

    def _fragments(self) -> Dataset:
        items = fragments_as_items(self._scan.fragments)
        return ray.data.from_items(items, override_num_blocks=len(items))

    def _planned(self, keys: Keys, *, are_open: bool, rows_per_block: int) -> Dataset:
        planner = ray.put(AdPlanner(first_rows=self._scan.first_rows))
        planned = self._fragments().map_batches(
            plan_fragments,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"planner": planner, "keys": ray.put(keys), "are_open": are_open},
        )
        return planned.repartition(target_num_rows_per_block=rows_per_block)

    def _input_keys(self) -> Keys:
        """Sorted short keys of every row of the input."""
        if not self._scan.fragments:
            return np.array([], np.uint64)
        planner = ray.put(AdPlanner(first_rows=self._scan.first_rows))
        found = self._fragments().map_batches(
            row_keys, batch_size=1, batch_format="pyarrow", fn_kwargs={"planner": planner}
        )
        return np.unique(np.concatenate([np.frombuffer(row["keys"], np.uint64) for row in found.take_all()]))

    def describe(self) -> str:
        """What `--dry-run` prints: resolved configuration, and what a run would take up. Needs Ray."""
        keys = self._input_keys()
        screened = np.isin(keys, _apart(self._screening.reconciled, retry_failed=self._retry_failed))
        settled = np.isin(keys, _apart(self._ledger.reconciled, retry_failed=self._retry_failed))
        return "\n".join(
            [
                to_yaml(self._config),
                f"input: {redact_address(self._input_uri)}, {self._scan.num_rows} rows",
                f"output: {self._storage.uri}",
                f"ads: {len(keys)}, to screen: {np.count_nonzero(~screened)}, settled: {np.count_nonzero(settled)}",
            ]
        )

    # Running.

    def run(self) -> DatasetSummary:
        """Does what is not settled, and writes data/, ledger/, run.json, report.html and README.md. Needs Ray."""
        run_id = uuid.uuid4().hex[:12]
        started, started_at = time.monotonic(), now()
        facts: dict[str, Any] = {
            "run_id": run_id,
            "state": "running",
            "input": redact_address(self._input_uri),
            "output": self._storage.uri,
            "started_at": started_at.isoformat(timespec="seconds"),
            "rows": self._scan.num_rows,
            "config": as_dict(self._config),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }
        self._write_facts(facts)
        self._storage.write("dataset.json", json.dumps(triplet_identity(self._config), indent=2).encode())
        self._screening.compact()
        self._ledger.compact()
        keys = self._input_keys()
        self._screen(keys, run_id)
        screened_s = time.monotonic() - started
        open_keys = _apart(reconcile, self._storage, keys, run_id, self._config.filter, retry_failed=self._retry_failed)
        _apart(remove_orphans, self._storage, self._ledger)
        built = 0 if self._screen_only else self._build(open_keys, run_id)
        if built:  # actors of a killed run may have written until after the first one
            _apart(remove_orphans, self._storage, self._ledger)
        counts, reasons = _apart(_totals, self._ledger, keys)
        summary = DatasetSummary(
            **{status: counts.get(status, 0) for status in ("done", "failed", "rejected")},
            built=built,
            left_open=len(open_keys) if self._screen_only else 0,
            seconds=time.monotonic() - started,
            output=self._storage.uri,
            reasons=reasons,
        )
        facts |= {
            "state": "finished",
            "seconds": round(summary.seconds, 1),
            "screening_seconds": round(screened_s, 1),
            "counts": counts,
            "open": summary.left_open,
            "built": built,
        }
        self._write_facts(facts)
        _apart(write_card, self._storage, self._ledger, facts)
        plans_of = partial(AdPlanner(first_rows=self._scan.first_rows).of_rows, self._scan.fragments)
        _apart(
            write_report,
            self._storage,
            self._ledger,
            keys,
            facts,
            self._stage_config.fetch,
            self._catalog_uri,
            plans_of,
        )
        return summary

    def _write_facts(self, facts: dict[str, Any]) -> None:
        self._storage.write("run.json", json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def _through(self, dataset: Dataset, stage: type, pool: StageConfig, *arguments: Any) -> Dataset:
        return with_stage(dataset, stage, pool, self._config.triplet.rows_per_file, self._stage_config, *arguments)

    def _screen(self, keys: Keys, run_id: str) -> None:
        """The first pass over the ads that it has not settled."""
        settled = _apart(self._screening.reconciled, retry_failed=self._retry_failed)
        num = np.count_nonzero(~np.isin(keys, settled))
        if not num:
            return
        planned = self._planned(settled, are_open=False, rows_per_block=_SCREENED_ROWS)
        screened = with_stage(
            planned,
            AdScreener,
            self._config.stages.screen,
            _SCREENED_ROWS,
            self._stage_config,
            self._catalog_uri,
            run_id,
        )
        with LedgerWriter(self._screening) as writer:
            for rows in _progress(screened, num, "screening"):
                writer.add(rows)

    def _build(self, open_keys: Keys, run_id: str) -> int:
        """The second pass; returns how many triplets it made."""
        if not len(open_keys):
            return 0
        rows_per_block, stages = self._config.triplet.rows_per_file, self._config.stages
        dataset = self._planned(open_keys, are_open=True, rows_per_block=rows_per_block)
        dataset = self._through(dataset, AdFetcher, stages.screen, self._catalog_uri)
        dataset = self._through(dataset, ProductExtractor, stages.extract)
        dataset = self._through(dataset, AdDescriber, stages.describe)
        dataset = self._through(dataset, TripletBuilder, stages.augment, self._storage.uri, run_id)
        with LedgerWriter(self._ledger) as writer:
            for rows in _progress(dataset, len(open_keys), "building"):
                writer.add(rows)
        return writer.counts["done"]

    @property
    def num_rows(self) -> int:
        """Of the input, as far as `limit` lets it be read."""
        return self._scan.num_rows

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
        require_resources(self._config.stages)


def _require_apart(input_uri: str, output: Storage) -> None:
    """Raises: ValueError for an output in the input's folder: its parquet would be ads of the next run."""
    if input_uri.lower().endswith(".json"):
        return
    folder = Storage(input_uri)
    if folder.root_kind(f"{redact_address(input_uri)}: the input") != "folder":
        return
    if output.uri == folder.uri or output.uri.startswith(folder.uri.rstrip("/") + "/"):
        raise ValueError(f"--output {output.uri}: lies in the input's folder; give one outside of it")


def _progress(dataset: Dataset, total: int, what: str) -> Iterator[pa.Table]:
    """The rows of a Dataset as they come, behind a progress bar."""
    with tqdm(total=total, unit="ad", desc=what, mininterval=1.0, dynamic_ncols=True) as progress:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield table
            progress.update(len(table))


def _totals(ledger: Ledger, keys: Keys) -> tuple[dict[str, int], dict[str, int]]:
    """Ads of the input by status, and by reason, as the ledger has them."""
    latest = ledger.latest(["status", "reason"])
    latest = latest.filter(pa.array(np.isin(short_keys(latest["row_id"]), keys)))
    counts = [
        {each["values"]: each["counts"] for each in pc.value_counts(latest[name]).to_pylist() if each["values"]}
        for name in ("status", "reason")
    ]
    return counts[0], counts[1]


@ray.remote
def _call(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    return function(*arguments, **settings)


def _apart(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Calls a function in a Ray task: what it reads of all ads is no burden for the driver. Raises: what it raises."""
    try:
        return ray.get(_call.remote(function, *arguments, **settings))
    except RayTaskError as error:
        raise error.cause from error


def connect_ray(config: DatasetConfig) -> None:
    """Joins or starts a Ray with room for all actors of a pass."""
    ray_connection.connect(num_cpus(config.stages))
