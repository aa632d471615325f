"""The main job on a cluster of several nodes and an S3 server, both of which break: nothing lost, nothing done twice.

    CHAOS_PRODUCTS=1000 CHAOS_FAULTS=10 python -m pytest tests/jobs/test_chaos.py -m long -s

Model and pictures are stand-ins; Ray, stages, store, ledger and lease are real. Faults come by a seed once shares of
the images are there: SIGKILL of the driver, of workers and of nodes, SIGTERM to the driver, 503 storms, cut uploads and
silence of the store. A driver that ended is started again with the same command, as a RayJob would.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import job_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from PIL import Image, ImageDraw

pytestmark = [pytest.mark.slow, pytest.mark.long]
PRODUCTS = int(os.environ.get("CHAOS_PRODUCTS", "150"))
TIMES = int(os.environ.get("CHAOS_FAULTS", "1"))
FAULTS = ("driver", "worker", "worker", "worker", "node", "term", "slow_down", "cut", "silence")
"""One set, which `TIMES` repeats."""
STEP_S = 0.3
WORKER_NODES = 3
STORM_S = {"slow_down": 4.0, "cut": 4.0, "silence": 10.0}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """The port of an S3 server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    try:
        for _ in range(WORKER_NODES):
            made.add_node(num_cpus=3)
        yield made
    finally:
        made.shutdown()


class Driver:
    """The job's process, started again by the same command whenever it ended."""

    def __init__(self, words: list[str], env: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("chaos_job.py")), str(STEP_S), *words]
        self._env, self._log = os.environ | env, log
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log, cwd=job_runs.PROJECT)

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        self.start()


def write_catalog(folder: Path) -> Path:
    """Products with one of seven pictures each, and one image to make."""
    for number in range(7):
        cut_out = Image.new("RGBA", (64, 80))
        ImageDraw.Draw(cut_out).ellipse((8 + number, 12, 52, 68 - number), fill=(180, 30 * number, 40, 255))
        cut_out.save(folder / f"p{number}.png")
    numbers = range(PRODUCTS)
    columns = {
        "sku": [f"sku-{number:05}" for number in numbers],
        "image": [f"p{number % 7}.png" for number in numbers],
        "prompt": [f"a mug on table {number}" for number in numbers],
    }
    pq.write_table(pa.table(columns), folder / "catalog.parquet")
    return folder / "catalog.parquet"


def kill_a_worker(rng: random.Random) -> None:
    """SIGKILL to one of the actors, once there is one."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        found = []
        for pid in job_runs.descendants(os.getpid()):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if title.startswith(b"ray::MapWorker"):
                    found.append(pid)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(sorted(found)), signal.SIGKILL)
            return
        time.sleep(0.2)


@pytest.mark.parametrize("seed", [int(each) for each in os.environ.get("CHAOS_SEEDS", "1").split(",")])
def test_nothing_is_lost_and_nothing_done_twice_whatever_breaks(
    seed: int, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    catalog, rng = write_catalog(tmp_path), random.Random(seed)
    words = ["sampling.num_inference_steps=1", "sampling.batch_size=2", "catalog.rows_per_block=2"]
    words = [str(catalog), "--model", str(random_model), *words, "stages.generate.num_actors=2"]
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(s3_server())
        proxy = stack.enter_context(FaultProxy(port))
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in env.items():
            monkeypatch.setenv(name, value)  # nodes hand it to their workers
        nodes = stack.enter_context(cluster())
        env["RAY_ADDRESS"] = nodes.address
        direct = {"endpoint_url": f"http://127.0.0.1:{port}"}
        s3 = s3fs.S3FileSystem(client_kwargs=direct, use_listings_cache=False, skip_instance_cache=True)
        s3.call_s3("create_bucket", Bucket="shop")
        started = time.monotonic()
        quiet = Driver([*words, "--output", str(tmp_path / "quiet")], env, tmp_path / "quiet.log")
        assert quiet.process.wait(timeout=600) == 0, (tmp_path / "quiet.log").read_text()[-3000:]
        quiet_s = time.monotonic() - started

        plan = list(FAULTS * TIMES)
        rng.shuffle(plan)
        shares = sorted(rng.uniform(0.02, 0.9) for _ in plan)
        started, by_itself = time.monotonic(), 0
        driver = Driver([*words, "--output", "s3://shop/ads"], env, tmp_path / "chaos.log")
        try:
            while True:
                code = driver.process.poll()
                if code == 0:
                    break
                assert time.monotonic() - started < 60 + 20 * quiet_s, (tmp_path / "chaos.log").read_text()[-3000:]
                if code is not None:
                    by_itself += 1
                    assert by_itself <= 3 * TIMES, (tmp_path / "chaos.log").read_text()[-3000:]
                    driver.start()
                made = len(s3.find("shop/ads/images")) if s3.exists("shop/ads/images") else 0
                if plan and made >= shares[0] * PRODUCTS:
                    shares.pop(0)
                    fault = plan.pop(0)
                    time.sleep(rng.uniform(0, 1))
                    if fault in ("driver", "term"):
                        driver.end(signal.SIGKILL if fault == "driver" else signal.SIGTERM)
                    elif fault == "worker":
                        kill_a_worker(rng)
                    elif fault == "node":
                        nodes.remove_node(rng.choice(list(nodes.worker_nodes)), allow_graceful=False)
                        nodes.add_node(num_cpus=3)
                    else:
                        proxy.misbehave(fault, STORM_S[fault])
                time.sleep(0.2)
        finally:
            job_runs.kill_all(driver.process)
        chaos_s = time.monotonic() - started
        s3.get("shop/ads/", str(tmp_path / "ads"), recursive=True)
    statuses = Counter((row["status"], row["reason"]) for row in job_runs.latest(tmp_path / "ads").values())
    print(
        f"seed {seed}: {PRODUCTS} images, {len(FAULTS) * TIMES - len(plan)} faults, {driver.starts} drivers "
        f"({by_itself} ended by themselves), {dict(proxy.counts)} requests met a storm; quiet {quiet_s:.0f} s, chaos "
        f"{chaos_s:.0f} s, ratio {chaos_s / quiet_s:.2f}; {dict(statuses)}"
    )
    assert not plan, "the run ended before its faults"
    assert job_runs.images(tmp_path / "ads") == job_runs.images(tmp_path / "quiet")
    assert job_runs.latest(tmp_path / "ads") == job_runs.latest(tmp_path / "quiet")
    assert len(job_runs.latest(tmp_path / "quiet")) == PRODUCTS
    assert job_runs.done_twice(tmp_path / "ads") == []
