#!/usr/bin/env bash
# diffusers==0.42.1, torch==2.14.1, Python 3.11, seen 2026-11-28.
#
# DEIS, DPM-Solver++, SA-Solver and UniPC take num_train_timesteps as the number of steps without a word, and end in NaN
# half-way: set_timesteps(1000) rounds a spacing of 999 / 1000, so one timestep occurs twice. Between equal timesteps the
# solver divides by a difference of zero. DDIM and Euler are finite at 1000 steps, and all of them at 999.
#
# Output seen:
#     DEISMultistepScheduler: 1000 steps, 999 different, not finite from step 501; 999 steps: finite
#     DPMSolverMultistepScheduler: 1000 steps, 999 different, not finite from step 501; 999 steps: finite
#     SASolverScheduler: 1000 steps, 999 different, not finite from step 501; 999 steps: finite
#     UniPCMultistepScheduler: 1000 steps, 999 different, not finite from step 501; 999 steps: finite
#     DDIMScheduler: 1000 steps, 1000 different, finite; 999 steps: finite
#     EulerDiscreteScheduler: 1000 steps, 1000 different, finite; 999 steps: finite
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 'numpy<3'
cat > "$folder/show.py" <<'PYTHON'
import diffusers
import torch

BROKEN = ("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler", "UniPCMultistepScheduler")
WHOLE = ("DDIMScheduler", "EulerDiscreteScheduler")


def run(name: str, steps: int) -> tuple[int, str]:
    """Different timesteps, and how a run ends."""
    cls = getattr(diffusers, name)
    scheduler = cls(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    different = len(set(scheduler.timesteps.tolist()))
    for index, timestep in enumerate(scheduler.timesteps, start=1):
        latents = scheduler.step(0.1 * scheduler.scale_model_input(latents, timestep), timestep, latents).prev_sample
        if not latents.isfinite().all():
            return different, f"not finite from step {index}"
    return different, "finite"


for name in BROKEN + WHOLE:
    (different, full), (_, shorter) = run(name, 1000), run(name, 999)
    print(f"{name}: 1000 steps, {different} different, {full}; 999 steps: {shorter}")
    wanted = (999, "not finite from step 501") if name in BROKEN else (1000, "finite")
    assert (different, full, shorter) == (*wanted, "finite"), "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
