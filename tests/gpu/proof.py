"""The proof on a GPU: correctness, speed, the engine, training and the other networks, measured in one file.

    python tests/gpu/proof.py --part speed --dtype float16 --output proof.json --budget-s 500
    python tests/gpu/proof.py --device cpu --size tiny --output proof.json

Needs torch, diffusers, transformers, safetensors, numpy and Pillow; no Ray, no network, no weights: all networks are
randomly initialised on the device. Parts may run in several calls with one `--output`: results are merged, each is
written at once, and the table is printed from the file. What did not run is listed with its reason.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The profiler stays loaded between two uses: loaded again, it may miss the kernels of a CUDA graph captured before.
os.environ.setdefault("TEARDOWN_CUPTI", "0")
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, where it is not installed

import diffusers
import torch
import transformers
from proof_record import Record, Values
from proof_table import table

PARTS = ("speed", "correctness", "training", "engine", "networks")
DTYPES = ("float16", "bfloat16")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all, in this order")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; default: both, in this order")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds this text")
    parser.add_argument("--budget-s", type=float, default=420, help="seconds of each part")
    parser.add_argument("--workers", type=int, default=6, help="processes that compile at once; 0: nothing is compiled")
    parser.add_argument("--output", type=Path, default=Path("proof.json"))
    return parser.parse_args(words)


def machine(device: torch.device) -> Values:
    """What the numbers were measured on."""
    facts: Values = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": "none (CPU)",
    }
    if device.type == "cuda":
        facts |= {"card": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "driver": _driver()}
        facts["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    return facts


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def _part(name: str, record: Record, options: argparse.Namespace, device: torch.device) -> None:
    """Runs one part. Each imports what it needs itself, so that a missing package costs that part alone."""
    dtypes = options.dtype or DTYPES
    if name == "speed":
        from proof_speed import run_speed

        run_speed(record, options.size, device, dtypes, options.workers)
    elif name == "correctness":
        from proof_correctness import run_correctness

        run_correctness(record, options.size, device, dtypes, options.workers)
    elif name == "training":
        from proof_training import run_training

        run_training(record, options.size, device)
    elif name == "engine":
        from proof_engine import run_engine

        run_engine(record, options.size, device, dtypes[0], compiled=options.workers > 0)
    else:
        from proof_networks import run_networks

        run_networks(record, options.size, device)


def main(words: list[str] | None = None, show: Callable[[str], object] = print) -> int:
    """Runs the parts and prints the table. Exit code 2 where there is no such device."""
    options = arguments(words)
    command = shlex.join(["python", "tests/gpu/proof.py", *(sys.argv[1:] if words is None else words)])
    record = Record(options.output, command, options.only)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch sees no GPU here; nothing was measured", file=sys.stderr)
        return 2
    record.data["machine"] = machine(device)
    for name in options.part or PARTS:
        record.start_part(options.budget_s)
        try:
            _part(name, record, options, device)
        except Exception as error:  # a package that is missing here: the other parts run
            record.failed(f"{name}/part", error)
    record.write()
    show(table(record.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
