"""Speed: ours against the authors' loop and plain Stable Diffusion 1.5, eager and compiled."""

import time
from collections.abc import Sequence

import torch
from proof_measure import copy_gb_s, matrix_tflops, measure_system, step_tflop
from proof_record import Record, Values, free_memory
from proof_setup import Setup, Size, make_setup
from proof_systems import SYSTEMS, Variant, installed
from proof_workers import Case, run_wave

_EAGER_S = 6.0
"""About what an eager case takes, repeats and profile included."""
_WAVE_S = 60.0
"""Less than this is not enough to compile anything."""


def run_speed(record: Record, size: Size, device: torch.device, dtypes: Sequence[str], workers: int) -> None:
    """All cases in the order of their worth, for one number format after the other.

    workers: processes that compile at once; 0: no compiled case.
    """
    for dtype_name in dtypes:
        setup = _eager(record, size, device, dtype_name, (1, 8) if size == "full" else (2,))
        waves = _compiled(size, device, dtype_name, workers)
        for wave in waves[:2]:
            _wave(record, wave, dtype_name)
        _eager(record, size, device, dtype_name, (16, 4, 2) if size == "full" else (), setup)
        for wave in waves[2:]:
            _wave(record, wave, dtype_name)
        del setup
        free_memory()


def _eager(
    record: Record,
    size: Size,
    device: torch.device,
    dtype_name: str,
    batches: Sequence[int],
    setup: Setup | None = None,
) -> Setup | None:
    """The eager cases of these batch sizes, in this process; the ceilings and the operations before them."""
    names = [f"speed/{dtype_name}/eager/batch-{batch}/{system}" for batch in batches for system in SYSTEMS]
    first = [f"speed/{dtype_name}/ceilings", *[f"speed/{dtype_name}/operations/{system}" for system in SYSTEMS]]
    if setup is None:
        # Ratios need the ceilings and the operations whatever `--only` says.
        if all(record.values(name) for name in first) and not any(record.wanted(name) for name in names):
            return None
        started = time.monotonic()
        setup = make_setup(size, device, getattr(torch, dtype_name))
        print(f"networks made in {time.monotonic() - started:.1f} s", flush=True)
        made = setup
        record.run(first[0], lambda: _ceilings(made), always=True)
        for name, system in zip(first[1:], SYSTEMS, strict=True):
            record.run(name, lambda system=system: _operations(made, system), always=True)  # type: ignore[misc]
    ready = setup
    for batch in batches:
        for system in SYSTEMS:
            name = f"speed/{dtype_name}/eager/batch-{batch}/{system}"
            record.run(name, lambda system=system, batch=batch: _one(ready, system, batch), needs_s=_EAGER_S)  # type: ignore[misc]
    return setup


def _ceilings(setup: Setup) -> Values:
    return {
        "matrix_tflops": matrix_tflops(setup.dtype, setup.device),
        "copy_gb_s": round(copy_gb_s(setup.device), 1),
    }


def _operations(setup: Setup, name: str) -> Values:
    with installed(name, setup, 1, "eager") as system:
        return {"step_tflop": step_tflop(system)}


def _one(setup: Setup, name: str, batch: int) -> Values:
    with installed(name, setup, batch, "eager") as system:
        return measure_system(system, setup, batch)


def _compiled(size: Size, device: torch.device, dtype_name: str, workers: int) -> list[list[Case]]:
    """The compiled cases, in waves of `workers`."""
    if not workers:
        return []
    batches = (1, 8) if size == "full" else (1,)
    variants: tuple[Variant, ...] = ("graphs", "whole", "blocks")
    cases = [
        Case(system, variant, batch, dtype_name, size, str(device))
        for variant in variants
        for batch in batches
        for system in SYSTEMS
    ]
    return [cases[start : start + workers] for start in range(0, len(cases), workers)]


def _wave(record: Record, cases: Sequence[Case], dtype_name: str) -> None:
    wanted = [case for case in cases if record.wanted(case.name)]
    if not wanted:
        return
    if record.left_s < _WAVE_S:
        for case in wanted:
            record.skipped(case.name, f"the part's budget is used up: {max(0.0, record.left_s):.0f} s left to compile")
        return
    free_memory()
    started = time.monotonic()
    run_wave(record, wanted)
    print(f"{len(wanted)} compiled cases in {time.monotonic() - started:.0f} s", flush=True)
