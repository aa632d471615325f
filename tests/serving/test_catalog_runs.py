"""Catalogue runs over HTTP, on a fake Jobs API: allowed addresses, settings, owners, states."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_service import serving

from refadgen.config import GenerateConfig, ServeConfig, load_config
from refadgen.serving import catalog_run
from refadgen.serving.catalog_runs import VARIABLE, CatalogRuns, within
from refadgen.serving.errors import ApiError
from refadgen.serving.schema import JobRequest

S3 = ("s3://shop", "s3://ads/in/spring/")


@dataclass
class FakeJobs:
    """Replaces Ray's client. submitted: the arguments of each run; infos: the listed runs."""

    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    infos: list[SimpleNamespace] = field(default_factory=list)

    def submit_job(self, **arguments: Any) -> str:
        self.submitted.append(arguments)
        self.add(arguments["submission_id"], arguments["metadata"]["owner"], metadata=arguments["metadata"])
        return arguments["submission_id"]

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.infos)

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.set(job_id, "STOPPED")
        return True

    def add(self, job_id: str, owner: str | None, status: str = "RUNNING", **fields: Any) -> None:
        metadata = {"owner": owner, "catalog": "/in", "output": "/out"} if owner else None
        known = {"metadata": metadata, "message": "Job is running.", "start_time": 1000 * len(self.infos)}
        self.infos.append(SimpleNamespace(submission_id=job_id, status=SimpleNamespace(value=status), **known | fields))

    def set(self, job_id: str, status: str, **fields: Any) -> None:
        (info,) = (info for info in self.infos if info.submission_id == job_id)
        vars(info).update(status=SimpleNamespace(value=status), **fields)


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


def connected(jobs: FakeJobs, *words: str) -> CatalogRuns:
    runs = CatalogRuns(load_config(ServeConfig, None, list(words)))
    runs._connected = jobs
    return runs


@pytest.fixture
def runs(jobs, tmp_path) -> CatalogRuns:
    prefixes = f"[{tmp_path}, s3://shop]"
    words = (f"catalog_runs.catalog_prefixes={prefixes}", f"catalog_runs.output_prefixes={prefixes}")
    return connected(jobs, *words, "catalog_runs.max_running=2")


def wanted(**fields: Any) -> JobRequest:
    return JobRequest(**{"catalog": "s3://shop/catalog.parquet", "output": "s3://shop/out"} | fields)


def refused(call: Any, *arguments: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value


# Allowed addresses


@pytest.mark.parametrize(
    "address",
    [
        "s3://shop",
        "s3://shop/",
        "s3://shop/a.parquet",
        "s3://shop/a/b c/ü",
        "s3://ads/in/spring",
        "s3://ads/in/spring/x",
    ],
)
def test_what_lies_under_a_prefix_may_be_reached(address):
    assert within(address, S3, "catalog") == address


@pytest.mark.parametrize(
    "address",
    [
        "s3://shop-ads/a.parquet",
        "s3://shopping",
        "s3://shop.evil/a",
        "s3://sho",
        "s3://",
        "s3:///shop/a",
        "s3:/shop/a",
        "s3:shop/a",
        "S3://shop/a",
        "s3://SHOP/a",
        "s3://user@shop/a",
        "s3://shop@evil/a",
        "s3://evil/shop/a",
        "s3://evil/s3://shop/a",
        " s3://shop/a",
        "s3://shop/../evil/a",
        "s3://shop/..",
        "s3://shop/a/../../evil",
        "s3://shop/./a",
        "s3://shop//a",
        "s3://ads/in/spring/../../out",
        "s3://ads/in/springtime/a",
        "s3://ads/in",
        "s3://ads/in/",
        "s3://shop/%2e%2e/evil",
        "s3://shop/a%2f..%2f..",
        "s3://shop%2fa",
        "s3://shop/a?versionId=1",
        "s3://shop/a#b",
        "s3://shop\\..\\evil",
        "s3://shop/..\\..\\evil",
        "s3://shop/a\0b",
        "gs://shop/a",
        "http://shop/a",
        "file:///shop",
        "shop/a",
        "a.parquet",
        "~/a",
        "",
        "/etc/passwd",
    ],
)
def test_what_only_looks_like_it_may_not(address):
    error = refused(within, address, S3, "catalog")
    assert (error.status, error.code, error.param) == (403, "address_not_allowed", "catalog")
    assert "passwd" not in error.message


@pytest.fixture
def shop(tmp_path) -> Path:
    """An allowed folder beside one that is not, with links between them."""
    shop, other = tmp_path / "shop", tmp_path / "shop-private"
    for folder in (shop / "in", other):
        folder.mkdir(parents=True)
        (folder / "a.parquet").touch()
    (shop / "link").symlink_to(other)
    (shop / "file-link").symlink_to(other / "a.parquet")
    (shop / "loop").symlink_to(shop / "loop")
    (shop / "inner-link").symlink_to(shop / "in")
    return shop


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ""),
        ("/", ""),
        ("/in/a.parquet", "/in/a.parquet"),
        ("/in/../in/a.parquet", "/in/a.parquet"),
        ("//in/a.parquet", "/in/a.parquet"),
        ("/inner-link/a.parquet", "/in/a.parquet"),
        ("/not/there/yet", "/not/there/yet"),
        ("/%2e%2e/a", "/%2e%2e/a"),  # a path has no escapes: this is a plain name
    ],
)
def test_local_paths_come_resolved(shop, path, found):
    assert within(f"{shop}{path}", (str(shop),), "output") == f"{shop}{found}"


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "/../shop-private/a.parquet",
        "/in/../../shop-private",
        "-private/a.parquet",
        "-private",
        "/link",
        "/link/a.parquet",
        "/link/new/output",
        "/file-link",
        "/inner-link/../../shop-private",
        "/in\0/a",
        "\\..\\shop-private",
    ],
)
def test_local_paths_that_lead_out_are_refused(shop, path):
    assert refused(within, f"{shop}{path}", (str(shop),), "output").code == "address_not_allowed"


