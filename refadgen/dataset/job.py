"""The dataset job: the one place where its Datasets are assembled, and the run around them.

    ads ─► screen ─► near-duplicates ─► fetch ─► extract ─► describe ─► augment + write ─► ledger

Two passes: which of several near-duplicates stays is known only once all ads were seen. A run is a function of input,
configuration and ledgers: the same command again resumes. After a run `data/` holds exactly the triplets that are done.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from refadgen.batch import ray_connection
from refadgen.batch.actor_pools import nodes_of_ray, num_cpus, require_resources, with_stage
from refadgen.batch.death_marks import DeathMarks, death_marks
from refadgen.batch.ledger import Ledger, LedgerWriter, short_keys
from refadgen.batch.planning import Plan, count_fragments, plan_fragments
from refadgen.batch.pool_sizes import RULE, PoolSize, say_sizes, size_pools
from refadgen.batch.ray_connection import run_in_task
from refadgen.batch.run_record import RunRecord, reason_lines, record_rows
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.catalog.files import left_out_lines
from refadgen.catalog.request_headers import load_headers
from refadgen.catalog.scan import CatalogScan, scan_catalog
from refadgen.config import DatasetConfig, as_dict, dotted, to_yaml
from refadgen.config.devices import num_cores
from refadgen.config.identity import differences, triplet_identity
from refadgen.config.paths import absolute_paths
from refadgen.dataset.card import write_card
from refadgen.dataset.content import require_filters
from refadgen.dataset.files import remove_orphans
from refadgen.dataset.importers import as_catalog
from refadgen.dataset.ledgers import dataset_ledger, screening_ledger
from refadgen.dataset.planning import AdPlanner, Chosen, Keys
from refadgen.dataset.reconciling import reconcile
from refadgen.dataset.report import write_report
from refadgen.dataset.rows import PlannedAd
from refadgen.dataset.stages import AdDescriber, AdFetcher, AdScreener, ProductExtractor, TripletBuilder
from refadgen.dataset.variants import require_sam2
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_SCREENED_ROWS = 64
"""Ads in one block of the first pass."""
_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The outcome of the input's ads after a run."""

    done: int
    failed: int
    rejected: int
    """Ads of the input by status, of this run and earlier ones."""
    built: int
    """Triplets made by this run."""
    left_open: int
    """Ads that passed the first pass and wait for the second."""
    seconds: float
    output: str
    reasons: dict[str, int]
    not_read: tuple[str, ...] = ()
    """Lines about files of the input's folder that are not read."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"ads: done {self.done}, failed {self.failed}, rejected {self.rejected}, passed so far "
                f"{self.left_open}",
                f"{self.built} triplets made by this run in {self.seconds:.1f} s",
                *reason_lines(self.reasons),
                *self.not_read,
                f"look at {self.output}/report.html; train on {self.output}/data",
            ]
        )


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
        """limit: only the input's first ads. retry_failed: retries ads that failed before. screen_only: ends after the
        first pass, with near-duplicates found, before any network runs.

        Raises: ValueError naming the input, the output or the setting, and the problem with it.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"--limit {limit}: must be at least 1")
        self._config = config
        self._input_uri = input_uri
        self._storage = Storage(output_uri)
        self._retry_failed = retry_failed
        self._screen_only = screen_only
        _require_apart(input_uri, self._storage)
        ray_connection.require_lasting(self._storage)
        self._storage.check_writable("--output")
        if not screen_only:  # which ends before any of them
            require_filters(config.filter, config.segmentation)
            require_sam2(config)
        self._check_settings()  # before `as_catalog` writes to the output
        found = as_catalog(input_uri, self._storage)
        self._catalog_uri = Storage(found.catalog).uri  # absolute: actors work in other folders than this process
        roots = (*config.fetch.file_roots, *([found.folder] if found.folder else ()))
        fetch = dataclasses.replace(config.fetch, file_roots=roots)
        self._stage_config = absolute_paths(dataclasses.replace(config, fetch=fetch))
        load_headers(self._stage_config.fetch.headers_file)
        # A folder of parquet may hold the ledgers of a job: files with the `ignored` columns are no input.
        self._scan: CatalogScan = scan_catalog(
            found.catalog, limit, columns=DATASET_COLUMNS, ignored=frozenset(("row_id", "recorded_at"))
        )
        self._not_read = tuple(left_out_lines({**found.left_out, **self._scan.left_out}))
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
        # Through JSON, which makes lists of tuples, as in the file.
        before, after = dict(dotted(theirs)), dict(dotted(json.loads(json.dumps(mine))))
        for name, old, new in differences(before, after):
            raise ValueError(
                f"--output {self._storage.uri}: was begun with {name}={old!r}, now it is {new!r}: all triplets of a "
                "data set are made alike; give another --output"
            )

    # Planning.

    def plan(self) -> tuple[Plan, Keys]:
        """The planned ads of the input, and their sorted keys. Needs Ray."""
        plan, keys = plan_fragments(self._scan.fragments, PlannedAd, self._planner)
        return plan, _unique(keys)

    @property
    def _planner(self) -> AdPlanner:
        return AdPlanner(first_rows=self._scan.first_rows)

    def describe(self) -> str:
        """The text of `--dry-run`: resolved configuration, and the ads that a run would work on."""
        keys = self.plan()[1] if ray.is_initialized() else _unique(count_fragments(self._scan.fragments, self._planner))
        screened, reconciled = (
            np.isin(keys, run_in_task(ledger.reconciled, retry_failed=self._retry_failed))
            for ledger in (self._screening, self._ledger)
        )
        return "\n".join(
            [
                to_yaml(self._config),
                f"input: {redact_address(self._input_uri)}, {self._scan.num_rows} rows",
                *self._not_read,
                f"actors on this Ray: {say_sizes(self._sizes)}",
                RULE,
                f"output: {self._storage.uri}",
                f"ads: {len(keys)}, to screen: {np.count_nonzero(~screened)}, "
                f"reconciled: {np.count_nonzero(reconciled)}",
            ]
        )

    # Running.

    def run(self) -> DatasetSummary:
        """Works on ads that are not reconciled, and writes data/, ledger/, run.json, report.html and README.md.

        Needs Ray.
        """
        record = RunRecord(
            self._storage,
            _PACKAGES,
            input=redact_address(self._input_uri),
            rows=self._scan.num_rows,
            not_read=self._not_read,
            config=as_dict(self._config),
        )
        with record.ending():
            return self._run(record)

    def _run(self, record: RunRecord) -> DatasetSummary:
        record.start()
        self._storage.write("dataset.json", json.dumps(triplet_identity(self._config), indent=2).encode())
        # Each earlier run leaves some small parts: many of them are slow to read.
        self._screening.compact()
        self._ledger.compact()
        plan, keys = self.plan()
        self._screen(plan, record.run_id)
        screened_s = record.seconds
        open_keys = run_in_task(
            reconcile, self._storage, keys, record.run_id, self._config.filter, retry_failed=self._retry_failed
        )
        # Before the second pass as well: a run that is killed in it leaves a data set without orphans of earlier runs.
        run_in_task(remove_orphans, self._storage, self._ledger)
        built = 0 if self._screen_only else self._build(plan, open_keys, record.run_id)
        if built:  # actors of a killed run may have written until after the first one
            run_in_task(remove_orphans, self._storage, self._ledger)
        counts, reasons = run_in_task(_totals, self._ledger, keys)
        summary = DatasetSummary(
            done=counts.get("done", 0),
            failed=counts.get("failed", 0),
            rejected=counts.get("rejected", 0),
            built=built,
            left_open=len(open_keys) if self._screen_only else 0,
            seconds=record.seconds,
            output=self._storage.uri,
            reasons=reasons,
            not_read=self._not_read,
        )
        facts = record.finish(
            screening_seconds=round(screened_s, 1), counts=counts, open=summary.left_open, built=built
        )
        run_in_task(write_card, self._storage, self._ledger, self._config, redact_address(self._input_uri))
        fetch = self._stage_config.fetch
        run_in_task(write_report, self._storage, self._ledger, keys, facts, fetch, self._catalog_uri, plan)
        return summary

    def _screen(self, plan: Plan, run_id: str) -> None:
        """The first pass over the ads that it has not reconciled."""
        # In a task, like all that reads complete ledgers: the driver holds 8 bytes per ad, not its row.
        reconciled = run_in_task(self._screening.reconciled, retry_failed=self._retry_failed)
        plan, counts = plan.filtered(Chosen(keys=reconciled, others=True))
        if not sum(counts):
            return
        ads = plan.stream(_SCREENED_ROWS)
        with death_marks(self._storage, "row_id") as marks, LedgerWriter(self._screening) as writer:
            screened = self._through(ads, AdScreener, "screen", marks, run_id, self._catalog_uri, rows=_SCREENED_ROWS)
            record_rows(
                screened, writer, total=sum(counts), unit="ad", job="build_dataset", run_id=run_id, label="screening"
            )

    def _build(self, plan: Plan, open_keys: Keys, run_id: str) -> int:
        """The second pass over the ads with these keys. Returns the number of triplets that it made."""
        if not len(open_keys):
            return 0
        plan, _ = plan.filtered(Chosen(keys=open_keys))
        dataset = plan.stream(self._config.triplet.rows_per_file)
        with death_marks(self._storage, "row_id") as marks, LedgerWriter(self._ledger) as writer:
            dataset = self._through(dataset, AdFetcher, "screen", marks, run_id, self._catalog_uri)
            dataset = self._through(dataset, ProductExtractor, "extract", marks, run_id)
            dataset = self._through(dataset, AdDescriber, "describe", marks, run_id)
            dataset = self._through(dataset, TripletBuilder, "augment", marks, run_id, self._storage.uri)
            record_rows(
                dataset, writer, total=len(open_keys), unit="ad", job="build_dataset", run_id=run_id, label="building"
            )
        return writer.counts["done"]

    def _through(
        self, dataset: Dataset, stage: type, name: str, marks: DeathMarks, *arguments: Any, rows: int | None = None
    ) -> Dataset:
        """rows: in one call; None: as many as a file of triplets has."""
        pool, size = getattr(self._config.stages, name), self._sizes[name]
        rows = rows or self._config.triplet.rows_per_file
        return with_stage(dataset, stage, pool, size, rows, marks, self._stage_config, *arguments)

    @functools.cached_property
    def _sizes(self) -> dict[str, PoolSize]:
        """The size of each stage's pool, in a Ray of this machine where there is none."""
        return size_pools(self._config.stages, nodes_of_ray(num_cores()))

    @property
    def num_rows(self) -> int:
        """Rows of the input, `limit` at most."""
        return self._scan.num_rows

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
        require_resources(self._config.stages, self._sizes)


