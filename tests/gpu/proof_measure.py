"""How the proof measures: times, memory, operations, the profiler's counts, and the card's own matrix rate."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from proof_record import Values
from proof_setup import Setup
from proof_systems import System
from torch.utils.flop_counter import FlopCounterMode

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")
"""Calls of the CUDA runtime and driver that start work, by how their names begin."""
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Calls that wait for the device. Copies to the host end in one of them."""
_SHORT, _LONG = 2, 4
"""Steps of the two profiled loops. Their difference leaves out what a loop does once."""


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """One call's time, with the device idle before and after."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def median_s(call: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of `repeats` calls, and their spread (largest minus smallest) as a share of it."""
    times = [seconds_of(call, device) for _ in range(repeats)]
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def matrix_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """The rate of one large matrix product of random numbers, TFLOP/s: the card's ceiling as measured."""
    side = 8192 if device.type == "cuda" else 64
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        left @ right

    def ten() -> None:
        for _ in range(10):
            left @ right

    return float(10 * 2 * side**3 / median_s(ten, device, 5)[0] / 1e12)


def copy_gb_s(device: torch.device) -> float:
    """The rate of a large copy on the device, GB/s, counting bytes read and written."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return float(2 * source.nbytes / median_s(lambda: target.copy_(source), device, 5)[0] / 1e9)


def step_tflop(system: System) -> float:
    """Arithmetic of one step of the loop, TFLOP, 2 for a multiply-add. Call it on an eager system."""
    counts = []
    for num_steps in (_SHORT, _LONG):
        with FlopCounterMode(display=False) as counter:
            system.loop(num_steps)
        counts.append(counter.get_total_flops())
    return float(counts[1] - counts[0]) / (_LONG - _SHORT) / 1e12


def measure_system(system: System, setup: Setup, batch: int, *, repeats: int = 3) -> Values:
    """Everything that is timed and counted of one system at one batch size. `step_s` and rates are of the loop."""
    device, steps = setup.device, setup.num_steps
    repeats = repeats if device.type == "cuda" else 1
    system.loop(2)  # loads kernels; what is compiled was compiled before
    on_card = device.type == "cuda"
    resting_gb = torch.cuda.memory_allocated(device) / 1e9 if on_card else 0.0
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    loop_s, spread = median_s(lambda: system.loop(steps), device, repeats)
    peak_gb = torch.cuda.max_memory_allocated(device) / 1e9 if on_card else 0.0
    if on_card:
        system.whole(1)
    whole_s = median_s(lambda: system.whole(steps), device, min(repeats, 2))[0]
    values: Values = {
        "loop_images_s": round(batch / loop_s, 4),
        "whole_images_s": round(batch / whole_s, 4),
        "step_ms": round(1000 * loop_s / steps, 3),
        "spread": round(spread, 4),
        "resting_gb": round(resting_gb, 2),
        "peak_gb": round(peak_gb, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved(device) / 1e9, 2) if on_card else 0.0,
        "finite": bool(system.loop(steps).isfinite().all()),
    }
    return values | counts_of_a_step(system, device, loop_s / steps)


def counts_of_a_step(system: System, device: torch.device, step_s: float) -> Values:
    """The profiler's counts of one step, the device's busy share, and the host's waits as torch warns of them.

    step_s: unprofiled seconds of a step; the profiler slows the host, so gaps are what the kernels leave of these.
    """
    values: Values = {}
    try:
        short, long = (profiled(lambda n=n: system.loop(n), device) for n in (_SHORT, _LONG))  # type: ignore[misc]
        one = {name: (long[name] - short[name]) / (_LONG - _SHORT) for name in long}
        values |= {name: round(one[name], 2) for name in ("launches", "kernels", "copies", "waits", "to_host")}
        values |= {"busy_ms": round(one["busy_ms"], 3), "host_gaps": round(one["gaps"], 1)}
        values["idle_ms"] = round(max(0.0, 1000 * step_s - one["busy_ms"]), 3)
    except Exception as error:  # a profiler that the driver does not allow: the times are worth keeping
        values["profiler"] = f"{type(error).__name__}: {error}"[:200]
    if device.type == "cuda":
        counts = [_warned_waits(lambda n=n: system.loop(n)) for n in (_SHORT, _LONG)]  # type: ignore[misc]
        values["warned_waits"] = (counts[1] - counts[0]) / (_LONG - _SHORT)
    return values


def profiled(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Launches, kernels, copies, waits, gaps over 3 µs and milliseconds with a kernel at work, of one call."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    # Without the CPU's activities: recording each operator would slow the host tenfold.
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    synchronize(device)
    with profile(activities=[activity]) as profiler:
        call()
        synchronize(device)
    events = profiler.profiler.kineto_results.events()
    # Without the marks of waits, which have a length but no work.
    on_device = [e for e in events if e.device_type() == DeviceType.CUDA and "Sync" not in e.name()]
    names = [event.name() for event in events if event.device_type() == DeviceType.CPU]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in on_device)
    copies = [event.name() for event in on_device if event.name().startswith(("Memcpy", "Memset"))]
    busy_ns, gaps = merged(spans)
    return {
        "launches": float(sum(name.startswith(_LAUNCHES) for name in names)),
        "kernels": float(len(on_device) - len(copies)),
        "copies": float(len(copies)),
        "to_host": float(sum("DtoH" in name for name in copies)),
        "waits": float(sum(name.startswith(_WAITS) for name in names)),
        "busy_ms": busy_ns / 1e6,
        "gaps": float(sum(gap > 3000 for gap in gaps)),
    }


def merged(spans: list[tuple[int, int]]) -> tuple[int, list[int]]:
    """Nanoseconds covered by the sorted spans, which may overlap, and the gaps between them."""
    covered, gaps, end = 0, [], None
    for start, stop in spans:
        if end is None or start >= end:
            if end is not None:
                gaps.append(start - end)
            covered += stop - start
            end = stop
        elif stop > end:
            covered += stop - end
            end = stop
    return covered, gaps


def _warned_waits(call: Callable[[], object]) -> int:
    """How often torch warns that an operation waits for the device."""
    mode: Any = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(warning.message) for warning in caught)
