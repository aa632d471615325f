"""Catalogue runs over HTTP, through Ray's Jobs API: start, read, cancel.

The entry point is one fixed command. The client's values travel as JSON in the run's environment, so no shell sees
them. A run reads and writes under the configured prefixes only.
"""

import json
import os
import posixpath
import re
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from refadgen.config import GenerateConfig, ServeConfig, as_words, load_config
from refadgen.serving.errors import ApiError
from refadgen.serving.fault_log import log_fault
from refadgen.serving.schema import Job, JobRequest
from refadgen.storage.store import Storage

T = TypeVar("T")
VARIABLE = "REFADGEN_CATALOG_RUN"
_COMMAND = f"{sys.executable} -m refadgen.serving.catalog_run"
_SETTING = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_KEPT_BY_SERVER = (
    "fetch.",
    "stages.",
    "segmentation.",
    "model.",
    "method.",
    "brand.",
    "provenance.",
    "webhook.",
    "catalog.scenes_file",
    "catalog.taxonomy_file",
)
"""Settings that a client may not change: they decide what a run may reach, what code it starts, and its machines."""


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """A run as it travels to its entry point, in the variable `VARIABLE`."""

    catalog: str
    output: str
    limit: int | None
    """Only the catalogue's first rows; None: all."""
    retry_failed: bool
    settings: list[str]
    """`section.field=value`"""


class CatalogRuns:
    """The runs of one cluster. owner: the name of the token that asks."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config.catalog_runs
        self._settings = [*as_words(config.generation()), *config.catalog_runs.settings]
        self._connected: Any = None  # Ray's client; made on first use, since most servers start no runs
        self._one_start = threading.Lock()  # two starts at once would both count the same free place

    def _answer(self, ask: Callable[[Any], T]) -> T:
        """The result of `ask`, called with Ray's client. Raises: ApiError where the Jobs API does not answer."""
        try:
            if self._connected is None:
                import ray
                from ray.job_submission import JobSubmissionClient

                address = self._config.jobs_address or ray.get_runtime_context().gcs_address
                self._connected = JobSubmissionClient(address)
            return ask(self._connected)
        except Exception as error:  # Ray's client raises RuntimeError for HTTP errors, and others for connections
            self._connected = None
            log_fault("a call of Ray's Jobs API", error)
            message = "Ray's Jobs API does not answer (catalog_runs.jobs_address)"
            raise ApiError(503, "jobs_unreachable", message, retry_after_s=10) from None

    def start(self, request: JobRequest, owner: str) -> Job:
        """Starts a run. Raises: ApiError naming the field."""
        catalog = within(request.catalog, self._config.catalog_prefixes, "catalog")
        output = within(request.output, self._config.output_prefixes, "output")
        words = self._words(request)
        with self._one_start:
            return self._start(catalog, output, words, request, owner)

    def _start(self, catalog: str, output: str, words: list[str], request: JobRequest, owner: str) -> Job:
        running = [info for info in self._infos(owner) if info.status.value in ("PENDING", "RUNNING")]
        if len(running) >= self._config.max_running:
            message = f"{len(running)} runs are under way; at most {self._config.max_running}"
            raise ApiError(429, "too_many_jobs", message, retry_after_s=60)
        run = RunOrder(
            catalog=catalog,
            output=output,
            limit=request.limit,
            retry_failed=request.retry_failed,
            settings=words,
        )
        job_id = self._answer(
            lambda client: client.submit_job(
                entrypoint=_COMMAND,
                submission_id=f"catalog-{secrets.token_hex(12)}",
                runtime_env={"env_vars": {VARIABLE: json.dumps(asdict(run))}},
                metadata={"owner": owner, "catalog": catalog, "output": output},
            )
        )
        return self.get(job_id, owner)

    def _words(self, request: JobRequest) -> list[str]:
        """The run's settings: the server's, then the client's over them. Raises: ApiError naming a wrong one."""
        for name in request.settings:
            if not _SETTING.fullmatch(name):  # `fetch={…} #` would set an entire section, past the check below
                raise ApiError(422, "bad_setting", f"settings: {name[:100]!r} is not section.field", param="settings")
            if name.startswith(_KEPT_BY_SERVER):
                raise ApiError(403, "setting_not_allowed", f"settings: {name} is the server's own", param="settings")
        words = [*self._settings, *(f"{name}={json.dumps(value)}" for name, value in request.settings.items())]
        try:
            load_config(GenerateConfig, None, words)
        except ValueError as error:
            raise ApiError(422, "bad_setting", f"settings: {error}", param="settings") from None
        return words

    def list(self, owner: str) -> list[Job]:
        """The owner's runs, newest first, without counts."""
        found = sorted(self._infos(owner), key=lambda info: -(info.start_time or 0))
        return [_job(info, with_counts=False) for info in found]

    def _infos(self, owner: str) -> Any:
        if not self._config.catalog_prefixes:
            return []  # this server starts no runs, so Ray need not be asked
        infos = self._answer(lambda client: client.list_jobs())
        ours = [info for info in infos if {"owner", "catalog", "output"} <= set(info.metadata or {})]
        return [info for info in ours if info.metadata["owner"] == owner]

    def get(self, job_id: str, owner: str) -> Job:
        """One run of the owner. Raises: ApiError 404, also for runs of others: a 403 would tell that they exist."""
        for info in self._infos(owner):
            if info.submission_id == job_id:
                return _job(info)
        raise ApiError(404, "job_not_found", "job_id: there is no such run", param="job_id")

    def cancel(self, job_id: str, owner: str) -> Job:
        """Stops a run. Has no effect on one that has ended."""
        job = self.get(job_id, owner)
        if job.status in ("PENDING", "RUNNING"):
            self._answer(lambda client: client.stop_job(job_id))
        return self.get(job_id, owner)


