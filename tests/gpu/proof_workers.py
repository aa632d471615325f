"""Compiled cases, each in a process of its own.

Compiling is the host's work and takes a minute a case, so several processes compile at once. They are then measured
one after the other, while the others wait: nothing else runs on the card or on the host.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from proof_measure import measure_system, profiled
from proof_record import Record
from proof_setup import Size, make_setup
from proof_systems import Variant, installed
from torch import Tensor

_MEASURE_S = 10.0
"""About what measuring one compiled case takes."""


@dataclass(frozen=True)
class Case:
    """One system, compiled in one way, at one batch size."""

    system: str
    variant: Variant
    batch: int
    dtype_name: str
    size: Size
    device: str
    part: str = "speed"
    """speed: times it. correctness: compares its latents with the eager ones."""

    @property
    def name(self) -> str:
        """The case's name in the record."""
        return f"{self.part}/{self.dtype_name}/{self.variant}/batch-{self.batch}/{self.system}"


class WorkerError(RuntimeError):
    """What a worker process raised, in words."""


def work(case: Case, channel: Connection) -> None:
    """A worker's life: compiles, says so, waits for its turn, measures, sends the values."""
    try:
        started = time.monotonic()
        setup = make_setup(case.size, torch.device(case.device), getattr(torch, case.dtype_name))
        with installed(case.system, setup, case.batch, "eager") as system:
            if setup.device.type == "cuda":
                profiled(lambda: None, setup.device)  # loads the profiler: before graphs are captured, and in parallel
            eager = system.loop(setup.num_steps).clone() if case.part == "correctness" else None
        with installed(case.system, setup, case.batch, case.variant) as system:
            for _ in range(2):  # the second run captures the graph, or compiles what the first shapes did not cover
                system.loop(2)
            compile_s = time.monotonic() - started
            channel.send(("ready", compile_s))
            channel.recv()
            if eager is None:
                values = measure_system(system, setup, case.batch)
            else:
                first, second = (system.loop(setup.num_steps).clone() for _ in range(2))
                values = {"same_bytes": torch.equal(first, second), "error_to_eager": relative_error(first, eager)}
        channel.send(("values", values | {"compile_s": round(compile_s, 1)}))
    except BaseException as error:  # sent to the parent, which records it
        channel.send(("error", f"{type(error).__name__}: {error}"[:2000]))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where either is."""
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


@dataclass
class _Worker:
    case: Case
    process: Any
    channel: Connection
    started: float


def run_wave(record: Record, cases: Sequence[Case]) -> None:
    """Compiles all cases at once, then measures one after the other, in their order."""
    context = multiprocessing.get_context("spawn")
    # The workers share the host's cores: each compiles kernels in a few processes of its own. Set before they start,
    # since torch reads it when it is imported.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(2, (os.cpu_count() or 2) // len(cases)))
    workers: list[_Worker] = []
    try:
        for case in cases:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(case, theirs))
            process.start()
            theirs.close()
            workers.append(_Worker(case, process, ours, time.monotonic()))
        # Those that compile too long are not measured; what is ready by then is.
        ready_by = time.monotonic() + max(0.0, record.left_s - _MEASURE_S * len(cases))
        ready = [worker for worker in workers if _await_ready(record, worker, ready_by)]
        for worker in workers:
            if worker not in ready:
                _end(worker, at_once=True)
        for worker in ready:
            _take_turn(record, worker)
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join(10)


def _await_ready(record: Record, worker: _Worker, ready_by: float) -> bool:
    """Waits until the worker has compiled. Records a failure or a lack of time."""
    if not worker.channel.poll(max(0.0, ready_by - time.monotonic())):
        took = time.monotonic() - worker.started
        record.skipped(worker.case.name, f"the part's budget is used up: still compiling after {took:.0f} s")
        return False
    return _received(record, worker) is not None


def _take_turn(record: Record, worker: _Worker) -> None:
    """Lets one worker measure, and keeps what it sends."""
    started = time.monotonic()
    try:
        worker.channel.send("go")
    except OSError as error:
        record.failed(worker.case.name, WorkerError(f"the process ended: {error}"))
        return
    if not worker.channel.poll(max(_MEASURE_S, min(120.0, record.left_s))):
        record.skipped(worker.case.name, "the part's budget is used up: measuring did not end")
    else:
        values = _received(record, worker)
        if values is not None:
            record.done(worker.case.name, values, time.monotonic() - started)
    _end(worker)


def _received(record: Record, worker: _Worker) -> Any:
    """What the worker sent; None after its failure, which is recorded."""
    try:
        kind, content = worker.channel.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        record.failed(worker.case.name, WorkerError(f"the process ended with code {worker.process.exitcode}"))
        return None
    if kind == "error":
        record.failed(worker.case.name, WorkerError(content))
        return None
    return content


def _end(worker: _Worker, *, at_once: bool = False) -> None:
    """Ends the process and frees its memory on the card. at_once: it has nothing left to say."""
    worker.channel.close()
    if not at_once:
        worker.process.join(3)
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join(10)
