"""The main job: the one place where the Dataset is assembled, and the run around it.

    catalogue ─► plan ─► fetch ─► segment + place ─► generate + check ─► publish ─► ledger

A run is a function of catalogue, configuration and ledger: what the ledger has settled is left out before the first
actor starts, so the same command again continues.
"""

import functools
import json
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.data import Dataset
from tqdm import tqdm

from refadgen.batch import ray_connection
from refadgen.batch.actor_pools import num_cpus, require_resources, with_stage
from refadgen.batch.ledger import LedgerWriter, ledger_rows, now
from refadgen.catalog.scan import CatalogScan, scan_catalog
from refadgen.config import GenerateConfig, StageConfig, as_dict, to_yaml
from refadgen.config.paths import absolute_paths
from refadgen.generation.generator import AdGenerator
from refadgen.generation.inputs import RecordedInputs, changed_inputs
from refadgen.generation.ledger import SCHEMA as LEDGER_SCHEMA
from refadgen.generation.ledger import AdLedger
from refadgen.generation.model_settings import with_model_settings
from refadgen.generation.planning import Planner, count_fragments, plan_fragments
from refadgen.generation.publisher import AdPublisher
from refadgen.generation.report import write_report
from refadgen.generation.stages import ProductFetcher, ProductSegmenter
from refadgen.generation.wanted import pixel_settings
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """Wanted images of a catalogue: how many there are, and how many the ledger has settled."""

    wanted: int
    skipped: int

    @property
    def to_make(self) -> int:
        return self.wanted - self.skipped


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did."""

    done: int
    failed: int
    rejected: int
    skipped: int
    seconds: float
    output: str
    reasons: dict[str, int]

    def __str__(self) -> str:
        made = self.done + self.failed + self.rejected
        lines = [
            f"done {self.done}, failed {self.failed}, rejected {self.rejected}, skipped {self.skipped} "
            f"(settled by an earlier run)",
            f"{made} images in {self.seconds:.1f} s, {self.done / max(self.seconds, 1e-9):.2f} done images/s",
        ]
        lines += [f"  {count} × {reason}" for reason, count in sorted(self.reasons.items(), key=lambda item: -item[1])]
        return "\n".join([*lines, f"look at {self.output}/report.html; images and ledger/ lie beside it"])


class CatalogJob:
    """One catalogue, one output, one configuration; checked when it is made, before anything starts."""

    def __init__(
        self,
        config: GenerateConfig,
        catalog_uri: str,
        output_uri: str,
        *,
        limit: int | None = None,
        retry_failed: bool = False,
        check_inputs: bool = False,
    ) -> None:
        """limit: only the catalogue's first rows. retry_failed: takes up images that failed before. check_inputs:
        fetches the product images of settled images again, and takes up those whose bytes have changed.

        Raises: ValueError naming what is wrong with catalogue, output, model or a setting.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"--limit {limit}: must be at least 1")
        self._catalog_uri = Storage(catalog_uri).uri  # whole: actors work in other folders than this process
        self._storage = Storage(output_uri)
        self._retry_failed = retry_failed
        self._check_inputs = check_inputs
        self._config, model = with_model_settings(config)
        self._fingerprint, self._model = model.fingerprint, model.label
        self._stage_config = absolute_paths(self._config)
        self._scan: CatalogScan = scan_catalog(catalog_uri, limit, ignored=frozenset(LEDGER_SCHEMA.names))
        self._storage.check_writable("--output")
        self._ledger = AdLedger(self._storage)

    # Planning.

    def plan(self) -> PlanCounts:
        """Counts what is wanted and what is settled. Needs Ray."""
        if not self._scan.fragments:
            return PlanCounts(wanted=0, skipped=0)
        counted = self._fragments().map_batches(
            count_fragments, batch_size=1, batch_format="pyarrow", fn_kwargs=self._planning(self._settled)
        )
        wanted = skipped = 0
        for row in counted.take_all():
            wanted, skipped = wanted + row["wanted"], skipped + row["skipped"]
        return PlanCounts(wanted=wanted, skipped=skipped)

    def _fragments(self) -> Dataset:
        items = [vars(fragment) for fragment in self._scan.fragments]
        return ray.data.from_items(items, override_num_blocks=len(items))

    @functools.cached_property
    def _settled(self) -> npt.NDArray[np.uint64]:
        """What the ledger has settled, as it was before this run."""
        settled = self._ledger.settled(retry_failed=self._retry_failed)
        if not self._check_inputs or not len(settled):
            return settled
        planned = self._planned(np.array([], dtype=np.uint64))
        fetched = self._through(planned, ProductFetcher, self._config.stages.fetch, self._catalog_uri)
        recorded = ray.put(RecordedInputs.of(self._ledger))
        changed = fetched.map_batches(
            changed_inputs, batch_size=None, batch_format="pyarrow", fn_kwargs={"recorded": recorded}
        )
        keys = np.array([row["key"] for row in changed.take_all()], dtype=np.uint64)
        return np.setdiff1d(settled, keys, assume_unique=True)

    def _planned(self, settled: npt.NDArray[np.uint64]) -> Dataset:
        """The catalogue's products with their images to make, in small blocks."""
        planned = self._fragments().map_batches(
            plan_fragments, batch_size=1, batch_format="pyarrow", fn_kwargs=self._planning(settled)
        )
        return planned.repartition(target_num_rows_per_block=self._config.catalog.rows_per_block)

    def _planning(self, settled: npt.NDArray[np.uint64]) -> dict[str, Any]:
        settings = pixel_settings(self._config, self._fingerprint)
        planner = Planner(config=self._stage_config, settings=settings, first_rows=self._scan.first_rows)
        return {"planner": ray.put(planner), "settled": ray.put(settled)}

    def describe(self, counts: PlanCounts) -> str:
        """What `--dry-run` prints: resolved configuration, what would be made and skipped, and an estimate."""
        estimate = "no estimate: nothing was made in this output yet (--limit 20 makes a few)"
        done = self._ledger.latest(["status", "generate_s"])
        seconds = [s for s in done["generate_s"].to_pylist() if s]
        if seconds:
            mean = sum(seconds) / len(seconds)
            total = mean * counts.to_make / self._config.stages.generate.num_actors
            estimate = (
                f"about {total / 3600:.1f} h ({total:.0f} s) with {self._config.stages.generate.num_actors} "
                f"generate actors, from {mean:.2f} s an image so far"
            )
        return "\n".join(
            [
                to_yaml(self._config),
                f"model: {self._model}",
                f"catalogue: {redact_address(self._catalog_uri)}, {self._scan.num_rows} rows",
                f"output: {self._storage.uri}",
                f"images wanted: {counts.wanted}, to make: {counts.to_make}, skipped (settled): {counts.skipped}",
                estimate,
            ]
        )

    # Running.

    def run(self) -> RunSummary:
        """Makes what is not settled, and writes images, ledger, run.json and report.html. Needs Ray."""
        run_id = uuid.uuid4().hex[:12]
        started, started_at = time.monotonic(), now()
        self._ledger.compact()
        counts = self.plan()
        facts: dict[str, Any] = {
            "run_id": run_id,
            "state": "running",
            "catalog": redact_address(self._catalog_uri),
            "output": self._storage.uri,
            "model": self._model,
            "started_at": started_at.isoformat(timespec="seconds"),
            "wanted": counts.wanted,
            "config": as_dict(self._config),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }
        self._write_facts(facts)
        with LedgerWriter(self._ledger) as writer:
            if counts.to_make:
                with tqdm(total=counts.to_make, unit="image", mininterval=1.0, dynamic_ncols=True) as progress:
                    for rows in self._stream(run_id):
                        writer.add(rows)
                        progress.update(len(rows))
                        progress.set_postfix(dict(writer.counts), refresh=False)
        seconds = time.monotonic() - started
        summary = RunSummary(
            done=writer.counts["done"],
            failed=writer.counts["failed"],
            rejected=writer.counts["rejected"],
            skipped=counts.skipped,
            seconds=seconds,
            output=self._storage.uri,
            reasons=dict(writer.reasons),
        )
        facts |= {
            "state": "finished",
            "seconds": round(seconds, 1),
            "counts": {name: getattr(summary, name) for name in ("done", "failed", "rejected", "skipped")},
            "images_per_s": round(summary.done / max(seconds, 1e-9), 3),
        }
        self._write_facts(facts)
        write_report(self._storage, self._ledger, facts)
        return summary

    def _write_facts(self, facts: dict[str, Any]) -> None:
        self._storage.write("run.json", json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def _stream(self, run_id: str) -> Iterator[list[dict[str, Any]]]:
        """Ledger rows as the stream gives them."""
        stages = self._config.stages
        dataset = self._planned(self._settled)
        dataset = self._through(dataset, ProductFetcher, stages.fetch, self._catalog_uri)
        dataset = self._through(dataset, ProductSegmenter, stages.segment)
        dataset = self._through(dataset, AdGenerator, stages.generate)
        dataset = self._through(dataset, AdPublisher, stages.publish, self._storage.uri, run_id, self._model)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield list(ledger_rows(table))

    def _through(self, dataset: Dataset, stage: type, pool: StageConfig, *arguments: Any) -> Dataset:
        rows_per_block = self._config.catalog.rows_per_block
        return with_stage(dataset, stage, pool, rows_per_block, self._stage_config, *arguments)

    @property
    def num_rows(self) -> int:
        """Of the catalogue, as far as `limit` lets it be read."""
        return self._scan.num_rows

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever."""
        require_resources(self._config.stages)


def connect_ray(config: GenerateConfig) -> None:
    """Joins or starts a Ray with room for all actors."""
    ray_connection.connect(num_cpus(config.stages))