def _unique(keys: Sequence[Keys]) -> Keys:
    return np.unique(np.concatenate([np.array([], np.uint64), *keys]))


def _require_apart(input_uri: str, output: Storage) -> None:
    """Raises: ValueError for an output in the input's folder: its parquet would be ads of the next run."""
    if input_uri.lower().endswith(".json"):
        return
    folder = Storage(input_uri)
    if folder.root_kind(f"{redact_address(input_uri)}: the input") != "folder":
        return
    if output.uri == folder.uri or output.uri.startswith(folder.uri.rstrip("/") + "/"):
        raise ValueError(f"--output {output.uri}: lies in the input's folder; give one outside of it")


def _totals(ledger: Ledger, keys: Keys) -> tuple[dict[str, int], dict[str, int]]:
    """Counts the ads of the input by status and by reason, as the ledger has them."""
    latest = ledger.latest(["status", "reason"])
    latest = latest.filter(pa.array(np.isin(short_keys(latest["row_id"]), keys)))
    statuses, reasons = (
        {each["values"]: each["counts"] for each in pc.value_counts(latest[name]).to_pylist() if each["values"]}
        for name in ("status", "reason")
    )
    return statuses, reasons


def connect_ray(config: DatasetConfig) -> None:
    """Joins or starts a Ray with room for all actors of a pass."""
    ray_connection.connect(num_cpus(config.stages, num_cores()), log_format=config.log.format)
