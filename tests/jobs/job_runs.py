"""Runs of the main job: as a user starts them, in a process with a Ray of its own, or in this process.

Of a short run nearly all the time is the start of Python and Ray. So a process of its own is for what needs one:
whole runs that others are compared with, kills, and logs of workers. Other runs share a Ray (fixture `shared_ray`).
"""

import contextlib
import io
import ipaddress
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import ray

from refadgen.batch import ray_connection

PROJECT = Path(__file__).resolve().parents[2]
sys.path.append(str(PROJECT / "jobs"))
CATALOG = PROJECT / "catalogs" / "demo.parquet"
VOLATILE = ("run_id", "recorded_at", "attempts", "fetch_s", "segment_s", "generate_s", "publish_s")
QUICK = (
    "sampling.num_inference_steps=2",
    "sampling.batch_size=2",
    "catalog.rows_per_block=1",
    "stages.generate.num_actors=1",
)
"""Small batches and blocks: many points at which a crash can hit. One generating actor, whatever the machine's cores:
each takes longer to start than to make these images."""


@contextlib.contextmanager
def local_ray(*, dashboard: bool = False) -> Iterator[None]:
    """A Ray of this process, with room for the actors of every job."""
    ray_connection.connect(8, dashboard=dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def call(main: Callable[[list[str]], int], words: list[str]) -> subprocess.CompletedProcess[str]:
    """A job's `main` in this process, as if it had been a process. What workers log is not in its output."""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(words)
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


def run_here(catalog: Path | str, output: Path | str, model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process."""
    import generate_catalog  # in jobs/

    return call(generate_catalog.main, command(catalog, output, model, *words)[2:])


def command(catalog: Path | str, output: Path | str, model: Path, *words: str) -> list[str]:
    job = str(PROJECT / "jobs" / "generate_catalog.py")
    return [sys.executable, job, str(catalog), "--output", str(output), "--model", str(model), *words]


def run(
    catalog: Path | str, output: Path | str, model: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(catalog, output, model, *words),
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, **(env or {})},
        cwd=PROJECT,
        check=False,
    )


def start(
    catalog: Path | str, output: Path | str, model: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(catalog, output, model, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        cwd=PROJECT,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the job ended by itself with {process.returncode}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, found through /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def actor_pid(pid: int, title: str) -> int:
    """The worker below `pid` whose title holds `title` (Ray names its workers after their actors)."""
    for child in descendants(pid):
        try:
            words = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if title in words and words.startswith("ray::"):
            return child
    return 0


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver, as a lost machine would; its Ray is then waited for, and ended where it lingers."""
    below = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(pid) for pid in below):
        time.sleep(0.2)
    for pid in below:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def answering_beyond_loopback(pid: int) -> tuple[set[int], set[str]]:
    """The ports that a process and those below it listen on, and what answers at another address of this machine."""
    entries = itertools.chain(*psutil.net_if_addrs().values())
    own = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
    addresses = [each for each in own if not ipaddress.ip_address(each.partition("%")[0]).is_loopback]
    assert addresses, "this machine has no address but loopback"
    ports = set()
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            listening = psutil.Process(each).net_connections("tcp")
            ports |= {connection.laddr.port for connection in listening if connection.status == psutil.CONN_LISTEN}
    answered = set()
    for address, port in itertools.product(addresses, ports):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
            answered.add(f"{address}:{port}")
    return ports, answered


def images(output: Path) -> dict[str, bytes]:
    """Finished images by name."""
    return {file.name: file.read_bytes() for file in sorted((output / "images").rglob("*.jpg"))}


def ledger_rows(output: Path) -> list[dict[str, Any]]:
    """All rows of all parts."""
    return [row for part in sorted((output / "ledger").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def latest(output: Path) -> dict[str, dict[str, Any]]:
    """The latest row of each image_id, without what differs from run to run."""
    rows = sorted(ledger_rows(output), key=lambda row: row["recorded_at"])
    return {row["image_id"]: {k: v for k, v in row.items() if k not in VOLATILE} for row in rows}


def done_twice(output: Path) -> list[str]:
    ids = [row["image_id"] for row in ledger_rows(output) if row["status"] == "done"]
    return sorted({image_id for image_id in ids if ids.count(image_id) > 1})


def facts(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())
