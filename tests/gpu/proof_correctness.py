"""Correctness: number formats against float32, compiled against eager, and bytes that must not differ."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from proof_record import Record, Values, free_memory
from proof_setup import GUIDANCE_SCALE, Setup, Size, make_setup
from proof_systems import PROMPT, installed
from proof_workers import Case, relative_error, run_wave
from torch import Tensor

from refadgen.model.denoising import DenoisingRow

_SCHEDULERS = {
    "DDIMScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
}


def run_correctness(record: Record, size: Size, device: torch.device, dtypes: Sequence[str], workers: int) -> None:
    """The cases of each number format, then the compiled ones."""
    _eager(record, size, device, dtypes)
    free_memory()
    _compiled(record, size, device, dtypes, workers)


def _eager(record: Record, size: Size, device: torch.device, dtypes: Sequence[str]) -> None:
    """Everything that needs no compiler. float32's results are made once."""
    torch.backends.cudnn.allow_tf32 = False  # convolutions of float32 would lose digits
    exact = make_setup(size, device, torch.float32)
    references: dict[str, Tensor] = {}
    for dtype_name in dtypes:
        setup = make_setup(size, device, getattr(torch, dtype_name))
        prefix = f"correctness/{dtype_name}"
        checks: dict[str, Callable[[Setup], Values]] = {
            "same-seed-twice": _same_seed_twice,
            "company-of-eight": _company,
            "places-in-a-batch": _places,
            "mixed-rows": _mixed_rows,
            "joining-rows": _joining_rows,
            "authors-loop": authors_agree,
        }
        for name, check in checks.items():
            record.run(f"{prefix}/{name}", lambda check=check, setup=setup: check(setup))  # type: ignore[misc]
        for name in _SCHEDULERS:
            record.run(
                f"{prefix}/scheduler/{name}",
                lambda name=name, setup=setup: _scheduler(setup, exact, references, name),  # type: ignore[misc]
            )
        del setup
        free_memory()


def _compiled(record: Record, size: Size, device: torch.device, dtypes: Sequence[str], workers: int) -> None:
    """Each way of compiling against eager, in processes of their own."""
    variants = ("graphs", "whole", "blocks") if workers else ()
    cases = [Case("ours", v, 2, name, size, str(device), "correctness") for name in dtypes for v in variants]  # type: ignore[arg-type]
    cases = [case for case in cases if record.wanted(case.name)]
    for start in range(0, len(cases), max(1, workers)):
        run_wave(record, cases[start : start + workers])


def _row(setup: Setup, seed: int, **options: Any) -> DenoisingRow:
    """A row of the one product and prompt. options: as of `RefAdGenPipeline.start`."""
    pipeline = setup.pipeline
    canvas = setup.canvas if seed % 2 == 0 else setup.canvas[:, ::-1].copy()  # two products
    given = {"guidance_scale": GUIDANCE_SCALE, "num_inference_steps": setup.num_steps} | options
    return pipeline.start(
        pipeline.encode_reference([canvas]), setup.mask, pipeline.encode_prompt(PROMPT), seed=seed, **given
    )


def _run(setup: Setup, rows: list[DenoisingRow], batch_size: int) -> list[Tensor]:
    """The rows' final latents, from one batch of that size."""
    for _ in setup.pipeline.denoise(rows, batch_size=batch_size, reference_in_uncond=True):
        pass
    return [row.latents for row in rows]


def _same(left: Tensor, right: Tensor) -> Values:
    return {
        "same_bytes": torch.equal(left, right),
        "finite": bool(left.isfinite().all()),
        "relative_error": relative_error(left, right),
    }


def authors_agree(setup: Setup) -> Values:
    """Our latents against the restated authors' loop: the same function, so only rounding differs."""
    found = []
    for name in ("ours", "authors"):
        with installed(name, setup, 1, "eager") as system:
            found.append(system.loop(setup.num_steps))
    return {"relative_error": relative_error(*found)}