def test_a_path_through_a_loop_of_links_stays_inside(shop):
    assert within(f"{shop}/loop/a", (str(shop),), "output").startswith(f"{shop}/")


def test_a_prefix_may_be_a_link_itself(shop):
    entrance = shop.parent / "entrance"
    entrance.symlink_to(shop)
    assert within(f"{entrance}/in/a.parquet", (str(entrance),), "catalog") == f"{shop}/in/a.parquet"


def test_catalogue_and_output_have_prefixes_of_their_own(jobs):
    words = ("catalog_runs.catalog_prefixes=[s3://shop/in]", "catalog_runs.output_prefixes=[s3://shop/out]")
    runs = connected(jobs, *words)
    runs.start(wanted(catalog="s3://shop/in/a", output="s3://shop/out/a"), "shop")
    assert refused(runs.start, wanted(catalog="s3://shop/out/a", output="s3://shop/out/b"), "shop").param == "catalog"
    assert refused(runs.start, wanted(catalog="s3://shop/in/a", output="s3://shop/in/b"), "shop").param == "output"
    assert len(jobs.submitted) == 1


@pytest.mark.parametrize("prefix", ["shop", "./shop", "~/shop", "gs://shop", ""])
def test_a_prefix_is_a_path_from_the_root_or_in_s3(prefix):
    with pytest.raises(ValueError, match=r"catalog_runs\.output_prefixes"):
        load_config(ServeConfig, None, [f"catalog_runs.output_prefixes=['{prefix}']"])


# Settings


@pytest.mark.parametrize(
    "name",
    [
        "fetch.allow_private_addresses",
        "fetch.file_roots",
        "fetch.max_bytes",
        "stages.generate.num_actors",
        "stages.fetch.num_gpus",
        "segmentation.sam2_checkpoint",
        "segmentation.device",
        "model.path",
        "model.device",
        "method.class",
        "method.settings.base",
        "brand.file",
        "provenance.sign_command",
        "provenance.watermark",
        "webhook.url",
        "webhook.secret_file",
        "catalog.scenes_file",
    ],
)
def test_settings_of_the_server_are_not_the_clients(runs, jobs, name):
    error = refused(runs.start, wanted(settings={name: "x"}), "shop")
    assert (error.status, error.code, error.param) == (403, "setting_not_allowed", "settings")
    assert jobs.submitted == []


