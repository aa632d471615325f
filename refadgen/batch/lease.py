"""Who is at work on an output: a file that the driver writes anew again and again, so that no second one joins in.

Neither clocks nor locks of a store are needed: who finds another's file watches whether it changes. A driver that was
killed on this machine is known to be dead at once.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refadgen.batch.shards import Shard
from refadgen.storage.store import STORE_ERRORS, Storage

_FILE = re.compile(r"run(?:-(\d+)-of-(\d+))?\.lease")
BEAT_S = 10.0
_SETTLE_S = 0.3
"""Longer than a driver takes from its look at the output to its own file there."""
WATCH_S = 45.0
"""How long a file must stay unchanged until its driver is taken for dead: a store may be slow for some beats."""


class OutputInUseError(ValueError):
    """Another driver is at work on the same shard of the same output."""


@contextlib.contextmanager
def held(
    storage: Storage, shard: Shard, run_id: str, *, beat_s: float = BEAT_S, watch_s: float = WATCH_S
) -> Iterator[None]:
    """Holds a shard of an output meanwhile.

    Raises: OutputInUseError where another driver holds it, or a share of the output that overlaps with it.
    """
    for key in _overlapping(storage, shard):
        _require_dead(storage, key, watch_s)
    key = f"{shard.record_key.removesuffix('.json')}.lease"
    own = {"run_id": run_id, "host": socket.gethostname(), "process": _this_process(), "token": uuid.uuid4().hex}
    ended = threading.Event()

    def write(beat: int) -> None:
        storage.write(key, json.dumps(own | {"beat": beat}).encode())

    def keep() -> None:
        beat = 0
        while not ended.wait(beat_s):
            beat += 1
            with contextlib.suppress(*STORE_ERRORS):  # the next beat may be written again
                write(beat)

    write(0)
    time.sleep(_SETTLE_S)  # of two that found nobody, the last to write has it
    if _read(storage, key).get("token") != own["token"]:
        raise OutputInUseError(_message(storage, key, _read(storage, key)))
    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(*STORE_ERRORS):
            storage.delete([key])


def _overlapping(storage: Storage, shard: Shard) -> Iterator[str]:
    """The keys of leases of this shard, or of others that may hold a product of it."""
    for key in storage.names(""):
        if found := _FILE.fullmatch(key):
            other = Shard(int(found[1]), int(found[2])) if found[1] else Shard()
            if other.of != shard.of or other.number == shard.number:
                yield key


def _require_dead(storage: Storage, key: str, watch_s: float) -> None:
    """Raises: OutputInUseError if the driver that wrote a lease is alive."""
    first = _read(storage, key)
    if not first or _is_dead(first.get("process")):
        return
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch_s / 10))
        now = _read(storage, key)
        if not now:
            return
        if now != first:
            raise OutputInUseError(_message(storage, key, now))


def _message(storage: Storage, key: str, lease: dict[str, Any]) -> str:
    return (
        f"{storage.uri_of(key)}: the run {lease.get('run_id')} on {lease.get('host')} is at work here; wait for its "
        "end, or give each driver a shard of its own (--shard 1/2 and --shard 2/2)"
    )


def _read(storage: Storage, key: str) -> dict[str, Any]:
    """A lease; empty where there is none (any more)."""
    try:
        found = json.loads(storage.read(key))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> list[str]:
    """This process as others of its machine can look it up: boot, process namespace, number, start time."""
    return [*_machine(), str(os.getpid()), _started(os.getpid())]


def _machine() -> list[str]:
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:  # not Linux
        return ["", ""]


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; empty: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _is_dead(process: object) -> bool:
    """Whether a process of this machine has ended; False where nothing is known of it."""
    if not isinstance(process, list) or len(process) != 4 or process[:2] != _machine() or not process[0]:
        return False
    return bool(_started(int(process[2])) != process[3])
