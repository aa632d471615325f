"""The command that serves: its port, what it refuses before a Ray starts, and who can reach it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from refadgen.serving import run

sys.path.append(str(Path(__file__).resolve().parents[1] / "jobs"))
import job_runs


@pytest.fixture
def told(capsys, monkeypatch):
    """told(*words): the error of the command, which ends before a Ray starts."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("a Ray was started"))

    def call(*words: str) -> str:
        assert run.main(words) == 2
        return capsys.readouterr().err

    return call


def test_a_busy_port_is_an_error_in_words(told):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        error = told("--port", str(port))
    assert error.startswith(f"error: --port {port}: cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert "make serve PORT=8100" in error


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8000.5", "٨٠", ""])
def test_what_is_no_port_is_refused(told, port):
    assert f"--port {port}: must be a number from 1 to 65535" in told(f"--port={port}")


def test_wrong_settings_are_named(told):
    port = f"--port={free_port()}"
    assert "'sampling': not of the form section.field=value" in told(port, "sampling")
    assert "sampling.num_inference_steps" in told(port, "sampling.num_inference_step=4")
    assert "model.path='/gone'" in told(port, "model.path=/gone")


def test_make_hands_the_port_over():
    for words, port in ((["PORT=8100"], "8100"), ([], "8000")):
        command = ["make", "--dry-run", "--assume-old=setup", "serve", *words]
        shown = subprocess.run(command, cwd=job_runs.PROJECT, capture_output=True, text=True, check=True).stdout
        assert f"cluster/local/serve.sh --port {port}" in shown.splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.long
def test_the_script_serves_on_loopback_alone_and_ends_by_ctrl_c(random_model, tmp_path):
    port = free_port()
    script = job_runs.PROJECT / "cluster" / "local" / "serve.sh"
    words = [script, "--port", str(port), f"model.path={random_model}", "sampling.num_inference_steps=1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "RAY_TMPDIR": "/tmp"})
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            time.sleep(0.5)
        listening = [
            each.laddr.ip
            for pid in (process.pid, *job_runs.descendants(process.pid))
            for each in _connections(pid)
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port
        ]
        assert set(listening) == {"127.0.0.1"}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        job_runs.kill_all(process)


def _connections(pid: int) -> list:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).net_connections("tcp")
    return []
