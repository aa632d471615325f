#!/usr/bin/env bash
# torch==2.14.1, Python 3.11, x86-64 with AVX-512, seen 2026-11-28.
#
# On the CPU, float32 group_norm of a channels-last tensor is two to three digits less exact than that of the same numbers
# in contiguous memory, here over 640×512 pixels with a mean of 3. A VAE of Stable Diffusion's kind has such a layer in
# every block, so its latents depend on the memory format alone.
#
# Output seen:
#     1 group: contiguous off by 5.9e-07, channels-last by 1.8e-04
#     4 groups: contiguous off by 7.8e-07, channels-last by 4.1e-04
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 'numpy<3'
cat > "$folder/show.py" <<'PYTHON'
import torch
from torch.nn.functional import group_norm

torch.set_num_threads(1)
pixels = torch.randn(1, 8, 640, 512, generator=torch.Generator().manual_seed(0)) + 3
for groups in (1, 4):
    exact = group_norm(pixels.double(), groups)
    error = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last)):
        error[name] = (group_norm(pixels.contiguous(memory_format=layout), groups) - exact).abs().max().item()
    plural = "" if groups == 1 else "s"
    print(f"{groups} group{plural}: contiguous off by {error['contiguous']:.1e}, channels-last by {error['channels-last']:.1e}")
    assert error["contiguous"] < 2e-6, "the behaviour has changed"
    assert error["channels-last"] > 50 * error["contiguous"], "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
