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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset
from tqdm import tqdm

from refadgen import ray_connection
from refadgen.actor_pools import num_cpus, require_resources, with_stage
from refadgen.catalog.addresses import redact_address
from refadgen.catalog.columns import DATASET_COLUMNS
from refadgen.catalog.scan import CatalogScan, scan_catalog
from refadgen.config import DatasetConfig, StageConfig, as_dict, dotted, to_yaml
from refadgen.dataset.card import write_card
from refadgen.dataset.files import sweep
from refadgen.dataset.importers import as_catalog
from refadgen.dataset.ledgers import NEAR_DUPLICATE, SCHEMA, dataset_ledger, screening_ledger
from refadgen.dataset.near_duplicates import find_near_duplicates
from refadgen.dataset.planning import AdPlanner, Keys, fragments_as_items, plan_fragments, row_keys, triplet_settings
from refadgen.dataset.report import write_report
from refadgen.dataset.stages import AdDescriber, AdFetcher, AdScreener, ProductExtractor, TripletBuilder
from refadgen.ledger import LedgerWriter, ledger_rows, now, short_keys
from refadgen.storage import Storage
from refadgen.whole_paths import whole_fetch, whole_path_or_id, whole_segmentation

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
        self._storage.check_writable("--output")
        self._check_settings()
        catalog, folder = as_catalog(input_uri, self._storage)
        self._catalog_uri = Storage(catalog).uri  # whole: actors work in other folders than this process
        self._stage_config = _with_whole_paths(config, folder)
        self._scan: CatalogScan = scan_catalog(
            catalog, limit, columns=DATASET_COLUMNS, ignored=frozenset(("row_id", "recorded_at"))
        )
        self._screening = screening_ledger(self._storage)
        self._ledger = dataset_ledger(self._storage)

    def _check_settings(self) -> None:
        """Raises: ValueError where the output was begun with other settings."""
        mine = triplet_settings(self._config)
        try:
            theirs = json.loads(self._storage.read("dataset.json"))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ValueError(f"{self._storage.uri_of('dataset.json')}: is damaged: {error}") from error
        before, after = dict(dotted(theirs)), dict(dotted(json.loads(json.dumps(mine))))
        for name in sorted(before | after):
            if before.get(name) != after.get(name):
                raise ValueError(
                    f"--output {self._storage.uri}: was begun with {name}={before.get(name)!r}, now it is "
                    f"{after.get(name)!r}: all triplets of a data set are made alike; give another --output"
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

    def _plans_of_rows(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        """Plans of a few rows of the input; reads only the fragments that they lie in."""
        planner = AdPlanner(first_rows=self._scan.first_rows)
        plans = {}
        for fragment in self._scan.fragments:
            inside = {row for row in rows if fragment.first_row <= row < fragment.first_row + fragment.num_rows}
            if inside:
                plans |= {plan["row"]: plan for plan in planner.rows(fragment) if plan["row"] in inside}
        return plans

    def describe(self) -> str:
        """What `--dry-run` prints: resolved configuration, and what a run would take up. Needs Ray."""
        keys = self._input_keys()
        screened = np.isin(keys, self._screening.settled(retry_failed=self._retry_failed))
        settled = np.isin(keys, self._ledger.settled(retry_failed=self._retry_failed))
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
        self._storage.write("dataset.json", json.dumps(triplet_settings(self._config), indent=2).encode())
        self._screening.compact()
        self._ledger.compact()
        keys = self._input_keys()
        self._screen(keys, run_id)
        screened_s = time.monotonic() - started
        open_keys = self._settle(keys, run_id)
        sweep(self._storage, self._ledger)
        built = 0 if self._screen_only else self._build(open_keys, run_id)
        if built:
            sweep(self._storage, self._ledger)  # actors of a killed run may have written until after the first one
        counts, reasons = self._counts(keys)
        summary = DatasetSummary(
            done=counts["done"],
            failed=counts["failed"],
            rejected=counts["rejected"],
            built=built,
            left_open=len(open_keys) if self._screen_only else 0,
            seconds=time.monotonic() - started,
            output=self._storage.uri,
            reasons=dict(reasons),
        )
        facts |= {
            "state": "finished",
            "seconds": round(summary.seconds, 1),
            "screening_seconds": round(screened_s, 1),
            "counts": dict(counts),
            "open": summary.left_open,
            "built": built,
        }
        self._write_facts(facts)
        write_card(self._storage, self._ledger, facts)
        write_report(
            self._storage, self._ledger, facts, self._stage_config.fetch, self._catalog_uri, self._plans_of_rows
        )
        return summary

    def _write_facts(self, facts: dict[str, Any]) -> None:
        self._storage.write("run.json", json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def _through(self, dataset: Dataset, stage: type, pool: StageConfig, *arguments: Any) -> Dataset:
        return with_stage(dataset, stage, pool, self._config.triplet.rows_per_file, self._stage_config, *arguments)

    def _screen(self, keys: Keys, run_id: str) -> None:
        """The first pass over the ads that it has not settled."""
        settled = self._screening.settled(retry_failed=self._retry_failed)
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

    def _settle(self, keys: Keys, run_id: str) -> Keys:
        """Brings what the first pass says of each ad into the ledger; returns the ads that the second takes up."""
        uris = self._storage.uri
        distance, color = self._config.filter.duplicate_distance, self._config.filter.duplicate_color
        found = ray.get(_near_duplicates.remote(uris, keys, distance, color))
        known = self._ledger.latest(["status", "reason"])
        of_key = {key: index for index, key in enumerate(short_keys(known["row_id"]).tolist())}
        statuses, reasons = known["status"].to_pylist(), known["reason"].to_pylist()
        passed: list[int] = []
        with LedgerWriter(self._ledger) as writer:
            for row in self._screened_rows(keys):
                key = int(row["row_id"][:16], 16)
                keeper = found.get(key)
                if keeper is not None:
                    detail = f"differs from {keeper!r} by at most filter.duplicate_distance={distance} bits"
                    row |= {"status": "rejected", "reason": NEAR_DUPLICATE, "detail": detail, "duplicate_of": keeper}
                if row["status"] == "done":
                    passed.append(key)
                    continue
                index = of_key.get(key)
                if index is None or (statuses[index], reasons[index]) != (row["status"], row["reason"]):
                    writer.add([{**row, "run_id": run_id, "file": "", "split": ""}])
        settled = set(self._ledger.settled(retry_failed=self._retry_failed).tolist())
        # An ad that had a near-duplicate of smaller id in an earlier input is free again without it.
        freed = {key for key, index in of_key.items() if reasons[index] == NEAR_DUPLICATE and key not in found}
        return np.sort(np.array([key for key in passed if key not in settled or key in freed], np.uint64))

    def _screened_rows(self, keys: Keys) -> Iterator[dict[str, Any]]:
        names = [name for name in SCHEMA.names if name in self._screening.names and name != "row_id"]
        latest = self._screening.latest(names)
        latest = latest.filter(pa.array(np.isin(short_keys(latest["row_id"]), keys)))
        yield from ledger_rows(latest)

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

    def _counts(self, keys: Keys) -> tuple[Counter[str], Counter[str]]:
        """Ads of this input by status, and by reason, as the ledger has them."""
        latest = self._ledger.latest(["status", "reason"])
        latest = latest.filter(pa.array(np.isin(short_keys(latest["row_id"]), keys)))
        reasons = Counter(reason for reason in latest["reason"].to_pylist() if reason)
        return Counter(latest["status"].to_pylist()), reasons

    @property
    def num_rows(self) -> int:
        """Of the input, as far as `limit` lets it be read."""
        return self._scan.num_rows

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
        require_resources(self._config.stages)


def _with_whole_paths(config: DatasetConfig, folder: str | None) -> DatasetConfig:
    """The configuration as the actors get it. folder: where the input's images lie. Raises: ValueError."""
    roots = (*config.fetch.file_roots, *([folder] if folder else ()))

    def model(address: str | None) -> str | None:
        return None if address is None else whole_path_or_id(address)

    return dataclasses.replace(
        config,
        fetch=whole_fetch(dataclasses.replace(config.fetch, file_roots=roots)),
        segmentation=whole_segmentation(config.segmentation),
        filter=dataclasses.replace(config.filter, unsafe_model=model(config.filter.unsafe_model)),
        caption=dataclasses.replace(config.caption, model=model(config.caption.model)),
        multi_view=dataclasses.replace(config.multi_view, depth_model=model(config.multi_view.depth_model)),
    )


def _progress(dataset: Dataset, total: int, what: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a Dataset as they come, behind a progress bar."""
    with tqdm(total=total, unit="ad", desc=what, mininterval=1.0, dynamic_ncols=True) as progress:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            rows = list(ledger_rows(table))
            yield rows
            progress.update(len(rows))


@ray.remote
def _near_duplicates(output_uri: str, keys: Keys, distance: int | None, color: float) -> dict[int, str]:
    """Short key of each ad of the input that a near-duplicate keeps out → the id of the ad that stays.

    In a task: the hashes of all ads are no burden for the driver.
    """
    if distance is None:
        return {}
    latest = screening_ledger(Storage(output_uri)).latest(["ad_id", "status", "perceptual_hash", "thumbnail"])
    own = short_keys(latest["row_id"])
    fit = np.isin(own, keys) & pc.equal(latest["status"], "done").to_numpy()
    latest, own = latest.filter(pa.array(fit)), own[fit]
    keepers = find_near_duplicates(
        latest["ad_id"],
        latest["perceptual_hash"].to_numpy(),
        latest["thumbnail"],
        max_distance=distance,
        max_color_difference=color,
    )
    out = np.flatnonzero(keepers >= 0)
    names = latest["ad_id"].take(pa.array(keepers[out])).to_pylist()
    return dict(zip(own[out].tolist(), names, strict=True))


def connect_ray(config: DatasetConfig) -> None:
    """Joins or starts a Ray with room for all actors of a pass."""
    ray_connection.connect(num_cpus(config.stages))