@pytest.mark.parametrize(
    "name",
    [
        "fetch={allow_private_addresses: true, file_roots: [/]} #",
        "catalog={scenes_file: /etc/passwd} #",
        "model={path: /tmp/evil} #",
        "stages={generate: {num_actors: 99}} #",
        "sampling.seed=1 #",
        "fetch",
        "fetch=",
        " fetch.max_bytes",
        "fetch .max_bytes",
        "Fetch.max_bytes",
        "sampling",
        "sampling.",
        ".seed",
        "",
        "sampling..seed",
        "sampling.seed\n",
        "--config",
        "__class__.x-y",
    ],
)
def test_a_setting_is_one_field(runs, jobs, name):
    error = refused(runs.start, wanted(settings={name: "x"}), "shop")
    assert (error.status, error.code) == (422, "bad_setting")
    assert jobs.submitted == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling.sed", 1),
        ("no_such.field", 1),
        ("sampling.seed", "one"),
        ("sampling.seed", None),
        ("sampling.seed", True),
        ("sampling.num_inference_steps", 0),
        ("quality.min_color_similarity", 2),
        ("output.format", "gif"),
        ("output.format", "[png]"),
        ("layout.anchor", "{top: 1}"),
        ("sampling.seed.deeper", 1),
    ],
)
def test_a_wrong_setting_is_named_before_anything_starts(runs, jobs, name, value):
    error = refused(runs.start, wanted(settings={name: value}), "shop")
    assert (error.status, error.code, error.param) == (422, "bad_setting", "settings")
    assert name.rpartition(".")[0].partition(".")[0] in error.message
    assert jobs.submitted == []


def submitted_run(jobs: FakeJobs) -> dict[str, Any]:
    (arguments,) = jobs.submitted
    return json.loads(arguments["runtime_env"]["env_vars"][VARIABLE])


def test_a_run_has_the_endpoints_settings_under_the_configured_under_the_clients(jobs):
    runs = connected(
        jobs,
        "catalog_runs.catalog_prefixes=[s3://shop]",
        "catalog_runs.output_prefixes=[s3://shop]",
        "catalog_runs.settings=['stages.generate.num_gpus=1', 'sampling.seed=5', 'output.quality=50']",
        "model.path=/models/own",
        "sampling.guidance_scale=3",
        "fetch.file_roots=[/data]",
        "output.quality=40",
    )
    runs.start(wanted(settings={"output.quality": 60, "catalog.num_variants": 3}), "shop")
    config = load_config(GenerateConfig, None, submitted_run(jobs)["settings"])
    assert config.model.path == "/models/own"
    assert config.sampling.guidance_scale == 3
    assert config.fetch.file_roots == ("/data",)
    assert config.stages.generate.num_gpus == 1
    assert (config.sampling.seed, config.output.quality, config.catalog.num_variants) == (5, 60, 3)


# The submitted command

NASTY = "s3://shop/$(touch x); `id` | cat & 'q' \"d\" > f * {a,b} -rf\n🧴"


def test_what_a_client_says_travels_as_data(runs, jobs):
    runs.start(wanted(catalog=NASTY, output=f"{NASTY}/out", limit=7, retry_failed=True), "shop")
    runs.start(wanted(catalog="s3://shop/plain"), "shop")
    nasty, plain = jobs.submitted
    assert nasty["entrypoint"] == plain["entrypoint"]
    assert nasty["entrypoint"].endswith(" -m refadgen.serving.catalog_run")
    assert set(nasty) == {"entrypoint", "submission_id", "runtime_env", "metadata"}
    assert set(nasty["runtime_env"]) == {"env_vars"}
    assert set(nasty["runtime_env"]["env_vars"]) == {VARIABLE}
    run = json.loads(nasty["runtime_env"]["env_vars"][VARIABLE])
    assert (run["catalog"], run["output"]) == (NASTY, f"{NASTY}/out")
    assert (run["limit"], run["retry_failed"]) == (7, True)
    assert nasty["metadata"] == {"owner": "shop", "catalog": NASTY, "output": f"{NASTY}/out"}


def test_ids_are_made_here_and_cannot_be_guessed(runs, jobs):
    for _ in range(2):
        runs.start(wanted(), "shop")
    ids = [arguments["submission_id"] for arguments in jobs.submitted]
    assert len(set(ids)) == 2
    assert all(len(one) >= len("catalog-") + 24 for one in ids)


def test_the_entry_point_reads_what_travelled(runs, jobs, tmp_path, monkeypatch):
    made: list[tuple[Any, ...]] = []

    class Job:
        def __init__(self, config: GenerateConfig, catalog: str, output: str, **options: Any) -> None:
            made.append((config, catalog, output, options))

        def require_resources(self) -> None:
            pass

        def run(self) -> str:
            return "done"

    output = f"{tmp_path}/out; touch {tmp_path}/x"
    runs.start(wanted(catalog=NASTY, output=output, limit=1, settings={"sampling.seed": 9}), "shop")
    (arguments,) = jobs.submitted
    monkeypatch.setenv(VARIABLE, arguments["runtime_env"]["env_vars"][VARIABLE])
    monkeypatch.setattr(catalog_run, "CatalogJob", Job)
    monkeypatch.setattr(catalog_run.ray_connection, "connect", lambda _: None)
    catalog_run.main()
    ((config, catalog, written, options),) = made
    assert (catalog, written, options) == (NASTY, output, {"limit": 1, "retry_failed": False})
    assert config.sampling.seed == 9
    assert list(tmp_path.iterdir()) == []


