"""The main job: the one place where the Dataset is assembled, and the run around it.

    catalogue ─► plan ─► fetch ─► segment + place ─► generate + check ─► publish ─► ledger

A run is a function of catalogue, configuration and ledger. Images that the ledger has reconciled are left out before
the first actor starts, so the same command again resumes.
"""

import functools
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.data import Dataset

from refadgen.batch import ray_connection
from refadgen.batch.actor_pools import nodes_of_ray, num_cpus, require_resources, with_stage
from refadgen.batch.death_marks import DeathMarks, death_marks
from refadgen.batch.lease import held
from refadgen.batch.ledger import Keys, LedgerWriter, mean_of
from refadgen.batch.limits import EndOfRun, Limits, stops_in_time
from refadgen.batch.planning import Plan, count_fragments, plan_fragments
from refadgen.batch.pool_sizes import RULE, PoolSize, pools_of, say_sizes, size_pools
from refadgen.batch.ray_connection import run_in_task
from refadgen.batch.run_record import RunRecord, reason_lines, record_rows
from refadgen.batch.shards import Shard
from refadgen.batch.webhooks import WebhookSender, check_webhook, events_of
from refadgen.catalog.feeds.opening import OpenCatalog, open_catalog
from refadgen.catalog.files import left_out_lines
from refadgen.catalog.scan import CatalogScan, unknown_skus
from refadgen.channels.canvases import canvases_of
from refadgen.channels.feeds import FOLDER
from refadgen.config import GenerateConfig, as_dict, to_yaml
from refadgen.config.devices import num_cores
from refadgen.config.paths import absolute_paths
from refadgen.generation.channel_feeds import write_channel_feeds
from refadgen.generation.decisions import load_decisions, overrule, reopened
from refadgen.generation.findings import noun_lines, refusal_lines
from refadgen.generation.generator import AdGenerator
from refadgen.generation.inputs import RecordedInputs, changed_inputs
from refadgen.generation.ledger import SCHEMA as LEDGER_SCHEMA
from refadgen.generation.ledger import AdLedger
from refadgen.generation.method_settings import with_method_settings
from refadgen.generation.model_settings import with_model_settings
from refadgen.generation.planning import CatalogPlanner, ImageCounts, OpenImages
from refadgen.generation.publisher import AdPublisher, refused_images
from refadgen.generation.report import write_report
from refadgen.generation.review import ReviewPages, write_review
from refadgen.generation.rows import PlannedProduct
from refadgen.generation.same_device import device_choice, mixing_named
from refadgen.generation.stages import ProductFetcher, ProductSegmenter
from refadgen.generation.wanted import pixel_settings
from refadgen.storage.addresses import redact_address
from refadgen.storage.store import Storage

_PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyarrow", "pillow", "numpy")
_NOTHING: Keys = np.array([], dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Images of a run by status; skipped: those that an earlier run had reconciled."""

    done: int
    failed: int
    rejected: int
    skipped: int
    seconds: float
    output: str
    reasons: Mapping[str, int]
    review: ReviewPages
    overruled: int = 0
    """Images of earlier runs that a person's decisions have refused or replaced."""
    not_read: tuple[str, ...] = ()
    """Lines about files of the catalogue's folder that are not read."""
    left: int = 0
    """Images that a budget or deadline has left to the next run."""
    ended_by: str = ""
    """That budget or deadline, as the user gave it."""
    cost: float | None = None
    """Of the GPUs that the run held; None: no price is set."""
    feeds: Mapping[str, int] = field(default_factory=dict)
    """Rows of the channels' feeds, by file."""

    def costs(self, num_products: int) -> dict[str, Any]:
        """`cost` of run.json: of the run, a done image and a product. num_products: that had images to make."""
        if self.cost is None:
            return {}
        made = self.done + self.failed + self.rejected
        image = self.cost / self.done if self.done else None
        product = self.cost / made * (made + self.left) / num_products if made and num_products else None
        return {"cost": {"run": self.cost, "done_image": image, "product": product}}

    def __str__(self) -> str:
        made = self.done + self.failed + self.rejected
        overruled = [f"{self.overruled} images of earlier runs refused or replaced by review"] if self.overruled else []
        return "\n".join(
            [
                f"done {self.done}, failed {self.failed}, rejected {self.rejected}, skipped {self.skipped} "
                "(reconciled by an earlier run)",
                f"{made} images in {self.seconds:.1f} s, {self.done / max(self.seconds, 1e-9):.2f} done images/s",
                *([f"{self.left} images left to the same command, by {self.ended_by}"] if self.left else []),
                *([] if self.cost is None else [f"cost of the GPUs that it held: {self.cost:.2f}"]),
                *reason_lines(self.reasons),
                *overruled,
                *self.not_read,
                *self.review.lines(self.output),
                *(f"{self.output}/{FOLDER}/{file}: {rows} rows" for file, rows in self.feeds.items()),
                f"look at {self.output}/report.html; images and ledger/ lie beside it",
            ]
        )


_NO_LIMITS, _WHOLE = Limits(), Shard()


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
        review: Sequence[str] = (),
        limits: Limits = _NO_LIMITS,
        shard: Shard = _WHOLE,
        local: bool = False,
        same_device: bool = False,
    ) -> None:
        """limit: only the catalogue's first rows. retry_failed: retries images that failed before. check_inputs:
        fetches the product images of reconciled images again, and makes those anew whose bytes have changed. review:
        files of a person's decisions about masks. limits: when the run stops starting images. shard: whose products are
        made. local: only this process reads the catalogue: a dry run without Ray. same_device: whether all images of
        the output must come from one kind of device.

        Raises: ValueError naming what is wrong with catalogue, output, model, a setting or a decision.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"--limit {limit}: must be at least 1")
        self._catalog_uri = Storage(catalog_uri).uri  # absolute: actors work in other folders than this process
        self._storage = Storage(output_uri)
        self._retry_failed, self._limits = retry_failed, limits
        self._check_inputs, self._same_device = check_inputs, same_device
        with_settings = with_model_settings if config.method.class_ is None else with_method_settings
        self._config, self._model = with_settings(config)
        self._canvases = canvases_of(self._config)
        # Two configurations: ids are made from the paths as the user wrote them, actors work with absolute ones.
        self._stage_config = absolute_paths(self._config)
        check_webhook(self._stage_config.webhook)
        self._decisions = load_decisions(review, redact_address(self._catalog_uri))
        self._shard = shard
        self._same_device_choice: Any = None
        self._catalog: OpenCatalog = open_catalog(
            catalog_uri,
            config.catalog,
            limit,
            ignored=frozenset(LEDGER_SCHEMA.names),
            output=self._storage,
            label=shard.label,
            in_output=not local,
        )
        try:
            if limit is None and (unknown := unknown_skus(self._scan, self._decisions.decided.keys())):
                raise ValueError(
                    f"--review: the catalogue has no sku {unknown[0]!r} ({len(unknown)} such decisions); remove them"
                )
            ray_connection.require_lasting(self._storage)
            self._storage.check_writable("--output")
        except ValueError:
            self._catalog.discard()
            raise
        self._not_read = tuple(left_out_lines(self._scan.left_out))
        self._ledger = AdLedger(self._storage, shard.label)

    @property
    def read_as(self) -> str:
        """What the catalogue is read as, for the first line that a job says."""
        return self._catalog.read_as

    @property
    def _scan(self) -> CatalogScan:
        return self._catalog.scan

    # Planning.

    def plan(self, run_id: str = "plan") -> tuple[Plan, ImageCounts]:
        """The products that have images to make, and the counts of all images. Needs Ray."""
        reconciled = self._reconciled()
        # Only a product image that was used before can have changed; without one the download would be for nothing.
        checks = self._check_inputs and len(reconciled) > 0 and self._scan.num_rows > 0
        planner = self._planner(_NOTHING if checks else reconciled)
        plan, counts = plan_fragments(self._scan.fragments, PlannedProduct, planner)
        if checks:
            # All products are planned and fetched; then the reconciled images that did not change leave the plan.
            changed = self._changed(plan, run_id)
            still = np.setdiff1d(reconciled, changed, assume_unique=True)
            plan, counts = plan.filtered(OpenImages(reconciled=still))
        return plan, sum(counts, ImageCounts())

    def _reconciled(self) -> Keys:
        """Short keys of the images that need no work, product images that may have changed aside."""
        reconciled = run_in_task(self._ledger.reconciled, retry_failed=self._retry_failed)
        again = run_in_task(reopened, self._ledger, self._decisions.decided) if self._decisions.decided else _NOTHING
        return np.setdiff1d(reconciled, again, assume_unique=True)

    def _planner(self, reconciled: Keys) -> CatalogPlanner:
        return CatalogPlanner(
            config=self._stage_config,
            settings=pixel_settings(self._config, self._model.fingerprint),
            first_rows=self._scan.first_rows,
            reconciled=reconciled,
            decided=self._decisions.decided,
            shard=self._shard,
        )

    def _counts(self) -> ImageCounts:
        """The counts of all images. Without a Ray, this process plans."""
        if ray.is_initialized():
            return self.plan()[1]
        return sum(count_fragments(self._scan.fragments, self._planner(self._reconciled())), ImageCounts())

    def _changed(self, plan: Plan, run_id: str) -> Keys:
        """Short keys of the recorded images whose product image has changed behind its address."""
        # Marks of its own: a dry run does not hold the output's.
        with death_marks(self._storage, "sku", f"check-{uuid.uuid4().hex[:8]}") as marks:
            products = self._through(self._stream(plan), ProductFetcher, "fetch", marks, run_id, self._catalog_uri)
            recorded = ray.put(RecordedInputs.of(self._ledger))
            changed = products.map_batches(
                changed_inputs, batch_size=None, batch_format="pyarrow", fn_kwargs={"recorded": recorded}
            )
            return np.array([row["key"] for row in changed.take_all()], dtype=np.uint64)

    def _stream(self, plan: Plan) -> Dataset:
        return plan.stream(self._config.catalog.rows_per_block)

    def describe(self) -> str:
        """The text of `--dry-run`: resolved configuration, images to make and to skip, and an estimate.

        Needs Ray for `check_inputs` alone.
        """
        try:
            counts, catalog_lines = self._counts(), self._catalog.lines()
        finally:
            self._catalog.discard()
        return "\n".join(
            [
                to_yaml(self._config),
                f"model: {self._model.label}{self._number_format()}",
                f"catalogue: {redact_address(self._catalog_uri)}, {self._scan.num_rows} rows",
                *catalog_lines,
                *self._not_read,
                f"output: {self._storage.uri}",
                *(f"channels of {canvas}" for canvas in self._canvases.values()),
                *([f"shard: {self._shard.label} of the catalogue's products"] if self._shard.label else []),
                f"images wanted: {counts.wanted}, to make: {counts.to_make}, skipped (reconciled): {counts.reconciled}",
                *refusal_lines(counts.rows.refused, counts.rows.details),
                *noun_lines(counts.rows.nouns),
                f"actors on this Ray: {say_sizes(self._sizes)}",
                RULE,
                self._estimate(counts.to_make),
            ]
        )

    def _number_format(self) -> str:
        dtype = self._model.gpu_dtype
        return f", {dtype} on GPUs, as it recommends" if dtype and self._config.model.dtype == "auto" else ""

    def _estimate(self, to_make: int) -> str:
        mean, num_actors = mean_of(self._ledger, "generate_s"), self._sizes["generate"].least
        if not mean:
            return "no estimate: nothing was made in this output yet (--limit 20 makes a few)"
        total = mean * to_make / num_actors
        cost = f", {total / 3600 * self._cost_per_hour:.2f} for the GPUs" if self._cost_per_hour else ""
        return (
            f"about {total / 3600:.1f} h ({total:.0f} s){cost} with {num_actors} generate actors, "
            f"from {mean:.2f} s an image so far"
        )

    # Running.

    def run(self) -> RunSummary:
        """Makes the images that are not reconciled, and writes images, ledger, run.json and report.html. Needs Ray.

        Raises: OutputInUseError where another driver is at work on the same products.
        """
        record = RunRecord(
            self._storage,
            _PACKAGES,
            self._shard.record_key,
            shard=self._shard.label,
            catalog=redact_address(self._catalog_uri),
            model=self._model.label,
            not_read=self._not_read,
            **self._catalog.facts(),
            config=as_dict(self._config),
            actors={name: str(size) for name, size in self._sizes.items()},
        )
        try:
            with (
                held(self._storage, self._shard, record.run_id),
                record.ending(),
                events_of(self._stage_config.webhook, record) as events,
            ):
                self._catalog.discard(others=True)
                return self._run(record, events)
        finally:
            self._catalog.discard()

    def _run(self, record: RunRecord, events: WebhookSender | None) -> RunSummary:
        # Before planning reads it: a ledger of thousands of small parts takes minutes from an object store.
        self._ledger.compact()
        end = self._limits.end(self._cost_per_hour)
        overruled = overrule(self._ledger, self._decisions.decided, record.run_id)
        plan, counts = self.plan(record.run_id)
        record.start(wanted=counts.wanted, to_make=counts.to_make)
        with (
            death_marks(self._storage, "sku", self._shard.label) as marks,
            LedgerWriter(self._ledger) as writer,
            mixing_named(self._same_device_choice),
        ):
            if counts.to_make:
                record_rows(
                    self._generate(plan, marks, record.run_id, end),
                    writer,
                    total=counts.to_make,
                    unit="image",
                    job="generate_catalog",
                    run_id=record.run_id,
                    cost_per_hour=self._cost_per_hour,
                    callbacks=[stops_in_time(end, AdGenerator.__name__)],
                    listener=events.progress if events else None,
                )
        left = max(0, counts.to_make - writer.counts.total())
        # In tasks, like all that reads complete ledgers: the driver holds 8 bytes per image, not its row.
        review = run_in_task(
            write_review,
            self._storage,
            self._ledger,
            redact_address(self._catalog_uri),
            self._config.review.max_masks,
            self._config.review.accepted_below,
        )
        summary = RunSummary(
            done=writer.counts["done"],
            failed=writer.counts["failed"],
            rejected=writer.counts["rejected"],
            skipped=counts.reconciled,
            seconds=record.seconds,
            output=self._storage.uri,
            reasons=dict(writer.reasons),
            review=review,
            overruled=overruled,
            not_read=self._not_read,
            left=left,
            ended_by=end.why if left else "",
            cost=self._cost_per_hour * record.seconds / 3600 if self._cost_per_hour else None,
        )
        ended = {"state": "stopped", "ended_by": end.why} if left else {}
        facts = record.finish(
            **ended,
            **summary.costs(counts.products),
            counts={name: getattr(summary, name) for name in ("done", "failed", "rejected", "skipped")},
            images_per_s=round(summary.done / max(summary.seconds, 1e-9), 3),
            review=as_dict(review),
        )
        run_in_task(write_report, self._storage, self._ledger, facts)
        if self._config.output.public_url:
            url, for_channels = self._config.output.public_url, bool(self._canvases)
            feeds = run_in_task(write_channel_feeds, self._storage, self._ledger, url, for_channels=for_channels)
            summary = replace(summary, feeds=feeds)
        return summary

    def _generate(self, plan: Plan, marks: DeathMarks, run_id: str, end: EndOfRun) -> Dataset:
        """Ledger rows, as the stream gives them."""
        dataset = self._stream(plan)
        dataset = self._through(dataset, ProductFetcher, "fetch", marks, run_id, self._catalog_uri)
        # Once for all actors: the masks of a decisions file may be a hundred megabytes.
        decided = ray.put(self._decisions.masks()) if len(self._decisions) else None
        dataset = self._through(dataset, ProductSegmenter, "segment", marks, run_id, self._storage.uri, decided)
        # Blocks with twice the images that are on their way: the first of them never waits for the next block.
        in_flight = self._config.sampling.images_in_flight * max(1, len(self._canvases))
        calls_at_once = 1 + math.ceil(2 * in_flight / self._config.catalog.rows_per_block)
        bound = self._same_device_choice
        dataset = self._through(
            dataset, AdGenerator, "generate", marks, run_id, end, bound, calls_at_once=calls_at_once
        )
        rest = (run_id, self._storage.uri, self._model)
        return self._through(dataset, AdPublisher, "publish", marks, *rest, refuse=refused_images)

    def _through(self, dataset: Dataset, stage: type, name: str, marks: DeathMarks, *of: Any, **how: Any) -> Dataset:
        """Another stage on the stream. of: what its actors get after the configuration. how: as in `with_stage`."""
        return with_stage(
            dataset,
            stage,
            getattr(self._config.stages, name),
            self._sizes[name],
            self._config.catalog.rows_per_block,
            marks,
            self._stage_config,
            *of,
            **how,
        )

    @functools.cached_property
    def _sizes(self) -> dict[str, PoolSize]:
        """The size of each stage's pool, in a Ray of this machine where there is none."""
        cores_per_main = float(self._config.model.torch_threads)
        nodes = nodes_of_ray(num_cores())
        return size_pools(self._config.stages, nodes, main="generate", cores_per_main=cores_per_main)

    @property
    def num_rows(self) -> int:
        """Rows of the catalogue, `limit` at most."""
        return self._scan.num_rows

    @property
    def _cost_per_hour(self) -> float:
        """Of the GPUs that the pools hold from start to end; 0: no price is set. Needs Ray."""
        num_gpus = sum(self._sizes[name].least * pool.num_gpus for name, pool in pools_of(self._config.stages).items())
        return self._config.cost.per_gpu_hour * num_gpus

    def require_resources(self) -> None:
        """Raises: ValueError when the cluster can never hold all actors at once: the job would wait for ever; and for a
        budget in money where nothing has a price, or an output that mixes devices where it may not.
        """
        require_resources(self._config.stages, self._sizes)
        self._limits.end(self._cost_per_hour)
        if self._same_device:
            self._same_device_choice = device_choice(self._ledger)


def connect_ray(config: GenerateConfig) -> None:
    """Joins or starts a Ray with room for all actors."""
    ray_connection.connect(num_cpus(config.stages, num_cores()), log_format=config.log.format)
