"""A Ray started as the README says: `ray job submit` to it, and who else can reach it."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import job_runs
import pytest

pytestmark = pytest.mark.slow
RAY = str(Path(job_runs.sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The Jobs API's address and the process of `cluster/local/start.sh`, on ports and in a folder of its own."""
    gcs, dashboard, agent, client = free_ports(4)
    process = subprocess.Popen(
        [
            job_runs.PROJECT / "cluster" / "local" / "start.sh",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path_factory.mktemp("elsewhere"),  # the script finds the project by itself
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, f"start.sh ended with {process.returncode}"
                assert time.monotonic() < deadline, "the Jobs API does not answer"
                time.sleep(0.5)
        yield address, process.pid
    finally:
        process.terminate()  # as Ctrl-C: ends this Ray and no other
        try:
            process.wait(timeout=60)
        finally:
            job_runs.kill_all(process)


def test_a_submitted_job_makes_its_images(started: tuple[str, int], random_model: Path, tmp_path: Path) -> None:
    local_ray, _ = started
    output = tmp_path / "out"
    words = ["--output", str(output), "--model", str(random_model), "--limit", "2", *job_runs.QUICK]
    submitted = subprocess.run(
        [RAY, "job", "submit", "--", "python", "jobs/generate_catalog.py", "catalogs/demo.parquet", *words],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=job_runs.PROJECT,
        env={**os.environ, "RAY_ADDRESS": local_ray},
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout[-2000:] + submitted.stderr[-2000:]
    assert "done 4, failed 0" in submitted.stdout
    assert {row["status"] for row in job_runs.latest(output).values()} == {"done"}
    assert len(job_runs.images(output)) == 4


def test_nothing_of_it_answers_beyond_loopback(started: tuple[str, int]) -> None:
    address, process = started
    ports, answered = job_runs.answering_beyond_loopback(process)
    assert int(address.rpartition(":")[2]) in ports
    assert len(ports) >= 6, ports  # GCS, raylet, object manager, dashboard, its agent, runtime environments
    assert answered == set()
