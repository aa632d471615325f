"""A Ray started as the README says: `ray job submit` to it, and who else can reach it."""

import os
import re
import shutil
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


@pytest.mark.long
def test_from_a_folder_that_the_cluster_does_not_have_a_stopped_job_resumes(
    started: tuple[str, int], whole_run: Path, random_model: Path, tmp_path: Path
) -> None:
    """`--working-dir` uploads the project; `ray job stop` in mid-run, then the same command again."""
    folder, output = tmp_path / "shop", tmp_path / "out"
    for name in ("refadgen", "jobs", "catalogs"):
        shutil.copytree(job_runs.PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    job = folder / "jobs" / "generate_catalog.py"
    told = "import refadgen\nprint('code of', refadgen.__file__)\n"
    job.write_text(job.read_text().replace("if __name__", f"{told}if __name__"))
    words = ["--output", str(output), "--model", str(random_model), *job_runs.QUICK]

    def ray_job(*arguments: str) -> str:
        done = subprocess.run(
            [RAY, "job", *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": started[0]},
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def submit(name: str, *options: str) -> str:
        script = ["python", "jobs/generate_catalog.py", "catalogs/demo.parquet"]
        return ray_job("submit", *options, "--submission-id", name, "--working-dir", ".", "--", *script, *words)

    pushed = re.search(r"\((\d+\.\d+)MiB\)", submit("first", "--no-wait"))
    assert pushed is not None
    assert float(pushed[1]) < 30
    deadline = time.monotonic() + 200
    while len(job_runs.images(output)) < 6:
        assert time.monotonic() < deadline, ray_job("logs", "first")[-3000:]
        time.sleep(0.1)
    ray_job("stop", "first")
    first = len(job_runs.ledger_rows(output))
    assert job_runs.facts(output)["state"] == "stopped"
    assert 0 < first < 24
    assert not list(output.glob("marks/all/*"))
    again = submit("again")
    assert "_ray_pkg_" in again.partition("code of")[2].splitlines()[0]  # what was uploaded, not what is installed here
    assert f"done {24 - first}, failed 0, rejected 0, skipped {first}" in again
    assert job_runs.images(output) == job_runs.images(whole_run)
    assert job_runs.latest(output) == job_runs.latest(whole_run)
    assert job_runs.done_twice(output) == []


def test_nothing_of_it_answers_beyond_loopback(started: tuple[str, int]) -> None:
    address, process = started
    ports, answered = job_runs.answering_beyond_loopback(process)
    assert int(address.rpartition(":")[2]) in ports
    assert len(ports) >= 6, ports  # GCS, raylet, object manager, dashboard, its agent, runtime environments
    assert answered == set()