def _same_seed_twice(setup: Setup) -> Values:
    first, second = (_run(setup, [_row(setup, 3)], 1)[0] for _ in range(2))
    return _same(first, second)


def _company(setup: Setup) -> Values:
    """A row among seven others against the same row alone, both in batches of eight."""
    alone = _run(setup, [_row(setup, 5)], 8)[0]
    together = _run(setup, [_row(setup, seed) for seed in range(8)], 8)[5]
    return _same(together, alone)


def _mixed_rows(setup: Setup) -> Values:
    """Rows of several λ, guidance scales, steps and products, each against itself alone at the same batch size.

    Alone, a row is at the batch's first place and its copies fill the others. `at_the_same_place` compares with the
    copy at the row's own place: what differs there comes from its company, the rest from kernels that round by place.
    """
    few = max(2, setup.num_steps // 2)
    options: list[dict[str, float]] = [
        {},
        {"fusion_scale": 0.5},
        {"guidance_scale": 3.0, "num_inference_steps": few},
        {"fusion_scale": 0.0, "num_inference_steps": few},
    ]
    count = len(options)
    together = _run(setup, [_row(setup, seed, **given) for seed, given in enumerate(options)], count)
    copies = [
        _run(setup, [_row(setup, seed, **given) for _ in range(count)], count) for seed, given in enumerate(options)
    ]
    return _same(torch.cat(together), torch.cat([of_row[0] for of_row in copies])) | {
        "equal_rows": [torch.equal(row, of_row[0]) for row, of_row in zip(together, copies, strict=True)],
        "at_the_same_place": all(torch.equal(row, copies[place][place]) for place, row in enumerate(together)),
    }


def _places(setup: Setup) -> Values:
    """A row at every place of a batch of its copies: `same_bytes` where no kernel rounds by place."""
    found = {size: _run(setup, [_row(setup, 5) for _ in range(size)], size) for size in (2, 4, 8)}
    equal = {f"of_{size}": all(torch.equal(row, rows[0]) for row in rows) for size, rows in found.items()}
    of_eight = found[8]
    return _same(torch.cat(of_eight), torch.cat([of_eight[0]] * 8)) | {"same_bytes": all(equal.values())} | equal


def _joining_rows(setup: Setup) -> Values:
    """A row that joins a batch after two steps, and stays when the first has left, against itself alone."""
    batch = setup.pipeline.batch(batch_size=2, reference_in_uncond=True)
    first, second = _row(setup, 0), _row(setup, 1)
    batch.add(first)
    for step in range(2 * setup.num_steps):
        if step == 2:
            batch.add(second)
        if batch.rows:
            batch.step()
    joined = torch.cat([first.latents, second.latents])
    return _same(joined, torch.cat([_run(setup, [_row(setup, seed)], 2)[0] for seed in (0, 1)]))


def _scheduler(setup: Setup, exact: Setup, references: dict[str, Tensor], name: str) -> Values:
    """One scheduler: alone against company in bytes, and the number format's relative error after all steps.

    Euler ancestral draws its noise on the CPU in the network's number format. Where torch draws other numbers for each
    format, the error is that of another image; torch 2.14 draws float32's and rounds them.
    """
    original = setup.pipeline.scheduler
    scheduler = getattr(diffusers, name).from_config(original.config, **_SCHEDULERS[name])
    try:
        for one in (setup, exact):
            one.pipeline.register_modules(scheduler=scheduler)
        if name not in references:
            references[name] = _run(exact, [_row(exact, 1)], 1)[0]
        together = _run(setup, [_row(setup, 0), _row(setup, 1)], 2)[1]
        alone = _run(setup, [_row(setup, 1)], 2)[0]
    finally:
        for one in (setup, exact):
            one.pipeline.register_modules(scheduler=original)
    values = _same(together, alone)
    return values | {"relative_error": relative_error(alone, references[name])}
