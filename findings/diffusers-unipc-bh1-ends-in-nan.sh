#!/usr/bin/env bash
# diffusers==0.42.1, torch==2.14.1, Python 3.11, seen 2026-11-27.
#
# UniPCMultistepScheduler(solver_type="bh1") ends every run in NaN: its last step goes to a sigma of zero, the default of
# final_sigmas_type, where B(h) = h is infinite. The documentation recommends bh1 for unconditional sampling in fewer than
# ten steps, and no error is raised. With final_sigmas_type="sigma_min", and with bh2, all is finite.
#
# Output seen:
#     bh1, zero: not finite from step 8 of 8
#     bh1, sigma_min: finite
#     bh2, zero: finite
#     bh2, sigma_min: finite
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 'numpy<3'
cat > "$folder/show.py" <<'PYTHON'
import torch
from diffusers import UniPCMultistepScheduler


def run(solver_type: str, final_sigmas_type: str) -> str:
    scheduler = UniPCMultistepScheduler(
        solver_type=solver_type,
        final_sigmas_type=final_sigmas_type,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
    )
    scheduler.set_timesteps(8)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, timestep in enumerate(scheduler.timesteps, start=1):
        latents = scheduler.step(0.1 * latents, timestep, latents).prev_sample
        if not latents.isfinite().all():
            return f"not finite from step {index} of 8"
    return "finite"


found = {}
for solver in ("bh1", "bh2"):
    for final in ("zero", "sigma_min"):
        found[solver, final] = run(solver, final)
        print(f"{solver}, {final}: {found[solver, final]}")
assert found.pop(("bh1", "zero")) == "not finite from step 8 of 8", "the behaviour has changed"
assert set(found.values()) == {"finite"}, "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