def within(address: str, prefixes: tuple[str, ...], field: str) -> str:
    """The absolute path (links resolved) or s3:// address of `address`. Raises: ApiError 403 outside `prefixes`."""
    refused = ApiError(403, "address_not_allowed", f"{field}: must lie under one of the server's prefixes", param=field)
    if not prefixes:
        raise ApiError(
            403, "jobs_off", f"{field}: this server starts no runs (catalog_runs.{field}_prefixes)", param=field
        )
    if "\0" in address or "\\" in address:
        raise refused
    if address.startswith("s3://"):
        path = address.removeprefix("s3://")
        # To S3 `..` is a name like any other, but a client on the way may resolve it, or an escape.
        if posixpath.normpath(path) != path.rstrip("/") or any(mark in path for mark in "?#%"):
            raise refused
        resolved = f"s3://{path}"
    elif address.startswith("/"):
        resolved = os.path.realpath(address)
    else:
        raise refused
    for prefix in prefixes:
        root = prefix.rstrip("/") if prefix.startswith("s3://") else os.path.realpath(prefix).rstrip("/")
        # With the slash: /shop must not admit /shop-of-others.
        if resolved == root or resolved.startswith(f"{root}/"):
            return resolved
    raise refused


def _job(info: Any, *, with_counts: bool = True) -> Job:
    """A run as clients see it. with_counts: reads the run.json of one that has ended."""
    ended = info.status.value in ("SUCCEEDED", "FAILED", "STOPPED")
    failed = info.status.value == "FAILED"  # its message from Ray may hold a traceback
    return Job(
        id=info.submission_id,
        status=info.status.value,
        message="the run failed; the driver's log has the error" if failed else info.message,
        catalog=info.metadata["catalog"],
        output=info.metadata["output"],
        created_at=int((info.start_time or 0) / 1000),
        counts=_counts(info.metadata["output"]) if ended and with_counts else None,
    )


def _counts(output: str) -> dict[str, int] | None:
    """Images by status from the run's run.json; None where it cannot be read."""
    try:
        counts = json.loads(Storage(output).read("run.json"))["counts"]
        return {str(name): int(count) for name, count in counts.items()}
    except Exception:  # not written, not JSON, no permission: s3fs and botocore raise many kinds
        return None
