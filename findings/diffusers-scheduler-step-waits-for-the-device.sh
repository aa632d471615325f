#!/usr/bin/env bash
# diffusers==0.42.1, torch==2.14.1, Python 3.11, seen 2026-11-27.
#
# set_timesteps(n, device=...) puts the timesteps where the latents are, as the pipelines do. The tables of a scheduler
# (alphas_cumprod, sigmas) stay on the CPU, so that every step() reads its timestep back: on a GPU the host waits, and
# cannot launch ahead. On an H100 that was six synchronisations a row and step with DDIM. One would expect a step to be
# arithmetic on the device. With timesteps on the CPU the same step needs no reading back.
#
# Shown without a GPU, on torch's meta device, where whatever reads a value back raises.
#
# Output seen:
#     DDIMScheduler: timesteps on the device: RuntimeError; on the CPU: a step
#     DPMSolverMultistepScheduler: timesteps on the device: NotImplementedError; on the CPU: a step
#     UniPCMultistepScheduler: timesteps on the device: NotImplementedError; on the CPU: a step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 'numpy<3'
cat > "$folder/show.py" <<'PYTHON'
import diffusers
import torch


def step(name: str, device: str) -> str:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4, device=device)
    latents = torch.empty(1, 4, 8, 8, device="meta")
    try:
        scheduler.step(latents, scheduler.timesteps[0], latents)
    except (RuntimeError, NotImplementedError) as error:
        return type(error).__name__
    return "a step"


for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
    on_device, on_cpu = step(name, "meta"), step(name, "cpu")
    print(f"{name}: timesteps on the device: {on_device}; on the CPU: {on_cpu}")
    assert on_device.endswith("Error") and on_cpu == "a step", "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
