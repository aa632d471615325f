"""The endpoint on a real Ray Serve: equal images to the catalogue job, lost replicas, overload, hang-ups, runs."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3

sys.path.append(str(Path(__file__).resolve().parents[1] / "jobs"))
import job_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
PRODUCT = (job_runs.PROJECT / "catalogs" / "images" / "er-bottle.jpg").read_bytes()
SCENE = "a bottle on grass in front of a leafy hedge, evening sun from the right"


class Endpoint:
    """The endpoint's process, and requests to it."""

    def __init__(self, process: subprocess.Popen[str], url: str, metrics_port: int) -> None:
        self.process = process
        self.url = url
        self.metrics_port = metrics_port
        self.http = urllib3.PoolManager(maxsize=64, timeout=300, retries=False)

    def ads(self, accept: str = "application/json", **fields: object) -> urllib3.BaseHTTPResponse:
        parts = {"image": ("product.jpg", PRODUCT), "prompt": SCENE, **{k: str(v) for k, v in fields.items()}}
        return self.http.request("POST", f"{self.url}/v1/ads", fields=parts, headers={"Accept": accept})

    def json(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        answer = self.http.request(method, f"{self.url}{path}", **({} if body is None else {"json": body}))
        return answer.status, json.loads(answer.data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def endpoint(random_model: Path, folder: Path) -> Iterator[Endpoint]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "model": {"path": str(random_model)},
        "sampling": {"num_inference_steps": 4, "batch_size": 4},
        "output": {"format": "png"},
        "limits": {"max_queued_images": 4, "result_cache_bytes": 0},  # no image comes from the cache
        "catalog_runs": {"catalog_prefixes": [str(folder)], "output_prefixes": [str(folder)]},
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "serve_process.py"), str(port), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=job_runs.PROJECT,
        # The mode that cluster/local/serve.sh sets.
        env={**os.environ, "PYTHONPATH": str(job_runs.PROJECT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
    )
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                metrics_port = int(line.split()[1])
                break
        else:
            pytest.fail(f"the endpoint did not start: exit {process.wait()}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield Endpoint(process, f"http://127.0.0.1:{port}", metrics_port)
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            job_runs.kill_all(process)


def test_who_calls_a_replica_must_know_the_token(endpoint: Endpoint) -> None:
    """Their ports are open on all addresses; what they take is Python's pickles."""
    codes = []
    for pid in job_runs.descendants(endpoint.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "ServeReplica" not in " ".join(process.cmdline()):
                continue
            listening = [each for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            codes += [_code_of_a_call(each.laddr.port) for each in listening]
    assert codes.count(grpc.StatusCode.UNAUTHENTICATED) >= 3  # ingress, segmentation, generation
    assert set(codes) <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}


def _code_of_a_call(port: int) -> grpc.StatusCode | None:
    """What a call without a token and without content is answered; None: it is served."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest", bytes, bytes)
        try:
            call(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code()
    return None


def wait_for(condition, timeout_s: float = 240) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "timed out"
        time.sleep(0.2)
    return time.monotonic() - started


def test_images_are_the_main_jobs_alone_and_beside_others(endpoint, random_model, folder):
    catalog = folder / "one.parquet"
    row = {"sku": "BOTTLE-1", "image": PRODUCT, "prompt": SCENE, "num_variants": 2}
    pq.write_table(pa.Table.from_pylist([row]), catalog)
    words = ("sampling.num_inference_steps=4", "sampling.batch_size=4", "output.format=png")
    made = job_runs.run(catalog, folder / "job", random_model, *words)
    assert made.returncode == 0, made.stderr
    expected = {}
    for entry in job_runs.ledger_rows(folder / "job"):
        assert entry["status"] == "done", entry["detail"]
        expected[entry["variant"]] = entry, (folder / "job" / entry["uri"]).read_bytes()
    assert len(expected) == 2

    def check(answer):
        assert answer.status == 200, answer.data[:500]
        images = json.loads(answer.data)["images"]
        for image in images:
            entry, data = expected[image["variant"]]
            assert image["image_id"] == entry["image_id"]
            for name in ("seed", "sku", "prompt", "input_sha256", "mask_source", "model"):
                assert image[name] == entry[name], name
            assert base64.b64decode(image["image_base64"]) == data
        return images

    with ThreadPoolExecutor(9) as pool:  # beside eight others with other seeds, scales and step counts
        others = [
            pool.submit(endpoint.ads, seed=n, fusion_scale=0.2 * n, num_inference_steps=3 + n % 3) for n in range(8)
        ]
        time.sleep(0.1)
        beside = retried(lambda: endpoint.ads(sku="BOTTLE-1", num_variants=2))
        assert {other.result().status for other in others} <= {200, 429}
    check(beside)
    check(retried(lambda: endpoint.ads(sku="BOTTLE-1", num_variants=2)))  # alone


def retried(ask):
    """The answer to `ask`, retried while the queue is full."""
    while (answer := ask()).status == 429:
        assert int(answer.headers["Retry-After"]) >= 1
        time.sleep(0.3)
    return answer


def test_under_overload_answers_stay_right_and_the_rest_is_told_to_wait(endpoint):
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda n: endpoint.ads(seed=1000 + n), range(60)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status == 429:
            assert json.loads(answer.data)["error"]["code"] == "busy"
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert json.loads(answer.data)["images"][0]["status"] == "done"
    assert retried(lambda: endpoint.ads(seed=2000)).status == 200


def test_a_client_that_hangs_up_stops_its_work(endpoint):
    port = int(endpoint.url.rpartition(":")[2])
    body = urllib3.encode_multipart_formdata(
        {"image": ("p.jpg", PRODUCT), "prompt": SCENE, "num_inference_steps": "100", "num_variants": "8"}
    )
    head = (
        f"POST /v1/ads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {body[1]}\r\nContent-Length: {len(body[0])}\r\n\r\n"
    )
    with ThreadPoolExecutor(1) as pool:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode() + body[0])
            time.sleep(2)  # eight images of a hundred steps hold all places
            waiting = pool.submit(endpoint.ads, seed=3001, num_inference_steps=1)
            time.sleep(3)
            assert not waiting.done()
        assert waiting.result(timeout=10).status == 200


def test_a_killed_replica_costs_what_was_in_it(endpoint):
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(endpoint.ads, seed=4000 + n, num_inference_steps=60) for n in range(4)]
        time.sleep(2)
        pid = job_runs.actor_pid(endpoint.process.pid, "ServeReplica:refadgen:AdGeneration")
        assert pid
        os.kill(pid, signal.SIGKILL)
        lost = [answer.result() for answer in running]
        assert {answer.status for answer in lost} == {503}
        for answer in lost:
            assert json.loads(answer.data)["error"]["code"] == "replica_lost"
            assert int(answer.headers["Retry-After"]) >= 1
    wait_for(lambda: endpoint.ads(seed=5000).status == 200)
    assert endpoint.json("GET", "/readyz")[0] == 200


@pytest.mark.long
def test_a_catalogue_run_starts_is_read_and_is_cancelled(endpoint, folder):
    catalog = folder / "few.parquet"
    rows = [{"sku": f"S{n}", "image": PRODUCT, "prompt": SCENE, "num_variants": 8} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), catalog)
    wanted = {"catalog": str(catalog), "output": str(folder / "run; touch x"), "limit": 1}
    status, job = endpoint.json("POST", "/v1/jobs", wanted | {"settings": {"sampling.num_inference_steps": 1}})
    assert status == 202, job
    wait_for(lambda: endpoint.json("GET", f"/v1/jobs/{job['id']}")[1]["status"] in ("SUCCEEDED", "FAILED"))
    status, job = endpoint.json("GET", f"/v1/jobs/{job['id']}")
    assert job["status"] == "SUCCEEDED", job
    assert job["counts"] == {"done": 8, "failed": 0, "rejected": 0, "skipped": 0}
    assert len(job_runs.ledger_rows(folder / "run; touch x")) == 8

    status, other = endpoint.json("POST", "/v1/jobs", {"catalog": str(catalog), "output": str(folder / "long")})
    assert status == 202, other
    assert endpoint.json("DELETE", f"/v1/jobs/{other['id']}")[0] == 200
    wait_for(lambda: endpoint.json("GET", f"/v1/jobs/{other['id']}")[1]["status"] == "STOPPED")
    assert {job["id"] for job in endpoint.json("GET", "/v1/jobs")[1]["jobs"]} >= {job["id"], other["id"]}
    assert endpoint.json("POST", "/v1/jobs", {"catalog": "/etc/passwd", "output": str(folder)})[0] == 403


def test_metrics_are_exported_where_ray_exports_them(endpoint):
    assert retried(lambda: endpoint.ads(seed=1)).status == 200

    def exported() -> str:
        return endpoint.http.request("GET", f"http://127.0.0.1:{endpoint.metrics_port}/metrics").data.decode()

    counters = ("requests_total", "images_total", "cache_lookups_total")
    names = (*counters, "waiting_images", "request_seconds_bucket", "batch_rows_bucket", "step_seconds_bucket")
    # With what the exporter puts behind the names, as cluster/dashboards.py asks for them.
    wait_for(lambda: all(f"ray_refadgen_{name}{{" in exported() for name in names), timeout_s=60)
    assert 'route="/v1/ads"' in exported()


def test_masks_are_found_and_decided_on(endpoint):
    def ask(image: bytes) -> tuple[int, dict]:
        answer = endpoint.http.request("POST", f"{endpoint.url}/v1/masks", fields={"image": ("a.jpg", image)})
        return answer.status, json.loads(answer.data)

    status, found = ask(PRODUCT)
    assert (status, found["status"], found["mask_source"]) == (200, "done", "plain_background")
    fields = {"mask_base64": found["mask_base64"], "mask_decided": True, "prompt": SCENE, "num_inference_steps": 1}
    fields["image_base64"] = base64.b64encode(PRODUCT).decode()
    made = retried(lambda: endpoint.http.request("POST", f"{endpoint.url}/v1/ads", json=fields))
    assert made.status == 200, made.data
    assert json.loads(made.data)["images"][0]["mask_source"] == "review"
    status, problem = ask(b"no image")
    assert (status, problem["error"]["param"]) == (422, "image")