# Owners


@pytest.fixture
def two_owners(jobs, runs) -> CatalogRuns:
    jobs.add("shop-1", "shop")
    jobs.add("press-1", "press")
    jobs.add("shop-2", "shop")
    jobs.add("of the cluster", None)
    return runs


def test_a_token_sees_its_own_runs_newest_first(two_owners):
    assert [job.id for job in two_owners.list("shop")] == ["shop-2", "shop-1"]
    assert [job.id for job in two_owners.list("press")] == ["press-1"]
    assert two_owners.list("nobody") == []


@pytest.mark.parametrize("job_id", ["press-1", "of the cluster", "no-such-run", "", "shop-1/../press-1"])
@pytest.mark.parametrize("method", ["get", "cancel"])
def test_runs_of_others_are_as_if_they_were_not(two_owners, jobs, method, job_id):
    error = refused(getattr(two_owners, method), job_id, "shop")
    assert (error.status, error.code) == (404, "job_not_found")
    assert error.message == refused(two_owners.get, "no-such-run", "shop").message
    assert jobs.stopped == []


def test_a_token_cancels_its_own_runs(two_owners, jobs):
    assert two_owners.cancel("shop-1", "shop").status == "STOPPED"
    assert jobs.stopped == ["shop-1"]


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_run_that_has_ended_is_not_stopped(two_owners, jobs, status):
    jobs.set("shop-1", status)
    assert two_owners.cancel("shop-1", "shop").status == status
    assert jobs.stopped == []


def test_over_http_a_run_belongs_to_its_token(jobs, runs, connect, monkeypatch, tmp_path):
    monkeypatch.setattr("refadgen.serving.api.CatalogRuns", lambda config: runs)
    tokens = ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("shop", "press"))
    with serving(f"access.tokens=[{tokens}]") as server:
        client = connect(server.url)

        def ask(token: str, method: str, path: str = "", **sent: Any) -> Any:
            return client.ask(method, f"/v1/jobs{path}", headers={"Authorization": f"Bearer {token}"}, **sent)

        started = ask("shop", "POST", json={"catalog": "s3://shop/a.parquet", "output": str(tmp_path)})
        assert started.status == 202
        job = json.loads(started.data)
        assert (job["status"], job["catalog"], job["output"]) == ("RUNNING", "s3://shop/a.parquet", str(tmp_path))
        assert jobs.submitted[0]["metadata"]["owner"] == "shop"
        for method in ("GET", "DELETE"):
            assert client.problem(ask("press", method, f"/{job['id']}"), 404)["code"] == "job_not_found"
        assert json.loads(ask("press", "GET").data) == {"jobs": []}
        assert json.loads(ask("shop", "GET").data) == {"jobs": [job]}
        assert json.loads(ask("shop", "GET", f"/{job['id']}").data) == job
        assert jobs.stopped == []
        assert json.loads(ask("shop", "DELETE", f"/{job['id']}").data)["status"] == "STOPPED"
        assert jobs.stopped == [job["id"]]


def test_a_client_cannot_name_the_owner(connect, jobs, runs, monkeypatch):
    monkeypatch.setattr("refadgen.serving.api.CatalogRuns", lambda config: runs)
    with serving() as server:
        body = {"catalog": "s3://shop/a", "output": "s3://shop/b", "metadata": {"owner": "press"}}
        assert connect.problem(connect(server.url).ask("POST", "/v1/jobs", json=body), 422)["param"] == "metadata"
    assert jobs.submitted == []


# How many at once


def test_a_token_has_so_many_runs_under_way(runs, jobs):
    jobs.add("of-another", "press")
    for _ in range(2):
        runs.start(wanted(), "shop")
    error = refused(runs.start, wanted(), "shop")
    assert (error.status, error.code) == (429, "too_many_jobs")
    assert error.headers()["Retry-After"] == "60"
    assert runs.start(wanted(), "press")
    ended = {"owner": "shop", "catalog": "/in", "output": "/no/such/folder"}
    jobs.set(jobs.submitted[0]["submission_id"], "SUCCEEDED", metadata=ended)
    assert runs.start(wanted(), "shop")


