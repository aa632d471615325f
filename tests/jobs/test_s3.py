"""The whole job on a real S3 server on loopback: catalogue, images and ledger there, killed and resumed there."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import job_runs
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3_environment() -> Iterator[dict[str, str]]:
    """Environment of clients of an S3 server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert server.poll() is None, "moto_server ended"
            assert time.monotonic() < deadline, "moto_server does not answer"
            time.sleep(0.2)
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.terminate()
    server.wait()


def test_killed_and_resumed_on_s3_it_gives_the_bytes_of_the_disk(
    s3_environment: dict[str, str],
    whole_run: Path,
    random_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    s3.call_s3("create_bucket", Bucket="shop")
    s3.put(str(job_runs.CATALOG), "shop/catalogs/demo.parquet")
    s3.put(str(job_runs.CATALOG.parent / "images") + "/", "shop/catalogs/images/", recursive=True)
    catalog, output = "s3://shop/catalogs/demo.parquet", "s3://shop/ads"

    def num_images() -> int:
        return len(s3.find("shop/ads/images")) if s3.exists("shop/ads") else 0

    half = len(job_runs.images(whole_run)) / 2
    process = job_runs.start(catalog, output, random_model, *job_runs.QUICK, env=s3_environment)
    job_runs.wait_until(lambda: num_images() >= half, process)
    job_runs.kill_all(process)
    s3.get("shop/ads/", str(tmp_path / "killed"), recursive=True)
    first = {row["image_id"] for row in job_runs.ledger_rows(tmp_path / "killed")}
    published = {Path(name).stem for name in job_runs.images(tmp_path / "killed")}
    assert first <= published  # an image is there before its row
    assert first
    resumed = job_runs.run(catalog, output, random_model, *job_runs.QUICK, env=s3_environment)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "done 0" not in resumed.stdout
    # Blocks of one product (two images): one in the publisher, one on its way to the driver, one in its ledger buffer.
    assert len(published - first) <= 6
    assert f"skipped {len(first)}" in resumed.stdout

    s3.get("shop/ads/", str(tmp_path / "ads"), recursive=True)
    assert job_runs.images(tmp_path / "ads") == job_runs.images(whole_run)
    assert job_runs.latest(tmp_path / "ads") == job_runs.latest(whole_run)
    assert job_runs.done_twice(tmp_path / "ads") == []
    assert s3.exists("shop/ads/report.html")
    assert s3.exists("shop/ads/run.json")
    said = resumed.stdout + resumed.stderr + s3.cat_file("shop/ads/run.json").decode()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said


@pytest.mark.long
def test_training_on_s3_killed_and_resumed(
    s3_environment: dict[str, str], random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    import s3fs
    import training_runs

    s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    s3.call_s3("create_bucket", Bucket="training")
    s3.put(str(job_runs.PROJECT / "refadgen" / "triplets" / "tiny" / "triplets.parquet"), "training/data/one.parquet")
    words = ("--data", "s3://training/data", "run.num_steps=6", "run.checkpoint_every=2", "run.num_workers=1")
    process = training_runs.start("s3://training/out", random_model, *words, env=s3_environment)
    try:
        job_runs.wait_until(lambda: bool(s3.glob("training/out/checkpoints/*/checkpoint.json")), process)
    finally:
        job_runs.kill_all(process)
    resumed = training_runs.run("s3://training/out", random_model, *words, env=s3_environment)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert [row["step"] for row in training_runs.history("s3://training/out")] == list(range(6))
    assert s3.exists("training/out/model/model_index.json")
    assert s3.glob("training/out/tensorboard/events*")
    assert "test-secret-key" not in resumed.stdout + resumed.stderr