def test_to_start_a_run_no_output_of_others_is_read(runs, jobs, monkeypatch):
    jobs.add("ended", "shop", "SUCCEEDED")
    read: list[str] = []
    monkeypatch.setattr("refadgen.serving.catalog_runs._counts", read.append)
    runs.start(wanted(), "shop")
    assert read == []
    runs.get("ended", "shop")
    assert read == ["/out"]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_run_that_waits_counts(runs, jobs, status):
    for n in range(2):
        jobs.add(f"run-{n}", "shop", status)
    assert refused(runs.start, wanted(), "shop").code == "too_many_jobs"


def test_two_starts_at_once_do_not_both_take_the_last_place(runs, jobs, monkeypatch):
    jobs.add("first", "shop")
    together = threading.Barrier(2, timeout=0.3)
    listed = jobs.list_jobs

    def slow_list() -> list[SimpleNamespace]:
        infos = listed()
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()  # both have counted before either starts
        return infos

    monkeypatch.setattr(jobs, "list_jobs", slow_list)
    outcomes: list[str] = []

    def start() -> None:
        try:
            runs.start(wanted(), "shop")
            outcomes.append("started")
        except ApiError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["started", "too_many_jobs"]
    assert len(jobs.submitted) == 1


# The description of a run

TRACEBACK = 'Job failed: Traceback (most recent call last):\n  File "/srv/job.py", line 1\nValueError: token=SECRET'


def test_a_failed_run_shows_no_traceback(runs, jobs):
    jobs.add("a", "shop", "FAILED", message=TRACEBACK)
    shown = runs.get("a", "shop").model_dump_json()
    for secret in ("Traceback", "SECRET", "/srv"):
        assert secret not in shown
    assert "failed" in runs.get("a", "shop").message


def test_other_runs_say_what_ray_says(runs, jobs):
    jobs.add("a", "shop", "PENDING", message="Job has not started yet.", start_time=None)
    job = runs.get("a", "shop")
    assert (job.status, job.message, job.created_at, job.counts) == ("PENDING", "Job has not started yet.", 0, None)


COUNTS = {"done": 3, "failed": 1}


@pytest.fixture
def ended(runs, jobs, tmp_path) -> Callable[..., dict[str, int] | None]:
    """The counts of an ended run whose output holds this run.json."""

    def counts(text: str | None, status: str = "SUCCEEDED") -> dict[str, int] | None:
        if text is not None:
            (tmp_path / "run.json").write_text(text)
        jobs.add("a", "shop", status, metadata={"owner": "shop", "catalog": "/in", "output": str(tmp_path)})
        return runs.get("a", "shop").counts

    return counts


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_an_ended_run_has_counts(ended, status):
    assert ended(json.dumps({"counts": COUNTS}), status) == COUNTS


def test_a_run_under_way_has_none_yet(ended):
    assert ended(json.dumps({"counts": COUNTS}), "RUNNING") is None


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "{}", '{"counts": 5}', '{"counts": {"done": "many"}}'])
def test_a_run_without_readable_counts_is_shown_without(ended, text):
    assert ended(text) is None


# A Jobs API that does not answer


class DeadJobs:
    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise ConnectionError("http://10.0.0.1:8265: SECRET")

        return fail


@pytest.mark.parametrize(
    "call",
    [lambda runs: runs.start(wanted(), "shop"), lambda runs: runs.list("shop"), lambda runs: runs.cancel("a", "shop")],
)
def test_a_jobs_api_that_does_not_answer_is_503(runs, call):
    runs._connected = DeadJobs()
    error = refused(call, runs)
    assert (error.status, error.code) == (503, "jobs_unreachable")
    assert "Retry-After" in error.headers()
    assert "SECRET" not in error.message
    assert "10.0.0.1" not in error.message


def test_a_jobs_api_that_comes_back_is_asked_again(runs, jobs, monkeypatch):
    runs._connected = DeadJobs()
    assert refused(runs.list, "shop").status == 503
    jobs.add("a", "shop")
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: jobs)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    assert [job.id for job in runs.list("shop")] == ["a"]


def test_a_jobs_api_that_is_not_there_is_503():
    words = ["catalog_runs.catalog_prefixes=[/in]", "catalog_runs.jobs_address=http://127.0.0.1:9"]
    assert refused(CatalogRuns(load_config(ServeConfig, None, words)).list, "shop").code == "jobs_unreachable"


def test_where_no_run_can_be_started_none_is_asked_for():
    runs = CatalogRuns(load_config(ServeConfig))
    runs._connected = DeadJobs()
    assert runs.list("shop") == []
    assert refused(runs.get, "a", "shop").status == 404
